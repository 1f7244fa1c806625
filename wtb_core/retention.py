"""`wtb prune`: removes batches that ended long ago, and then what nothing names any more.

It is safe while a service uses the data directory: rows go in short transactions, blobs only when
they are older than everything that may still come to be named. That is the hour of grace that
`BlobStore` allows for, some time on top, and the whole life of the oldest batch that has not ended,
because a running attempt names its blobs when it ends.
"""

import contextlib
import math
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from sqlalchemy import Connection, select
from sqlalchemy.exc import OperationalError

from wtb_core import checkpoint_rows
from wtb_core.checkpoint_store import CheckpointStore
from wtb_core.data import DataDir, hold
from wtb_core.errors import InvalidDocument, InvalidHistory, InvalidRequest, NotFound
from wtb_core.files.blobs import REFRESH_S, BlobStore
from wtb_core.files.handouts import HandOuts
from wtb_core.files.sweeping import sweep
from wtb_core.projects.versions import HANDED_OUT
from wtb_core.reachability import Reachable
from wtb_core.sandbox.leftovers import count_blocks, remove_tree
from wtb_core.sandbox.ownership import MARK
from wtb_core.states import TERMINAL_BATCH
from wtb_core.store import pruning, views
from wtb_core.store.database import find_path, is_newest
from wtb_core.store.pruning import Rule
from wtb_core.store.rows import parse_execution_id
from wtb_core.store.tables import batches
from wtb_core.turns import WriteTurn

OLDER_THAN_S = 30 * 86400.0
GRACE_S = 2 * REFRESH_S
LEFT_S = 86400.0
"""How old what a killed process left half-made must be before it is removed."""

_MIN_PAUSE_S = 0.01
_PAUSE_SHARE = 2.0
"""How long others may write after a transaction, in times of what that took."""

_CHECKPOINT_CHUNK = 100
_VERSION = re.compile(r"[0-9a-f]{64}")
_HALF_MADE = ("new-", "build-", "damaged-", "old-")


class Policy(NamedTuple):
    """Which batches go: those that ended longer ago, in one of these states.

    The newest `keep_last` that have ended of each project stay. Blobs that were stored within the
    last `grace_s` stay, too; less than `GRACE_S` is for when nothing else uses the data directory.
    """

    older_than_s: float = OLDER_THAN_S
    statuses: frozenset[str] = TERMINAL_BATCH
    keep_last: int = 0
    project: str | None = None
    grace_s: float = GRACE_S


class Report(BaseModel):
    """What was removed, or with `dry_run` would be. Sizes are what files have on disk.

    `held` batches stay although they are old enough: others have taken results over from them.
    `young_blobs` are named by nothing, and too young to go. `text_bytes` is about what the rows
    take in the database, whose pages are used again.
    """

    data_dir: str
    dry_run: bool
    batches: int = 0
    executions: int = 0
    events: int = 0
    text_bytes: int = 0
    held: int = 0
    blobs: int = 0
    blobs_bytes: int = 0
    young_blobs: int = 0
    workspaces: int = 0
    workspaces_bytes: int = 0
    bases: int = 0
    bases_bytes: int = 0
    problems: list[str] = []

    def describe(self) -> dict[str, Any]:
        """As JSON, with the sum of the files' sizes."""
        size_bytes = self.blobs_bytes + self.workspaces_bytes + self.bases_bytes
        return {**self.model_dump(), "size_bytes": size_bytes}


