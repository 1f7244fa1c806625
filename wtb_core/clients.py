"""Three ways to reach a bench: HTTP, a Serve handle, the sequential runner. One set of methods.

All are coroutines; `testbench` gives them a face for programs with an event loop and one for
programs without.

What is asked for twice is done once: a submission or a retry of a batch without an idempotency key
gets one here, so that every call may be repeated when its answer is lost. `Unavailable` is repeated
a few times, after the pause that the service asks for; a refused connection and `TooManyPending`
are not, because a caller knows better how long they are worth waiting for. A stream of events that
is cut is taken up after the last event seen.
"""

import asyncio
import contextlib
import json
import re
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import quote

import httpx
import httpx_sse

from wtb_core import errors
from wtb_core.sequential import BatchTestRunner
from wtb_core.states import TERMINAL_BATCH

CONNECT_TIMEOUT_S = 5.0
TIMEOUT_S = 30.0
SUBMIT_TIMEOUT_S = 120.0
"""Checking a hundred thousand cases takes a while, and so does describing a new project."""
SILENCE_S = 60.0
"""How long a handle's stream may say nothing before it is asked anew; it has no heartbeats."""
REPEATS = 2
MAX_PAUSE_S = 5
RECONNECT_PAUSE_S = 0.5
RECONNECTS = 60
PAGE = 500

Json = dict[str, Any]


class Client(Protocol):
    """What a bench needs. Errors are ours, whatever the way."""

    async def submit(self, spec: Json, idempotency_key: str | None) -> Json:
        """`{batch_id, status, executions}`."""
        ...

    async def expand(self, spec: Json) -> Json:
        """What submitting would make, without making it."""
        ...

    async def retry(self, batch_id: str, project_version: str, idempotency_key: str | None) -> Json:
        """`{batch_id, status, executions, reused, retry_of}` of the new batch."""
        ...

    async def get_batch(self, batch_id: str) -> Json:
        """The batch as the HTTP contract says it."""
        ...

    async def list_batches(
        self,
        status: str | None,
        project: str | None,
        label: str | None,
        limit: int,
        cursor: str | None,
    ) -> Json:
        """A page of batches, newest first: `{items, next_cursor}`."""
        ...

    def follow(self, batch_id: str, after: int) -> AsyncGenerator[Json]:
        """Every event above `after` until the batch has ended."""
        ...

    def executions(self, batch_id: str) -> AsyncGenerator[Json]:
        """The executions in order, with outputs."""
        ...

    async def get_execution(self, execution_id: str) -> Json:
        """One execution with its output and attempts."""
        ...

    async def read_log(self, execution_id: str, stream: str, attempt: int | None) -> bytes:
        """What an attempt wrote to `stdout` or `stderr`; null is the latest that ended."""
        ...

    async def comparison(self, batch_id: str) -> Json:
        """The comparison so far."""
        ...

    async def cancel(self, batch_id: str, reason: str) -> Json:
        """`{batch_id, status, changed}`."""
        ...

    async def cancel_execution(self, execution_id: str, reason: str) -> Json:
        """`{execution_id, status, changed}`."""
        ...

    async def projects(self) -> list[Json]:
        """The projects with what they offer and their problems."""
        ...

    async def close(self) -> None:
        """Give everything free that was opened."""
        ...


