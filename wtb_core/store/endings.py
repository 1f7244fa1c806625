"""Ending attempts, executions and batches; each change with the events it causes."""

import json
import zlib
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from sqlalchemy import Connection, Row, select, update

from wtb_core import events as ev
from wtb_core.attempts import Failure, Outcome
from wtb_core.matrix import execution_id
from wtb_core.report import overall_score
from wtb_core.specs import Retry
from wtb_core.states import (
    INFRASTRUCTURE_KINDS,
    TERMINAL_EXECUTION,
    advance_batch,
    advance_execution,
)
from wtb_core.store import acceptance, log, pool, results, reuse
from wtb_core.store.leases import Held
from wtb_core.store.ledger import Ledger
from wtb_core.store.records import Answer, Finish
from wtb_core.store.rows import (
    count_by_status,
    get_batch,
    get_execution,
    name_attempt,
    parse_execution_id,
    progress,
    to_json,
    update_batch,
    update_execution,
)
from wtb_core.store.tables import attempts, batches, executions

PROGRESS_INTERVAL_MS = 1_000
CANCEL_CHUNK = 2_000
_BACKOFF_FACTOR = 2.0
_MAX_BACKOFF_MS = 300_000


def finish(ledger: Ledger, connection: Connection, finish: Finish) -> Answer:
    """Record an attempt's end, once; refuse the result of an attempt that is not running."""
    batch_id, number = parse_execution_id(finish.execution_id)
    if log.has_event(connection, batch_id, finish.event_id):
        return "duplicate"
    attempt = connection.execute(
        select(attempts).where(
            attempts.c.batch_id == batch_id,
            attempts.c.number == number,
            attempts.c.attempt == finish.attempt,
        )
    ).first()
    if attempt is None or attempt.status != "running":
        return "refused"
    _end(ledger, connection, attempt, finish)
    return "accepted"


def lose(
    ledger: Ledger, connection: Connection, replica_id: str, error_type: str, reason: str
) -> int:
    """End a dead replica's attempts as lost; returns how many there were."""
    held = connection.execute(
        select(attempts)
        .where(attempts.c.replica_id == replica_id, attempts.c.status == "running")
        .order_by(attempts.c.started_ms, attempts.c.batch_id, attempts.c.number)
    ).all()
    names = [execution_id(attempt.batch_id, attempt.number) for attempt in held]
    pool.fail(ledger, connection, replica_id, error_type, reason, names)
    for attempt in held:
        _lose_attempt(ledger, connection, attempt, reason)
    return len(held)


def lose_dropped(
    ledger: Ledger, connection: Connection, replica_id: str, held: AbstractSet[Held], before_ms: int
) -> int:
    """End the attempts that a live replica was given before `before_ms` and does not hold.

    It never had the answer to its claim. Returns how many there were.
    """
    running = connection.execute(
        select(attempts).where(
            attempts.c.replica_id == replica_id,
            attempts.c.status == "running",
            attempts.c.started_ms < before_ms,
        )
    ).all()
    dropped = [
        attempt
        for attempt in running
        if (execution_id(attempt.batch_id, attempt.number), attempt.attempt) not in held
    ]
    for attempt in dropped:
        _lose_attempt(ledger, connection, attempt, "its replica never had it")
    return len(dropped)


def _lose_attempt(ledger: Ledger, connection: Connection, attempt: Row[Any], reason: str) -> None:
    outcome = Outcome(
        status="failed",
        failure=Failure(kind="lost", reason=reason),
        duration_ms=max(ledger.clock() - attempt.started_ms, 0),
    )
    finish = Finish(
        event_id=ledger.new_id(),
        execution_id=execution_id(attempt.batch_id, attempt.number),
        attempt=attempt.attempt,
        replica_id=attempt.replica_id,
        actor_id=attempt.actor_id,
        outcome=outcome,
    )
    _end(ledger, connection, attempt, finish)


