"""A store and its log as the checker reads them: with SQL of its own and none of our code."""

import json
import sqlite3
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

POOL = "pool"
STARTED = "ray_variant_execution_started"
COMPLETED = "ray_variant_execution_completed"
FAILED = "ray_variant_execution_failed"
CANCELLED = "ray_variant_execution_cancelled"
ENDS = (COMPLETED, FAILED, CANCELLED)
BATCH_STARTED = "ray_batch_test_started"
BATCH_ENDS = {
    "ray_batch_test_completed": "completed",
    "ray_batch_test_failed": "failed",
    "ray_batch_test_cancelled": "cancelled",
}


class Violation(NamedTuple):
    """What does not hold, and where."""

    rule: str
    where: str
    what: str


class Event(NamedTuple):
    """A row of `events`."""

    stream: str
    seq: int
    event_id: str
    type: str
    occurred_at: str
    producer: str
    payload: dict[str, Any]

    @property
    def at(self) -> float:
        """Seconds since the epoch."""
        return datetime.fromisoformat(self.occurred_at).timestamp()

    @property
    def execution_id(self) -> str | None:
        """The execution that it is about."""
        return self.payload.get("execution_id")

    @property
    def is_terminal(self) -> bool:
        """Whether it is the last of its execution."""
        return self.type in {COMPLETED, CANCELLED} or (
            self.type == FAILED and not self.payload["will_retry"]
        )

    def envelope(self) -> dict[str, Any]:
        """What a client is shown."""
        return {
            "seq": self.seq,
            "event_id": self.event_id,
            "type": self.type,
            "occurred_at": self.occurred_at,
            "batch_id": None if self.stream == POOL else self.stream,
            "producer": self.producer,
            "payload": self.payload,
        }


class Execution(NamedTuple):
    """A row of `executions` with its case; `is_cancelled` when that was asked of it alone."""

    execution_id: str
    batch_id: str
    variant: str
    case_id: str
    status: str
    attempt: int
    drained: int
    is_cancelled: bool
    reused_from: str | None
    graph: str
    case: dict[str, Any]
    output: dict[str, Any] | None
    result: dict[str, Any]


class Batch(NamedTuple):
    """A row of `batches`."""

    batch_id: str
    status: str
    idempotency_key: str | None
    retry_of: str | None
    retry: dict[str, Any]
    total: int
    counts: dict[str, int]
    origin: dict[str, Any] | None


class Store:
    """All of a store, in memory.

    `attempts` are rows as dicts by execution and number; `events` by stream in the order of `seq`;
    `about` are the events of an execution in that order.
    """

    def __init__(self, path: Path) -> None:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            connection.row_factory = sqlite3.Row
            self.last_seqs: dict[str, int] = dict(
                map(tuple, connection.execute("SELECT stream, last_seq FROM streams"))
            )
            self.events = _read_events(connection)
            self.batches = _read_batches(connection)
            self.executions = _read_executions(connection)
            self.attempts = _read_attempts(connection)
        connection.close()
        self.about: dict[str, list[Event]] = defaultdict(list)
        for events in self.events.values():
            for event in events:
                if event.execution_id is not None:
                    self.about[event.execution_id].append(event)

    def of_batch(self, batch_id: str) -> list[Execution]:
        """A batch's executions."""
        return [row for row in self.executions.values() if row.batch_id == batch_id]


def _read_events(connection: sqlite3.Connection) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = defaultdict(list)
    for row in connection.execute(
        "SELECT stream, seq, event_id, type, occurred_at, producer, payload FROM events"
        " ORDER BY stream, seq"
    ):
        *envelope, payload = tuple(row)
        found[row["stream"]].append(Event(*envelope, payload=json.loads(payload)))
    return found


def _read_batches(connection: sqlite3.Connection) -> dict[str, Batch]:
    found: dict[str, Batch] = {}
    for row in connection.execute("SELECT * FROM batches"):
        counts = {name: row[name] for name in ("running", "succeeded", "failed", "cancelled")}
        found[row["batch_id"]] = Batch(
            batch_id=row["batch_id"],
            status=row["status"],
            idempotency_key=row["idempotency_key"],
            retry_of=row["retry_of"],
            retry=json.loads(row["spec"])["retry"],
            total=row["total"],
            counts=counts,
            origin=None if row["origin"] is None else json.loads(row["origin"]),
        )
    return found


def _read_executions(connection: sqlite3.Connection) -> dict[str, Execution]:
    found: dict[str, Execution] = {}
    for row in connection.execute(
        "SELECT e.*, c.body,"
        " json_extract(b.variants, '$[' || e.variant_index || '].graph') AS graph"
        " FROM executions e JOIN batches b ON b.batch_id = e.batch_id"
        " JOIN cases c ON c.batch_id = e.batch_id AND c.case_index = e.case_index"
    ):
        execution_id = f"{row['batch_id']}-{row['number']}"
        found[execution_id] = Execution(
            execution_id=execution_id,
            batch_id=row["batch_id"],
            variant=row["variant"],
            case_id=row["case_id"],
            status=row["status"],
            attempt=row["attempt"],
            drained=row["drained"],
            is_cancelled=row["cancel_reason"] is not None,
            reused_from=row["reused_from"],
            graph=row["graph"] or "default",
            case=json.loads(row["body"]),
            output=None if row["output"] is None else json.loads(row["output"]),
            result=json.loads(row["result"] or "{}"),
        )
    return found


def _read_attempts(connection: sqlite3.Connection) -> dict[tuple[str, int], dict[str, Any]]:
    return {
        (f"{row['batch_id']}-{row['number']}", row["attempt"]): dict(row)
        for row in connection.execute("SELECT * FROM attempts")
    }
