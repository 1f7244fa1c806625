"""The application's face: handle methods, and the HTTP routes over them.

It stores nothing itself. A submission is checked here, against the description of a project that a
child process made, and is durable when the collector has answered.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple

from ray import serve
from starlette.responses import Response

from deployments.calls import Handle, call
from deployments.dispatcher import Dispatcher, quieten_rejections
from deployments.pool_policy import PoolLimits, PoolWatcher
from deployments.sse import EventStreams
from wtb_core.data import DataDir
from wtb_core.errors import InvalidRequest, WtbError
from wtb_core.files.blobs import BlobStore
from wtb_core.projects import ProjectVersions, Registry
from wtb_core.report import BatchFold
from wtb_core.sandbox.supervisor import describe
from wtb_core.store.records import Receipt
from wtb_core.store.rows import parse_execution_id
from wtb_core.store.views import ExecutionFilter, load_output
from wtb_core.submission import prepare

logger = logging.getLogger("ray.serve")

MAX_LIMIT = 1_000
MAX_WAIT_MS = 5_000
MAX_PAGE_OUTPUT_BYTES = 16 * 1024**2
KEPT_FOLDS = 32
EXECUTOR = "VariantExecutor"
_BATCH_STATES = ("pending", "running", "cancelling", "completed", "failed", "cancelled")
_EXECUTION_STATES = ("pending", "running", "succeeded", "failed", "cancelled")


class Settings(NamedTuple):
    """What the ingress is configured with; paths are absolute, globs relative to `root`."""

    data_dir: str
    root: str
    projects: list[str]
    max_pending_executions: int
    max_body_bytes: int


def links(batch_id: str) -> dict[str, str]:
    """Where a batch and what belongs to it are found."""
    base = f"/v1/batches/{batch_id}"
    return {
        "self": base,
        "events": f"{base}/events",
        "executions": f"{base}/executions",
        "comparison": f"{base}/comparison",
        "cancel": f"{base}/cancel",
    }


class BatchIngress:
    """Deployment class. Only this one is reached from outside."""

    def __init__(
        self,
        collector: Handle,
        executor: Handle,
        settings: Settings,
        limits: PoolLimits,
    ) -> None:
        data = DataDir(Path(settings.data_dir)).create()
        self.settings = settings
        self._limits = limits
        self._collector = collector
        self._blobs = BlobStore(data.blobs)
        versions = ProjectVersions(self._blobs, data.bases)
        self._registry = Registry(Path(settings.root), settings.projects, versions, describe)
        self._streams = EventStreams(self._read_page)
        self._folds: OrderedDict[str, BatchFold] = OrderedDict()
        app_name = serve.get_replica_context().app_name
        self._watcher = PoolWatcher(collector, app_name, EXECUTOR, limits)
        quieten_rejections()
        self._dispatcher = Dispatcher(
            collector, executor, self._watcher.count_slots, limits.max_queued
        )
        self._tasks = [
            asyncio.create_task(self._watcher.run_forever()),
            asyncio.create_task(self._dispatcher.run_forever()),
            asyncio.create_task(self._refresh_projects()),
        ]

    # -- handle methods ------------------------------------------------------------------------

    async def submit_batch(
        self, spec: dict[str, Any], idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """Check and store a batch.

        Returns:
            `{batch_id, status, executions, links, created}`.

        Raises:
            InvalidSpec: with all problems; nothing was stored.
            Conflict: when the key belongs to another spec.
            TooManyPending: when the admission limit is reached.
        """
        batch = await prepare(
            spec,
            self._registry,
            admission=self.settings.max_pending_executions,
            idempotency_key=idempotency_key,
        )
        receipt: Receipt = await call(self._collector, "accept", batch)
        return {
            "batch_id": receipt.batch_id,
            "status": receipt.status,
            "executions": receipt.executions,
            "created": receipt.created,
            "links": links(receipt.batch_id),
        }

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
        _check_limit(limit)
        _check_choice("status", status, _BATCH_STATES)
        pair = None
        if label is not None:
            key, separator, value = label.partition("=")
            if not separator:
                raise InvalidRequest("label", "give `key=value`")
            pair = (key, value)
        filters = {"status": status, "project": project, "label": pair}
        after = _parse_cursor(cursor)
        items, more = await call(self._collector, "list_batches", after, limit, filters)
        return {"items": items, "next_cursor": None if more is None else str(more)}

    async def read_events(
        self, batch_id: str, after: int = 0, limit: int = 100, wait_ms: int = 0
    ) -> dict[str, Any]:
        """A page of events: `{items, next_after, ended}`."""
        _check_limit(limit)
        if after < 0:
            raise InvalidRequest("after", "give a `seq` of at least 0")
        if not 0 <= wait_ms <= MAX_WAIT_MS:
            raise InvalidRequest("wait_ms", f"give 0 to {MAX_WAIT_MS} milliseconds")
        items, ended = await self._read_page(batch_id, after, limit, wait_ms)
        next_after = items[-1]["seq"] if items else after
        return {"items": items, "next_after": next_after, "ended": ended}

    async def stream_events(self, batch_id: str, after: int = 0) -> AsyncIterator[dict[str, Any]]:
        """Every event above `after`, live, until the batch has ended."""
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
        _check_limit(limit)
        _check_choice("status", status, _EXECUTION_STATES)
        _check_choice("include", include, ("output",))
        wanted = ExecutionFilter(status, variant, case_id)
        after = _parse_cursor(cursor)
        items, more = await call(
            self._collector,
            "list_executions",
            batch_id,
            wanted,
            -1 if after is None else after,
            limit,
        )
        if include == "output":
            items, more = await self._include_outputs(batch_id, items, more)
        return {"items": items, "next_cursor": None if more is None else str(more)}

    async def get_execution(self, execution_id: str) -> dict[str, Any]:
        """One execution with its output and its attempts."""
        item = await call(self._collector, "get_execution", execution_id)
        with_output, _ = await self._include_outputs(item["batch_id"], [item], None)
        return with_output[0]

    async def get_comparison(self, batch_id: str) -> dict[str, Any]:
        """Per variant: n, succeeded, failed by kind, each score's mean and n."""
        fold = self._folds.pop(batch_id, None) or BatchFold()
        while True:
            items, _ = await self._read_page(batch_id, fold.seq, MAX_LIMIT, 0)
            for event in items:
                fold.feed(event)
            if len(items) < MAX_LIMIT:
                break
        self._folds[batch_id] = fold
        while len(self._folds) > KEPT_FOLDS:
            self._folds.popitem(last=False)
        return {"batch_id": batch_id, "status": fold.status, **fold.comparison()}

    async def cancel_batch(
        self, batch_id: str, reason: str = "cancelled on request"
    ) -> dict[str, Any]:
        """Stop a batch: `{batch_id, status, changed}`."""
        return await call(self._collector, "cancel_batch", batch_id, reason, "user")

    async def list_projects(self) -> dict[str, Any]:
        """The projects with what they offer and their problems: `{items}`."""
        await self._registry.refresh()
        return {"items": self._registry.summaries()}

    async def get_pool(self) -> dict[str, Any]:
        """Replicas, slots and queues."""
        known = await call(self._collector, "get_pool")
        return {
            **known,
            "listed": [replica._asdict() for replica in self._watcher.replicas],
            "slots": self._watcher.count_slots(),
            "outstanding_permits": self._dispatcher.outstanding,
            "backpressure": self._dispatcher.under_pressure,
            "limits": self._limits._asdict(),
            "max_pending_executions": self.settings.max_pending_executions,
        }

    async def read_pool_events(
        self, after: int = 0, limit: int = 100, wait_ms: int = 0
    ) -> dict[str, Any]:
        """A page of the stream `pool`: `{items, next_after, ended}`."""
        _check_limit(limit)
        items = await call(self._collector, "read_pool_events", after, limit, wait_ms)
        next_after = items[-1]["seq"] if items else after
        return {"items": items, "next_after": next_after, "ended": False}

    async def check_ready(self) -> dict[str, Any]:
        """Whether batches can be accepted and run, with what stands in the way."""
        problems: list[str] = []
        try:
            pool = await call(self._collector, "get_pool")
            if not pool["replicas"]:
                problems.append("no executor replica is ready yet")
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

    # -- inside --------------------------------------------------------------------------------

    async def _read_page(
        self, batch_id: str, after: int, limit: int, wait_ms: int
    ) -> tuple[list[dict[str, Any]], bool]:
        return await call(self._collector, "read_events", batch_id, after, limit, wait_ms)

    async def _include_outputs(
        self, batch_id: str, items: list[dict[str, Any]], more: int | None
    ) -> tuple[list[dict[str, Any]], int | None]:
        taken: list[dict[str, Any]] = []
        size = 0
        for item in items:
            size += item["output_bytes"] or 0
            if taken and size > MAX_PAGE_OUTPUT_BYTES:
                more = parse_execution_id(taken[-1]["execution_id"])[1]
                break
            taken.append(item)
        numbers = [parse_execution_id(item["execution_id"])[1] for item in taken]
        outputs = await call(self._collector, "get_outputs", batch_id, numbers)
        return await asyncio.to_thread(self._add_outputs, taken, numbers, outputs), more

    def _add_outputs(
        self,
        items: list[dict[str, Any]],
        numbers: list[int],
        outputs: dict[int, tuple[str | None, str | None]],
    ) -> list[dict[str, Any]]:
        return [
            {**item, "output": load_output(outputs[number], self._blobs)}
            for item, number in zip(items, numbers, strict=True)
        ]

    async def _refresh_projects(self) -> None:
        try:
            await self._registry.refresh()
        except OSError:
            logger.exception("the projects could not be read; the next submission tries again")


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequest("limit", f"give 1 to {MAX_LIMIT}")


def _check_choice(parameter: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise InvalidRequest(parameter, f"give one of {', '.join(choices)}")


def _parse_cursor(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 15:
        raise InvalidRequest("cursor", "give a `next_cursor` of an earlier page")
    return int(cursor)
