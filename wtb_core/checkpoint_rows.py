"""The rows of the checkpoint database: what a session stores and reads, and whole histories.

Every function works inside a transaction of `checkpoint_store.py`. Rows keep the order in which
they were stored, `seq`; the latest checkpoint of a namespace is the one stored last, since ids hold
the clock of whichever node made them.
"""

import bisect
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from wtb_core.errors import InvalidHistory, NotFound
from wtb_core.history import (
    CheckpointId,
    CheckpointRow,
    History,
    Integer,
    Namespace,
    Size,
    Text,
    ValueRow,
    Word,
    WriteRow,
)
from wtb_core.sandbox.wire import Frame

SCHEMA = """
CREATE TABLE IF NOT EXISTS checkpoints (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    storage_key TEXT NOT NULL, ns TEXT NOT NULL, id TEXT NOT NULL, parent TEXT,
    source TEXT, step INTEGER, type TEXT NOT NULL, body BLOB NOT NULL,
    metadata_type TEXT NOT NULL, metadata BLOB NOT NULL, versions TEXT NOT NULL,
    stored_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    file_commit TEXT, resumable INTEGER NOT NULL, shown TEXT, answered INTEGER NOT NULL DEFAULT 0,
    UNIQUE (storage_key, ns, id));
CREATE TABLE IF NOT EXISTS channel_values (
    storage_key TEXT NOT NULL, ns TEXT NOT NULL, channel TEXT NOT NULL, version TEXT NOT NULL,
    type TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (storage_key, ns, channel, version));
-- after_seq is the seq of the last checkpoint, of any execution, when the write was stored.
CREATE TABLE IF NOT EXISTS writes (
    storage_key TEXT NOT NULL, ns TEXT NOT NULL, id TEXT NOT NULL,
    task_path TEXT NOT NULL, task_id TEXT NOT NULL, idx INTEGER NOT NULL,
    channel TEXT NOT NULL, type TEXT NOT NULL, body BLOB NOT NULL, after_seq INTEGER NOT NULL,
    PRIMARY KEY (storage_key, ns, id, task_id, idx));
CREATE TABLE IF NOT EXISTS fences (
    execution_id TEXT PRIMARY KEY, attempt INTEGER NOT NULL) WITHOUT ROWID;
"""

_ROW_TABLES = ("checkpoints", "channel_values", "writes")

_CHECKPOINT_FIELDS = (
    *("ns", "checkpoint_id", "parent_id", "source", "step", "type", "metadata_type"),
    *("stored_at", "file_commit", "shown", "answered", "body", "metadata"),
)
_VALUE_FIELDS = ("ns", "channel", "version", "type", "body")
_WRITE_FIELDS = ("ns", "checkpoint_id", "task_path", "task_id", "idx", "channel", "type", "body")


class StoredCheckpoint(NamedTuple):
    """One checkpoint without its state."""

    ns: str
    checkpoint_id: str
    parent_id: str | None
    source: str | None
    step: int | None
    stored_at: str
    size_bytes: int
    file_commit: str | None


class PutHeader(BaseModel):
    """A saver's request to store a checkpoint; the bounds hold for whatever user code sends."""

    model_config = ConfigDict(frozen=True)

    ns: Namespace
    id: CheckpointId
    parent: CheckpointId | None
    source: Word | None
    step: Integer | None
    type: Word
    metadata_type: Word
    versions: dict[Text, Text]
    channels: list[tuple[Text, Text, Word]]
    shown: str | None
    answered: Size = 0


class WritesHeader(BaseModel):
    """A saver's request to store the writes of a task."""

    model_config = ConfigDict(frozen=True)

    ns: Namespace
    id: CheckpointId
    task_path: Text
    task_id: Text
    writes: list[tuple[Integer, Text, Word]]


def complete(db: sqlite3.Connection) -> None:
    """Add to the tables of an earlier version what they lack."""
    columns = {name for _, name, *_ in db.execute("PRAGMA table_info(checkpoints)")}
    if "answered" not in columns:
        db.execute("ALTER TABLE checkpoints ADD COLUMN answered INTEGER NOT NULL DEFAULT 0")