def prune(
    data: DataDir,
    policy: Policy,
    *,
    dry_run: bool = False,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Report:
    """Remove what `policy` lets go.

    What cannot be read or removed is a problem in the report, and the rest goes on.

    Raises:
        InvalidRequest: when there is no store, or one of another version of this program.
        Unavailable: when another one prunes, or a short grace meets a service that runs.
    """
    if not (data.path / "wtb.db").is_file():
        raise InvalidRequest("--data-dir", f"there is no wtb.db in {data.path}")
    with ExitStack() as locks:
        if not dry_run:
            locks.enter_context(hold(data.path / "prune.lock", "wtb prune"))
        if policy.grace_s < GRACE_S and not dry_run:
            for name, who in (("serve.lock", "service"), ("runner.lock", "runner")):
                locks.enter_context(hold(data.path / name, who))
        pruning_ = _Pruning(data, policy, clock, sleep, dry_run=dry_run)
        try:
            return pruning_.run()
        finally:
            pruning_.close()


class _Pruning:
    """One run. Each step may fail by itself."""

    def __init__(
        self,
        data: DataDir,
        policy: Policy,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        *,
        dry_run: bool,
    ) -> None:
        self.data = data
        self.policy = policy
        self.clock = clock
        self.sleep = sleep
        self.dry_run = dry_run
        self.report = Report(data_dir=str(data.path), dry_run=dry_run)
        self.blobs = BlobStore(data.blobs)
        self.handouts = HandOuts(data.blobs / HANDED_OUT)
        self.engine = pruning.open_pruning_engine(data.store_url)
        self.turn = WriteTurn(find_path(self.engine))
        self.going: set[str] = set()
        """Batches that a dry run takes for gone."""

    def close(self) -> None:
        self.engine.dispose()

    def run(self) -> Report:
        if not self._read(is_newest):
            raise InvalidRequest(
                "--data-dir",
                f"the store in {self.data.path} is of another version; start its service once "
                "with this one",
            )
        self._remove_batches()
        steps = (
            ("checkpoints", self._clear_checkpoints),
            ("workspaces", self._remove_workspaces),
            ("blobs", self._sweep_blobs),
        )
        for name, step in steps:
            try:
                step()
            except (OSError, OperationalError, NotFound, InvalidRequest) as error:
                self.report.problems.append(f"{name}: {error}")
            except (InvalidHistory, InvalidDocument, ValidationError) as error:
                message = f"{name}: none is removed, since one that names others is damaged"
                self.report.problems.append(f"{message}: {error}")
        return self.report

    # -- rows ----------------------------------------------------------------------------------

    def _remove_batches(self) -> None:
        policy, report = self.policy, self.report
        before_ms = round((self.clock() - policy.older_than_s) * 1000)
        rule = Rule(before_ms, policy.statuses, policy.keep_last, policy.project)
        choice = self._read(lambda c: pruning.choose(c, rule))
        needed = set(choice.needed)
        report.held = choice.held
        for candidate in choice.candidates:
            batch_id = candidate.batch_id
            amount = self._read(lambda c, b=batch_id: pruning.measure(c, [b]))
            if batch_id in needed or not self._hide(batch_id, choice.newest):
                report.held += 1
                needed |= {candidate.taken_from} - {None}
                continue
            report.batches += 1
            report.executions += amount.executions
            report.events += amount.events
            report.text_bytes += amount.text_bytes
        for batch_id in [] if self.dry_run else self._read(pruning.find_hidden):
            while self._write(lambda c, b=batch_id: pruning.delete_chunk(c, b)):
                pass

    def _hide(self, batch_id: str, newest: int) -> bool:
        if self.dry_run:
            self.going.add(batch_id)
            return True
        return self._write(lambda c: pruning.hide(c, batch_id, newest))

    def _find_gone(self, execution_ids: Iterable[str]) -> set[str]:
        """Those whose batch is not in the store; other names than executions' are none."""
        known = self._read(lambda c: set(c.execute(select(batches.c.batch_id)).scalars()))
        gone: set[str] = set()
        for text in execution_ids:
            try:
                batch_id, _ = parse_execution_id(text)
            except NotFound:
                continue
            if batch_id in self.going or batch_id not in known:
                gone.add(text)
        return gone

    # -- what is on this node ------------------------------------------------------------------

    def _clear_checkpoints(self) -> None:
        """Delete what attempts left that nobody will go on from, and fences of batches gone."""
        if self.dry_run or not self.data.checkpoints.is_file():
            return
        with closing(CheckpointStore(self.data.checkpoints)) as store:
            keys = store.submit(checkpoint_rows.list_keys).result()
            fenced = store.submit(checkpoint_rows.list_fenced).result()
            owners = {key: key.rpartition("/")[0] for key in keys if _is_execution_of(key)}
            ended = set(self._read(lambda c: views.find_ended(c, sorted(set(owners.values())))))
            idle = [key for key, owner in owners.items() if owner in ended]
            gone = sorted(self._find_gone(fenced))
            for chunk in _cut(idle):
                store.submit(lambda db, keys=chunk: _delete_keys(db, keys)).result()
            for chunk in _cut(gone):
                store.submit(lambda db, ids=chunk: checkpoint_rows.drop_fences(db, ids)).result()

    def _remove_workspaces(self) -> None:
        """Remove the directories that were kept of attempts whose batch is gone."""
        there = {path.name: path for path in _list(self.data.runs)}
        for name in sorted(self._find_gone(there)):
            for attempt in _list(there[name]):
                if (attempt / MARK).exists():  # it is being made or removed by its process
                    continue
                self.report.workspaces += 1
                self.report.workspaces_bytes += count_blocks(str(attempt))
                if not self.dry_run:
                    remove_tree(attempt)
            if not self.dry_run and not _list(there[name]):
                there[name].rmdir()

    # -- blobs ---------------------------------------------------------------------------------

    def _sweep_blobs(self) -> None:
        if sharers := self.data.find_sharers():
            raise InvalidRequest(
                "blob_dir",
                f"{self.data.blobs} has the blobs of another store, too; if that is gone, remove "
                f"{sharers[0]}",
            )
        now = self.clock()
        before = now - self.policy.grace_s
        oldest_ms = self._read(pruning.find_oldest_unfinished_ms)
        if oldest_ms is not None:
            before = min(before, oldest_ms / 1000 - REFRESH_S)
        reachable = Reachable(self.blobs)
        versions = self._mark(reachable)
        if not self.dry_run:
            self.handouts.withdraw(before, versions)
        offered = self.handouts.find_recent(before if self.dry_run else 0.0)
        for version in offered - versions:
            try:
                reachable.add_version(version)
            except NotFound:
                continue
        swept = sweep(self.blobs, reachable.__contains__, before, dry_run=self.dry_run)
        self.report.blobs, self.report.blobs_bytes, self.report.young_blobs = swept
        self._remove_bases(versions | offered, before)

    def _mark(self, reachable: Reachable) -> set[str]:
        """Find all that batches name, and what may be run on; the versions among it."""
        named = [b for b in self._read(pruning.list_batches) if b.batch_id not in self.going]
        for batch in named:
            reachable.add_version(batch.project_version)
            reachable.add(batch.references)
            for first in range(0, batch.total, pruning.PAGE):
                reachable.add(
                    self._read(
                        lambda c, b=batch, f=first: pruning.read_references(c, b.batch_id, f)
                    )
                )
        if self.data.checkpoints.is_file():
            with closing(CheckpointStore(self.data.checkpoints)) as store:
                for commit in store.submit(checkpoint_rows.list_commits).result():
                    reachable.add_commit(commit)
        return {batch.project_version for batch in named}

    def _remove_bases(self, versions: set[str], before: float) -> None:
        """Remove materialised versions that nobody may ask for; they can be made again."""
        zygotes = [path.name for path in _list(self.data.cache / "zygotes")]
        for base in _list(self.data.bases):
            if _VERSION.fullmatch(base.name):
                in_use = base.name in versions or any(base.name[:16] in name for name in zygotes)
                limit = before
            else:
                in_use = not base.name.startswith(_HALF_MADE)
                limit = self.clock() - LEFT_S
            if in_use or _get_time(base) >= limit:
                continue
            size_bytes = count_blocks(str(base))
            if self.dry_run or self._remove_base(base):
                self.report.bases += 1
                self.report.bases_bytes += size_bytes

    def _remove_base(self, base: Path) -> bool:
        """Remove a base, unless its version has just been ingested again; whether it is gone."""
        if self.handouts.has(base.name):
            return False
        aside = base.with_name(f"old-{secrets.token_hex(8)}")
        base.rename(aside)
        if self.handouts.has(base.name):
            with contextlib.suppress(OSError):  # it has been made again, too
                aside.rename(base)
                return False
        remove_tree(aside)
        return True

    # -- inside --------------------------------------------------------------------------------

    def _read[Result](self, query: Callable[[Connection], Result]) -> Result:
        with self.engine.connect().execution_options(read_only=True) as connection:
            return query(connection)

    def _write[Result](self, change: Callable[[Connection], Result]) -> Result:
        started_at = time.monotonic()
        with self.turn.take(), self.engine.begin() as connection:
            result = change(connection)
        took_s = time.monotonic() - started_at
        self.sleep(max(_MIN_PAUSE_S, took_s * _PAUSE_SHARE))
        return result


def _is_execution_of(key: str) -> bool:
    """Whether a key is an attempt's: what else there may be is not ours to delete."""
    try:
        parse_execution_id(key.rpartition("/")[0])
    except NotFound:
        return False
    return True


def _delete_keys(db: Any, keys: Iterable[str]) -> None:
    for key in keys:
        checkpoint_rows.delete(db, key)


def _cut(items: list[str]) -> Iterator[list[str]]:
    for first in range(0, len(items), _CHECKPOINT_CHUNK):
        yield items[first : first + _CHECKPOINT_CHUNK]


def _get_time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process removes it
        return math.inf


def _list(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if not path.is_symlink())
    except (FileNotFoundError, NotADirectoryError):
        return []
