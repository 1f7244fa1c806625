"""The application's face: handle methods, and the HTTP routes over them.

It stores nothing itself. A submission is checked here, against the description of a project that a
child process made, and is durable when the collector has answered.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ray import serve
from starlette.responses import Response

from deployments import receipts
from deployments.attachments import make_attachment
from deployments.calls import Handle, call
from deployments.comparisons import Comparisons
from deployments.executor_pool import ExecutorPool
from deployments.logs import quieten
from deployments.outputs import Outputs
from deployments.pool_watcher import PoolLimits
from deployments.sse import EventStreams
from wtb_core import forks
from wtb_core.data import DataDir
from wtb_core.errors import NotFound, WtbError
from wtb_core.filehistory import FileHistory
from wtb_core.files.blobs import BlobStore
from wtb_core.parameters import (
    EXECUTION_STATES,
    LOG_STREAMS,
    PROJECT_VERSIONS,
    check_after,
    check_choice,
    check_limit,
    check_wait,
    cut_page,
    make_batch_filter,
    make_page,
    parse_cursor,
)
from wtb_core.projects import ProjectVersions, Registry
from wtb_core.sandbox.ladder import Sandbox
from wtb_core.sandbox.supervisor import describe
from wtb_core.store.records import ForkSource, NewBatch, Receipt, Trace
from wtb_core.store.views import ExecutionFilter, load_log, pick_attempt
from wtb_core.submission import check_key, expand, prepare, renew

logger = logging.getLogger("ray.serve")


class Settings(NamedTuple):
    """What the ingress is configured with; paths are absolute, globs relative to `root`.

    `tokens` are references by user, never the tokens themselves.
    """

    data: DataDir
    root: str
    projects: list[str]
    max_pending_executions: int
    max_body_bytes: int
    tokens: dict[str, str]


class BatchIngress:
    """Deployment class. Only this one is reached from outside."""

    def __init__(
        self,
        collector: Handle,
        executor: Handle,
        settings: Settings,
        limits: PoolLimits,
    ) -> None:
        data = settings.data.create_on_node()
        self.settings = settings
        self._collector = collector
        self._blobs = BlobStore(data.blobs)
        sandbox = Sandbox(data.bases, hidden=data.hidden)
        versions = ProjectVersions(self._blobs, data.bases, sandbox)
        look = partial(describe, sandbox)
        self._registry = Registry(Path(settings.root), settings.projects, versions, look)
        self._files = FileHistory(self._blobs, versions)
        self._streams = EventStreams(self._read_page)
        self._comparisons = Comparisons(self._read_page)
        self._outputs = Outputs(collector, self._blobs)
        quieten()
        app_name = serve.get_replica_context().app_name
        self._pool = ExecutorPool(
            *(collector, executor, app_name, limits), settings.max_pending_executions
        )
        self._tasks = [*self._pool.start(), asyncio.create_task(self._refresh_projects())]

    # -- handle methods ------------------------------------------------------------------------

    async def submit_batch(
        self,
        spec: dict[str, Any],
        idempotency_key: str | None = None,
        dry_run: bool = False,  # noqa: FBT001, FBT002 - handles pass positions
        submitted_by: str | None = None,
    ) -> dict[str, Any]:
        """Check and store a batch; with `dry_run` only say what it would run.

        Returns:
            `{batch_id, status, executions, links, created}`, or for a dry run `{dry_run, project,
            project_version, executions, cases, repetitions, evaluators, baseline, variants, spec}`.

        Raises:
            InvalidSpec: with all problems; nothing was stored.
            Conflict: when the key belongs to another spec.
            TooManyPending: when the admission limit is reached.
        """
        admission = self.settings.max_pending_executions
        if dry_run:
            return await expand(spec, self._registry, admission=admission)
        batch = await prepare(
            spec,
            self._registry,
            admission=admission,
            idempotency_key=idempotency_key,
            submitted_by=submitted_by,
        )
        return receipts.describe(await self._accept(batch))

    async def retry_batch(
        self,
        batch_id: str,
        project_version: str = "same",
        idempotency_key: str | None = None,
        submitted_by: str | None = None,
    ) -> dict[str, Any]:
        """Make a batch that takes over what succeeded in an ended one and runs the rest.

        `project_version` is `same` or `latest`.

        Returns:
            `{batch_id, status, executions, links, created, reused, retry_of}`.

        Raises:
            NotFound: when there is no such batch.
            NotRetryable: when it has not ended, or everything in it succeeded.
            InvalidSpec: when the latest version has lost what the spec names.
            Conflict, TooManyPending: as for `submit_batch`.
        """
        check_choice("project_version", project_version, PROJECT_VERSIONS)
        if idempotency_key is not None:
            check_key(idempotency_key)
        batch: NewBatch = await call(
            self._collector, "renew", batch_id, idempotency_key, submitted_by
        )
        if project_version == "latest":
            admission = self.settings.max_pending_executions
            batch = await renew(batch, self._registry, admission=admission)
        receipt = await self._accept(batch)
        return receipts.describe(receipt) | {"reused": receipt.reused, "retry_of": batch_id}

    async def fork_execution(
        self,
        execution_id: str,
        checkpoint_id: str,
        state: dict[str, Any] | None = None,
        nodes: dict[str, str] | None = None,
        config: dict[str, Any] | None = None,
        attempt: int | None = None,
        idempotency_key: str | None = None,
        submitted_by: str | None = None,
    ) -> dict[str, Any]:
        """Make a batch of one execution that goes on from a checkpoint with its state and files.

        `state` goes through the graph's reducers; `nodes` and `config` go over the variant's own.
        Without an `attempt` it is the latest that ended, of the execution that ran.

        Returns:
            `{batch_id, status, executions, links, created, forked_from}`.

        Raises:
            NotFound: when there is no such execution, attempt or checkpoint.
            NotForkable: when the attempt runs or left no history, or it is no fork point.
            InvalidSpec: with all problems; nothing was stored.
            Conflict, TooManyPending: as for `submit_batch`.
        """
        asked = {
            "checkpoint_id": checkpoint_id,
            "state": state,
            "nodes": nodes,
            "config": config,
            "attempt": attempt,
        }
        forks.check_attempt(attempt)
        if idempotency_key is not None:
            check_key(idempotency_key)
        source: ForkSource = await call(self._collector, "get_fork_source", execution_id, attempt)
        batch = await forks.make(asked, source, self._files, self._registry)
        batch = batch._replace(idempotency_key=idempotency_key, submitted_by=submitted_by)
        receipt = await self._accept(batch)
        return receipts.describe(receipt) | {"forked_from": forks.describe(batch)}

    async def get_batch(self, batch_id: str) -> dict[str, Any]:
        """One batch as `GET /v1/batches/{id}` answers it."""
        return await call(self._collector, "get_batch", batch_id)

    async def list_batches(
        self,
        status: str | None = None,
        project: str | None = None,
        label: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        """Batches, newest first: `{items, next_cursor}`. `label` is `key=value`."""
        check_limit(limit)
        wanted = make_batch_filter(status, project, label)
        after = parse_cursor(cursor)
        return make_page(*await call(self._collector, "list_batches", after, limit, wanted))

    async def read_events(
        self, batch_id: str, after: int = 0, limit: int = 100, wait_ms: int = 0
    ) -> dict[str, Any]:
        """A page of events: `{items, next_after, ended}`."""
        check_limit(limit)
        check_after(after)
        check_wait(wait_ms)
        items, ended = await self._read_page(batch_id, after, limit, wait_ms)
        next_after = items[-1]["seq"] if items else after
        return {"items": items, "next_after": next_after, "ended": ended}

    async def stream_events(self, batch_id: str, after: int = 0) -> AsyncIterator[dict[str, Any]]:
        """Every event above `after`, live, until the batch has ended."""
        check_after(after)
        async with aclosing(self._streams.follow(batch_id, after)) as chunks:
            async for chunk in chunks:
                for event in chunk:
                    yield event

    async def list_executions(
        self,
        batch_id: str,
        status: str | None = None,
        variant: str | None = None,
        case_id: str | None = None,
        include: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        """A batch's executions in order: `{items, next_cursor}`.

        With `include="output"` a page ends early when its outputs grow large.
        """
        check_limit(limit)
        check_choice("status", status, EXECUTION_STATES)
        check_choice("include", include, ("output",))
        wanted = ExecutionFilter(status, variant, case_id)
        after = parse_cursor(cursor)
        items, more = await call(
            self._collector,
            "list_executions",
            batch_id,
            wanted,
            -1 if after is None else after,
            limit,
        )
        if include == "output":
            items, more = await self._outputs.include(batch_id, items, more)
        return make_page(items, more)

    async def get_execution(self, execution_id: str) -> dict[str, Any]:
        """One execution with its output and its attempts."""
        item = await call(self._collector, "get_execution", execution_id)
        with_output, _ = await self._outputs.include(item["batch_id"], [item], None)
        return with_output[0]

    async def get_output(self, execution_id: str) -> Any:
        """The output of an execution, a JSON value.

        Raises:
            NotFound: when there is no such execution, or it has no output.
        """
        item = await self.get_execution(execution_id)
        if item["output_bytes"] is None:
            raise NotFound("output of execution", execution_id)
        return item["output"]

    async def list_attempts(
        self, execution_id: str, limit: int = 100, cursor: str | None = None
    ) -> dict[str, Any]:
        """An execution's own attempts, oldest first: `{items, next_cursor}`."""
        item = await call(self._collector, "get_execution", execution_id)
        return cut_page(item["attempts"], limit, cursor)

    async def list_nodes(
        self,
        execution_id: str,
        attempt: int | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        """The node runs of an attempt, the latest that ended unless one is named.

        Returns:
            `{attempt, items: [{name, superstep, start_ms, end_ms, error}], next_cursor}`.
        """
        item = await call(self._collector, "get_origin", execution_id)
        found = pick_attempt(item, attempt)
        return {"attempt": found["attempt"], **cut_page(found["nodes"], limit, cursor)}

    async def read_log(
        self, execution_id: str, stream: str, attempt: int | None = None
    ) -> dict[str, Any]:
        """What an attempt wrote to `stdout` or `stderr`: `{attempt, stream, text, truncated}`."""
        check_choice("stream", stream, LOG_STREAMS)
        item = await call(self._collector, "get_origin", execution_id)
        return await asyncio.to_thread(load_log, pick_attempt(item, attempt), stream, self._blobs)

    async def list_checkpoints(
        self,
        execution_id: str,
        attempt: int | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        """The checkpoints of an attempt, oldest first; none while it runs.

        Returns:
            `{execution_id, attempt, items, next_cursor}`.
        """
        check_limit(limit)
        trace = await self._get_trace(execution_id, attempt)
        page = await asyncio.to_thread(self._files.list_checkpoints, trace, limit, cursor)
        return {"execution_id": execution_id, **page}

    async def list_files(
        self,
        execution_id: str,
        from_: str = "start",
        to: str = "final",
        attempt: int | None = None,
        diff: bool = False,  # noqa: FBT001, FBT002 - handles pass positions
        limit: int = 100,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        """The paths that differ between two points: checkpoints, `base`, `start` or `final`.

        Returns:
            `{execution_id, attempt, from, to, items, next_cursor, counts}`; see
            `FileHistory.list_changes`.

        Raises:
            NotFound: when there is no such point, or its files are not known.
        """
        check_limit(limit)
        trace = await self._get_trace(execution_id, attempt)
        page = await asyncio.to_thread(
            self._files.list_changes, trace, from_, to, diff=diff, limit=limit, cursor=cursor
        )
        return {"execution_id": execution_id, **page}

    async def read_file(
        self, execution_id: str, path: str, at: str = "final", attempt: int | None = None
    ) -> dict[str, Any]:
        """A file of at most 64 MiB: `{execution_id, attempt, path, at, size_bytes, mode, data}`.

        Raises:
            NotFound, NotAFile, InvalidRequest: see `FileHistory.read_file`.
        """
        trace = await self._get_trace(execution_id, attempt)
        found = await asyncio.to_thread(self._files.read_file, trace, path, at)
        return {"execution_id": execution_id, **found}

    async def get_comparison(self, batch_id: str) -> dict[str, Any]:
        """Per variant: n, succeeded, failed by kind, each score's mean and n."""
        return await self._comparisons.get(batch_id)

    async def cancel_batch(
        self, batch_id: str, reason: str = "cancelled on request"
    ) -> dict[str, Any]:
        """Stop a batch: `{batch_id, status, changed}`."""
        return await call(self._collector, "cancel_batch", batch_id, reason, "user")

    async def cancel_execution(
        self, execution_id: str, reason: str = "cancelled on request"
    ) -> dict[str, Any]:
        """Stop one execution: `{execution_id, status, changed}`."""
        return await call(self._collector, "cancel_execution", execution_id, reason)

    async def list_projects(self, limit: int = 100, cursor: str | None = None) -> dict[str, Any]:
        """The projects with what they offer and their problems: `{items, next_cursor}`."""
        await self._registry.refresh()
        return cut_page(self._registry.summaries(), limit, cursor)

    async def get_project(self, name: str) -> dict[str, Any]:
        """One project with what it offers and its problems.

        Raises:
            NotFound: when there is no such project.
        """
        await self._registry.refresh()
        for item in self._registry.summaries():
            if item["name"] == name:
                return item
        raise NotFound("project", name)

    async def get_pool(self) -> dict[str, Any]:
        """Replicas, slots, queues and backpressure."""
        return await self._pool.describe()

    async def read_pool_events(
        self, after: int = 0, limit: int = 100, wait_ms: int = 0
    ) -> dict[str, Any]:
        """A page of the stream `pool`: `{items, next_after, ended}`."""
        check_limit(limit)
        check_after(after)
        check_wait(wait_ms)
        items = await call(self._collector, "read_pool_events", after, limit, wait_ms)
        next_after = items[-1]["seq"] if items else after
        return {"items": items, "next_after": next_after, "ended": False}

    async def check_ready(self) -> dict[str, Any]:
        """Whether batches can be accepted and run, with what stands in the way."""
        problems: list[str] = []
        try:
            problems += await self._pool.find_problems()
        except WtbError as error:
            problems.append(str(error))
        projects = [
            f"project {item['name']}: {problem}"
            for item in self._registry.summaries()
            for problem in item["problems"]
        ]
        return {"ready": not problems, "problems": problems, "project_problems": projects}

    # -- for the routes ------------------------------------------------------------------------

    def respond_with_events(self, batch_id: str, after: int) -> Response:
        """The HTTP answer that streams a batch's events, live."""
        return self._streams.respond(batch_id, after)

    async def respond_with_file(
        self, execution_id: str, path: str, at: str, attempt: int | None
    ) -> Response:
        """The HTTP answer that is a file of any size."""
        trace = await self._get_trace(execution_id, attempt)
        return make_attachment(await asyncio.to_thread(self._files.find_file, trace, path, at))

    # -- inside --------------------------------------------------------------------------------

    async def _accept(self, batch: NewBatch) -> Receipt:
        receipt: Receipt = await call(self._collector, "accept", batch)
        logger.info(
            "batch %s of %d executions is accepted",
            receipt.batch_id,
            receipt.executions,
            extra={"batch_id": receipt.batch_id, "submitted_by": batch.submitted_by},
        )
        return receipt

    async def _get_trace(self, execution_id: str, attempt: int | None) -> Trace:
        return await call(self._collector, "get_trace", execution_id, attempt)

    async def _read_page(
        self, batch_id: str, after: int, limit: int, wait_ms: int
    ) -> tuple[list[dict[str, Any]], bool]:
        return await call(self._collector, "read_events", batch_id, after, limit, wait_ms)

    async def _refresh_projects(self) -> None:
        try:
            await self._registry.refresh()
        except OSError:
            logger.exception("the projects could not be read; the next submission tries again")