def put(
    db: sqlite3.Connection, key: str, header: PutHeader, blobs: list[bytes], commit: str | None
) -> None:
    """Store a checkpoint; one that is stored again keeps its place in the order."""
    body, metadata, *values = blobs
    db.executemany(
        "INSERT OR REPLACE INTO channel_values VALUES (?, ?, ?, ?, ?, ?)",
        [
            (key, header.ns, channel, version, kind, blob)
            for (channel, version, kind), blob in zip(header.channels, values, strict=True)
        ],
    )
    db.execute(
        "INSERT INTO checkpoints (storage_key, ns, id, parent, source, step, type, body,"
        " metadata_type, metadata, versions, file_commit, resumable, shown, answered)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (storage_key, ns, id) DO UPDATE SET parent = excluded.parent,"
        " source = excluded.source, step = excluded.step, type = excluded.type,"
        " body = excluded.body, metadata_type = excluded.metadata_type,"
        " metadata = excluded.metadata, versions = excluded.versions,"
        " file_commit = excluded.file_commit, resumable = excluded.resumable,"
        " shown = excluded.shown, answered = excluded.answered",
        (
            *(key, header.ns, header.id, header.parent, header.source, header.step),
            *(header.type, body, header.metadata_type, metadata, json.dumps(header.versions)),
            *(commit, commit is not None, header.shown, header.answered),
        ),
    )


def put_writes(db: sqlite3.Connection, key: str, header: WritesHeader, blobs: list[bytes]) -> None:
    """Store a task's writes: a regular one once; special ones (negative idx) replace each other."""
    after = _last_seq(db)
    for (idx, channel, kind), blob in zip(header.writes, blobs, strict=True):
        verb = "INSERT OR IGNORE" if idx >= 0 else "INSERT OR REPLACE"
        db.execute(
            f"{verb} INTO writes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(key, header.ns, header.id, header.task_path, header.task_id),
                *(idx, channel, kind, blob, after),
            ),
        )


def get(db: sqlite3.Connection, key: str, header: dict[str, Any]) -> Frame:
    """The answer to a saver's request for a checkpoint: the one named, or the latest."""
    ns, identity = header["ns"], header["id"]
    named = " AND id = ?" if identity else ""
    row = db.execute(
        "SELECT id, parent, type, metadata_type, body, metadata, versions FROM checkpoints"  # noqa: S608 - our own text
        f" WHERE seq = (SELECT max(seq) FROM checkpoints WHERE storage_key = ? AND ns = ?{named})",
        (key, ns, identity) if identity else (key, ns),
    ).fetchone()
    if row is None:
        return {"found": False}, []
    found, parent, kind, metadata_kind, body, metadata, versions = row
    values: list[tuple[str, str, bytes]] = []
    for channel, version in json.loads(versions).items():
        values += db.execute(
            "SELECT channel, type, body FROM channel_values WHERE storage_key = ? AND ns = ?"
            " AND channel = ? AND version = ? AND type != 'empty'",
            (key, ns, channel, version),
        ).fetchall()
    writes = db.execute(
        "SELECT task_id, channel, type, body FROM writes"
        " WHERE storage_key = ? AND ns = ? AND id = ? ORDER BY task_path, task_id, idx",
        (key, ns, found),
    ).fetchall()
    answer = {
        "found": True,
        "id": found,
        "parent": parent,
        "type": kind,
        "metadata_type": metadata_kind,
        "channels": [[channel, value_kind] for channel, value_kind, _ in values],
        "writes": [[task, channel, write_kind] for task, channel, write_kind, _ in writes],
    }
    return answer, [body, metadata, *(value[2] for value in values), *(w[3] for w in writes)]


