"""The executor pool as the store knows it: live replicas, and pool events in force."""

import json
from collections.abc import Sequence

from sqlalchemy import Connection, insert, select, update

from wtb_core import events as ev
from wtb_core.store import log
from wtb_core.store.ledger import Ledger
from wtb_core.store.rows import to_json
from wtb_core.store.tables import POOL_STREAM, attempts, batches, replicas, standing


def standing_events(connection: Connection) -> list[ev.Draft]:
    """The pool events in force: pool created, each live replica, executor backpressure."""
    topics = {row.topic: row.event for row in connection.execute(select(standing))}
    live = connection.execute(
        select(replicas.c.event)
        .where(replicas.c.status == "live")
        .order_by(replicas.c.registered_ms, replicas.c.replica_id)
    )
    texts = [
        *([topics["pool"]] if "pool" in topics else []),
        *live.scalars(),
        *([topics["executor_queue"]] if "executor_queue" in topics else []),
    ]
    return [ev.Draft(**json.loads(text)) for text in texts]


def announce(
    ledger: Ledger, connection: Connection, payload: ev.Payload, standing_as: str | None
) -> None:
    """Append a pool event, with copies to every running batch.

    With `standing_as` the event stays in force under that topic and each batch that starts
    later begins with a copy of it.
    """
    now = ledger.clock()
    draft = ledger.draft(payload, now)
    if standing_as is not None:
        stand_down(connection, standing_as)
        connection.execute(
            insert(standing).values(topic=standing_as, event=to_json(draft._asdict()))
        )
    _announce(connection, draft)


def stand_down(connection: Connection, topic: str) -> None:
    """End the force of a pool event."""
    connection.execute(standing.delete().where(standing.c.topic == topic))


def register(ledger: Ledger, connection: Connection, payload: ev.ActorInitialized) -> None:
    """Note that a replica is ready; saying it twice is harmless."""
    known = connection.execute(
        select(replicas.c.status).where(replicas.c.replica_id == payload.replica_id)
    ).scalar_one_or_none()
    if known is not None:
        connection.execute(
            update(replicas)
            .where(replicas.c.replica_id == payload.replica_id)
            .values(status="live")
        )
        return
    now = ledger.clock()
    draft = ledger.draft(payload, now)
    connection.execute(
        insert(replicas).values(
            replica_id=payload.replica_id,
            actor_id=payload.actor_id,
            status="live",
            enrolled=0,
            registered_ms=now,
            event=to_json(draft._asdict()),
        )
    )
    _announce(connection, draft)


def enrol(ledger: Ledger, connection: Connection, payload: ev.PoolCreated) -> bool:
    """Note the replicas that run; the first of a pool make its event.

    True when every one of them had registered, so that nothing is left to note.
    """
    rows = connection.execute(
        select(replicas.c.replica_id, replicas.c.enrolled).where(
            replicas.c.replica_id.in_(payload.replica_ids)
        )
    ).all()
    connection.execute(
        update(replicas).where(replicas.c.replica_id.in_(payload.replica_ids)).values(enrolled=1)
    )
    if rows and not any(row.enrolled for row in rows):
        announce(ledger, connection, payload, standing_as="pool")
    return len(rows) == len(payload.replica_ids)


def find_unlisted(connection: Connection, listed: Sequence[str]) -> list[str]:
    """Live replicas that Serve does not list and that hold no attempt."""
    holding = select(attempts.c.replica_id).where(attempts.c.status == "running")
    found = connection.execute(
        select(replicas.c.replica_id).where(
            replicas.c.status == "live",
            replicas.c.replica_id.not_in(listed),
            replicas.c.replica_id.not_in(holding),
        )
    )
    return list(found.scalars())


def retire(connection: Connection, replica_id: str) -> None:
    """Note that Serve stopped a replica."""
    connection.execute(
        update(replicas).where(replicas.c.replica_id == replica_id).values(status="gone")
    )


def _announce(connection: Connection, draft: ev.Draft) -> None:
    started = select(batches.c.batch_id).where(
        batches.c.status.in_(("running", "cancelling")), batches.c.started_ms.is_not(None)
    )
    for stream in [POOL_STREAM, *connection.execute(started).scalars()]:
        log.append(connection, stream, [draft])
