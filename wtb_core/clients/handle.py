"""The application's handle, from a driver, task or actor of any Ray namespace."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator
from http import HTTPStatus
from typing import Any

from wtb_core import errors
from wtb_core.clients.contract import Json
from wtb_core.clients.http import SUBMIT_TIMEOUT_S, TIMEOUT_S
from wtb_core.clients.repeating import PAGE, follow_streams, new_key, repeat, walk_pages

FORK_FIELDS = ("checkpoint_id", "state", "nodes", "config", "attempt")
SILENCE_S = 60.0
"""How long a handle's stream may say nothing before it is asked anew; it has no heartbeats."""


class HandleClient:
    """The application's handle, from a driver, task or actor of any Ray namespace."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def submit(self, spec: Json, idempotency_key: str | None) -> Json:
        """See `Client`."""
        key = idempotency_key or new_key()
        return await self._call("submit_batch", spec, key, timeout_s=SUBMIT_TIMEOUT_S)

    async def expand(self, spec: Json) -> Json:
        """See `Client`."""
        return await self._call("submit_batch", spec, None, True, timeout_s=SUBMIT_TIMEOUT_S)

    async def retry(self, batch_id: str, project_version: str, idempotency_key: str | None) -> Json:
        """See `Client`."""
        key = idempotency_key or new_key()
        return await self._call(
            "retry_batch", batch_id, project_version, key, timeout_s=SUBMIT_TIMEOUT_S
        )

    async def fork(self, execution_id: str, asked: Json, idempotency_key: str | None) -> Json:
        """See `Client`."""
        key = idempotency_key or new_key()
        fields = [asked.get(name) for name in FORK_FIELDS]
        return await self._call(
            "fork_execution", execution_id, *fields, key, timeout_s=SUBMIT_TIMEOUT_S
        )

    async def get_batch(self, batch_id: str) -> Json:
        """See `Client`."""
        return await self._call("get_batch", batch_id)

    async def list_batches(
        self,
        status: str | None,
        project: str | None,
        label: str | None,
        limit: int,
        cursor: str | None,
    ) -> Json:
        """See `Client`."""
        return await self._call("list_batches", status, project, label, limit, cursor)

    def follow(self, batch_id: str, after: int) -> AsyncGenerator[Json]:
        """See `Client`."""
        return follow_streams(lambda seq: self._stream(batch_id, seq), after)

    def executions(self, batch_id: str) -> AsyncGenerator[Json]:
        """See `Client`."""

        async def read_page(cursor: str | None) -> Json:
            return await self._call(
                "list_executions", batch_id, None, None, None, "output", PAGE, cursor
            )

        return walk_pages(read_page)

    async def get_execution(self, execution_id: str) -> Json:
        """See `Client`."""
        return await self._call("get_execution", execution_id)

    async def read_log(self, execution_id: str, stream: str, attempt: int | None) -> bytes:
        """See `Client`."""
        return (await self._call("read_log", execution_id, stream, attempt))["text"].encode()

    async def list_checkpoints(
        self, execution_id: str, attempt: int | None, cursor: str | None
    ) -> Json:
        """See `Client`."""
        return await self._call("list_checkpoints", execution_id, attempt, PAGE, cursor)

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
        return await self._call("list_files", execution_id, *points, attempt, diff, PAGE, cursor)

    async def read_file(self, execution_id: str, path: str, at: str, attempt: int | None) -> bytes:
        """See `Client`; at most 64 MiB."""
        return (await self._call("read_file", execution_id, path, at, attempt))["data"]

    async def comparison(self, batch_id: str) -> Json:
        """See `Client`."""
        return await self._call("get_comparison", batch_id)

    async def cancel(self, batch_id: str, reason: str) -> Json:
        """See `Client`."""
        return await self._call("cancel_batch", batch_id, reason)

    async def cancel_execution(self, execution_id: str, reason: str) -> Json:
        """See `Client`."""
        return await self._call("cancel_execution", execution_id, reason)

    async def projects(self) -> list[Json]:
        """See `Client`."""

        async def read_page(cursor: str | None) -> Json:
            return await self._call("list_projects", PAGE, cursor)

        return [item async for item in walk_pages(read_page)]

    async def close(self) -> None:
        """See `Client`; a handle needs no closing."""

    async def _call(self, method: str, *arguments: Any, timeout_s: float = TIMEOUT_S) -> Any:
        async def call() -> Any:
            with _ray_errors(method):
                response = getattr(self._handle, method).remote(*arguments)
                try:
                    async with asyncio.timeout(timeout_s):
                        return await response
                except BaseException as error:  # Serve cancels nothing when a wait ends
                    response.cancel()
                    if isinstance(error, TimeoutError):
                        what = f"{method} got no answer in {timeout_s:g} s"
                        raise errors.Unavailable(what) from None
                    raise

        return await repeat(call)

    async def _stream(self, batch_id: str, after: int) -> AsyncGenerator[Json | None]:
        """See `repeating.follow_streams`."""
        with _ray_errors("stream_events"):
            stream = self._handle.options(stream=True).stream_events.remote(batch_id, after)
            try:
                while True:
                    async with asyncio.timeout(SILENCE_S):
                        event = await anext(stream, None)
                    if event is None:
                        break
                    after = event["seq"]
                    yield event
            except TimeoutError:
                return
            finally:
                stream.cancel()
        page = await self._call("read_events", batch_id, after, 1, 0)
        if page["ended"] and not page["items"]:
            yield None


@contextlib.contextmanager
def _ray_errors(method: str) -> Generator[None]:
    """Ray's errors as ours; the core does not import ray, so they are known by their names."""
    try:
        yield
    except errors.WtbError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, errors.WtbError):  # without the remote traceback around it
            raise cause from None
        raise
    except Exception as error:
        names = {cls.__name__ for cls in type(error).__mro__ if cls.__module__.startswith("ray.")}
        if "RayTaskError" in names:
            detail = f"{method} failed: {str(error).strip().rpartition('\n')[2]}"
            raise errors.RequestRefused(HTTPStatus.INTERNAL_SERVER_ERROR, detail) from error
        if names:
            what = f"{method} got no answer: {type(error).__name__}"
            raise errors.Unavailable(what) from error
        raise