def list_names(
    db: sqlite3.Connection, key: str | None, header: dict[str, Any]
) -> list[tuple[str, str, str]]:
    """Key, namespace and id of what a saver asks for, in each namespace what was stored last first.

    `before` may name a checkpoint of another namespace of the thread, as LangGraph does when it
    looks for what a subgraph had stored before a root checkpoint.
    """
    wanted: list[str] = []
    values: list[Any] = []
    for column, value in (("storage_key", key), ("ns", header["ns"]), ("id", header["id"] or None)):
        if value is not None:
            wanted.append(f"{column} = ?")
            values.append(value)
    if before := header["before"]:
        wanted.append(
            "seq < (SELECT max(seq) FROM checkpoints"
            " WHERE storage_key = ifnull(?, storage_key) AND id = ?)"
        )
        values += [key, before]
    where = f" WHERE {' AND '.join(wanted)}" if wanted else ""
    limit = -1 if header["limit"] is None else max(0, header["limit"])
    found = db.execute(
        f"SELECT storage_key, ns, id FROM checkpoints{where}"  # noqa: S608 - our own columns
        " ORDER BY storage_key, ns, seq DESC LIMIT ?",
        (*values, limit),
    )
    return found.fetchall()


def delete(db: sqlite3.Connection, key: str) -> None:
    """Delete everything that is stored under a key."""
    for table in _ROW_TABLES:
        db.execute(f"DELETE FROM {table} WHERE storage_key = ?", (key,))  # noqa: S608 - our tables


def list_keys(db: sqlite3.Connection) -> list[str]:
    """Every key that something is stored under."""
    found = db.execute(
        "SELECT storage_key FROM checkpoints UNION SELECT storage_key FROM channel_values"
        " UNION SELECT storage_key FROM writes"
    )
    return [key for (key,) in found]


def list_fenced(db: sqlite3.Connection) -> list[str]:
    """Every execution that has a fence."""
    return [name for (name,) in db.execute("SELECT execution_id FROM fences")]


def list_commits(db: sqlite3.Connection) -> list[str]:
    """The file commits of all checkpoints."""
    found = db.execute("SELECT DISTINCT file_commit FROM checkpoints WHERE file_commit NOTNULL")
    return [commit for (commit,) in found]


def drop_fences(db: sqlite3.Connection, execution_ids: Iterable[str]) -> None:
    """Forget executions whose batch is gone; none of their attempts can store anything then."""
    db.executemany("DELETE FROM fences WHERE execution_id = ?", [(name,) for name in execution_ids])


def delete_execution(db: sqlite3.Connection, execution_id: str) -> None:
    """Delete all attempts of an execution, and its fence."""
    # Keys have a slash after the id, and "0" is what follows a slash.
    for table in _ROW_TABLES:
        db.execute(
            f"DELETE FROM {table} WHERE storage_key >= ? AND storage_key < ?",  # noqa: S608 - our tables
            (f"{execution_id}/", f"{execution_id}0"),
        )
    db.execute("DELETE FROM fences WHERE execution_id = ?", (execution_id,))


def list_executions(db: sqlite3.Connection, after: str, limit: int) -> list[str]:
    """Executions of which an attempt has begun here, in the order of their ids."""
    found = db.execute(
        "SELECT execution_id FROM fences WHERE execution_id > ? ORDER BY execution_id LIMIT ?",
        (after, limit),
    )
    return [execution_id for (execution_id,) in found]


def list_stored(
    db: sqlite3.Connection, condition: str, values: tuple[str, ...]
) -> list[StoredCheckpoint]:
    """The checkpoints that `condition` selects and orders."""
    rows = db.execute(
        "SELECT ns, id, parent, source, step, stored_at, length(body) + length(metadata),"  # noqa: S608 - our own conditions
        f" file_commit FROM checkpoints WHERE {condition}",
        values,
    )
    return [StoredCheckpoint(*row) for row in rows]


