"""Append-only event log. One process writes; any number read.

Each stream is numbered from 1 without gaps, in commit order. An event is durable before its `seq`
is visible: the transaction that numbers it is the one that stores it.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, insert, select, update

from wtb_core.events import Draft
from wtb_core.store.tables import POOL_STREAM, events, streams

_APPENDED = "appended"
"""In a connection's `info`: the events that its transaction has appended so far."""

_LAST_SEQ = select(streams.c.last_seq).where(streams.c.stream == bindparam("name"))
_ADVANCE = (
    update(streams)
    .where(streams.c.stream == bindparam("name"))
    .values(last_seq=streams.c.last_seq + bindparam("count"))
    .returning(streams.c.last_seq)
)
_FIND = select(events.c.seq).where(
    events.c.stream == bindparam("name"), events.c.event_id == bindparam("event")
)
_READ = (
    select(events)
    .where(events.c.stream == bindparam("name"), events.c.seq > bindparam("after"))
    .order_by(events.c.seq)
    .limit(bindparam("count"))
)


class LogPage(NamedTuple):
    """Events in order, and the `seq` of the newest event in the stream."""

    items: list[dict[str, Any]]
    last_seq: int


def open_stream(connection: Connection, stream: str) -> None:
    """Make an empty stream."""
    connection.execute(insert(streams).values(stream=stream, last_seq=0))


def append(connection: Connection, stream: str, drafts: Sequence[Draft]) -> int:
    """Number and store events; returns the first one's `seq`."""
    last = connection.execute(_ADVANCE, {"name": stream, "count": len(drafts)}).scalar_one()
    first = last - len(drafts) + 1
    rows = [
        {
            "stream": stream,
            "seq": first + offset,
            "event_id": draft.event_id,
            "type": draft.type,
            "occurred_at": draft.occurred_at,
            "producer": draft.producer,
            "payload": json.dumps(draft.payload, ensure_ascii=False, separators=(",", ":")),
        }
        for offset, draft in enumerate(drafts)
    ]
    connection.execute(insert(events), rows)
    get_appended(connection).extend(drafts)
    return first


def get_appended(connection: Connection) -> list[Draft]:
    """The events that were appended over the connection since this list was last cleared."""
    found: list[Draft] = connection.info.setdefault(_APPENDED, [])
    return found


def has_event(connection: Connection, stream: str, event_id: str) -> bool:
    """Whether the stream holds an event of that id."""
    found = connection.execute(_FIND, {"name": stream, "event": event_id}).first()
    return found is not None


def find_last_seq(connection: Connection, stream: str) -> int | None:
    """The newest event's `seq`, 0 for an empty stream, null when there is no such stream."""
    return connection.execute(_LAST_SEQ, {"name": stream}).scalar_one_or_none()


def read(connection: Connection, stream: str, after: int, limit: int) -> LogPage:
    """At most `limit` events with a `seq` above `after`, oldest first."""
    last = find_last_seq(connection, stream) or 0
    if after >= last:
        return LogPage([], last)
    rows = connection.execute(_READ, {"name": stream, "after": after, "count": limit})
    return LogPage(list(_envelopes(rows)), last)


def _envelopes(rows: Any) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield {
            "seq": row.seq,
            "event_id": row.event_id,
            "type": row.type,
            "occurred_at": row.occurred_at,
            "batch_id": None if row.stream == POOL_STREAM else row.stream,
            "producer": row.producer,
            "payload": json.loads(row.payload),
        }
