"""Three ways to reach a bench: HTTP, a Serve handle, the sequential runner. One set of methods."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Coroutine, Iterator
from http import HTTPStatus
from typing import Any, Protocol

import httpx
import httpx_sse

from wtb_core import errors
from wtb_core.sequential import BatchTestRunner

TIMEOUT_S = 30.0
RECONNECT_PAUSE_S = 0.5
RECONNECTS = 60
PAGE = 500

Json = dict[str, Any]


class Client(Protocol):
    """What a `TestBench` needs. Errors are ours, whatever the way."""

    def submit(self, spec: Json, idempotency_key: str | None) -> Json:
        """`{batch_id, status, executions}`."""
        ...

    def get_batch(self, batch_id: str) -> Json:
        """The batch as the HTTP contract says it."""
        ...

    def follow(self, batch_id: str, after: int) -> Iterator[Json]:
        """Every event above `after` until the batch has ended."""
        ...

    def executions(self, batch_id: str) -> Iterator[Json]:
        """The executions in order, with outputs."""
        ...

    def comparison(self, batch_id: str) -> Json:
        """The comparison so far."""
        ...

    def cancel(self, batch_id: str, reason: str) -> Json:
        """`{batch_id, status, changed}`."""
        ...

    def close(self) -> None:
        """Give everything free that was opened."""
        ...


class HttpClient:
    """A service at a URL."""

    def __init__(self, url: str, token: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=TIMEOUT_S)

    def submit(self, spec: Json, idempotency_key: str | None) -> Json:
        """See `Client`."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self.request("POST", "/v1/batches", json=spec, headers=headers)

    def get_batch(self, batch_id: str) -> Json:
        """See `Client`."""
        return self.request("GET", f"/v1/batches/{batch_id}")

    def follow(self, batch_id: str, after: int) -> Iterator[Json]:
        """See `Client`; a stream that is cut is taken up where it was."""
        failures = 0
        while True:
            try:
                for event in self._stream(batch_id, after):
                    if event.event == "end":
                        return
                    if event.event == "resume":
                        break
                    if event.event == "error":
                        problem = json.loads(event.data)
                        raise _to_error(httpx.Response(problem["status"], text=event.data))
                    if not event.data:
                        continue  # a heartbeat, which the parser gives an earlier event's id
                    failures = 0
                    item: Json = json.loads(event.data)
                    after = item["seq"]
                    yield item
            except (httpx.TransportError, errors.Unavailable) as error:
                failures += 1
                if failures > RECONNECTS:
                    raise errors.Unavailable(f"{self.url} does not answer: {error}") from error
            time.sleep(RECONNECT_PAUSE_S)

    def executions(self, batch_id: str) -> Iterator[Json]:
        """See `Client`."""
        cursor: str | None = None
        while True:
            params: dict[str, str | int] = {"limit": PAGE, "include": "output"}
            if cursor is not None:
                params["cursor"] = cursor
            page = self.request("GET", f"/v1/batches/{batch_id}/executions", params=params)
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def comparison(self, batch_id: str) -> Json:
        """See `Client`."""
        return self.request("GET", f"/v1/batches/{batch_id}/comparison")

    def cancel(self, batch_id: str, reason: str) -> Json:
        """See `Client`."""
        return self.request("POST", f"/v1/batches/{batch_id}/cancel", json={"reason": reason})

    def close(self) -> None:
        """See `Client`."""
        self._http.close()

    def request(self, method: str, path: str, **options: Any) -> Json:
        """One call.

        Raises:
            WtbError: what a problem document says.
            Unavailable: when nothing answers at the URL.
        """
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise errors.Unavailable(f"{self.url} does not answer: {error}") from error
        if response.is_error:
            raise _to_error(response)
        return response.json()

    def _stream(self, batch_id: str, after: int) -> Iterator[httpx_sse.ServerSentEvent]:
        with httpx_sse.connect_sse(
            self._http, "GET", f"/v1/batches/{batch_id}/events", params={"after": after}
        ) as source:
            if source.response.is_error:
                source.response.read()
                raise _to_error(source.response)
            yield from source.iter_sse()


