"""The sequential runner, on the event loop of the caller."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from wtb_core import errors
from wtb_core.clients.contract import Json
from wtb_core.clients.repeating import PAGE
from wtb_core.sequential import BatchTestRunner
from wtb_core.states import TERMINAL_BATCH


class LocalClient:
    """The sequential runner, on the event loop of the caller."""

    def __init__(self, runner: BatchTestRunner) -> None:
        self._runner = runner
        self._turn = asyncio.Lock()
        self._runs: dict[str, asyncio.Task[None]] = {}

    async def submit(self, spec: Json, idempotency_key: str | None) -> Json:
        """See `Client`; the batch starts when those before it have ended."""
        return self._start(await self._runner.submit(spec, idempotency_key))

    async def expand(self, spec: Json) -> Json:
        """See `Client`."""
        return await self._runner.expand(spec)

    async def retry(self, batch_id: str, project_version: str, idempotency_key: str | None) -> Json:
        """See `Client`."""
        return self._start(await self._runner.retry(batch_id, project_version, idempotency_key))

    async def fork(self, execution_id: str, asked: Json, idempotency_key: str | None) -> Json:
        """See `Client`."""
        return self._start(await self._runner.fork(execution_id, asked, idempotency_key))

    async def get_batch(self, batch_id: str) -> Json:
        """See `Client`."""
        return await asyncio.to_thread(self._runner.read_batch, batch_id)

    async def list_batches(
        self,
        status: str | None,
        project: str | None,
        label: str | None,
        limit: int,
        cursor: str | None,
    ) -> Json:
        """See `Client`."""
        return await asyncio.to_thread(
            self._runner.read_batches, status, project, label, limit, cursor
        )

    async def follow(self, batch_id: str, after: int) -> AsyncGenerator[Json]:
        """See `Client`; a batch that an earlier runner left unfinished is run on.

        Raises what ended the batch's run, if something did.
        """
        status = (await self.get_batch(batch_id))["status"]
        if status not in TERMINAL_BATCH and batch_id not in self._runs:
            self._runs[batch_id] = asyncio.create_task(self._run(batch_id))
        is_followed = True

        def check() -> None:
            run = self._runs.get(batch_id)
            if not is_followed or (run is not None and run.done() and run.cancelled()):
                raise errors.Unavailable("the runner was closed")
            if run is not None and run.done():
                run.result()

        events = self._runner.follow(batch_id, after, check)
        try:
            while (event := await asyncio.to_thread(next, events, None)) is not None:
                yield event
        finally:
            is_followed = False

    async def executions(self, batch_id: str) -> AsyncGenerator[Json]:
        """See `Client`."""
        items = self._runner.read_executions(batch_id)
        while (item := await asyncio.to_thread(next, items, None)) is not None:
            yield item

    async def get_execution(self, execution_id: str) -> Json:
        """See `Client`."""
        return await asyncio.to_thread(self._runner.read_execution, execution_id)

    async def read_log(self, execution_id: str, stream: str, attempt: int | None) -> bytes:
        """See `Client`."""
        found = await asyncio.to_thread(self._runner.read_log, execution_id, stream, attempt)
        return found["text"].encode()

    async def list_checkpoints(
        self, execution_id: str, attempt: int | None, cursor: str | None
    ) -> Json:
        """See `Client`."""
        return await asyncio.to_thread(
            self._runner.read_checkpoints, execution_id, attempt, PAGE, cursor
        )

    async def list_files(
        self,
        execution_id: str,
        points: tuple[str, str],
        attempt: int | None,
        cursor: str | None,
        *,
        diff: bool,
    ) -> Json:
        """See `Client`."""
        return await asyncio.to_thread(
            self._runner.read_changes, execution_id, points, attempt, PAGE, cursor, diff=diff
        )

    async def read_file(self, execution_id: str, path: str, at: str, attempt: int | None) -> bytes:
        """See `Client`."""
        return await asyncio.to_thread(self._runner.read_file, execution_id, path, at, attempt)

    async def comparison(self, batch_id: str) -> Json:
        """See `Client`."""
        return await asyncio.to_thread(self._runner.read_comparison, batch_id)

    async def cancel(self, batch_id: str, reason: str) -> Json:
        """See `Client`."""
        changed = await self._runner.cancel(batch_id, reason)
        status = (await self.get_batch(batch_id))["status"]
        return {"batch_id": batch_id, "status": status, "changed": changed}

    async def cancel_execution(self, execution_id: str, reason: str) -> Json:
        """See `Client`."""
        changed = await self._runner.cancel_execution(execution_id, reason)
        status = (await self.get_execution(execution_id))["status"]
        return {"execution_id": execution_id, "status": status, "changed": changed}

    async def projects(self) -> list[Json]:
        """See `Client`."""
        return await self._runner.projects()

    async def close(self) -> None:
        """See `Client`; ends what runs."""
        for run in self._runs.values():
            run.cancel()
        await asyncio.gather(*self._runs.values(), return_exceptions=True)
        await self._runner.close()

    def _start(self, receipt: Any) -> Json:
        if receipt.created:
            self._runs[receipt.batch_id] = asyncio.create_task(self._run(receipt.batch_id))
        return receipt._asdict()

    async def _run(self, batch_id: str) -> None:
        async with self._turn:
            await self._runner.run(batch_id)
