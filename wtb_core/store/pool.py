"""The executor pool as the store knows it: live replicas, and pool events in force."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, func, insert, select, update

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
    ledger: Ledger,
    connection: Connection,
    payload: ev.Payload,
    standing_as: str | None,
    *,
    to_batches: bool = True,
) -> None:
    """Append a pool event, with copies to every running batch.

    With `standing_as` the event stays in force under that topic.
    """
    now = ledger.clock()
    draft = ledger.draft(payload, now)
    if standing_as is not None:
        stand_down(connection, standing_as)
        connection.execute(
            insert(standing).values(topic=standing_as, event=to_json(draft._asdict()))
        )
    _announce(connection, draft, to_batches=to_batches)


def find_standing(connection: Connection, topic: str) -> dict[str, Any] | None:
    """The payload of the pool event in force under a topic, with its `occurred_at`."""
    text = connection.execute(
        select(standing.c.event).where(standing.c.topic == topic)
    ).scalar_one_or_none()
    if text is None:
        return None
    draft = ev.Draft(**json.loads(text))
    return {**draft.payload, "occurred_at": draft.occurred_at}


def stand_down(connection: Connection, topic: str) -> None:
    """End the force of a pool event."""
    connection.execute(standing.delete().where(standing.c.topic == topic))


def register(ledger: Ledger, connection: Connection, payload: ev.ActorInitialized) -> None:
    """Note that a replica is ready; saying it twice is harmless.

    It takes the place of the oldest failed replica that has no successor. One that was taken for
    failed, and lives, comes back as a new one.
    """
    name = payload.replica_id
    known = find_status(connection, name)
    if known in {"live", "draining"}:
        return
    if known == "gone":
        _set_status(connection, name, "live")
        return
    replaced = _replace_oldest(connection)
    now = ledger.clock()
    draft = ledger.draft(payload, now)
    connection.execute(replicas.delete().where(replicas.c.replica_id == name))
    connection.execute(
        insert(replicas).values(
            replica_id=name,
            actor_id=payload.actor_id,
            status="live",
            enrolled=known is not None,
            registered_ms=now,
            event=to_json(draft._asdict()),
            restart_count=0 if replaced is None else replaced.restart_count + 1,
        )
    )
    _announce(connection, draft)
    if replaced is not None:
        restarted = ev.ActorRestarted(
            actor_id=payload.actor_id,
            replica_id=name,
            replaces=replaced.replica_id,
            restart_count=replaced.restart_count + 1,
            reason=f"replica {replaced.replica_id} failed",
        )
        _announce(connection, ledger.draft(restarted, now))


def _replace_oldest(connection: Connection) -> Row[Any] | None:
    """The oldest failed replica without a successor, which it has from now on."""
    oldest = connection.execute(
        select(replicas)
        .where(replicas.c.status == "failed")
        .order_by(replicas.c.ended_ms, replicas.c.registered_ms, replicas.c.replica_id)
        .limit(1)
    ).first()
    if oldest is not None:
        _set_status(connection, oldest.replica_id, "replaced")
    return oldest


def fail(
    ledger: Ledger,
    connection: Connection,
    replica_id: str,
    error_type: str,
    reason: str,
    execution_ids: Sequence[str],
) -> None:
    """Note that a replica died, with what it held; a stop that Serve asked for is no failure."""
    row = connection.execute(select(replicas).where(replicas.c.replica_id == replica_id)).first()
    if row is None or row.status not in {"live", "draining"}:
        return
    now = ledger.clock()
    if row.status == "draining":
        _set_status(connection, replica_id, "gone")
        return
    connection.execute(
        update(replicas)
        .where(replicas.c.replica_id == replica_id)
        .values(status="failed", ended_ms=now)
    )
    payload = ev.ActorFailed(
        actor_id=row.actor_id,
        replica_id=replica_id,
        error_type=error_type,
        error_message=reason,
        execution_ids=list(execution_ids),
    )
    _announce(connection, ledger.draft(payload, now))


def find_by_actor(connection: Connection, actor_id: str) -> str | None:
    """The replica that runs, or is being stopped, as this actor of Ray's."""
    return connection.execute(
        select(replicas.c.replica_id).where(
            replicas.c.actor_id == actor_id, replicas.c.status.in_(("live", "draining"))
        )
    ).scalar_one_or_none()


def find_status(connection: Connection, replica_id: str) -> str | None:
    """A replica's status (see `tables.replicas`); null when it has never registered."""
    return connection.execute(
        select(replicas.c.status).where(replicas.c.replica_id == replica_id)
    ).scalar_one_or_none()


def find_watched(connection: Connection) -> set[str]:
    """The replicas that may be alive, and those that attempts were given to and have not ended."""
    listed = select(replicas.c.replica_id).where(replicas.c.status.in_(("live", "draining")))
    holding = select(attempts.c.replica_id).where(attempts.c.status == "running")
    return set(connection.execute(listed.union(holding)).scalars())


def drain(connection: Connection, stopping: Sequence[str]) -> None:
    """Note the replicas that Serve stops."""
    connection.execute(
        update(replicas)
        .where(replicas.c.replica_id.in_(stopping), replicas.c.status == "live")
        .values(status="draining")
    )


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


class Unlisted(NamedTuple):
    """A live or draining replica that Serve does not list; `held` attempts are its own."""

    replica_id: str
    status: str
    registered_ms: int
    held: int


def find_unlisted(connection: Connection, listed: Sequence[str]) -> list[Unlisted]:
    """Replicas that should be there and that Serve does not list."""
    held = (
        select(func.count())
        .where(attempts.c.replica_id == replicas.c.replica_id, attempts.c.status == "running")
        .scalar_subquery()
    )
    found = connection.execute(
        select(replicas.c.replica_id, replicas.c.status, replicas.c.registered_ms, held).where(
            replicas.c.status.in_(("live", "draining")), replicas.c.replica_id.not_in(listed)
        )
    )
    return [Unlisted(*row) for row in found]


def retire(connection: Connection, replica_id: str) -> None:
    """Note that Serve stopped a replica."""
    _set_status(connection, replica_id, "gone")


def _set_status(connection: Connection, replica_id: str, status: str) -> None:
    connection.execute(
        update(replicas).where(replicas.c.replica_id == replica_id).values(status=status)
    )


def _announce(connection: Connection, draft: ev.Draft, *, to_batches: bool = True) -> None:
    if not to_batches:
        log.append(connection, POOL_STREAM, [draft])
        return
    started = select(batches.c.batch_id).where(
        batches.c.status.in_(("running", "cancelling")), batches.c.started_ms.is_not(None)
    )
    for stream in [POOL_STREAM, *connection.execute(started).scalars()]:
        log.append(connection, stream, [draft])
