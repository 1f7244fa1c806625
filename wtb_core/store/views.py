"""What clients may read, in the shapes of the contract. Nothing here writes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, func, select

from wtb_core.errors import NotFound
from wtb_core.files.blobs import BlobStore
from wtb_core.ids import find_time, format_time
from wtb_core.matrix import execution_id
from wtb_core.parameters import BatchFilter
from wtb_core.states import TERMINAL_BATCH, TERMINAL_EXECUTION
from wtb_core.store import log
from wtb_core.store.records import ForkSource, Trace
from wtb_core.store.rows import (
    count_by_status,
    get_batch,
    get_execution,
    parse_execution_id,
    progress,
)
from wtb_core.store.tables import attempts, batches, cases, executions, labels, replicas

_RESULT_FIELDS: dict[str, Any] = {
    "failure": None,
    "output_bytes": None,
    "scores": {},
    "score_comments": {},
    "score_errors": {},
    "overall_score": None,
    "duration_ms": None,
    "queue_ms": None,
    "node_count": None,
    "checkpoint_count": None,
    "start_commit_id": None,
    "file_commit_id": None,
    "files_tracked": None,
    "tracking_failures": [],
    "isolation": None,
    "start": None,
    "start_reason": None,
    "cpu_ms": None,
    "peak_rss_bytes": None,
    "usage": {},
}


class ExecutionFilter(NamedTuple):
    """Which of a batch's executions are wanted; null does not restrict."""

    status: str | None = None
    variant: str | None = None
    case_id: str | None = None


def read_batch(connection: Connection, batch_id: str, now_ms: int) -> dict[str, Any]:
    """One batch, with its spec.

    Raises:
        NotFound: when there is no such batch.
    """
    batch = get_batch(connection, batch_id)
    bodies = connection.execute(
        select(cases.c.body).where(cases.c.batch_id == batch_id).order_by(cases.c.case_index)
    ).scalars()
    return {
        **_summary(batch, now_ms),
        "variants": json.loads(batch.variants),
        "spec": {**json.loads(batch.spec), "cases": [json.loads(body) for body in bodies]},
    }


