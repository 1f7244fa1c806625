"""The HTTP API under `/v1`: thin routes over the ingress's handle methods."""

import asyncio
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import unquote_to_bytes

from fastapi import FastAPI, Header, Path, Query, Request
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ConfigDict, Field
from starlette.convertors import Convertor, register_url_convertor
from starlette.responses import JSONResponse, PlainTextResponse, Response

from deployments import http_errors, openapi, schemas
from deployments.batch_ingress import BatchIngress, Settings
from deployments.bodies import read_document, read_optional
from deployments.openapi import answers
from deployments.security import Gate
from wtb_core import forks
from wtb_core.errors import InvalidRequest, NotFound
from wtb_core.filehistory import MAX_POINT_CHARS
from wtb_core.parameters import MAX_LIMIT, MAX_WAIT_MS
from wtb_core.report import render_csv, render_markdown

ID = {"pattern": "^[A-Za-z0-9_-]{1,64}$"}

POINT: dict[str, Any] = {
    "min_length": 1,
    "max_length": MAX_POINT_CHARS,
    "description": "a checkpoint's id, `base`, `start` or `final`",
}
_FILE_PATH = re.compile(rb"/v1/executions/[^/]+/files/(.*)", re.DOTALL)


class _AnyPath(Convertor[str]):
    """The rest of the address, whatever is in it; Starlette's own stops at a line's end."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any", _AnyPath())

BatchId = Annotated[str, Path(json_schema_extra=ID)]
ExecutionId = Annotated[str, Path(json_schema_extra=ID)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        description="The same key and spec get the same batch.",
        json_schema_extra={"pattern": "^[!-~]([ -~]{0,253}[!-~])?$"},
    ),
]


class _Query(BaseModel):
    """Query parameters; one that is not known is refused."""

    model_config = ConfigDict(extra="forbid")


class _PageQuery(_Query):
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = 100
    cursor: Annotated[str, Field(pattern="^[0-9]{1,15}$")] | None = None


class _NoQuery(_Query):
    pass


class _SubmitQuery(_Query):
    dry_run: bool = False


class _BatchQuery(_PageQuery):
    status: schemas.BatchStatus | None = None
    project: str | None = None
    label: Annotated[str, Field(pattern="^[^=]+=.*$", description="key=value")] | None = None


class _ExecutionQuery(_PageQuery):
    status: schemas.ExecutionStatus | None = None
    variant: str | None = None
    case_id: str | None = None
    include: Literal["output"] | None = None


class _EventQuery(_Query):
    after: Annotated[int, Field(ge=0, le=2**53)] = 0
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = 100
    wait_ms: Annotated[int, Field(ge=0, le=MAX_WAIT_MS)] = 0


class _AttemptQuery(_Query):
    attempt: Annotated[int, Field(ge=1, le=1_000)] | None = None


class _CheckpointQuery(_PageQuery, _AttemptQuery):
    pass


class _FileQuery(_PageQuery, _AttemptQuery):
    from_: Annotated[str, Field(alias="from", **POINT)] = "start"
    to: Annotated[str, Field(**POINT)] = "final"
    diff: bool = False


class _PointQuery(_AttemptQuery):
    at: Annotated[str, Field(**POINT)] = "final"


class _NodeQuery(_PageQuery, _AttemptQuery):
    pass


class _ComparisonQuery(_Query):
    format: Literal["json", "csv", "md"] = "json"


NoQuery = Annotated[_NoQuery, Query()]


def build(ingress: BatchIngress, settings: Settings, tokens: Mapping[str, str]) -> FastAPI:
    """The ASGI application; a request needs one of `tokens` where there are any."""
    app = FastAPIOffline(
        docs_url="/docs",
        redoc_url=None,
        static_url="/docs/static",
        title="WTB Serve",
        version="1",
        description=openapi.DESCRIPTION,
    )
    app.router.redirect_slashes = False  # a redirect would name whatever host was asked for
    app.add_middleware(Gate, tokens=tokens)
    http_errors.install(app)
    _add_batches(app, ingress, settings)
    _add_events(app, ingress)
    _add_results(app, ingress)
    _add_executions(app, ingress)
    _add_files(app, ingress, settings)
    _add_operations(app, ingress)
    openapi.install(app, secured=bool(tokens))
    return app


def _add_batches(app: FastAPI, ingress: BatchIngress, settings: Settings) -> None:
    @app.post(
        "/v1/batches",
        status_code=202,
        responses=answers(
            {202: schemas.Receipt, 200: schemas.Plan}, 400, 409, 413, 415, 422, 429, 503
        ),
        openapi_extra=openapi.SPEC_BODY,
    )
    async def submit_batch(
        request: Request,
        query: Annotated[_SubmitQuery, Query()],
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Check and store a batch; with `dry_run` show what it would run and store nothing."""
        spec = await read_document(request, settings.max_body_bytes)
        if query.dry_run:
            return await _render(await ingress.submit_batch(spec, dry_run=True))
        receipt = await ingress.submit_batch(spec, idempotency_key, submitted_by=request.state.user)
        receipt.pop("created")
        return JSONResponse(receipt, 202, {"Location": receipt["links"]["self"]})

    @app.get("/v1/batches", responses=answers({200: schemas.BatchPage}, 422, 503))
    async def list_batches(query: Annotated[_BatchQuery, Query()]) -> Response:
        """Batches, newest first."""
        return JSONResponse(await ingress.list_batches(**query.model_dump()))

    @app.get("/v1/batches/{batch_id}", responses=answers({200: schemas.Batch}, 404, 422, 503))
    async def get_batch(batch_id: BatchId, _: NoQuery) -> Response:
        """One batch with its counts, progress, variants and spec."""
        return await _render(await ingress.get_batch(batch_id))

    @app.post(
        "/v1/batches/{batch_id}/cancel",
        status_code=202,
        responses=answers(
            {202: schemas.BatchCancelled, 200: schemas.BatchCancelled}, 400, 404, 413, 415, 422, 503
        ),
        openapi_extra=openapi.optional_body("CancelBody"),
    )
    async def cancel_batch(batch_id: BatchId, request: Request, _: NoQuery) -> Response:
        """Stop a batch: 202, or 200 when it had ended or was being cancelled."""
        body = await read_optional(request, schemas.CancelBody)
        answer = await ingress.cancel_batch(batch_id, body.reason)
        return JSONResponse(answer, 202 if answer["changed"] else 200)

    @app.post(
        "/v1/batches/{batch_id}/retry",
        status_code=202,
        responses=answers({202: schemas.RetryReceipt}, 400, 404, 409, 413, 415, 422, 429, 503),
        openapi_extra=openapi.optional_body("RetryBody"),
    )
    async def retry_batch(
        batch_id: BatchId, request: Request, _: NoQuery, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Make a new batch that takes over what succeeded and runs the rest."""
        body = await read_optional(request, schemas.RetryBody)
        receipt = await ingress.retry_batch(
            batch_id, body.project_version, idempotency_key, submitted_by=request.state.user
        )
        receipt.pop("created")
        return JSONResponse(receipt, 202, {"Location": receipt["links"]["self"]})


def _add_events(app: FastAPI, ingress: BatchIngress) -> None:
    @app.get(
        "/v1/batches/{batch_id}/events",
        responses=answers({200: schemas.EventPage}, 404, 422, 503, text=["text/event-stream"]),
    )
    async def read_events(
        batch_id: BatchId,
        request: Request,
        query: Annotated[_EventQuery, Query()],
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Response:
        """A page of events; with `Accept: text/event-stream` a live stream of all of them."""
        after = query.after
        if "text/event-stream" not in request.headers.get("accept", ""):
            return JSONResponse(
                await ingress.read_events(batch_id, after, query.limit, query.wait_ms)
            )
        if last_event_id is not None:
            if not last_event_id.isascii() or not last_event_id.isdigit():
                raise InvalidRequest("Last-Event-ID", "give the `id` of an event of this stream")
            after = int(last_event_id[:15])
        await ingress.read_events(batch_id, after, 1, 0)
        return ingress.respond_with_events(batch_id, after)


def _add_results(app: FastAPI, ingress: BatchIngress) -> None:
    @app.get(
        "/v1/batches/{batch_id}/executions",
        responses=answers({200: schemas.ExecutionPage}, 404, 422, 503),
    )
    async def list_executions(
        batch_id: BatchId, query: Annotated[_ExecutionQuery, Query()]
    ) -> Response:
        """Executions in order; a page with outputs ends early when they grow large."""
        return await _render(await ingress.list_executions(batch_id, **query.model_dump()))

    @app.get(
        "/v1/batches/{batch_id}/comparison",
        responses=answers(
            {200: schemas.Comparison}, 404, 422, 503, text=["text/csv", "text/markdown"]
        ),
    )
    async def get_comparison(
        batch_id: BatchId, query: Annotated[_ComparisonQuery, Query()]
    ) -> Response:
        """Per variant: n, succeeded, failed by kind, each score's mean and n."""
        comparison = await ingress.get_comparison(batch_id)
        if query.format == "csv":
            return Response(render_csv(comparison), media_type="text/csv; charset=utf-8")
        if query.format == "md":
            return Response(render_markdown(comparison), media_type="text/markdown; charset=utf-8")
        return JSONResponse(comparison)


def _add_executions(app: FastAPI, ingress: BatchIngress) -> None:
    @app.get(
        "/v1/executions/{execution_id}",
        responses=answers({200: schemas.ExecutionDetail}, 404, 422, 503),
    )
    async def get_execution(execution_id: ExecutionId, _: NoQuery) -> Response:
        """One execution with its output and its attempts."""
        return await _render(await ingress.get_execution(execution_id))

    @app.get(
        "/v1/executions/{execution_id}/output",
        responses=answers({200: None}, 404, 422, 503),
    )
    async def get_output(execution_id: ExecutionId, _: NoQuery) -> Response:
        """The output itself, as JSON."""
        return await _render(await ingress.get_output(execution_id))

    @app.get(
        "/v1/executions/{execution_id}/attempts",
        responses=answers({200: schemas.AttemptPage}, 404, 422, 503),
    )
    async def list_attempts(
        execution_id: ExecutionId, query: Annotated[_PageQuery, Query()]
    ) -> Response:
        """The attempts, oldest first; a reused execution has none of its own."""
        return JSONResponse(await ingress.list_attempts(execution_id, query.limit, query.cursor))

    @app.get(
        "/v1/executions/{execution_id}/nodes",
        responses=answers({200: schemas.NodePage}, 404, 422, 503),
    )
    async def list_nodes(
        execution_id: ExecutionId, query: Annotated[_NodeQuery, Query()]
    ) -> Response:
        """The node runs of an attempt: the latest that ended, unless `attempt` names one."""
        return JSONResponse(await ingress.list_nodes(execution_id, **query.model_dump()))

    @app.get(
        "/v1/executions/{execution_id}/logs/{stream}",
        responses=answers({}, 404, 422, 503, text=["text/plain"]),
        response_class=PlainTextResponse,
    )
    async def read_log(
        execution_id: ExecutionId,
        stream: Annotated[str, Path(json_schema_extra={"enum": ["stdout", "stderr"]})],
        query: Annotated[_AttemptQuery, Query()],
    ) -> Response:
        """What an attempt wrote, as an attachment; its first 10 MiB."""
        if stream not in {"stdout", "stderr"}:
            raise NotFound("log", stream)
        log = await ingress.read_log(execution_id, stream, query.attempt)
        name = f"{execution_id}-{log['attempt']}-{stream}.txt"
        headers = {
            "Content-Disposition": f'attachment; filename="{name}"',
            "X-Truncated": str(log["truncated"]).lower(),
        }
        return PlainTextResponse(log["text"], headers=headers)

    @app.post(
        "/v1/executions/{execution_id}/cancel",
        status_code=202,
        responses=answers(
            {202: schemas.ExecutionCancelled, 200: schemas.ExecutionCancelled},
            400,
            404,
            413,
            415,
            422,
            503,
        ),
        openapi_extra=openapi.optional_body("CancelBody"),
    )
    async def cancel_execution(execution_id: ExecutionId, request: Request, _: NoQuery) -> Response:
        """Stop one execution: 202, or 200 when it had ended or was being cancelled."""
        body = await read_optional(request, schemas.CancelBody)
        answer = await ingress.cancel_execution(execution_id, body.reason)
        return JSONResponse(answer, 202 if answer["changed"] else 200)


def _add_files(app: FastAPI, ingress: BatchIngress, settings: Settings) -> None:
    @app.get(
        "/v1/executions/{execution_id}/checkpoints",
        responses=answers({200: schemas.CheckpointPage}, 404, 422, 503),
    )
    async def list_checkpoints(
        execution_id: ExecutionId, query: Annotated[_CheckpointQuery, Query()]
    ) -> Response:
        """The checkpoints of an attempt, oldest first; none while it runs."""
        return await _render(await ingress.list_checkpoints(execution_id, **query.model_dump()))

    @app.get(
        "/v1/executions/{execution_id}/files",
        responses=answers({200: schemas.FilePage}, 404, 422, 503),
    )
    async def list_files(
        execution_id: ExecutionId, query: Annotated[_FileQuery, Query()]
    ) -> Response:
        """The paths that differ between two points, with `diff` line by line."""
        return await _render(await ingress.list_files(execution_id, **query.model_dump()))

    @app.get(
        "/v1/executions/{execution_id}/files/{path:any}",
        responses=openapi.answers_bytes(404, 422, 503),
        response_class=Response,
    )
    async def read_file(
        execution_id: ExecutionId,
        path: Annotated[str, Path(description="percent-encoded, any bytes")],
        request: Request,
        query: Annotated[_PointQuery, Query()],
    ) -> Response:
        """A file's bytes, as an attachment."""
        name = _read_path(request, path)
        return await ingress.respond_with_file(execution_id, name, query.at, query.attempt)

    @app.post(
        "/v1/executions/{execution_id}/fork",
        status_code=202,
        responses=answers({202: schemas.ForkReceipt}, 400, 404, 409, 413, 415, 422, 429, 503),
        openapi_extra=openapi.FORK_BODY,
    )
    async def fork_execution(
        execution_id: ExecutionId,
        request: Request,
        _: NoQuery,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Make a new batch of one execution that goes on from a checkpoint."""
        asked = forks.read_body(await read_document(request, settings.max_body_bytes))
        receipt = await ingress.fork_execution(
            execution_id,
            **asked,
            idempotency_key=idempotency_key,
            submitted_by=request.state.user,
        )
        receipt.pop("created")
        return JSONResponse(receipt, 202, {"Location": receipt["links"]["self"]})


def _read_path(request: Request, decoded: str) -> str:
    """A path as `os.fsdecode` gives it; servers decode it as UTF-8, which loses other bytes."""
    raw: bytes | None = request.scope.get("raw_path")
    if raw is None:
        return decoded
    found = _FILE_PATH.search(raw.partition(b"?")[0])
    return decoded if found is None else os.fsdecode(unquote_to_bytes(found[1]))


def _add_operations(app: FastAPI, ingress: BatchIngress) -> None:
    @app.get("/v1/projects", responses=answers({200: schemas.ProjectPage}, 422, 503))
    async def list_projects(query: Annotated[_PageQuery, Query()]) -> Response:
        """The projects with what they offer and their problems."""
        return JSONResponse(await ingress.list_projects(query.limit, query.cursor))

    @app.get("/v1/projects/{name}", responses=answers({200: schemas.Project}, 404, 422, 503))
    async def get_project(name: str, _: NoQuery) -> Response:
        """One project."""
        return JSONResponse(await ingress.get_project(name))

    @app.get("/v1/pool", responses=answers({200: schemas.Pool}, 422, 503))
    async def get_pool(_: NoQuery) -> Response:
        """Replicas, slots, queues."""
        return JSONResponse(await ingress.get_pool())

    @app.get("/v1/pool/events", responses=answers({200: schemas.EventPage}, 422, 503))
    async def read_pool_events(query: Annotated[_EventQuery, Query()]) -> Response:
        """A page of the stream `pool`."""
        return JSONResponse(await ingress.read_pool_events(**query.model_dump()))

    @app.get("/healthz", responses=answers({200: schemas.Health}))
    async def get_health() -> Response:
        """Whether the process answers."""
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", responses=answers({200: schemas.Readiness, 503: schemas.Readiness}))
    async def get_readiness(request: Request) -> Response:
        """Whether batches can be accepted and run; problems of projects are for who may ask."""
        state = await ingress.check_ready()
        if not request.state.trusted:
            state["project_problems"] = []
        return JSONResponse(state, 200 if state["ready"] else 503)


async def _render(answer: Any) -> Response:
    """An answer that may be large, written beside the event loop that everything else runs on."""
    return await asyncio.to_thread(JSONResponse, answer)
