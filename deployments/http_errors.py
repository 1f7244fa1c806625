"""Errors as RFC 9457 problem documents: one table from our errors to HTTP."""

import json
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

from wtb_core import errors
from wtb_core.specs import format_path

MEDIA_TYPE = "application/problem+json"
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
"""What every answer carries; a fault of ours is answered outside of the middleware that adds it."""

STATUS: dict[type[errors.WtbError], HTTPStatus] = {
    errors.InvalidSpec: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.InvalidRequest: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.Unauthorized: HTTPStatus.UNAUTHORIZED,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.NotAFile: HTTPStatus.NOT_FOUND,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.NotRetryable: HTTPStatus.CONFLICT,
    errors.NotForkable: HTTPStatus.CONFLICT,
    errors.TooManyPending: HTTPStatus.TOO_MANY_REQUESTS,
    errors.DiskFull: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.ProjectError: HTTPStatus.UNPROCESSABLE_ENTITY,
}


def problem(
    status: int,
    kind: str,
    detail: str,
    *,
    headers: dict[str, str] | None = None,
    **extra: Any,
) -> Response:
    """A problem document. `type` is `about:blank#` and the kind of problem.

    Of our own errors it also has the `arguments`, from which a client makes the same error again.
    """
    body = {
        "type": f"about:blank#{kind}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        **extra,
    }
    content = json.dumps(body, ensure_ascii=False).encode(errors="replace")
    return Response(content, status, HEADERS | (headers or {}), media_type=MEDIA_TYPE)


def describe(error: Exception) -> Response:
    """The problem document of `error`; of one that is not ours it tells nothing."""
    if not isinstance(error, errors.WtbError):
        return problem(500, "internal", "the service failed; its log says how")
    status, cls = next(
        ((status, cls) for cls, status in STATUS.items() if isinstance(error, cls)),
        (HTTPStatus.INTERNAL_SERVER_ERROR, errors.WtbError),
    )
    extra: dict[str, Any] = {"arguments": list(error.args)}
    headers: dict[str, str] = {}
    if isinstance(error, errors.InvalidSpec):
        extra["problems"] = [p._asdict() for p in error.problems]
    if isinstance(error, errors.InvalidRequest):
        extra["problems"] = [{"path": error.parameter, "message": error.message}]
    if isinstance(error, errors.TooManyPending | errors.Unavailable):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, errors.Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return problem(status, _kind(cls), str(error), headers=headers, **extra)


def install(app: FastAPI) -> None:
    """Make every error answer of `app` a problem document."""
    app.add_exception_handler(errors.WtbError, _on_wtb_error)
    app.add_exception_handler(RequestValidationError, _on_bad_parameter)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_fault)


async def _on_wtb_error(_: Request, error: Exception) -> Response:
    return describe(error)


async def _on_bad_parameter(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [
        {"path": format_path(tuple(fault["loc"][1:])), "message": _explain(fault)}
        for fault in error.errors()
    ]
    detail = "; ".join(f"{item['path']}: {item['message']}" for item in problems)
    return problem(422, "invalid-request", detail, problems=problems)


def _explain(fault: dict[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        return "unknown parameter"
    return str(fault["msg"])


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(sorted(_find_methods(request)))
    return problem(error.status_code, "http", str(error.detail), headers=headers)


def _find_methods(request: Request) -> set[str]:
    """Every method of the resource; Starlette names those of the first route that fits."""
    return {
        method
        for route in request.app.routes
        if route.matches(request.scope)[0] is not Match.NONE
        for method in getattr(route, "methods", None) or ()
    }


async def _on_disconnect(_: Request, _error: Exception) -> Response:
    """A client that went away in the middle of its body; nobody reads the answer."""
    return problem(400, "http", "the body ended early")


async def _on_fault(_: Request, error: Exception) -> Response:
    """A fault of ours; Starlette raises it again after the answer, for Serve's log."""
    return describe(error)


def _kind(cls: type[errors.WtbError]) -> str:
    """`InvalidSpec` as `invalid-spec`."""
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in cls.__name__).lstrip("-")
