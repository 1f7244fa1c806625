"""The tables. One process writes; any number read.

Times are integer milliseconds since the epoch, JSON is text. Nothing here is special to SQLite.
"""

# pyright: reportUnknownArgumentType=false
# (SQLAlchemy types a Column by its default, and these have none)

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

POOL_STREAM = "pool"

writers = Table(
    "writers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
)
"""One row: the epoch of the collector that may write."""

streams = Table(
    "streams",
    metadata,
    Column("stream", String(64), primary_key=True),
    Column("last_seq", BigInteger, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("stream", String(64), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("event_id", String(64), nullable=False),
    Column("type", String(64), nullable=False),
    Column("occurred_at", String(32), nullable=False),
    Column("producer", String(256), nullable=False),
    Column("payload", Text, nullable=False),
    UniqueConstraint("stream", "event_id"),
    sqlite_with_rowid=False,
)
"""A batch's stream is named by its id; the pool's is `pool`."""

batches = Table(
    "batches",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("batch_id", String(64), nullable=False, unique=True),
    Column("name", String(256)),
    Column("project", String(128), nullable=False),
    Column("project_version", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("retry_of", String(64)),
    Column("submitted_by", String(128)),
    Column("idempotency_key", String(256), unique=True),
    Column("spec_digest", String(64), nullable=False),
    Column("spec", Text, nullable=False),
    Column("variants", Text, nullable=False),
    Column("evaluators", Text, nullable=False),
    Column("scores", Text, nullable=False),
    Column("baseline", String(128), nullable=False),
    Column("cases", Integer, nullable=False),
    Column("repetitions", Integer, nullable=False),
    Column("total", Integer, nullable=False),
    Column("reused", Integer, nullable=False),
    Column("adopted", Integer, nullable=False),
    Column("inserted", Integer, nullable=False),
    Column("running", Integer, nullable=False),
    Column("succeeded", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("cancelled", Integer, nullable=False),
    Column("concurrency", Integer),
    Column("max_failures", Integer),
    Column("deadline_ms", BigInteger),
    Column("last_claim", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("started_ms", BigInteger),
    Column("finished_ms", BigInteger),
    Column("progress_ms", BigInteger, nullable=False),
    Column("cancel_reason", Text),
    Column("cancelled_by", String(256)),
    Column("origin", Text),
    Column("repetition", Integer),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("infrastructure", Integer, nullable=False, server_default="0"),
    Index("batches_by_status", "status", "last_claim"),
)
"""`spec` is the canonical spec without its cases. `running` to `cancelled` count executions.

`reused` of the total succeeded in the batch that this one tries again; `adopted` of those have
their event in this batch's stream. `infrastructure` of the failed were the system's own fault.
A fork has an `origin` (`attempts.Origin` as JSON) and the
`repetition` of the execution that it goes on from.
"""

labels = Table(
    "labels",
    metadata,
    Column("batch_id", ForeignKey("batches.batch_id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(256), primary_key=True),
    Column("value", Text, nullable=False),
)

cases = Table(
    "cases",
    metadata,
    Column("batch_id", ForeignKey("batches.batch_id", ondelete="CASCADE"), primary_key=True),
    Column("case_index", Integer, primary_key=True),
    Column("case_id", String(256), nullable=False),
    Column("body", Text, nullable=False),
)

executions = Table(
    "executions",
    metadata,
    Column("batch_id", ForeignKey("batches.batch_id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("variant", String(128), nullable=False),
    Column("variant_index", Integer, nullable=False),
    Column("case_id", String(256), nullable=False),
    Column("case_index", Integer, nullable=False),
    Column("repetition", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("ready_ms", BigInteger, nullable=False),
    Column("reused_from", String(96)),
    Column("cancel_reason", Text),
    Column("drained", Integer, nullable=False, server_default="0"),
    Column("result", Text),
    Column("output", Text),
    Column("output_blob", String(64)),
    Index("executions_by_status", "batch_id", "status", "number"),
)
"""`number` and the batch make the execution's id. `result` is the last attempt's, as JSON.

`cancel_reason` is set while a running execution is to be killed on its own. `drained` of its
attempts were handed back by replicas that were stopped; they do not count against a retry's limit.
"""

attempts = Table(
    "attempts",
    metadata,
    Column("batch_id", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("claim_id", String(64), nullable=False, unique=True),
    Column("replica_id", String(256), nullable=False),
    Column("actor_id", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("started_ms", BigInteger, nullable=False),
    Column("queue_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),
    Column("end_event_id", String(64)),
    Column("resumed_from", String(128)),
    Column("resume", Text),
    Column("result", Text),
    Index("attempts_by_replica", "status", "replica_id"),
)
"""`resume` is the point that an attempt goes on from (`attempts.ResumePoint` as JSON), and
`resumed_from` its checkpoint.
"""

replicas = Table(
    "replicas",
    metadata,
    Column("replica_id", String(256), primary_key=True),
    Column("actor_id", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("enrolled", Integer, nullable=False),
    Column("registered_ms", BigInteger, nullable=False),
    Column("event", Text, nullable=False),
    Column("restart_count", Integer, nullable=False, server_default="0"),
    Column("ended_ms", BigInteger),
)
"""Executor replicas that have said they are ready, with the event that said so.

`status` is `live`; `draining` while Serve stops it; then `gone`; or `failed`, and `replaced` once
another one has taken its place. `enrolled` is 1 once Serve was seen to run the replica.
`restart_count` is how many failed ones before it have had its place.
"""

standing = Table(
    "standing",
    metadata,
    Column("topic", String(64), primary_key=True),
    Column("event", Text, nullable=False),
)
"""Pool events in force, by topic: `pool`, `executor_queue`, `admission`.

The first two are copied into each batch that starts.
"""
