"""Taking over what succeeded in the batch that is tried again.

The new batch has the shape of the old one, so an execution's number is the same in both. Results
are copied when the rows are made; they are adopted, each with its event, once the batch has
started, so that its stream begins as every batch's does.
"""

import hashlib
import json
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, select

from wtb_core import events as ev
from wtb_core.attempts import Origin
from wtb_core.errors import NotRetryable
from wtb_core.matrix import execution_id
from wtb_core.report import overall_score
from wtb_core.states import TERMINAL_BATCH, advance_execution
from wtb_core.store.ledger import Ledger
from wtb_core.store.records import NewBatch
from wtb_core.store.rows import get_batch, name_attempt, to_json, update_execution
from wtb_core.store.tables import cases, executions

ADOPT_CHUNK = 1_000
NOTHING: Final[dict[str, Any]] = {
    "reused_from": None,
    "result": None,
    "output": None,
    "output_blob": None,
}


def renew(
    connection: Connection,
    batch_id: str,
    new_batch_id: str,
    idempotency_key: str | None,
    submitted_by: str | None,
) -> NewBatch:
    """The batch that tries `batch_id` again with the same project version.

    Raises:
        NotFound: when there is no such batch.
        NotRetryable: when it has not ended, or everything in it succeeded.
    """
    count_reusable(connection, batch_id)
    old = get_batch(connection, batch_id)
    bodies = connection.execute(
        select(cases.c.body).where(cases.c.batch_id == batch_id).order_by(cases.c.case_index)
    ).scalars()
    return NewBatch(
        batch_id=new_batch_id,
        project_version=old.project_version,
        spec=json.loads(old.spec),
        spec_digest=make_digest(batch_id, "same"),
        cases=[json.loads(body) for body in bodies],
        variants=json.loads(old.variants),
        evaluators=json.loads(old.evaluators),
        scores=json.loads(old.scores),
        idempotency_key=idempotency_key,
        retry_of=batch_id,
        submitted_by=submitted_by,
        origin=None if old.origin is None else Origin.model_validate_json(old.origin),
        repetition=old.repetition,
    )


def make_digest(batch_id: str, project_version: Literal["same", "latest"]) -> str:
    """What an idempotency key of a retry stands for: what was asked, not what it came to."""
    return hashlib.sha256(f"retry {batch_id} {project_version}".encode()).hexdigest()


def count_reusable(connection: Connection, batch_id: str) -> int:
    """How many executions a retry of the batch takes over.

    Raises:
        NotFound: when there is no such batch.
        NotRetryable: when it has not ended, or everything in it succeeded.
    """
    old = get_batch(connection, batch_id)
    if old.status not in TERMINAL_BATCH:
        raise NotRetryable(batch_id, f"it is {old.status}; cancel it or wait for its end")
    if old.succeeded == old.total:
        raise NotRetryable(batch_id, f"all of its {old.total} executions succeeded")
    return int(old.succeeded)


def find_results(
    connection: Connection, batch: Row[Any], first: int, last: int
) -> dict[int, dict[str, Any]]:
    """By number, the columns of executions `first` to `last` (exclusive) that are taken over.

    `reused_from` names the execution that ran, also through several retries.
    """
    if not batch.reused:
        return {}
    rows = connection.execute(
        select(executions).where(
            executions.c.batch_id == batch.retry_of,
            executions.c.number >= first,
            executions.c.number < last,
            executions.c.status == "succeeded",
        )
    )
    return {
        row.number: {
            "reused_from": row.reused_from or execution_id(row.batch_id, row.number),
            "result": row.result,
            "output": row.output,
            "output_blob": row.output_blob,
        }
        for row in rows
    }


def adopt(ledger: Ledger, connection: Connection, batch: Row[Any]) -> list[ev.Draft]:
    """End the next chunk of a running batch's reused executions; the events that say so.

    Overall scores are computed anew, because the batch may be of another project version.
    """
    rows = connection.execute(
        select(executions)
        .where(
            executions.c.batch_id == batch.batch_id,
            executions.c.status == "pending",
            executions.c.reused_from.is_not(None),
        )
        .order_by(executions.c.number)
        .limit(ADOPT_CHUNK)
    ).all()
    now = ledger.clock()
    rules = ledger.get_facts(batch).scores
    drafts: list[ev.Draft] = []
    for row in rows:
        result: dict[str, Any] = json.loads(row.result)
        result["overall_score"] = overall_score(result["scores"], rules)
        update_execution(
            connection,
            batch.batch_id,
            row.number,
            status=advance_execution(row.status, "adopt"),
            result=to_json(result),
        )
        payload = ev.VariantCompleted(
            **name_attempt(batch.batch_id, row, row.attempt, "", ""),
            duration_ms=result["duration_ms"],
            node_count=result["node_count"],
            checkpoint_count=result["checkpoint_count"],
            scores=result["scores"],
            overall_score=result["overall_score"],
            files_tracked=result.get("files_tracked") or 0,
            file_commit_id=result["file_commit_id"],
            cpu_ms=result["cpu_ms"],
            peak_rss_bytes=result["peak_rss_bytes"],
            usage=result["usage"],
            reused_from=row.reused_from,
        )
        drafts.append(ledger.draft(payload, now))
    return drafts