class HttpClient:
    """A service at a URL.

    Raises:
        InvalidRequest: when the URL or the token cannot be one.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        _check_url(self.url)
        headers: dict[str, str] = {}
        if token:
            if not token.isascii() or not token.isprintable():
                raise errors.InvalidRequest("token", "a token is printable ASCII text")
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            transport=transport,
            # Certificates take half a second to read; no redirect leads from http to https.
            verify=self.url.startswith("https:"),
            # A proxy of the environment does not lead to this machine.
            mounts={"all://127.0.0.1": None, "all://localhost": None},
        )

    async def identify(self) -> Json:
        """The readiness of the service, asked once.

        Raises:
            Unavailable: when nothing answers at the URL, or something else does.
        """
        try:
            response = await self._http.get("/readyz", timeout=CONNECT_TIMEOUT_S)
        except httpx.RequestError as error:
            raise self._silence(error) from error
        state = _read_object(response)
        if not isinstance(state.get("ready"), bool) or "project_problems" not in state:
            if _is_undeployed(response):
                raise errors.Unavailable(f"{self.url} is Ray Serve, still without the application")
            raise errors.Unavailable(f"what answers at {self.url} is not WTB Serve")
        return state

    async def submit(self, spec: Json, idempotency_key: str | None) -> Json:
        """See `Client`."""
        return await self._request(
            "POST",
            "/v1/batches",
            json=spec,
            headers=_key(idempotency_key),
            timeout=SUBMIT_TIMEOUT_S,
        )

    async def expand(self, spec: Json) -> Json:
        """See `Client`."""
        plan = await self._request(
            "POST", "/v1/batches", json=spec, params={"dry_run": "true"}, timeout=SUBMIT_TIMEOUT_S
        )
        if not plan.get("dry_run"):  # a service of before dry runs submits
            what = f"it knows no dry run and has submitted batch {plan.get('batch_id')}"
            raise errors.RequestRefused(HTTPStatus.OK, what)
        return plan

    async def retry(self, batch_id: str, project_version: str, idempotency_key: str | None) -> Json:
        """See `Client`."""
        return await self._request(
            "POST",
            f"{_batch(batch_id)}/retry",
            json={"project_version": project_version},
            headers=_key(idempotency_key),
            timeout=SUBMIT_TIMEOUT_S,
        )

    async def get_batch(self, batch_id: str) -> Json:
        """See `Client`."""
        return await self._request("GET", _batch(batch_id))

    async def list_batches(
        self,
        status: str | None,
        project: str | None,
        label: str | None,
        limit: int,
        cursor: str | None,
    ) -> Json:
        """See `Client`."""
        given = {
            "status": status,
            "project": project,
            "label": label,
            "limit": limit,
            "cursor": cursor,
        }
        return await self._request("GET", "/v1/batches", params=_present(given))

    def follow(self, batch_id: str, after: int) -> AsyncGenerator[Json]:
        """See `Client`."""
        return _follow(lambda seq: self._stream(batch_id, seq), after)

    def executions(self, batch_id: str) -> AsyncGenerator[Json]:
        """See `Client`."""

        async def read_page(cursor: str | None) -> Json:
            params = _present({"limit": PAGE, "include": "output", "cursor": cursor})
            return await self._request("GET", f"{_batch(batch_id)}/executions", params=params)

        return _walk(read_page)

    async def get_execution(self, execution_id: str) -> Json:
        """See `Client`."""
        return await self._request("GET", _execution(execution_id))

    async def read_log(self, execution_id: str, stream: str, attempt: int | None) -> bytes:
        """See `Client`."""
        path = f"{_execution(execution_id)}/logs/{quote(stream, safe='')}"
        return (await self._send("GET", path, params=_present({"attempt": attempt}))).content

    async def comparison(self, batch_id: str) -> Json:
        """See `Client`."""
        return await self._request("GET", f"{_batch(batch_id)}/comparison")

    async def cancel(self, batch_id: str, reason: str) -> Json:
        """See `Client`."""
        return await self._request("POST", f"{_batch(batch_id)}/cancel", json={"reason": reason})

    async def cancel_execution(self, execution_id: str, reason: str) -> Json:
        """See `Client`."""
        path = f"{_execution(execution_id)}/cancel"
        return await self._request("POST", path, json={"reason": reason})

    async def projects(self) -> list[Json]:
        """See `Client`."""

        async def read_page(cursor: str | None) -> Json:
            params = _present({"limit": PAGE, "cursor": cursor})
            return await self._request("GET", "/v1/projects", params=params)

        return [item async for item in _walk(read_page)]

    async def close(self) -> None:
        """See `Client`."""
        await self._http.aclose()

    async def _request(self, method: str, path: str, **options: Any) -> Json:
        response = await self._send(method, path, **options)
        try:
            return response.json()
        except ValueError:
            raise errors.RequestRefused(response.status_code, _excerpt(response)) from None

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One call, repeated where that may help; see the module.

        Raises:
            WtbError: what a problem document says.
            Unavailable: when nothing answers at the URL.
        """

        async def send() -> httpx.Response:
            try:
                response = await self._http.request(method, path, **options)
            except httpx.RequestError as error:
                raise self._silence(error) from error
            if not response.is_success:
                raise _to_error(response)
            return response

        return await _repeat(send)

    async def _stream(self, batch_id: str, after: int) -> AsyncGenerator[Json | None]:
        """See `_follow`."""
        try:
            async with httpx_sse.aconnect_sse(
                self._http,
                "GET",
                f"{_batch(batch_id)}/events",
                headers={"Last-Event-ID": str(after)},
            ) as source:
                response = source.response
                is_stream = response.headers.get("Content-Type", "").startswith("text/event-stream")
                if not response.is_success or not is_stream:
                    await response.aread()
                    raise _to_error(response)
                async with aclosing(source.aiter_sse()) as events:
                    async for event in events:
                        if event.event == "end":
                            yield None
                        elif event.event == "resume":
                            return
                        elif event.event == "error":
                            problem = json.loads(event.data)
                            raise _to_error(httpx.Response(problem["status"], text=event.data))
                        elif event.data:  # a heartbeat has none
                            yield json.loads(event.data)
        except httpx.RequestError as error:
            raise self._silence(error) from error

    def _silence(self, error: httpx.RequestError) -> errors.Unavailable:
        what = f"{self.url} does not answer: {str(error) or type(error).__name__}"
        return errors.Unavailable(what)


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
        return _follow(lambda seq: self._stream(batch_id, seq), after)

    def executions(self, batch_id: str) -> AsyncGenerator[Json]:
        """See `Client`."""

        async def read_page(cursor: str | None) -> Json:
            return await self._call(
                "list_executions", batch_id, None, None, None, "output", PAGE, cursor
            )

        return _walk(read_page)

    async def get_execution(self, execution_id: str) -> Json:
        """See `Client`."""
        return await self._call("get_execution", execution_id)

    async def read_log(self, execution_id: str, stream: str, attempt: int | None) -> bytes:
        """See `Client`."""
        return (await self._call("read_log", execution_id, stream, attempt))["text"].encode()

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

        return [item async for item in _walk(read_page)]

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

        return await _repeat(call)

    async def _stream(self, batch_id: str, after: int) -> AsyncGenerator[Json | None]:
        """See `_follow`."""
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


