"""Giving executions to replicas, late: a claim names no execution, the answer does."""

import json
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select

from wtb_core import events as ev
from wtb_core.attempts import Assignment
from wtb_core.matrix import execution_id
from wtb_core.states import advance_batch, advance_execution
from wtb_core.store import log, pool
from wtb_core.store.ledger import Ledger
from wtb_core.store.records import Claimant
from wtb_core.store.rows import (
    get_batch,
    get_execution,
    name_attempt,
    update_batch,
    update_execution,
)
from wtb_core.store.tables import attempts, batches, cases, executions

COUNT_AT_MOST = 1_000

_CLAIMABLE_BATCHES = (
    select(batches)
    .where(
        batches.c.status.in_(("pending", "running")),
        batches.c.inserted
        > batches.c.running + batches.c.succeeded + batches.c.failed + batches.c.cancelled,
        (batches.c.concurrency.is_(None)) | (batches.c.running < batches.c.concurrency),
    )
    .order_by(batches.c.last_claim, batches.c.number)
)
_NEXT_EXECUTION = (
    select(executions)
    .where(
        executions.c.batch_id == bindparam("batch"),
        executions.c.status == "pending",
        executions.c.ready_ms <= bindparam("now"),
        executions.c.reused_from.is_(None),
    )
    .order_by(executions.c.number)
    .limit(1)
)


def claim(
    ledger: Ledger, connection: Connection, claimant: Claimant, only_batch: str | None = None
) -> Assignment | None:
    """Give the claimant the next execution, or nothing when none is ready.

    Batches take turns: the one whose last claim is oldest goes first.
    """
    given = connection.execute(
        select(attempts).where(attempts.c.claim_id == claimant.claim_id)
    ).first()
    if given is not None:
        return _assignment(ledger, connection, given.batch_id, given.number, given.attempt)
    now = ledger.clock()
    for batch in connection.execute(_CLAIMABLE_BATCHES).all():
        if only_batch not in {None, batch.batch_id}:
            continue
        row = connection.execute(_NEXT_EXECUTION, {"batch": batch.batch_id, "now": now}).first()
        if row is not None:
            return _start(ledger, connection, batch, row, claimant, now)
    return None


def count_claimable(ledger: Ledger, connection: Connection) -> int:
    """How many executions could start now if slots were free, counted to `COUNT_AT_MOST`."""
    now = ledger.clock()
    total = 0
    for batch in connection.execute(_CLAIMABLE_BATCHES).all():
        free = COUNT_AT_MOST
        if batch.concurrency is not None:
            free = min(free, batch.concurrency - batch.running)
        ready = (
            select(executions.c.number)
            .where(
                executions.c.batch_id == batch.batch_id,
                executions.c.status == "pending",
                executions.c.ready_ms <= now,
                executions.c.reused_from.is_(None),
            )
            .limit(free)
            .subquery()
        )
        total += connection.execute(select(func.count()).select_from(ready)).scalar_one()
        if total >= COUNT_AT_MOST:
            return COUNT_AT_MOST
    return total


def _start(
    ledger: Ledger,
    connection: Connection,
    batch: Row[Any],
    row: Row[Any],
    claimant: Claimant,
    now: int,
) -> Assignment:
    batch_id, attempt = batch.batch_id, row.attempt + 1
    turn = connection.execute(select(func.max(batches.c.last_claim))).scalar_one() + 1
    first = batch.started_ms is None
    update_batch(
        connection,
        batch_id,
        status=advance_batch(batch.status, "claim"),
        running=batch.running + 1,
        last_claim=turn,
        **({"started_ms": now, "deadline_ms": _deadline(ledger, batch, now)} if first else {}),
    )
    update_execution(
        connection,
        batch_id,
        row.number,
        status=advance_execution(row.status, "claim"),
        attempt=attempt,
    )
    connection.execute(
        insert(attempts).values(
            batch_id=batch_id,
            number=row.number,
            attempt=attempt,
            claim_id=claimant.claim_id,
            replica_id=claimant.replica_id,
            actor_id=claimant.actor_id,
            status="running",
            started_ms=now,
            queue_ms=max(now - row.ready_ms, 0),
        )
    )
    drafts = _batch_start(ledger, connection, batch, now) if first else []
    payload = ev.VariantStarted(
        **name_attempt(batch_id, row, attempt, claimant.actor_id, claimant.replica_id),
        queue_ms=max(now - row.ready_ms, 0),
        resumed_from=None,
    )
    log.append(connection, batch_id, [*drafts, ledger.draft(payload, now)])
    return _assignment(ledger, connection, batch_id, row.number, attempt)


def _batch_start(
    ledger: Ledger, connection: Connection, batch: Row[Any], now: int
) -> list[ev.Draft]:
    """Batch started, then copies of the pool events in force."""
    facts = ledger.get_facts(batch)
    payload = ev.BatchStarted(
        project=batch.project,
        project_version=batch.project_version,
        variants=[variant.name for variant in facts.variants],
        cases=batch.cases,
        repetitions=batch.repetitions,
        executions=batch.total,
        reused=batch.reused,
        retry_of=batch.retry_of,
        limits=facts.limits.model_dump(),
        baseline=batch.baseline,
        evaluators=facts.evaluators,
        scores=facts.scores,
    )
    return [ledger.draft(payload, now), *pool.standing_events(connection)]


def _assignment(
    ledger: Ledger, connection: Connection, batch_id: str, number: int, attempt: int
) -> Assignment:
    batch = get_batch(connection, batch_id)
    facts = ledger.get_facts(batch)
    row = get_execution(connection, batch_id, number)
    case = connection.execute(
        select(cases.c.body).where(
            cases.c.batch_id == batch_id, cases.c.case_index == row.case_index
        )
    ).scalar_one()
    return Assignment(
        execution_id=execution_id(batch_id, number),
        batch_id=batch_id,
        attempt=attempt,
        project=batch.project,
        project_version=batch.project_version,
        variant=facts.variants[row.variant_index],
        case=json.loads(case),
        repetition=row.repetition,
        evaluators=facts.evaluators,
        limits=facts.limits,
        workspace=facts.workspace,
        origin=facts.origin,
    )


def _deadline(ledger: Ledger, batch: Row[Any], now: int) -> int | None:
    timeout_s = ledger.get_facts(batch).limits.batch_timeout
    return None if timeout_s is None else now + round(timeout_s * 1000)
