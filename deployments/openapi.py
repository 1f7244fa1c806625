"""The OpenAPI document: answers of each route, problem documents, bodies, and who may ask."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from deployments import http_errors, schemas
from wtb_core.specs import BatchSpec

DESCRIPTION = (
    "Batch-test variants of LangGraph workflows. Durations are integer milliseconds, sizes bytes, "
    "but seconds and bytes in a spec and its limits; times RFC 3339 in UTC. Errors are problem "
    "documents (RFC 9457)."
)

_REF = "#/components/schemas/{model}"
_BODIES = ("application/json", "application/yaml")


def _body(model: str, *, required: bool) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model=model)}
    content = {kind: {"schema": schema} for kind in _BODIES}
    return {"requestBody": {"required": required, "content": content}}


SPEC_BODY = _body("BatchSpec", required=True)
FORK_BODY = _body("ForkBody", required=True)


def optional_body(model: str) -> dict[str, Any]:
    """The body of a route that works without one."""
    return _body(model, required=False)


def answers(
    models: Mapping[int, type[BaseModel] | None],
    *problems: int,
    text: Sequence[str] = (),
) -> dict[int | str, dict[str, Any]]:
    """What a route answers: `models` by status, problem documents, 200 as `text` types as well.

    A model of None stands for any JSON.
    """
    described: dict[int | str, dict[str, Any]] = {}
    for status, model in models.items():
        described[status] = {"description": HTTPStatus(status).phrase}
        if model is not None:
            described[status]["model"] = model
    if text:
        content = {kind: {"schema": {"type": "string"}} for kind in text}
        described.setdefault(200, {"description": "OK"})["content"] = content
    return described | {status: _problem(status) for status in problems}


def answers_bytes(*problems: int) -> dict[int | str, dict[str, Any]]:
    """What a route answers that sends a file as it is."""
    schema = {"type": "string", "format": "binary"}
    described: dict[int | str, dict[str, Any]] = {
        200: {"description": "OK", "content": {"application/octet-stream": {"schema": schema}}}
    }
    return described | {status: _problem(status) for status in problems}


def install(app: FastAPI, *, secured: bool) -> None:
    """Make `app.openapi()` the complete document; `secured` says that tokens are needed."""

    def make() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _make(app, secured=secured)
        return app.openapi_schema

    app.openapi = make


def _make(app: FastAPI, *, secured: bool) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    small = (schemas.CancelBody, schemas.RetryBody, schemas.ForkBody)
    bodies = (BatchSpec, *small, schemas.ProblemDocument)
    _, found = models_json_schema([(model, "validation") for model in bodies], ref_template=_REF)
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(found["$defs"])
    refusal = 401 if secured else 403
    for path, operations in document["paths"].items():
        if not path.startswith("/v1"):
            continue
        for operation in operations.values():
            operation["responses"][str(refusal)] = _problem(refusal)
            if secured:
                operation["security"] = [{"bearer": []}]
    if secured:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    return document


def _problem(status: int) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {
            http_errors.MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="ProblemDocument")}}
        },
    }
    if status in {429, 503}:
        answer["headers"] = {
            "Retry-After": {"description": "seconds to wait", "schema": {"type": "integer"}}
        }
    return answer
