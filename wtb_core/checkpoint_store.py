"""Checkpoints of the executions on this node, in an SQLite database of their own.

Several replica processes share the file. One thread per store writes and reads, and puts whatever
has queued up into one transaction. A put is answered after its transaction has committed with WAL
and `synchronous=FULL`: it survives the death of every process, and a power cut as far as the disk
keeps what it has synced. State is opaque bytes here, never deserialised.

Each attempt stores under a key of its own, so another attempt starts clean although both see the
same thread id. Every transaction that appends for an attempt requires that the execution's fence
is that attempt's number.
"""

import asyncio
import json
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from wtb_core.errors import FenceError, ThreadRefused, Unavailable, WireError, WtbError
from wtb_core.sandbox.wire import Frame

_T = TypeVar("_T")
_BUSY_TIMEOUT_S = 30.0
_MAX_BATCH = 256
_MAX_UNSETTLED = 64
_SCHEMA = """
CREATE TABLE IF NOT EXISTS checkpoints (
    storage_key TEXT NOT NULL, ns TEXT NOT NULL, id TEXT NOT NULL, parent TEXT,
    source TEXT, step INTEGER, type TEXT NOT NULL, body BLOB NOT NULL,
    metadata_type TEXT NOT NULL, metadata BLOB NOT NULL, versions TEXT NOT NULL,
    stored_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    PRIMARY KEY (storage_key, ns, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS channel_values (
    storage_key TEXT NOT NULL, ns TEXT NOT NULL, channel TEXT NOT NULL, version TEXT NOT NULL,
    type TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (storage_key, ns, channel, version));
CREATE TABLE IF NOT EXISTS writes (
    storage_key TEXT NOT NULL, ns TEXT NOT NULL, id TEXT NOT NULL,
    task_path TEXT NOT NULL, task_id TEXT NOT NULL, idx INTEGER NOT NULL,
    channel TEXT NOT NULL, type TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (storage_key, ns, id, task_id, idx));
CREATE TABLE IF NOT EXISTS fences (
    execution_id TEXT PRIMARY KEY, attempt INTEGER NOT NULL) WITHOUT ROWID;
"""


class StoredCheckpoint(NamedTuple):
    """One checkpoint as a list shows it."""

    ns: str
    checkpoint_id: str
    parent_id: str | None
    source: str | None
    step: int | None
    stored_at: str
    size_bytes: int


class Scope(NamedTuple):
    """Whose checkpoints a session may touch: one attempt's, under the execution's thread id."""

    execution_id: str
    attempt: int

    @property
    def storage_key(self) -> str:
        """What the attempt's rows are stored under."""
        return f"{self.execution_id}/{self.attempt}"


