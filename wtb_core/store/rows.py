"""Single rows and what is computed from one."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, select, update

from wtb_core.errors import NotFound
from wtb_core.matrix import execution_id
from wtb_core.store.tables import batches, executions


def parse_execution_id(text: str) -> tuple[str, int]:
    """An execution id's batch and number.

    Raises:
        NotFound: when the text is no execution id.
    """
    batch_id, separator, number = text.rpartition("-")
    if not separator or not re.fullmatch(r"0|[1-9][0-9]{0,8}", number):
        raise NotFound("execution", text)
    return batch_id, int(number)


def get_batch(connection: Connection, batch_id: str) -> Row[Any]:
    """A batch's row.

    Raises:
        NotFound: when there is no such batch.
    """
    row = connection.execute(select(batches).where(batches.c.batch_id == batch_id)).first()
    if row is None:
        raise NotFound("batch", batch_id)
    return row


def get_execution(connection: Connection, batch_id: str, number: int) -> Row[Any]:
    """An execution's row.

    Raises:
        NotFound: when there is no such execution.
    """
    row = connection.execute(
        select(executions).where(executions.c.batch_id == batch_id, executions.c.number == number)
    ).first()
    if row is None:
        raise NotFound("execution", execution_id(batch_id, number))
    return row


def update_batch(connection: Connection, batch_id: str, **values: Any) -> None:
    """Set columns of a batch."""
    connection.execute(update(batches).where(batches.c.batch_id == batch_id).values(**values))


def update_execution(connection: Connection, batch_id: str, number: int, **values: Any) -> None:
    """Set columns of an execution."""
    connection.execute(
        update(executions)
        .where(executions.c.batch_id == batch_id, executions.c.number == number)
        .values(**values)
    )


def count_by_status(batch: Row[Any]) -> dict[str, int]:
    """Executions by status. Those not yet inserted are pending."""
    ended = batch.succeeded + batch.failed + batch.cancelled
    return {
        "pending": batch.total - batch.running - ended,
        "running": batch.running,
        "succeeded": batch.succeeded,
        "failed": batch.failed,
        "cancelled": batch.cancelled,
        "total": batch.total,
    }


def progress(batch: Row[Any], now: int) -> dict[str, Any]:
    """Elapsed and expected time, and executions ended per second since the first claim."""
    end = batch.finished_ms if batch.finished_ms is not None else now
    elapsed_ms = max(end - batch.started_ms, 0) if batch.started_ms is not None else 0
    ended = batch.succeeded + batch.failed + batch.cancelled
    per_ms = (ended - batch.adopted) / elapsed_ms if elapsed_ms else 0.0
    left = batch.total - ended - (batch.reused - batch.adopted)
    remaining_ms = 0 if left == 0 else round(left / per_ms) if per_ms else None
    return {
        "elapsed_ms": elapsed_ms,
        "remaining_ms": remaining_ms,
        "per_s": round(per_ms * 1000, 3),
    }


def to_json(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """Compact JSON text."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def name_attempt(
    batch_id: str, row: Row[Any], attempt: int, actor_id: str, replica_id: str
) -> dict[str, Any]:
    """The fields by which every event names an attempt."""
    return {
        "execution_id": execution_id(batch_id, row.number),
        "attempt": attempt,
        "variant": row.variant,
        "case_id": row.case_id,
        "repetition": row.repetition,
        "actor_id": actor_id,
        "replica_id": replica_id,
    }