def _end(ledger: Ledger, connection: Connection, attempt: Row[Any], finish: Finish) -> None:
    now = ledger.clock()
    batch_id, number = attempt.batch_id, attempt.number
    batch = get_batch(connection, batch_id)
    facts = ledger.get_facts(batch)
    row = get_execution(connection, batch_id, number)
    is_cancelling = batch.status == "cancelling" or row.cancel_reason is not None
    outcome = _judge(finish.outcome, is_cancelling=is_cancelling)
    will_retry = not is_cancelling and _will_retry(row, facts.retry, outcome)
    given = {"succeeded": "succeed", "failed": "fail", "cancelled": "cancel"}[outcome.status]
    status = advance_execution(row.status, "retry" if will_retry else given)
    overall = overall_score(outcome.evaluation.scores, facts.scores)
    result = results.make_result(attempt, outcome, finish.output_bytes, overall, now)
    ids = name_attempt(batch_id, row, finish.attempt, finish.actor_id, finish.replica_id)
    reason = batch.cancel_reason or row.cancel_reason or "cancelled on request"
    end = ledger.draft(
        results.make_event(outcome, ids, reason, overall, will_retry=will_retry), now
    )
    tracked = [ledger.draft(payload, now) for payload in results.make_file_events(outcome, ids)]
    connection.execute(
        update(attempts)
        .where(
            attempts.c.batch_id == batch_id,
            attempts.c.number == number,
            attempts.c.attempt == finish.attempt,
        )
        .values(
            status=outcome.status,
            ended_ms=now,
            end_event_id=finish.event_id,
            result=to_json(result),
        )
    )
    update_execution(
        connection,
        batch_id,
        number,
        status=status,
        result=to_json(result),
        output=outcome.output,
        output_blob=finish.output_blob,
        **(
            _schedule_retry(row, facts.retry, finish.execution_id, outcome, now)
            if will_retry
            else {}
        ),
    )
    changes: dict[str, Any] = {"running": batch.running - 1}
    if not will_retry:
        changes[outcome.status] = getattr(batch, outcome.status) + 1
        if outcome.failure is not None and outcome.failure.kind in INFRASTRUCTURE_KINDS:
            changes["infrastructure"] = batch.infrastructure + 1
    update_batch(connection, batch_id, **changes)
    log.append(connection, batch_id, [*tracked, end._replace(event_id=finish.event_id)])
    _settle(ledger, connection, batch_id, now)


def _judge(outcome: Outcome, *, is_cancelling: bool) -> Outcome:
    """What an attempt's end counts as: one that is lost while it is cancelled is cancelled."""
    failure = outcome.failure
    if is_cancelling and failure is not None and failure.kind == "lost":
        return outcome.model_copy(update={"status": "cancelled", "failure": None})
    return outcome


def _will_retry(row: Row[Any], retry: Retry, outcome: Outcome) -> bool:
    """Whether another attempt follows; one that was handed back does not count."""
    if outcome.failure is None:
        return False
    counted = row.attempt - row.drained
    return outcome.drained or (outcome.failure.kind in retry.on and counted < retry.max_attempts)


def _schedule_retry(
    row: Row[Any], retry: Retry, execution: str, outcome: Outcome, now: int
) -> dict[str, Any]:
    if outcome.drained:
        return {"ready_ms": now, "drained": row.drained + 1}
    return {"ready_ms": now + _backoff_ms(retry, execution, row.attempt - row.drained)}


def cancel(connection: Connection, batch_id: str, reason: str, by: str) -> bool:
    """Begin to cancel a batch; false when it had ended or was being cancelled.

    Pending executions are ended by `cancel_pending`, running ones by their replicas.

    Raises:
        NotFound: when there is no such batch.
    """
    batch = get_batch(connection, batch_id)
    if batch.status not in {"pending", "running"}:
        return False
    update_batch(
        connection,
        batch_id,
        status=advance_batch(batch.status, "cancel"),
        cancel_reason=reason,
        cancelled_by=by,
    )
    return True