class HandleClient:
    """The application's handle, from a driver, task or actor of any Ray namespace."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def submit(self, spec: Json, idempotency_key: str | None) -> Json:
        """See `Client`."""
        return self._call("submit_batch", spec, idempotency_key)

    def get_batch(self, batch_id: str) -> Json:
        """See `Client`."""
        return self._call("get_batch", batch_id)

    def follow(self, batch_id: str, after: int) -> Iterator[Json]:
        """See `Client`."""
        try:
            yield from self._handle.options(stream=True).stream_events.remote(batch_id, after)
        except errors.WtbError as error:
            raise _find_cause(error) from None

    def executions(self, batch_id: str) -> Iterator[Json]:
        """See `Client`."""
        cursor: str | None = None
        while True:
            page = self._call("list_executions", batch_id, None, None, None, "output", PAGE, cursor)
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def comparison(self, batch_id: str) -> Json:
        """See `Client`."""
        return self._call("get_comparison", batch_id)

    def cancel(self, batch_id: str, reason: str) -> Json:
        """See `Client`."""
        return self._call("cancel_batch", batch_id, reason)

    def close(self) -> None:
        """See `Client`; a handle needs no closing."""

    def _call(self, method: str, *arguments: Any) -> Json:
        try:
            return getattr(self._handle, method).remote(*arguments).result(timeout_s=TIMEOUT_S)
        except errors.WtbError as error:
            raise _find_cause(error) from None


class LocalClient:
    """The sequential runner on an event loop of its own, so that a run can be watched."""

    def __init__(self, runner: BatchTestRunner) -> None:
        self._runner = runner
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wtb-local")
        self._thread.daemon = True
        self._thread.start()
        self._turn = asyncio.Lock()
        self._runs: dict[str, asyncio.Task[None]] = {}

    def submit(self, spec: Json, idempotency_key: str | None) -> Json:
        """See `Client`; the batch starts when those before it have ended."""

        async def submit() -> Json:
            receipt = await self._runner.submit(spec, idempotency_key)
            if receipt.created:
                self._runs[receipt.batch_id] = asyncio.create_task(self._run(receipt.batch_id))
            return receipt._asdict()

        return self._wait(submit())

    def get_batch(self, batch_id: str) -> Json:
        """See `Client`."""
        return self._runner.read_batch(batch_id)

    def follow(self, batch_id: str, after: int) -> Iterator[Json]:
        """See `Client`; raises what ended the batch's run, if something did."""

        def check() -> None:
            run = self._runs.get(batch_id)
            if run is not None and run.done():
                if run.cancelled():
                    raise errors.Unavailable("the runner was closed")
                run.result()

        return self._runner.follow(batch_id, after, check)

    def executions(self, batch_id: str) -> Iterator[Json]:
        """See `Client`."""
        return self._runner.read_executions(batch_id)

    def comparison(self, batch_id: str) -> Json:
        """See `Client`."""
        return self._runner.read_comparison(batch_id)

    def cancel(self, batch_id: str, reason: str) -> Json:
        """See `Client`."""
        changed = self._wait(self._runner.cancel(batch_id, reason))
        status = self._runner.read_batch(batch_id)["status"]
        return {"batch_id": batch_id, "status": status, "changed": changed}

    def projects(self) -> list[Json]:
        """The projects that the runner finds."""
        return self._wait(self._runner.projects())

    def close(self) -> None:
        """See `Client`; ends what runs."""

        async def close() -> None:
            for run in self._runs.values():
                run.cancel()
            await asyncio.gather(*self._runs.values(), return_exceptions=True)
            await self._runner.close()

        self._wait(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _run(self, batch_id: str) -> None:
        async with self._turn:
            await self._runner.run(batch_id)

    def _wait[Result](self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _find_cause(error: errors.WtbError) -> errors.WtbError:
    """Our error without the remote traceback that Ray wraps around it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, errors.WtbError) else error


def _to_error(response: httpx.Response) -> errors.WtbError:
    """The error that a problem document stands for."""
    found: Any = None
    with contextlib.suppress(ValueError):
        found = response.json()
    body: Json = found if isinstance(found, dict) else {}
    cls = _OFFERED.get(str(body.get("type", "")).rpartition("#")[2])
    if cls is not None:
        with contextlib.suppress(TypeError, ValueError):  # it is of another version
            return cls(*body.get("arguments", ()))
    detail = str(body.get("detail", response.text[:500]))
    if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE:  # Serve's own, or a proxy's
        return errors.Unavailable(detail, int(response.headers.get("Retry-After", "1")))
    return errors.RequestRefused(response.status_code, detail)


_OFFERED: dict[str, type[errors.WtbError]] = {
    "invalid-spec": errors.InvalidSpec,
    "invalid-request": errors.InvalidRequest,
    "not-found": errors.NotFound,
    "conflict": errors.Conflict,
    "too-many-pending": errors.TooManyPending,
    "unavailable": errors.Unavailable,
    "project-error": errors.ProjectError,
}
"""Errors that cross HTTP as themselves, by the kind in a problem document's `type`."""