def new_key() -> str:
    """An idempotency key that nobody has used."""
    return uuid.uuid4().hex


async def _repeat[Answer](send: Callable[[], Awaitable[Answer]]) -> Answer:
    """The answer of a call, which is repeated while the service cannot answer for a moment."""
    for left in range(REPEATS, -1, -1):
        try:
            return await send()
        except errors.Unavailable as error:
            refused = isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout)
            if refused or not left or error.retry_after_s > MAX_PAUSE_S:
                raise
            await asyncio.sleep(error.retry_after_s)
    raise AssertionError


async def _follow(
    open_stream: Callable[[int], AsyncGenerator[Json | None]], after: int
) -> AsyncGenerator[Json]:
    """The events of streams that may be cut; null in a stream says that the batch has ended.

    A stream that brought something is followed by the next at once, one that did not by a pause.
    """
    failures = 0
    while True:
        start = after
        try:
            async with aclosing(open_stream(after)) as stream:
                async for event in stream:
                    if event is None:
                        return
                    after = event["seq"]
                    failures = 0
                    yield event
        except errors.Unavailable:
            failures += 1
            if failures > RECONNECTS:
                raise
        if after == start:
            await asyncio.sleep(RECONNECT_PAUSE_S)


async def _walk(read_page: Callable[[str | None], Awaitable[Json]]) -> AsyncGenerator[Json]:
    """The items of all pages."""
    cursor: str | None = None
    while True:
        page = await read_page(cursor)
        for item in page["items"]:
            yield item
        cursor = page["next_cursor"]
        if cursor is None:
            return


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


def _check_url(url: str) -> None:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise errors.InvalidRequest("url", f"{url!r} is no URL: {error}") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise errors.InvalidRequest("url", f"give one such as http://127.0.0.1:8000, not {url!r}")


def _key(idempotency_key: str | None) -> dict[str, str]:
    key = new_key() if idempotency_key is None else idempotency_key
    if not key.isascii() or not key.isprintable():
        raise errors.InvalidRequest("Idempotency-Key", "use printable ASCII text, such as a UUID")
    return {"Idempotency-Key": key}


def _batch(batch_id: str) -> str:
    return f"/v1/batches/{quote(batch_id, safe='')}"


def _execution(execution_id: str) -> str:
    return f"/v1/executions/{quote(execution_id, safe='')}"


def _present(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


def _read_object(response: httpx.Response) -> Json:
    with contextlib.suppress(ValueError):
        found = response.json()
        if isinstance(found, dict):
            return found
    return {}


def _excerpt(response: httpx.Response) -> str:
    return " ".join(response.text[:500].split())


def _is_undeployed(response: httpx.Response) -> bool:
    """Whether Serve's proxy answered by itself, because no application has this route yet."""
    return response.status_code == HTTPStatus.NOT_FOUND and "/-/routes" in response.text


def _to_error(response: httpx.Response) -> errors.WtbError:
    """The error that a problem document stands for."""
    body = _read_object(response)
    cls = _OFFERED.get(str(body.get("type", "")).rpartition("#")[2])
    if cls is not None:
        with contextlib.suppress(TypeError, ValueError):  # it is of another version
            return cls(*body.get("arguments", ()))
    detail = str(body.get("detail", _excerpt(response)))
    if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE:  # Serve's own, or a proxy's
        pause = response.headers.get("Retry-After", "")
        return errors.Unavailable(detail, int(pause) if re.fullmatch(r"\d{1,6}", pause) else 1)
    if _is_undeployed(response):
        return errors.Unavailable(f"{response.url.host} is Ray Serve, without the application")
    return errors.RequestRefused(response.status_code, detail)


_OFFERED: dict[str, type[errors.WtbError]] = {
    re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower(): cls
    for cls in errors.WtbError.__subclasses__()
}
"""Our errors by the kind in a problem document's `type`: `InvalidSpec` is `invalid-spec`."""