def cancel_execution(ledger: Ledger, connection: Connection, text: str, reason: str) -> bool:
    """Cancel one execution; false when it had ended or is being cancelled.

    A pending one ends at once; a running one when its replica has killed it.

    Raises:
        NotFound: when there is no such execution.
    """
    batch_id, number = parse_execution_id(text)
    row = get_execution(connection, batch_id, number)
    batch = get_batch(connection, batch_id)
    if (
        row.status in TERMINAL_EXECUTION
        or row.cancel_reason is not None
        or batch.status == "cancelling"
    ):
        return False
    update_execution(connection, batch_id, number, cancel_reason=reason)
    if row.status == "running":
        return True
    ended = batch.succeeded + batch.failed + batch.cancelled
    to_run = batch.total - ended - batch.reused
    if batch.status == "pending" and row.reused_from is None and to_run == 1:
        cancel(connection, batch_id, reason, "user")  # nothing is left that could start it
    _cancel_rows(ledger, connection, batch, [row], reason)
    return True


def find_wanted_attempts(connection: Connection, replica_id: str) -> set[Held]:
    """The replica's running attempts that are not being cancelled, alone or with their batch."""
    rows = connection.execute(
        select(attempts.c.batch_id, attempts.c.number, attempts.c.attempt)
        .join(batches, batches.c.batch_id == attempts.c.batch_id)
        .join(
            executions,
            (executions.c.batch_id == attempts.c.batch_id)
            & (executions.c.number == attempts.c.number),
        )
        .where(
            attempts.c.status == "running",
            attempts.c.replica_id == replica_id,
            batches.c.status != "cancelling",
            executions.c.cancel_reason.is_(None),
        )
    )
    return {(execution_id(row.batch_id, row.number), row.attempt) for row in rows}


def cancel_pending(ledger: Ledger, connection: Connection, batch_id: str) -> bool:
    """End the next chunk of a cancelling batch's pending executions; true when none is left.

    What a batch that has started takes over is adopted all the same: it was done before.
    """
    batch = get_batch(connection, batch_id)
    if batch.status != "cancelling":
        return True
    if not acceptance.insert_executions(ledger, connection, batch_id):
        return False
    if batch.started_ms is not None and not adopt(ledger, connection, batch_id):
        return False
    batch = get_batch(connection, batch_id)
    if batch.status != "cancelling":  # what it took over was all that was left
        return True
    rows = connection.execute(
        select(executions)
        .where(executions.c.batch_id == batch_id, executions.c.status == "pending")
        .order_by(executions.c.number)
        .limit(CANCEL_CHUNK)
    ).all()
    _cancel_rows(ledger, connection, batch, rows, batch.cancel_reason)
    return len(rows) < CANCEL_CHUNK


def _cancel_rows(
    ledger: Ledger,
    connection: Connection,
    batch: Row[Any],
    rows: Sequence[Row[Any]],
    reason: str,
) -> None:
    """End pending executions; what they would have taken over is not theirs."""
    now = ledger.clock()
    drafts: list[ev.Draft] = []
    for row in rows:
        taken = {} if row.reused_from is None else reuse.NOTHING
        update_execution(
            connection,
            batch.batch_id,
            row.number,
            status=advance_execution(row.status, "cancel"),
            **taken,
        )
        payload = ev.VariantCancelled(
            **name_attempt(batch.batch_id, row, row.attempt, "", ""), reason=reason, duration_ms=0
        )
        drafts.append(ledger.draft(payload, now))
    if drafts:
        log.append(connection, batch.batch_id, drafts)
        update_batch(
            connection,
            batch.batch_id,
            cancelled=batch.cancelled + len(drafts),
            reused=batch.reused - sum(row.reused_from is not None for row in rows),
        )
    _settle(ledger, connection, batch.batch_id, now)


def continue_batch(ledger: Ledger, connection: Connection, batch_id: str) -> bool:
    """Do the next chunk of what a batch still needs; true when nothing is left to do at once."""
    status = get_batch(connection, batch_id).status
    if status == "cancelling":
        return cancel_pending(ledger, connection, batch_id)
    if not acceptance.insert_executions(ledger, connection, batch_id):
        return False
    return status != "running" or adopt(ledger, connection, batch_id)


def adopt(ledger: Ledger, connection: Connection, batch_id: str) -> bool:
    """End the next chunk of a running batch's reused executions; true when none is left."""
    batch = get_batch(connection, batch_id)
    drafts = reuse.adopt(ledger, connection, batch)
    if drafts:
        log.append(connection, batch_id, drafts)
        update_batch(
            connection,
            batch_id,
            succeeded=batch.succeeded + len(drafts),
            adopted=batch.adopted + len(drafts),
        )
        _settle(ledger, connection, batch_id, ledger.clock())
    return len(drafts) < reuse.ADOPT_CHUNK