def export(db: sqlite3.Connection, key: str) -> History:
    """Everything that is stored under a key."""
    seqs: list[int] = []
    checkpoints: list[CheckpointRow] = []
    for seq, versions, *row in db.execute(
        "SELECT seq, versions, ns, id, parent, source, step, type, metadata_type, stored_at,"
        " file_commit, shown, answered, body, metadata FROM checkpoints WHERE storage_key = ?"
        " ORDER BY seq",
        (key,),
    ):
        seqs.append(seq)
        columns = dict(zip(_CHECKPOINT_FIELDS, row, strict=True))
        checkpoints.append(CheckpointRow(versions=json.loads(versions), **columns))
    values = [
        ValueRow(**dict(zip(_VALUE_FIELDS, row, strict=True)))
        for row in db.execute(
            "SELECT ns, channel, version, type, body FROM channel_values WHERE storage_key = ?"
            " ORDER BY ns, channel, version",
            (key,),
        )
    ]
    writes = [
        WriteRow(**dict(zip(_WRITE_FIELDS, row, strict=True)), after=bisect.bisect(seqs, after))
        for after, *row in db.execute(
            "SELECT after_seq, ns, id, task_path, task_id, idx, channel, type, body FROM writes"
            " WHERE storage_key = ? ORDER BY ns, id, task_path, task_id, idx",
            (key,),
        )
    ]
    return History(checkpoints=checkpoints, values=values, writes=writes)


class Chosen(NamedTuple):
    """What an attempt that goes on takes: positions of checkpoints, ascending, the head's last."""

    positions: list[int]
    head: int
    ancestors: set[str]


def choose(
    checkpoints: Sequence[CheckpointRow] | Sequence[StoredCheckpoint], checkpoint_id: str
) -> Chosen:
    """What an attempt that goes on from a root checkpoint takes of those of another attempt.

    Raises:
        NotFound: when there is no such root checkpoint.
        InvalidHistory: when one of its ancestors is not there.
    """
    roots = {row.checkpoint_id: position for position, row in enumerate(checkpoints) if not row.ns}
    if checkpoint_id not in roots:
        raise NotFound("root checkpoint", checkpoint_id)
    head = position = roots[checkpoint_id]
    chain = {head}
    while (parent := checkpoints[position].parent_id) is not None:
        found = roots.get(parent)
        if found is None or found >= position:
            child = checkpoints[position].checkpoint_id
            raise InvalidHistory(f"the parent {parent} of checkpoint {child} is not before it")
        chain.add(position := found)
    nested = {index for index in range(head) if checkpoints[index].ns}
    ancestors = {checkpoints[index].checkpoint_id for index in chain - {head}}
    return Chosen(sorted(chain | nested), head, ancestors)


def insert(db: sqlite3.Connection, key: str, history: History, chosen: Chosen) -> None:
    """Store what was chosen of a history under a key.

    Raises:
        InvalidHistory: when two of its rows are the same one.
    """
    try:
        _insert(db, key, history, chosen)
    except sqlite3.IntegrityError as error:
        raise InvalidHistory("two of its rows have the same key") from error


def _last_seq(db: sqlite3.Connection) -> int:
    (seq,) = db.execute("SELECT ifnull(max(seq), 0) FROM checkpoints").fetchone()
    return seq


def _insert(db: sqlite3.Connection, key: str, history: History, chosen: Chosen) -> None:
    seqs = [_last_seq(db)]
    versions: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    for position in chosen.positions:
        row = history.checkpoints[position]
        versions[row.ns].update(row.versions.items())
        cursor = db.execute(
            "INSERT INTO checkpoints (storage_key, ns, id, parent, source, step, type, body,"
            " metadata_type, metadata, versions, stored_at, file_commit, resumable, shown,"
            " answered) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(key, row.ns, row.checkpoint_id, row.parent_id, row.source, row.step),
                *(row.type, row.body, row.metadata_type, row.metadata, json.dumps(row.versions)),
                *(row.stored_at, row.file_commit, row.file_commit is not None, row.shown),
                row.answered,
            ),
        )
        seqs.append(cursor.lastrowid or 0)
    db.executemany(
        "INSERT INTO channel_values VALUES (?, ?, ?, ?, ?, ?)",
        (
            (key, row.ns, row.channel, row.version, row.type, row.body)
            for row in history.values
            if (row.channel, row.version) in versions[row.ns]
        ),
    )
    db.executemany(
        "INSERT INTO writes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                *(key, row.ns, row.checkpoint_id, row.task_path, row.task_id),
                *(row.idx, row.channel, row.type, row.body),
                seqs[bisect.bisect_left(chosen.positions, row.after)],
            )
            for row in history.writes
            if (row.after <= chosen.head if row.ns else row.checkpoint_id in chosen.ancestors)
        ),
    )
