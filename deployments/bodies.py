"""Reading request bodies: bounded, of a known type, and refused in words."""

import asyncio
from collections.abc import Collection
from typing import Any, Self

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from wtb_core.documents import parse_json, parse_yaml
from wtb_core.errors import InvalidDocument, InvalidRequest, Unavailable
from wtb_core.specs import format_path

PARSERS = {
    "application/json": parse_json,
    "application/yaml": parse_yaml,
    "application/x-yaml": parse_yaml,
    "text/yaml": parse_yaml,
}
MAX_SMALL_BODY_BYTES = 64 * 1024
LARGE_BODY_BYTES = 1024**2
MAX_LARGE_BODIES = 4
"""How many large bodies are read and parsed at a time; each takes many times its size."""
BODY_TIMEOUT_S = 60.0


async def read_document(request: Request, max_bytes: int) -> Any:
    """The JSON or YAML document in the body.

    Raises:
        HTTPException: 415 for another content type, 413 for a body over `max_bytes`, 400 for one
            that is no document.
    """
    kind = _check_type(request, PARSERS.keys())
    with _Share() as share:
        return await _parse(kind, await _read(request, max_bytes, share))


async def read_optional[Body: BaseModel](request: Request, model: type[Body]) -> Body:
    """The body as `model`; an absent one is the model's defaults.

    Raises:
        HTTPException: see `read_document`.
        InvalidRequest: when the document does not fit the model.
    """
    _check_type(request, {"", *PARSERS})
    with _Share() as share:
        data = await _read(request, MAX_SMALL_BODY_BYTES, share)
    if not data.strip():
        return model()
    document = await _parse(_check_type(request, PARSERS.keys()), data)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        known = ", ".join(model.model_fields)
        message = f"{fault['msg']}; the body is optional, its keys are: {known}"
        raise InvalidRequest(format_path(fault["loc"]) or "body", message) from error


def _check_type(request: Request, allowed: Collection[str]) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in allowed:
        raise HTTPException(415, f"send the body as one of {', '.join(PARSERS)}")
    return kind


async def _parse(kind: str, data: bytes) -> Any:
    try:
        return await asyncio.to_thread(PARSERS[kind], data)
    except InvalidDocument as error:
        raise HTTPException(400, str(error)) from error


class _Share:
    """A request's share of the memory for large bodies, until its document is parsed."""

    in_use = 0

    def __init__(self) -> None:
        self._taken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _Share.in_use -= self._taken

    def take(self) -> None:
        """Take one of the large shares, once.

        Raises:
            Unavailable: when there is none.
        """
        if self._taken:
            return
        if _Share.in_use >= MAX_LARGE_BODIES:
            raise Unavailable(f"{MAX_LARGE_BODIES} large bodies are being read", 5)
        self._taken = True
        _Share.in_use += 1


async def _read(request: Request, max_bytes: int, share: _Share) -> bytes:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "send the body without a Content-Encoding")
    declared = request.headers.get("content-length", "")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            if not (declared.isascii() and declared.isdigit() and int(declared[:19]) > max_bytes):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > LARGE_BODY_BYTES:
                        share.take()
                    if len(body) > max_bytes:
                        break
                else:
                    return bytes(body)
    except TimeoutError:
        raise HTTPException(408, f"the body took longer than {BODY_TIMEOUT_S:.0f} s") from None
    raise HTTPException(413, f"the body is larger than {max_bytes} bytes")