def read_batches(
    connection: Connection,
    now_ms: int,
    wanted: BatchFilter,
    *,
    after: int | None,
    limit: int,
) -> tuple[list[dict[str, Any]], int | None]:
    """Batches, newest first, and the cursor of the next page."""
    query = select(batches).order_by(batches.c.number.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(batches.c.number < after)
    if wanted.status is not None:
        query = query.where(batches.c.status == wanted.status)
    if wanted.project is not None:
        query = query.where(batches.c.project == wanted.project)
    if wanted.label is not None:
        key, value = wanted.label
        with_label = select(labels.c.batch_id).where(labels.c.key == key, labels.c.value == value)
        query = query.where(batches.c.batch_id.in_(with_label))
    rows = connection.execute(query).all()
    more = rows[limit - 1].number if len(rows) > limit else None
    return [_summary(row, now_ms) for row in rows[:limit]], more


def read_executions(
    connection: Connection,
    batch_id: str,
    wanted: ExecutionFilter,
    *,
    after: int,
    limit: int,
) -> tuple[list[dict[str, Any]], int | None]:
    """A batch's executions in order, and the cursor of the next page.

    An output is named by its inline text or its blob, for the caller to resolve.

    Raises:
        NotFound: when there is no such batch.
    """
    get_batch(connection, batch_id)
    query = _matching(batch_id, wanted).where(executions.c.number > after).limit(limit + 1)
    rows = connection.execute(query).all()
    more = rows[limit - 1].number if len(rows) > limit else None
    return [_execution(row) for row in rows[:limit]], more


def read_execution(connection: Connection, text: str) -> dict[str, Any]:
    """One execution with its attempts.

    Raises:
        NotFound: when there is no such execution.
    """
    batch_id, number = parse_execution_id(text)
    row = get_execution(connection, batch_id, number)
    tries = connection.execute(
        select(attempts)
        .where(attempts.c.batch_id == batch_id, attempts.c.number == number)
        .order_by(attempts.c.attempt)
    ).all()
    return {**_execution(row), "attempts": [_attempt(attempt) for attempt in tries]}


def read_origin(connection: Connection, text: str) -> dict[str, Any]:
    """The execution that ran: the one itself, or the one whose result it took over.

    Raises:
        NotFound: when there is no such execution.
    """
    item = read_execution(connection, text)
    return read_execution(connection, item["reused_from"]) if item["reused_from"] else item


def pick_attempt(execution: Mapping[str, Any], attempt: int | None) -> dict[str, Any]:
    """One of the attempts that `read_execution` gave; without a number the latest that ended.

    Raises:
        NotFound: when there is no such attempt.
    """
    tries: list[dict[str, Any]] = execution["attempts"]
    if attempt is None:
        ended = [each for each in tries if each["ended_at"] is not None]
        tries, attempt = (ended or tries)[-1:], 1
    else:
        tries = [each for each in tries if each["attempt"] == attempt]
    if not tries:
        raise NotFound("attempt", f"{execution['execution_id']}/{attempt}")
    return tries[0]


def read_trace(connection: Connection, text: str, attempt: int | None) -> Trace:
    """What an attempt left, the latest that ended unless one is named.

    Raises:
        NotFound: when there is no such execution or attempt.
    """
    item = read_origin(connection, text)
    batch_id, number = parse_execution_id(item["execution_id"])
    version = get_batch(connection, batch_id).project_version
    if attempt is None and not item["attempts"]:
        return Trace(item["execution_id"], 0, version)
    found = pick_attempt(item, attempt)
    stored = connection.execute(
        select(attempts.c.result).where(
            attempts.c.batch_id == batch_id,
            attempts.c.number == number,
            attempts.c.attempt == found["attempt"],
        )
    ).scalar_one()
    return Trace(
        execution_id=item["execution_id"],
        attempt=found["attempt"],
        project_version=version,
        ended=found["ended_at"] is not None,
        history=json.loads(stored).get("history") if stored else None,
        start_commit_id=found["start_commit_id"],
        file_commit_id=found["file_commit_id"],
    )


def read_fork_source(connection: Connection, text: str, attempt: int | None) -> ForkSource:
    """What a fork of an execution is made from.

    Raises:
        NotFound: when there is no such execution or attempt.
    """
    trace = read_trace(connection, text, attempt)
    batch_id, number = parse_execution_id(trace.execution_id)
    batch = get_batch(connection, batch_id)
    row = get_execution(connection, batch_id, number)
    body = connection.execute(
        select(cases.c.body).where(
            cases.c.batch_id == batch_id, cases.c.case_index == row.case_index
        )
    ).scalar_one()
    return ForkSource(
        trace=trace,
        spec=json.loads(batch.spec),
        variant=json.loads(batch.variants)[row.variant_index],
        case=json.loads(body),
        repetition=row.repetition,
        evaluators=json.loads(batch.evaluators),
        scores=json.loads(batch.scores),
    )


def load_log(attempt: Mapping[str, Any], stream: str, blobs: BlobStore) -> dict[str, Any]:
    """What an attempt wrote to `stdout` or `stderr`: `{attempt, stream, text, truncated}`.

    Raises:
        NotFound: when its blob is gone.
    """
    digest: str | None = attempt[f"{stream}_blob"]
    data = b"" if digest is None else blobs.get(digest)
    return {
        "attempt": attempt["attempt"],
        "stream": stream,
        "text": data.decode(errors="replace"),
        "truncated": stream in attempt["cut_logs"],
    }


def read_outputs(
    connection: Connection, batch_id: str, numbers: list[int]
) -> dict[int, tuple[str | None, str | None]]:
    """For each execution its output's JSON text, or the blob that holds it."""
    rows = connection.execute(
        select(executions.c.number, executions.c.output, executions.c.output_blob).where(
            executions.c.batch_id == batch_id, executions.c.number.in_(numbers)
        )
    )
    return {row.number: (row.output, row.output_blob) for row in rows}


def load_output(stored: tuple[str | None, str | None], blobs: BlobStore) -> Any:
    """The value of an output that `read_outputs` named; null when there is none.

    Raises:
        NotFound: when its blob is gone.
    """
    text, blob = stored
    if blob is not None:
        text = blobs.get(blob).decode()
    return None if text is None else json.loads(text)


def read_events(
    connection: Connection, stream: str, after: int, limit: int
) -> tuple[log.LogPage, bool]:
    """A page of a batch's events, and whether the batch has ended with it.

    Raises:
        NotFound: when there is no such batch.
    """
    status = get_batch(connection, stream).status
    page = log.read(connection, stream, after, limit)
    newest = page.items[-1]["seq"] if page.items else after
    return page, status in TERMINAL_BATCH and newest >= page.last_seq


def find_ended(connection: Connection, execution_ids: Sequence[str]) -> list[str]:
    """Those of the executions that have ended, or that the store does not know."""
    ended: list[str] = []
    for text in execution_ids:
        try:
            row = get_execution(connection, *parse_execution_id(text))
        except NotFound:
            ended.append(text)
            continue
        if row.status in TERMINAL_EXECUTION:
            ended.append(text)
    return ended


def read_replicas(connection: Connection) -> list[dict[str, Any]]:
    """The executor replicas that are there, with what they said of themselves.

    `running` counts the attempts that each of them holds.
    """
    running = (
        select(func.count())
        .where(attempts.c.replica_id == replicas.c.replica_id, attempts.c.status == "running")
        .scalar_subquery()
        .label("running")
    )
    rows = connection.execute(
        select(replicas, running)
        .where(replicas.c.status.in_(("live", "draining")))
        .order_by(replicas.c.registered_ms)
    )
    return [
        {
            "replica_id": row.replica_id,
            "actor_id": row.actor_id,
            "status": row.status,
            "running": row.running,
            "restart_count": row.restart_count,
            "initialized_at": format_time(row.registered_ms),
            "isolation": json.loads(row.event)["payload"]["isolation"],
        }
        for row in rows
    ]


def _matching(batch_id: str, wanted: ExecutionFilter) -> Select[Any]:
    query = select(executions).where(executions.c.batch_id == batch_id)
    for column, value in wanted._asdict().items():
        if value is not None:
            query = query.where(executions.c[column] == value)
    return query.order_by(executions.c.number)


def _summary(batch: Row[Any], now_ms: int) -> dict[str, Any]:
    return {
        "batch_id": batch.batch_id,
        "name": batch.name,
        "project": batch.project,
        "project_version": batch.project_version,
        "status": batch.status,
        "retry_of": batch.retry_of,
        "forked_from": _describe_origin(batch),
        "submitted_by": batch.submitted_by,
        "labels": json.loads(batch.spec)["labels"],
        "created_at": format_time(batch.created_ms),
        "started_at": find_time(batch.started_ms),
        "finished_at": find_time(batch.finished_ms),
        "counts": count_by_status(batch),
        "progress": progress(batch, now_ms),
    }


def _describe_origin(batch: Row[Any]) -> dict[str, Any] | None:
    if batch.origin is None:
        return None
    origin = json.loads(batch.origin)
    return {key: origin[key] for key in ("execution_id", "attempt", "checkpoint_id")}


def _execution(row: Row[Any]) -> dict[str, Any]:
    result: Mapping[str, Any] = json.loads(row.result) if row.result else {}
    return {
        "execution_id": execution_id(row.batch_id, row.number),
        "batch_id": row.batch_id,
        "variant": row.variant,
        "case_id": row.case_id,
        "repetition": row.repetition,
        "status": row.status,
        "attempt": row.attempt,
        "reused_from": row.reused_from,
        **{field: result.get(field, default) for field, default in _RESULT_FIELDS.items()},
    }


def _attempt(row: Row[Any]) -> dict[str, Any]:
    result: Mapping[str, Any] = json.loads(row.result) if row.result else {}
    return {
        "attempt": row.attempt,
        "status": row.status,
        "replica_id": row.replica_id,
        "actor_id": row.actor_id,
        "started_at": format_time(row.started_ms),
        "ended_at": find_time(row.ended_ms),
        "resumed_from": row.resumed_from,
        **{field: result.get(field, default) for field, default in _RESULT_FIELDS.items()},
        "nodes": result.get("nodes", []),
        "stdout_blob": result.get("stdout"),
        "stderr_blob": result.get("stderr"),
        "cut_logs": result.get("cut_logs", []),
    }