def find_overdue(ledger: Ledger, connection: Connection) -> list[str]:
    """Running batches whose deadline has passed."""
    found = connection.execute(
        select(batches.c.batch_id).where(
            batches.c.status == "running", batches.c.deadline_ms <= ledger.clock()
        )
    )
    return list(found.scalars())


def find_unsettled(connection: Connection) -> list[str]:
    """Batches with executions still to make, to adopt or to cancel."""
    b = batches.c
    found = connection.execute(
        select(b.batch_id).where(
            ((b.status.in_(("pending", "running"))) & (b.inserted < b.total))
            | ((b.status == "running") & (b.adopted < b.reused))
            | (b.status == "cancelling")
        )
    )
    return list(found.scalars())


def _settle(ledger: Ledger, connection: Connection, batch_id: str, now: int) -> None:
    """After executions ended: end the batch, or say how far it is, or stop it."""
    batch = get_batch(connection, batch_id)
    ended = batch.succeeded + batch.failed + batch.cancelled
    if ended == batch.total:
        _finish_batch(ledger, connection, batch, now)
        return
    if batch.started_ms is not None and now - batch.progress_ms >= PROGRESS_INTERVAL_MS:
        update_batch(connection, batch_id, progress_ms=now)
        payload = ev.BatchProgress(**count_by_status(batch), **progress(batch, now))
        log.append(connection, batch_id, [ledger.draft(payload, now)])
        ledger.fold(connection, batch_id)
    if (
        batch.max_failures is not None
        and batch.failed > batch.max_failures
        and batch.status == "running"
    ):
        reason = f"{batch.failed} executions failed and max_failures allows {batch.max_failures}"
        cancel(connection, batch_id, reason, "max_failures")


def _finish_batch(ledger: Ledger, connection: Connection, batch: Row[Any], now: int) -> None:
    is_failed = batch.status == "running" and batch.infrastructure == batch.total
    status = advance_batch(batch.status, "fail" if is_failed else "exhaust")
    counts = ev.Counts(**count_by_status(batch))
    duration_ms = now - (batch.started_ms if batch.started_ms is not None else now)
    if status == "completed":
        fold = ledger.fold(connection, batch.batch_id)
        comparison = fold.comparison()
        payload = ev.BatchCompleted(
            counts=counts,
            duration_ms=duration_ms,
            best_variant=comparison["best_variant"],
            best_score=comparison["best_score"],
            files_tracked=fold.files_tracked,
        )
    elif status == "failed":
        failure = _find_last_failure(connection, batch.batch_id)
        payload = ev.BatchFailed(
            counts=counts,
            duration_ms=duration_ms,
            error_type=failure["kind"],
            error_message=f"no execution could be carried out; the last one: {failure['reason']}",
        )
    else:
        payload = ev.BatchCancelled(
            counts=counts,
            duration_ms=duration_ms,
            reason=batch.cancel_reason,
            cancelled_by=batch.cancelled_by,
        )
    update_batch(connection, batch.batch_id, status=status, finished_ms=now)
    log.append(connection, batch.batch_id, [ledger.draft(payload, now)])
    ledger.close(batch.batch_id)


def _find_last_failure(connection: Connection, batch_id: str) -> dict[str, Any]:
    text = connection.execute(
        select(attempts.c.result)
        .where(attempts.c.batch_id == batch_id)
        .order_by(attempts.c.ended_ms.desc(), attempts.c.number.desc())
        .limit(1)
    ).scalar_one()
    return json.loads(text)["failure"]


def _backoff_ms(retry: Retry, execution: str, attempt: int) -> int:
    """Exponential backoff with up to a quarter of jitter, the same for the same attempt."""
    delay_ms = retry.backoff * 1000 * _BACKOFF_FACTOR ** (attempt - 1)
    jitter = zlib.crc32(f"{execution}/{attempt}".encode()) / 2**32 / 4
    return round(min(delay_ms, _MAX_BACKOFF_MS) * (1 + jitter))
