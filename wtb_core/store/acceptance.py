"""Taking a batch in: whole or not at all, and its executions in chunks."""

import math
from fractions import Fraction

from sqlalchemy import Connection, insert, select

from wtb_core.errors import Conflict
from wtb_core.matrix import Shape
from wtb_core.store import admission, log, reuse
from wtb_core.store.ledger import Ledger
from wtb_core.store.records import NewBatch, Receipt
from wtb_core.store.rows import get_batch, parse_execution_id, to_json, update_batch
from wtb_core.store.tables import batches, cases, executions, labels

INSERT_CHUNK = 2_000


def accept(ledger: Ledger, connection: Connection, batch: NewBatch) -> Receipt:
    """Store a batch whole, or not at all.

    Raises:
        Conflict: when the idempotency key belongs to another spec.
        TooManyPending: when the batch would exceed the admission limit now.
        NotRetryable: when it tries a batch again that has not ended, or that succeeded whole.
        NotFound: when what it tries again or was forked from has been removed.
    """
    if batch.idempotency_key is not None:
        known = connection.execute(
            select(batches).where(batches.c.idempotency_key == batch.idempotency_key)
        ).first()
        if known is not None:
            if known.spec_digest != batch.spec_digest:
                raise Conflict(batch.idempotency_key, known.batch_id)
            return Receipt(
                known.batch_id, known.status, known.total, created=False, reused=known.reused
            )
    if batch.origin is not None and batch.retry_of is None:  # else its blobs may be gone any time
        get_batch(connection, parse_execution_id(batch.origin.execution_id)[0])
    shape = Shape(len(batch.variants), len(batch.cases), batch.spec["repetitions"])
    reused = reuse.count_reusable(connection, batch.retry_of) if batch.retry_of else 0
    admission.admit(ledger, connection, shape.executions - reused)
    _insert_batch(ledger, connection, batch, shape, reused)
    insert_executions(ledger, connection, batch.batch_id)
    return Receipt(batch.batch_id, "pending", shape.executions, created=True, reused=reused)


def _insert_batch(
    ledger: Ledger, connection: Connection, batch: NewBatch, shape: Shape, reused: int
) -> None:
    spec = batch.spec
    now = ledger.clock()
    limits = spec["limits"]
    max_failures = limits["max_failures"]
    if isinstance(max_failures, float):  # the decimal as written: 0.29 of 100 is 29, not 28.99...
        max_failures = math.floor(Fraction(str(max_failures)) * shape.executions)
    connection.execute(
        insert(batches).values(
            batch_id=batch.batch_id,
            name=spec["name"],
            project=spec["project"],
            project_version=batch.project_version,
            status="pending",
            retry_of=batch.retry_of,
            submitted_by=batch.submitted_by,
            idempotency_key=batch.idempotency_key,
            spec_digest=batch.spec_digest,
            spec=to_json(spec),
            variants=to_json(batch.variants),
            evaluators=to_json(batch.evaluators),
            scores=to_json(batch.scores),
            baseline=spec["baseline"] or batch.variants[0]["name"],
            cases=shape.cases,
            repetitions=shape.repetitions,
            total=shape.executions,
            reused=reused,
            adopted=0,
            inserted=0,
            running=0,
            succeeded=0,
            failed=0,
            cancelled=0,
            concurrency=limits["concurrency"],
            max_failures=max_failures,
            deadline_ms=None,
            last_claim=0,
            created_ms=now,
            progress_ms=0,
            origin=None if batch.origin is None else to_json(batch.origin.model_dump()),
            repetition=batch.repetition,
            priority=spec["priority"],
        )
    )
    if spec["labels"]:
        rows = [
            {"batch_id": batch.batch_id, "key": key, "value": value}
            for key, value in spec["labels"].items()
        ]
        connection.execute(insert(labels), rows)
    connection.execute(
        insert(cases),
        [
            {
                "batch_id": batch.batch_id,
                "case_index": index,
                "case_id": case["id"],
                "body": to_json(case),
            }
            for index, case in enumerate(batch.cases)
        ],
    )
    log.open_stream(connection, batch.batch_id)


def insert_executions(ledger: Ledger, connection: Connection, batch_id: str) -> bool:
    """Make the next chunk of a batch's executions; true when none is left to make."""
    batch = get_batch(connection, batch_id)
    first, last = batch.inserted, min(batch.inserted + INSERT_CHUNK, batch.total)
    if first < last:
        names = [variant.name for variant in ledger.get_facts(batch).variants]
        shape = Shape(len(names), batch.cases, batch.repetitions)
        needed = {shape.position(i).case for i in range(first, last)}
        found = connection.execute(
            select(cases.c.case_index, cases.c.case_id).where(
                cases.c.batch_id == batch_id,
                cases.c.case_index.between(min(needed), max(needed)),
            )
        )
        case_ids = {row.case_index: row.case_id for row in found}
        taken = reuse.find_results(connection, batch, first, last)
        connection.execute(
            insert(executions),
            [
                {
                    "batch_id": batch_id,
                    "number": number,
                    "variant": names[position.variant],
                    "variant_index": position.variant,
                    "case_id": case_ids[position.case],
                    "case_index": position.case,
                    "repetition": position.repetition + (batch.repetition or 0),
                    "status": "pending",
                    "attempt": 0,
                    "ready_ms": batch.created_ms,
                    **taken.get(number, reuse.NOTHING),
                }
                for number, position in ((i, shape.position(i)) for i in range(first, last))
            ],
        )
        update_batch(connection, batch_id, inserted=last)
    return last == batch.total
