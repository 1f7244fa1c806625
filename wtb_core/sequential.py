"""The fallback without Ray: the same ledger, the same engine, one execution at a time.

Scores and, per execution, the sequence of events are those of the served run. A data directory is
used by one runner at a time; a runner that starts finds the attempts of a dead one and ends them.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from wtb_core import forks
from wtb_core.attempts import Assignment
from wtb_core.checkpoint_store import CheckpointStore
from wtb_core.data import DataDir, hold
from wtb_core.engine import Engine
from wtb_core.filehistory import FileHistory
from wtb_core.files.blobs import BlobStore
from wtb_core.ids import new_batch_id, new_event_id, now_ms
from wtb_core.parameters import (
    LOG_STREAMS,
    PROJECT_VERSIONS,
    check_choice,
    check_limit,
    make_batch_filter,
    make_page,
    parse_cursor,
)
from wtb_core.projects import ProjectVersions, Registry
from wtb_core.report import BatchFold
from wtb_core.sandbox.ladder import Sandbox
from wtb_core.sandbox.supervisor import describe
from wtb_core.states import TERMINAL_BATCH
from wtb_core.store import acceptance, claims, endings, reuse, views
from wtb_core.store.database import migrate, open_engine
from wtb_core.store.ledger import Ledger
from wtb_core.store.records import Claimant, Finish, Lookup, Receipt, Trace
from wtb_core.store.rows import get_batch, parse_execution_id
from wtb_core.store.views import ExecutionFilter
from wtb_core.store.writer import Commit, Writer
from wtb_core.submission import DEFAULT_ADMISSION, check_key, expand, prepare, renew

LOCAL = "local"
RETRY_PAUSE_S = 0.05
CANCEL_LOOK_S = 0.2
PAGE = 500


class BatchTestRunner:
    """Runs batches in this process's children.

    Raises:
        Unavailable: when another runner uses the data directory.
    """

    def __init__(self, data_dir: Path, root: Path, projects: Sequence[str]) -> None:
        data = DataDir(data_dir.absolute()).create()
        self._lock = hold(data.path / "runner.lock", "runner")
        migrate(data.store_url)
        self._engine = open_engine(data.store_url)
        self._ledger = Ledger(producer="sequential", admission=DEFAULT_ADMISSION)
        self._news = threading.Condition()
        self._blobs = BlobStore(data.blobs)
        self._checkpoints = CheckpointStore(data.checkpoints)
        sandbox = Sandbox(data.runs, hidden=data.hidden)
        self._versions = ProjectVersions(self._blobs, data.bases, sandbox)
        self._runner = Engine(
            *(data.runs, self._blobs, self._checkpoints, self._find_setup, sandbox),
            self._versions.discard,
        )
        self._registry = Registry(root, projects, self._versions, partial(describe, sandbox))
        self._files = FileHistory(self._blobs, self._versions)
        self._writer = Writer(self._engine, self._ledger, self._announce)

    async def submit(self, spec: object, idempotency_key: str | None = None) -> Receipt:
        """Check and store a batch; see `submission.prepare` for what it raises."""
        batch = await prepare(
            spec, self._registry, admission=DEFAULT_ADMISSION, idempotency_key=idempotency_key
        )
        return await self._writer.write(lambda c: acceptance.accept(self._ledger, c, batch))

    async def expand(self, spec: object) -> dict[str, Any]:
        """What submitting would make; see `submission.expand`."""
        return await expand(spec, self._registry, admission=DEFAULT_ADMISSION)

    async def run(self, batch_id: str) -> None:
        """Run a batch to its end."""
        await self._writer.write(
            lambda c: endings.lose(
                self._ledger, c, LOCAL, "RunnerDied", "the runner before this one ended"
            )
        )
        while True:
            await self._continue(batch_id)
            assignment = await self._claim(batch_id)
            if assignment is not None:
                await self._carry_out(assignment)
            elif self.read_batch(batch_id)["status"] in TERMINAL_BATCH:
                return
            else:
                await asyncio.sleep(RETRY_PAUSE_S)

    async def cancel(self, batch_id: str, reason: str) -> bool:
        """Stop a batch; false when it had ended."""
        return await self._writer.write(lambda c: endings.cancel(c, batch_id, reason, "user"))

    async def retry(
        self, batch_id: str, project_version: str = "same", idempotency_key: str | None = None
    ) -> Receipt:
        """Make the batch that tries another one again; see `reuse.renew` for what it raises."""
        check_choice("project_version", project_version, PROJECT_VERSIONS)
        if idempotency_key is not None:
            check_key(idempotency_key)
        with self._reading() as connection:
            batch = reuse.renew(connection, batch_id, new_batch_id(), idempotency_key, None)
        if project_version == "latest":
            batch = await renew(batch, self._registry, admission=DEFAULT_ADMISSION)
        return await self._writer.write(lambda c: acceptance.accept(self._ledger, c, batch))

    async def fork(
        self, execution_id: str, asked: Mapping[str, Any], idempotency_key: str | None = None
    ) -> Receipt:
        """Make the batch that goes on from a checkpoint; see `forks.make` for what it raises."""
        if idempotency_key is not None:
            check_key(idempotency_key)
        forks.check_attempt(asked.get("attempt"))
        with self._reading() as connection:
            source = views.read_fork_source(connection, execution_id, asked.get("attempt"))
        batch = await forks.make(asked, source, self._files, self._registry)
        batch = batch._replace(idempotency_key=idempotency_key)
        return await self._writer.write(lambda c: acceptance.accept(self._ledger, c, batch))

    async def cancel_execution(self, execution_id: str, reason: str) -> bool:
        """Stop one execution; false when it had ended."""
        return await self._writer.write(
            lambda c: endings.cancel_execution(self._ledger, c, execution_id, reason)
        )

    async def projects(self) -> list[dict[str, Any]]:
        """The projects with what they offer and their problems."""
        await self._registry.refresh()
        return self._registry.summaries()

    async def close(self) -> None:
        """End all processes and give the data directory free."""
        await self._runner.close()
        await self._writer.close()
        self._checkpoints.close()
        self._engine.dispose()
        self._lock.close()

    # -- reading, from any thread --------------------------------------------------------------

    def read_batch(self, batch_id: str) -> dict[str, Any]:
        """See `views.read_batch`."""
        with self._reading() as connection:
            return views.read_batch(connection, batch_id, now_ms())

    def read_batches(
        self,
        status: str | None = None,
        project: str | None = None,
        label: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        """A page of batches, newest first: `{items, next_cursor}`. `label` is `key=value`."""
        check_limit(limit)
        wanted = make_batch_filter(status, project, label)
        after = parse_cursor(cursor)
        with self._reading() as connection:
            items, more = views.read_batches(connection, now_ms(), wanted, after=after, limit=limit)
        return make_page(items, more)

    def read_execution(self, execution_id: str) -> dict[str, Any]:
        """One execution with its output and its attempts; see `views.read_execution`."""
        with self._reading() as connection:
            item = views.read_execution(connection, execution_id)
            batch_id, number = parse_execution_id(execution_id)
            outputs = views.read_outputs(connection, batch_id, [number])
        return {**item, "output": views.load_output(outputs[number], self._blobs)}

    def read_log(
        self, execution_id: str, stream: str, attempt: int | None = None
    ) -> dict[str, Any]:
        """What an attempt wrote; see `views.load_log`. A reused execution has its origin's."""
        check_choice("stream", stream, LOG_STREAMS)
        with self._reading() as connection:
            item = views.read_origin(connection, execution_id)
        return views.load_log(views.pick_attempt(item, attempt), stream, self._blobs)

    def read_checkpoints(
        self, execution_id: str, attempt: int | None, limit: int, cursor: str | None
    ) -> dict[str, Any]:
        """A page of an attempt's checkpoints; see `FileHistory.list_checkpoints`."""
        trace = self._read_trace(execution_id, attempt)
        page = self._files.list_checkpoints(trace, limit, cursor)
        return {"execution_id": execution_id, **page}

    def read_changes(
        self,
        execution_id: str,
        points: tuple[str, str],
        attempt: int | None,
        limit: int,
        cursor: str | None,
        *,
        diff: bool,
    ) -> dict[str, Any]:
        """A page of what differs between two points; see `FileHistory.list_changes`."""
        trace = self._read_trace(execution_id, attempt)
        page = self._files.list_changes(trace, *points, diff=diff, limit=limit, cursor=cursor)
        return {"execution_id": execution_id, **page}

    def read_file(self, execution_id: str, path: str, at: str, attempt: int | None) -> bytes:
        """The bytes of a file; see `FileHistory.find_file`."""
        trace = self._read_trace(execution_id, attempt)
        return self._files.find_file(trace, path, at).blob.read_bytes()

    def follow(
        self, batch_id: str, after: int, check: Callable[[], None] = lambda: None
    ) -> Iterator[dict[str, Any]]:
        """Every event above `after`, waiting for more until the batch has ended or `check` raises.

        `check` is called before each wait.
        """
        while True:
            with self._reading() as connection:
                page, ended = views.read_events(connection, batch_id, after, PAGE)
            yield from page.items
            if ended:
                return
            if page.items:
                after = page.items[-1]["seq"]
            else:
                check()
                with self._news:
                    self._news.wait(CANCEL_LOOK_S)

    def read_executions(self, batch_id: str) -> Iterator[dict[str, Any]]:
        """A batch's executions in order, with their outputs."""
        after: int | None = -1
        while after is not None:
            with self._reading() as connection:
                items, more = views.read_executions(
                    connection, batch_id, ExecutionFilter(), after=after, limit=PAGE
                )
                numbers = range(after + 1, after + 1 + len(items))
                outputs = views.read_outputs(connection, batch_id, list(numbers))
            for number, item in zip(numbers, items, strict=True):
                yield {**item, "output": views.load_output(outputs[number], self._blobs)}
            after = more

    def read_comparison(self, batch_id: str) -> dict[str, Any]:
        """The comparison as far as the events go."""
        fold = BatchFold()
        with self._reading() as connection:
            get_batch(connection, batch_id)
            while page := views.read_events(connection, batch_id, fold.seq, PAGE)[0].items:
                for event in page:
                    fold.feed(event)
        return {"batch_id": batch_id, "status": fold.status, **fold.comparison()}

    # -- inside --------------------------------------------------------------------------------

    def _reading(self) -> Connection:
        return self._engine.connect().execution_options(read_only=True)

    def _read_trace(self, execution_id: str, attempt: int | None) -> Trace:
        with self._reading() as connection:
            return views.read_trace(connection, execution_id, attempt)

    async def _continue(self, batch_id: str) -> None:
        """Deadlines, and the chunks of what is too large for one transaction."""
        with self._reading() as connection:
            overdue = batch_id in endings.find_overdue(self._ledger, connection)
            unsettled = batch_id in endings.find_unsettled(connection)
        if overdue:
            await self._writer.write(
                lambda c: endings.cancel(c, batch_id, "batch_timeout is over", "deadline")
            )
        if unsettled or overdue:
            await self._writer.write(lambda c: endings.continue_batch(self._ledger, c, batch_id))

    async def _claim(self, batch_id: str) -> Assignment | None:
        """The next execution; one that was lost goes on from its last checkpoint."""
        claimant = Claimant(new_event_id(), LOCAL, LOCAL)
        while True:
            answer = await self._writer.write(
                lambda c, who=claimant: claims.claim(self._ledger, c, who, batch_id)
            )
            if not isinstance(answer, Lookup):
                return answer
            offer = await self._runner.find_offer(answer)
            claimant = claimant._replace(offers=(*claimant.offers, offer))

    async def _carry_out(self, assignment: Assignment) -> None:
        watching = asyncio.create_task(self._watch_for_cancel(assignment))
        try:
            outcome = await self._runner.execute(assignment)
        finally:
            watching.cancel()
        size = None if outcome.output is None else len(outcome.output.encode())
        finish = Finish(
            event_id=new_event_id(),
            execution_id=assignment.execution_id,
            attempt=assignment.attempt,
            replica_id=LOCAL,
            actor_id=LOCAL,
            outcome=outcome,
            output_bytes=size,
        )
        await self._writer.write(lambda c: endings.finish(self._ledger, c, finish))
        if not outcome.is_lost:
            await self._runner.forget(assignment)

    async def _watch_for_cancel(self, assignment: Assignment) -> None:
        while True:
            await asyncio.sleep(CANCEL_LOOK_S)
            await self._continue(assignment.batch_id)
            with self._reading() as connection:
                wanted = (assignment.execution_id, assignment.attempt) in (
                    endings.find_wanted_attempts(connection, LOCAL)
                )
            if not wanted:
                await self._runner.cancel(
                    assignment.execution_id, assignment.attempt, "cancelled on request"
                )
                return

    async def _find_setup(self, _project: str, version: str) -> Any:
        return await self._versions.prepare(version)

    def _announce(self, _: Commit) -> None:
        with self._news:
            self._news.notify_all()