class CheckpointStore:
    """The node's checkpoints; the thread starts with the first use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = False

    def session(self, scope: Scope | None) -> "CheckpointSession":
        """The server's side of a saver's session; without a scope it may do everything."""
        return CheckpointSession(self, scope)

    async def raise_fence(self, execution_id: str, attempt: int) -> None:
        """Make `attempt` the only one that may append for the execution from now on.

        Raises:
            FenceError: when a newer attempt has raised the fence already.
        """

        def raise_it(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO fences VALUES (?, ?) ON CONFLICT (execution_id)"
                " DO UPDATE SET attempt = max(attempt, excluded.attempt)",
                (execution_id, attempt),
            )
            check_fence(db, Scope(execution_id, attempt))

        await self.run(raise_it)

    async def list_checkpoints(self, execution_id: str, attempt: int) -> list[StoredCheckpoint]:
        """The checkpoints of one attempt, oldest first."""
        key = Scope(execution_id, attempt).storage_key

        def read(db: sqlite3.Connection) -> list[StoredCheckpoint]:
            rows = db.execute(
                "SELECT ns, id, parent, source, step, stored_at, length(body) + length(metadata)"
                " FROM checkpoints WHERE storage_key = ? ORDER BY id",
                (key,),
            )
            return [StoredCheckpoint(*row) for row in rows]

        return await self.run(read)

    async def run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """`work` on the store's thread inside the next transaction; answered after its commit.

        When `work` raises, what it changed is undone and the others in the transaction stand.
        """
        return await asyncio.wrap_future(self.submit(work))

    def submit(self, work: Callable[[sqlite3.Connection], _T]) -> Future[_T]:
        """As `run`, without an event loop. Order of submission is order of execution."""
        with self._starting:
            if self._closed:
                raise Unavailable("the checkpoint store is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="checkpoints", daemon=True)
                self._thread.start()
            job = _Job(work, Future())
            self._queue.put(job)
        return job.future

    def close(self) -> None:
        """Commit what is queued and close the database."""
        with self._starting:
            self._closed = True
            thread = self._thread
            self._queue.put(None)
        if thread is not None:
            thread.join()

    def _serve(self) -> None:
        db: sqlite3.Connection | None = None
        closing = False
        while not closing:
            jobs, closing = self._take()
            try:
                db = db or _connect(self.path)
                _commit(db, jobs)
            except (sqlite3.Error, OSError) as error:
                for job in jobs:
                    job.fail(Unavailable(f"the checkpoint store {self.path} failed: {error}"))
        if db is not None:
            db.close()

    def _take(self) -> tuple[list["_Job"], bool]:
        jobs: list[_Job] = []
        item = self._queue.get()
        while True:
            if item is None:
                return jobs, True
            jobs.append(item)
            if len(jobs) >= _MAX_BATCH or self._queue.empty():
                return jobs, False
            item = self._queue.get()


class _Job(NamedTuple):
    work: Callable[[sqlite3.Connection], Any]
    future: Future[Any]

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.executescript(_SCHEMA)
    return db


def _commit(db: sqlite3.Connection, jobs: Sequence[_Job]) -> None:
    running = [job for job in jobs if job.future.set_running_or_notify_cancel()]
    if not running:
        return
    answers: list[tuple[_Job, Any]] = []
    db.execute("BEGIN IMMEDIATE")
    try:
        for job in running:
            db.execute("SAVEPOINT job")
            try:
                answers.append((job, job.work(db)))
            except sqlite3.OperationalError:
                raise
            except Exception as error:  # noqa: BLE001 - foreign frames are malformed in any way
                db.execute("ROLLBACK TO job")
                job.fail(error if isinstance(error, WtbError) else _malformed(error))
            db.execute("RELEASE job")
        db.execute("COMMIT")
    except BaseException:  # raised again below
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    for job, answer in answers:
        job.future.set_result(answer)


def _malformed(error: Exception) -> WireError:
    return WireError(f"a checkpoint request is malformed: {type(error).__name__}: {error}")


def check_fence(db: sqlite3.Connection, scope: Scope) -> None:
    """Require that the execution's fence is the scope's attempt.

    Raises:
        FenceError: when it is another one's, or nobody's.
    """
    row = db.execute(
        "SELECT attempt FROM fences WHERE execution_id = ?", (scope.execution_id,)
    ).fetchone()
    if row is None or row[0] != scope.attempt:
        raise FenceError(scope.execution_id, scope.attempt, row[0] if row else None)


class CheckpointSession:
    """Answers the requests of one saver, within its scope.

    Frames are handled in order: `handle` returns at once for a request without an answer, and
    `settle` waits until all of those are durable.
    """

    def __init__(self, store: CheckpointStore, scope: Scope | None) -> None:
        self.store = store
        self.scope = scope
        self.checkpoint_count = 0
        self._unsettled: list[Future[None]] = []

    async def handle(self, header: dict[str, Any], blobs: list[bytes]) -> Frame | None:
        """The answer to one frame of a saver, None when it wants none.

        Raises:
            ThreadRefused: when it reaches outside of the scope.
            FenceError: when a newer attempt has taken over.
            Unavailable: when the database cannot be used.
        """
        self._check_scope(header)
        match header["op"]:
            case "get":
                return await self.store.run(lambda db: _get(db, self._key(header), header))
            case "list":
                return await self.store.run(lambda db: self._list(db, header))
            case "put":
                await self.store.run(lambda db: self._put(db, header, blobs))
                self.checkpoint_count += header["ns"] == ""
                return {}, []
            case "put_writes":
                if len(self._unsettled) >= _MAX_UNSETTLED:
                    await self.settle()
                self._unsettled.append(
                    self.store.submit(lambda db: self._put_writes(db, header, blobs))
                )
                return None
            case "delete_thread":
                await self.store.run(lambda db: _delete(db, header["thread_id"]))
                return {}, []
            case operation:
                raise WireError(f"{operation!r} is no checkpoint request")

    async def settle(self) -> None:
        """Wait for everything that was posted.

        Raises:
            FenceError: when one of the posts came too late.
        """
        for posted in self._unsettled:
            await asyncio.wrap_future(posted)
        self._unsettled = []

    def _check_scope(self, header: dict[str, Any]) -> None:
        thread_id = header.get("thread_id")
        if self.scope is None:
            return
        own = self.scope.execution_id
        if thread_id != own or header["op"] == "delete_thread":
            raise ThreadRefused(str(header["op"]), str(thread_id), own)

    def _key(self, header: dict[str, Any]) -> str:
        return self.scope.storage_key if self.scope else header["thread_id"]

    def _list(self, db: sqlite3.Connection, header: dict[str, Any]) -> Frame:
        wanted: list[str] = []
        values: list[Any] = []
        key = self._key(header)
        for column, comparison, value in (
            ("storage_key", "=", key),
            ("ns", "=", header["ns"]),
            ("id", "=", header["id"]),
            ("id", "<", header["before"]),
        ):
            if value is not None and (value or column != "id"):
                wanted.append(f"{column} {comparison} ?")
                values.append(value)
        where = f" WHERE {' AND '.join(wanted)}" if wanted else ""
        rows = db.execute(
            f"SELECT storage_key, ns, id FROM checkpoints{where}"  # noqa: S608 - our own columns
            " ORDER BY storage_key, ns, id DESC LIMIT ?",
            (*values, -1 if header["limit"] is None else max(0, header["limit"])),
        )
        own = self.scope.execution_id if self.scope else None
        return {"checkpoints": [[own or stored, ns, identity] for stored, ns, identity in rows]}, []

    def _put(self, db: sqlite3.Connection, header: dict[str, Any], blobs: list[bytes]) -> None:
        if self.scope:
            check_fence(db, self.scope)
        key, ns, identity = self._key(header), header["ns"], header["id"]
        body, metadata, *values = blobs
        db.executemany(
            "INSERT OR REPLACE INTO channel_values VALUES (?, ?, ?, ?, ?, ?)",
            [
                (key, ns, channel, version, kind, blob)
                for (channel, version, kind), blob in zip(header["channels"], values, strict=True)
            ],
        )
        db.execute(
            "INSERT OR REPLACE INTO checkpoints (storage_key, ns, id, parent, source, step, type,"
            " body, metadata_type, metadata, versions) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(key, ns, identity, header["parent"], header["source"], header["step"]),
                *(header["type"], body, header["metadata_type"], metadata),
                json.dumps(header["versions"]),
            ),
        )

    def _put_writes(
        self, db: sqlite3.Connection, header: dict[str, Any], blobs: list[bytes]
    ) -> None:
        if self.scope:
            check_fence(db, self.scope)
        place = (self._key(header), header["ns"], header["id"])
        for (idx, channel, kind), blob in zip(header["writes"], blobs, strict=True):
            # A regular write is stored once; special ones (negative idx) replace each other.
            verb = "INSERT OR IGNORE" if idx >= 0 else "INSERT OR REPLACE"
            db.execute(
                f"{verb} INTO writes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*place, header["task_path"], header["task_id"], idx, channel, kind, blob),
            )


def _get(db: sqlite3.Connection, key: str, header: dict[str, Any]) -> Frame:
    ns, identity = header["ns"], header["id"]
    row = db.execute(
        "SELECT id, parent, type, metadata_type, body, metadata, versions FROM checkpoints"
        " WHERE storage_key = ? AND ns = ? AND id = ifnull(?, id) ORDER BY id DESC LIMIT 1",
        (key, ns, identity or None),
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


def _delete(db: sqlite3.Connection, key: str) -> None:
    for table in ("checkpoints", "channel_values", "writes"):
        db.execute(f"DELETE FROM {table} WHERE storage_key = ?", (key,))  # noqa: S608 - our tables
