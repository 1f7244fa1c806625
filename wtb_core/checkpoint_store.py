"""Checkpoints of the executions on this node, in an SQLite database of their own.

Several replica processes share the file. One thread per store writes and reads, and puts whatever
has queued up into one transaction. A put is answered after its transaction has committed with WAL
and `synchronous=FULL`: it survives the death of every process, and a power cut as far as the disk
keeps what it has synced. State is opaque bytes here, never deserialised.

Each attempt stores under a key of its own, so another attempt starts clean although both see the
same thread id. Every transaction that appends for an attempt requires that the execution's fence
is that attempt's number.

A root checkpoint is stored together with the commit of the files that belong to it.
"""

import asyncio
import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from wtb_core import checkpoint_rows as rows
from wtb_core.checkpoint_rows import StoredCheckpoint
from wtb_core.errors import DiskFull, FenceError, ThreadRefused, Unavailable, WireError, WtbError
from wtb_core.history import History, parse_shown
from wtb_core.sandbox.wire import Frame
from wtb_core.space import is_full
from wtb_core.turns import WriteTurn

Track = Callable[[str], Awaitable[str | None]]
"""Commits the files at a checkpoint, given its id; None when they could not be committed."""

_T = TypeVar("_T")
_BUSY_TIMEOUT_S = 30.0
_MAX_BATCH = 256
_MAX_UNSETTLED = 64


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
        self._turn = WriteTurn(path)

    def session(
        self, scope: Scope | None, track: Track | None = None, file_commit: str | None = None
    ) -> "CheckpointSession":
        """The server's side of a saver's session; without a scope it may do everything.

        `file_commit` names the files that user code finds.
        """
        return CheckpointSession(self, scope, track, file_commit)

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
        """The checkpoints of one attempt, in the order in which they were stored."""
        key = Scope(execution_id, attempt).storage_key
        condition = "storage_key = ? ORDER BY seq"
        return await self.run(lambda db: rows.list_stored(db, condition, (key,)))

    async def export(self, scope: Scope) -> History:
        """All rows of an attempt."""
        return await self.run(lambda db: rows.export(db, scope.storage_key))

    async def import_history(self, scope: Scope, history: History, checkpoint_id: str) -> None:
        """Make a root checkpoint of `history` the latest of `scope`, which holds nothing else then.

        What is stored: the checkpoint's ancestors with their writes, since a delta channel is
        rebuilt from them; the checkpoint without its pending writes, so that its superstep runs
        again whole; and what subgraphs had stored before it.

        Raises:
            NotFound: when `history` has no such root checkpoint.
            InvalidHistory: when the checkpoint's ancestors are not in it.
            FenceError: when another attempt holds the execution's fence.
        """
        chosen = rows.choose(history.checkpoints, checkpoint_id)

        def insert(db: sqlite3.Connection) -> None:
            check_fence(db, scope)
            rows.delete(db, scope.storage_key)
            rows.insert(db, scope.storage_key, history, chosen)

        await self.run(insert)

    async def forget(self, execution_id: str, up_to_attempt: int) -> None:
        """Delete the rows of an execution's attempts up to and with `up_to_attempt`.

        The fence stays: a process of an ended attempt must still not store anything.
        """

        def delete(db: sqlite3.Connection) -> None:
            for attempt in range(1, up_to_attempt + 1):
                rows.delete(db, Scope(execution_id, attempt).storage_key)

        await self.run(delete)

    async def list_executions(self, after: str, limit: int) -> list[str]:
        """At most `limit` executions that something is kept of here, with ids above `after`."""
        return await self.run(lambda db: rows.list_executions(db, after, limit))

    async def forget_executions(self, execution_ids: Sequence[str]) -> None:
        """Delete all that is kept of executions that have ended.

        Without a fence nobody may store anything, so a process of theirs that still lives cannot.
        """

        def delete(db: sqlite3.Connection) -> None:
            for execution_id in execution_ids:
                rows.delete_execution(db, execution_id)

        await self.run(delete)

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
                with self._turn.take():
                    _commit(db, jobs)
            except (sqlite3.Error, OSError) as error:
                for job in jobs:
                    job.fail(self._explain(error))
        if db is not None:
            with self._turn.take():
                db.close()

    def _explain(self, error: Exception) -> Unavailable:
        if is_full(error):
            return DiskFull(str(self.path.parent), "the checkpoint store can take nothing more")
        return Unavailable(f"the checkpoint store {self.path} failed: {error}")

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
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # One at a time: SQLite refuses a change to WAL during another's at once, without waiting.
        fcntl.flock(directory, fcntl.LOCK_EX)
        db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.executescript(rows.SCHEMA)
        rows.complete(db)
    finally:
        os.close(directory)
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

    `file_commit` is the last commit that was made. A root checkpoint that a superstep ends with
    (its source is `loop`) waits for `track` and is stored with its commit; others are stored with
    the commit at hand. While the latest commit has failed there is none at hand, and the
    checkpoints are not resumable.
    """

    def __init__(
        self,
        store: CheckpointStore,
        scope: Scope | None,
        track: Track | None = None,
        file_commit: str | None = None,
    ) -> None:
        self.store = store
        self.scope = scope
        self.file_commit = file_commit
        self.checkpoint_count = 0
        self._track = track
        self._is_tracked = True
        self._unsettled: list[Future[None]] = []

    async def handle(self, header: dict[str, Any], blobs: list[bytes]) -> Frame | None:
        """The answer to one frame of a saver, None when it wants none.

        Raises:
            ThreadRefused: when it reaches outside of the scope.
            FenceError: when a newer attempt has taken over.
            WireError: when it is no request, or over a bound.
            Unavailable: when the database cannot be used.
        """
        self._check_scope(header)
        match header.get("op"):
            case "get":
                return await self.store.run(lambda db: rows.get(db, self._key(header), header))
            case "list":
                return await self.store.run(lambda db: self._list(db, header))
            case "put":
                await self._put(self._key(header), _parse_put(header), blobs)
                return {}, []
            case "put_writes":
                await self._post_writes(self._key(header), _parse_writes(header), blobs)
                return None
            case "delete_thread":
                await self.store.run(lambda db: rows.delete(db, header["thread_id"]))
                return {}, []
            case operation:
                raise WireError(f"{operation!r} is no checkpoint request")

    def is_resumable(self, header: dict[str, Any]) -> bool:
        """Whether the request that was answered last has stored a checkpoint to go on from."""
        is_end = header.get("op") == "put" and header.get("source") == "loop"
        return is_end and header.get("ns") == "" and self._is_tracked

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
        operation = header.get("op")
        if thread_id != own or operation == "delete_thread":
            raise ThreadRefused(str(operation), str(thread_id), own)

    def _key(self, header: dict[str, Any]) -> str:
        return self.scope.storage_key if self.scope else header["thread_id"]

    def _check_fence(self, db: sqlite3.Connection) -> None:
        if self.scope:
            check_fence(db, self.scope)

    def _list(self, db: sqlite3.Connection, header: dict[str, Any]) -> Frame:
        found = rows.list_names(db, self._key(header), header)
        own = self.scope.execution_id if self.scope else None
        return {"checkpoints": [[own or stored, ns, name] for stored, ns, name in found]}, []

    async def _put(self, key: str, header: rows.PutHeader, blobs: list[bytes]) -> None:
        is_root = header.ns == ""
        if is_root and header.source == "loop" and self._track is not None:
            await self.store.run(self._check_fence)  # the commit is no work for a zombie
            commit = await self._track(header.id)
            self._is_tracked = commit is not None
            self.file_commit = commit or self.file_commit
        commit = self.file_commit if is_root and self._is_tracked else None

        def put(db: sqlite3.Connection) -> None:
            self._check_fence(db)
            rows.put(db, key, header, blobs, commit)

        await self.store.run(put)
        self.checkpoint_count += is_root

    async def _post_writes(self, key: str, header: rows.WritesHeader, blobs: list[bytes]) -> None:
        def put(db: sqlite3.Connection) -> None:
            self._check_fence(db)
            rows.put_writes(db, key, header, blobs)

        if len(self._unsettled) >= _MAX_UNSETTLED:
            await self.settle()
        self._unsettled.append(self.store.submit(put))


def _parse_put(header: dict[str, Any]) -> rows.PutHeader:
    try:
        parsed = rows.PutHeader.model_validate(header)
        if parsed.shown is not None:
            parse_shown(parsed.shown)
    except ValueError as error:
        raise _refuse(error) from error
    return parsed


def _parse_writes(header: dict[str, Any]) -> rows.WritesHeader:
    try:
        return rows.WritesHeader.model_validate(header)
    except ValueError as error:
        raise _refuse(error) from error


def _refuse(error: ValueError) -> WireError:
    """Short, and without the values: they are user code's."""
    if not isinstance(error, ValidationError):
        return _malformed(error)
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return WireError(f"a checkpoint request is malformed: {where}: {first['msg']}")
