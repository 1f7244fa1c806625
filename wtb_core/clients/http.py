"""A service at a URL."""

import contextlib
import json
import os
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import httpx
import httpx_sse

from wtb_core import errors
from wtb_core.clients.contract import Json
from wtb_core.clients.repeating import PAGE, follow_streams, new_key, repeat, walk_pages
from wtb_core.files.paths import show_path

CONNECT_TIMEOUT_S = 5.0
TIMEOUT_S = 30.0
SUBMIT_TIMEOUT_S = 120.0
"""Checking a hundred thousand cases takes a while, and so does describing a new project."""
MAX_ID_CHARS = 128


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

    async def fork(self, execution_id: str, asked: Json, idempotency_key: str | None) -> Json:
        """See `Client`."""
        return await self._request(
            "POST",
            f"{_execution(execution_id)}/fork",
            json=_present(asked),
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
        return follow_streams(lambda seq: self._stream(batch_id, seq), after)

    def executions(self, batch_id: str) -> AsyncGenerator[Json]:
        """See `Client`."""

        async def read_page(cursor: str | None) -> Json:
            params = _present({"limit": PAGE, "include": "output", "cursor": cursor})
            return await self._request("GET", f"{_batch(batch_id)}/executions", params=params)

        return walk_pages(read_page)

    async def get_execution(self, execution_id: str) -> Json:
        """See `Client`."""
        return await self._request("GET", _execution(execution_id))

    async def read_log(self, execution_id: str, stream: str, attempt: int | None) -> bytes:
        """See `Client`."""
        path = f"{_execution(execution_id)}/logs/{quote(stream, safe='')}"
        return (await self._send("GET", path, params=_present({"attempt": attempt}))).content

    async def list_checkpoints(
        self, execution_id: str, attempt: int | None, cursor: str | None
    ) -> Json:
        """See `Client`."""
        params = _present({"attempt": attempt, "limit": PAGE, "cursor": cursor})
        return await self._request("GET", f"{_execution(execution_id)}/checkpoints", params=params)

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
        params = {
            "from": points[0],
            "to": points[1],
            "attempt": attempt,
            "diff": "true" if diff else None,
            "limit": PAGE,
            "cursor": cursor,
        }
        return await self._request(
            "GET", f"{_execution(execution_id)}/files", params=_present(params)
        )

    async def read_file(self, execution_id: str, path: str, at: str, attempt: int | None) -> bytes:
        """See `Client`."""
        if any(part in {"", ".", ".."} for part in path.split("/")):
            raise errors.NotFound("file", show_path(path))  # they would make it another address
        where = f"{_execution(execution_id)}/files/{quote(os.fsencode(path))}"
        params = _present({"at": at, "attempt": attempt})
        return (await self._send("GET", where, params=params)).content

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

        return [item async for item in walk_pages(read_page)]

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
            except httpx.InvalidURL as error:
                raise errors.InvalidRequest("url", f"this is no address: {error}") from error
            except httpx.RequestError as error:
                raise self._silence(error) from error
            if not response.is_success:
                raise _to_error(response)
            return response

        return await repeat(send)

    async def _stream(self, batch_id: str, after: int) -> AsyncGenerator[Json | None]:
        """See `repeating.follow_streams`."""
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
    return f"/v1/batches/{_segment('batch_id', batch_id)}"


def _execution(execution_id: str) -> str:
    return f"/v1/executions/{_segment('execution_id', execution_id)}"


def _segment(parameter: str, value: str) -> str:
    if not value.strip(".") or len(value) > MAX_ID_CHARS:
        raise errors.InvalidRequest(parameter, f"give an id, at most {MAX_ID_CHARS} characters")
    return quote(value, safe="")


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
    for cls in (*errors.WtbError.__subclasses__(), *errors.Unavailable.__subclasses__())
}
"""Our errors by the kind in a problem document's `type`: `InvalidSpec` is `invalid-spec`."""
