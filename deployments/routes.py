"""The HTTP API under `/v1`: thin routes over the ingress's handle methods."""

import asyncio
import csv
import io
import json
from typing import Annotated, Any, Never

from fastapi import FastAPI, Header, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from deployments import http_errors
from deployments.batch_ingress import BatchIngress, Settings
from wtb_core.errors import InvalidRequest
from wtb_core.report import render_markdown


def build(ingress: BatchIngress, settings: Settings) -> FastAPI:
    """The ASGI application."""
    app = FastAPI(title="WTB Serve", version="1", docs_url=None, redoc_url=None)
    http_errors.install(app)
    _add_batches(app, ingress, settings)
    _add_events(app, ingress)
    _add_results(app, ingress)
    _add_operations(app, ingress)
    return app


def _add_batches(app: FastAPI, ingress: BatchIngress, settings: Settings) -> None:
    @app.post("/v1/batches", status_code=202)
    async def submit_batch(
        request: Request,
        idempotency_key: Annotated[str | None, Header()] = None,
    ) -> Response:
        spec = await _read_json(request, settings.max_body_bytes)
        receipt = await ingress.submit_batch(spec, idempotency_key)
        receipt.pop("created")
        headers = {"Location": receipt["links"]["self"]}
        return JSONResponse(receipt, 202, headers)

    @app.get("/v1/batches")
    async def list_batches(
        status: str | None = None,
        project: str | None = None,
        label: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        return await ingress.list_batches(status, project, label, limit, cursor)

    @app.get("/v1/batches/{batch_id}")
    async def get_batch(batch_id: str) -> dict[str, Any]:
        return await ingress.get_batch(batch_id)

    @app.post("/v1/batches/{batch_id}/cancel")
    async def cancel_batch(batch_id: str, request: Request) -> Response:
        reason = "cancelled on request"
        if (await request.body()).strip():
            body = await _read_json(request, settings.max_body_bytes)
            if not isinstance(body, dict) or not isinstance(body.get("reason", reason), str):
                raise InvalidRequest("reason", 'the body is optional: {"reason": "text"}')
            reason = body.get("reason", reason)
        answer = await ingress.cancel_batch(batch_id, reason)
        return JSONResponse(answer, 202 if answer["changed"] else 200)


def _add_events(app: FastAPI, ingress: BatchIngress) -> None:
    @app.get("/v1/batches/{batch_id}/events", response_model=None)
    async def read_events(
        batch_id: str,
        request: Request,
        after: Annotated[int, Query(ge=0)] = 0,
        limit: int = 100,
        wait_ms: int = 0,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Response | dict[str, Any]:
        if "text/event-stream" not in request.headers.get("accept", ""):
            return await ingress.read_events(batch_id, after, limit, wait_ms)
        if last_event_id is not None:
            if not last_event_id.isascii() or not last_event_id.isdigit():
                raise InvalidRequest("Last-Event-ID", "give the `id` of an event of this stream")
            after = int(last_event_id)
        await ingress.read_events(batch_id, after, 1, 0)
        return ingress.respond_with_events(batch_id, after)


def _add_results(app: FastAPI, ingress: BatchIngress) -> None:
    @app.get("/v1/batches/{batch_id}/executions")
    async def list_executions(
        batch_id: str,
        status: str | None = None,
        variant: str | None = None,
        case_id: str | None = None,
        include: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        return await ingress.list_executions(
            batch_id, status, variant, case_id, include, limit, cursor
        )

    @app.get("/v1/batches/{batch_id}/comparison", response_model=None)
    async def get_comparison(batch_id: str, format: str = "json") -> Response | dict[str, Any]:  # noqa: A002 - the parameter's name is the contract's
        comparison = await ingress.get_comparison(batch_id)
        if format == "json":
            return comparison
        if format == "csv":
            return Response(_to_csv(comparison), media_type="text/csv; charset=utf-8")
        if format == "md":
            return Response(render_markdown(comparison), media_type="text/markdown; charset=utf-8")
        raise InvalidRequest("format", "give one of json, csv, md")

    @app.get("/v1/executions/{execution_id}")
    async def get_execution(execution_id: str) -> dict[str, Any]:
        return await ingress.get_execution(execution_id)


def _add_operations(app: FastAPI, ingress: BatchIngress) -> None:
    @app.get("/v1/projects")
    async def list_projects() -> dict[str, Any]:
        return await ingress.list_projects()

    @app.get("/v1/pool")
    async def get_pool() -> dict[str, Any]:
        return await ingress.get_pool()

    @app.get("/v1/pool/events")
    async def read_pool_events(
        after: Annotated[int, Query(ge=0)] = 0, limit: int = 100, wait_ms: int = 0
    ) -> dict[str, Any]:
        return await ingress.read_pool_events(after, limit, wait_ms)

    @app.get("/healthz")
    async def get_health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", response_model=None)
    async def get_readiness() -> Response:
        state = await ingress.check_ready()
        return JSONResponse(state, 200 if state["ready"] else 503)


async def _read_json(request: Request, max_bytes: int) -> Any:
    """The request's body, refused early when it is too large or of another type."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "send the body as application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise HTTPException(413, f"the body is larger than {max_bytes} bytes")
    try:
        return await asyncio.to_thread(json.loads, bytes(body), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from error


def _refuse_constant(text: str) -> Never:
    raise ValueError(f"{text} is not a JSON value")


def _to_csv(comparison: dict[str, Any]) -> str:
    """One row a variant; each metric has a column for its mean and one for its n."""
    out = io.StringIO()
    writer = csv.writer(out)
    metrics = comparison["metrics"]
    heads = [head for metric in metrics for head in (metric, f"{metric}.n")]
    writer.writerow(
        ["variant", "n", "succeeded", "failed", "cancelled", *heads, "overall_score", "overall.n"]
    )
    for row in comparison["variants"]:
        scores = [v for m in metrics for v in (row["scores"][m]["mean"], row["scores"][m]["n"])]
        overall = row["overall_score"]
        failed = sum(row["failed"].values())
        counts = [row["variant"], row["n"], row["succeeded"], failed, row["cancelled"]]
        writer.writerow([*counts, *scores, overall["mean"], overall["n"]])
    return out.getvalue()
