"""Giving executions to replicas, late: a claim names no execution, the answer does.

An execution whose last attempts were lost goes on from the latest checkpoint that the claimant can
reach. The store does not know checkpoints, so such a claim is first answered with a `Lookup`, which
changes nothing, and given when it comes again with an offer.
"""

import json
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select

from wtb_core import events as ev
from wtb_core.attempts import Assignment, ResumePoint
from wtb_core.matrix import execution_id
from wtb_core.states import advance_batch, advance_execution
from wtb_core.store import log, pool
from wtb_core.store.ledger import Ledger
from wtb_core.store.records import Claimant, Lookup, Offer
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
    .order_by(batches.c.priority.desc(), batches.c.last_claim, batches.c.number)
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
    ledger: Ledger,
    connection: Connection,
    claimant: Claimant,
    only_batch: str | None = None,
    *,
    only_given: bool = False,
) -> Assignment | Lookup | None:
    """Give the claimant the next execution, or nothing when none is ready.

    A batch of a higher priority goes first. Those of the same take turns: the one whose last claim
    is oldest goes first. A claim that is repeated gets the same answer while its attempt runs;
    nothing once that has ended, and nothing for another replica, should Serve hand a permit to two.
    A replica that is being stopped gets nothing new, nor does one that was taken for dead until it
    has registered again: nobody would notice its death. With `only_given` nobody gets anything new.
    """
    given = connection.execute(
        select(attempts).where(attempts.c.claim_id == claimant.claim_id)
    ).first()
    if given is not None:
        if given.status != "running" or given.replica_id != claimant.replica_id:
            return None
        return _assignment(ledger, connection, given)
    if only_given or pool.find_status(connection, claimant.replica_id) not in {None, "live"}:
        return None
    now = ledger.clock()
    for batch in connection.execute(_CLAIMABLE_BATCHES).all():
        if only_batch not in {None, batch.batch_id}:
            continue
        row = connection.execute(_NEXT_EXECUTION, {"batch": batch.batch_id, "now": now}).first()
        if row is None:
            continue
        lookup = _make_lookup(ledger, connection, batch, row)
        if lookup is None:
            return _start(ledger, connection, batch, row, claimant, now, resume=None)
        offers = [
            offer
            for offer in claimant.offers
            if (offer.execution_id, offer.attempt) == (lookup.execution_id, lookup.attempt)
        ]
        if not offers:
            return lookup
        resume = _accept_offer(offers[-1], lookup)
        return _start(ledger, connection, batch, row, claimant, now, resume=resume)
    return None


def _make_lookup(
    ledger: Ledger, connection: Connection, batch: Row[Any], row: Row[Any]
) -> Lookup | None:
    """What to look up before the execution can be given; None when it starts clean anyway."""
    if row.attempt == 0:
        return None
    ended = connection.execute(
        select(attempts.c.attempt, attempts.c.result)
        .where(attempts.c.batch_id == batch.batch_id, attempts.c.number == row.number)
        .order_by(attempts.c.attempt.desc())
    )
    predecessors: list[tuple[int, str | None]] = []
    for attempt, text in ended:
        result: dict[str, Any] = json.loads(text)
        if (result["failure"] or {}).get("kind") != "lost":
            break
        predecessors.append((attempt, result["history"]))
    if not predecessors:
        return None
    origin = ledger.get_facts(batch).origin
    return Lookup(
        execution_id=execution_id(batch.batch_id, row.number),
        attempt=row.attempt + 1,
        predecessors=predecessors,
        origin_checkpoint_id=origin.checkpoint_id if origin else None,
    )


def _accept_offer(offer: Offer, lookup: Lookup) -> ResumePoint | None:
    """The point to go on from; an offer that is none of a predecessor's starts clean."""
    sources = {attempt for attempt, _ in lookup.predecessors}
    if offer.checkpoint_id is None or offer.source not in sources:
        return None
    return ResumePoint(
        attempt=offer.source, checkpoint_id=offer.checkpoint_id, history=offer.history
    )


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


def count_running(connection: Connection) -> int:
    """How many executions run."""
    running = select(func.coalesce(func.sum(batches.c.running), 0)).where(
        batches.c.status.in_(("running", "cancelling"))
    )
    return int(connection.execute(running).scalar_one())


def has_running(connection: Connection, replica_id: str, before_ms: int) -> bool:
    """Whether the replica was given an attempt before `before_ms` that has not ended."""
    found = connection.execute(
        select(attempts.c.attempt)
        .where(
            attempts.c.status == "running",
            attempts.c.replica_id == replica_id,
            attempts.c.started_ms < before_ms,
        )
        .limit(1)
    )
    return found.first() is not None


def _start(
    ledger: Ledger,
    connection: Connection,
    batch: Row[Any],
    row: Row[Any],
    claimant: Claimant,
    now: int,
    *,
    resume: ResumePoint | None,
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
    given = connection.execute(
        insert(attempts)
        .values(
            batch_id=batch_id,
            number=row.number,
            attempt=attempt,
            claim_id=claimant.claim_id,
            replica_id=claimant.replica_id,
            actor_id=claimant.actor_id,
            status="running",
            started_ms=now,
            queue_ms=max(now - row.ready_ms, 0),
            resumed_from=resume.checkpoint_id if resume else None,
            resume=resume.model_dump_json() if resume else None,
        )
        .returning(attempts)
    ).one()
    drafts = _batch_start(ledger, connection, batch, now) if first else []
    payload = ev.VariantStarted(
        **name_attempt(batch_id, row, attempt, claimant.actor_id, claimant.replica_id),
        queue_ms=max(now - row.ready_ms, 0),
        resumed_from=given.resumed_from,
    )
    log.append(connection, batch_id, [*drafts, ledger.draft(payload, now)])
    return _assignment(ledger, connection, given)


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


def _assignment(ledger: Ledger, connection: Connection, given: Row[Any]) -> Assignment:
    """The answer to the claim that made the attempt `given`."""
    batch = get_batch(connection, given.batch_id)
    facts = ledger.get_facts(batch)
    row = get_execution(connection, given.batch_id, given.number)
    case = connection.execute(
        select(cases.c.body).where(
            cases.c.batch_id == given.batch_id, cases.c.case_index == row.case_index
        )
    ).scalar_one()
    return Assignment(
        execution_id=execution_id(given.batch_id, given.number),
        batch_id=given.batch_id,
        attempt=given.attempt,
        project=batch.project,
        project_version=batch.project_version,
        variant=facts.variants[row.variant_index],
        case=json.loads(case),
        repetition=row.repetition,
        evaluators=facts.evaluators,
        limits=facts.limits,
        workspace=facts.workspace,
        resume=None if given.resume is None else ResumePoint.model_validate_json(given.resume),
        origin=facts.origin,
    )


def _deadline(ledger: Ledger, batch: Row[Any], now: int) -> int | None:
    timeout_s = ledger.get_facts(batch).limits.batch_timeout
    return None if timeout_s is None else now + round(timeout_s * 1000)
