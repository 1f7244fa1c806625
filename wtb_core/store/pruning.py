"""Removing batches that have ended, while another process writes; and what the rest names.

A batch goes in two steps. One short transaction takes it out of sight, so that nobody ever reads
half a batch; its other rows follow in chunks, and what a killed process left of them is found by
the next one. Nothing here touches a batch that has not ended, so it needs no epoch.
"""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, delete, event, func, select

from wtb_core.states import TERMINAL_BATCH
from wtb_core.store.database import open_engine
from wtb_core.store.tables import (
    POOL_STREAM,
    attempts,
    batches,
    cases,
    events,
    executions,
    labels,
    streams,
)

CHUNK_ROWS = 2_000
PAGE = 500

_PARTS = (
    (attempts, attempts.c.batch_id, attempts.c.number),
    (executions, executions.c.batch_id, executions.c.number),
    (cases, cases.c.batch_id, cases.c.case_index),
    (events, events.c.stream, events.c.seq),
)
"""Tables with many rows a batch: whose they are, and what numbers them."""

_TEXTS = (
    (attempts.c.batch_id, attempts.c.result),
    (executions.c.batch_id, executions.c.result),
    (executions.c.batch_id, executions.c.output),
    (cases.c.batch_id, cases.c.body),
    (events.c.stream, events.c.payload),
)


class Rule(NamedTuple):
    """Which batches may go: those that ended before, in one of these states.

    The newest `keep_last` that have ended of each project stay, whatever their age.
    """

    ended_before_ms: int
    statuses: frozenset[str]
    keep_last: int = 0
    project: str | None = None


class Candidate(NamedTuple):
    """A batch that may go. `taken_from` is the one whose results it has taken over."""

    batch_id: str
    taken_from: str | None


class Choice(NamedTuple):
    """What a rule comes to: the batches that may go, the newest first.

    `needed` names those that must stay for others, and `held` counts those that the rule fits all
    the same. `newest` is the number of the newest batch that was looked at.
    """

    candidates: list[Candidate]
    needed: frozenset[str]
    held: int
    newest: int


class Amount(NamedTuple):
    """How much batches are. `text_bytes` is about what their rows take in the database."""

    executions: int
    events: int
    text_bytes: int


class References(NamedTuple):
    """Blobs that rows name. Histories and commits name others in turn, `plain` ones do not."""

    histories: set[str]
    commits: set[str]
    plain: set[str]


def open_pruning_engine(url: str) -> Engine:
    """An engine whose connections let a batch go before its rows."""
    engine = open_engine(url)
    if url.startswith("sqlite"):
        event.listen(engine, "connect", _loosen)
    return engine


def _loosen(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA foreign_keys=OFF")


def choose(connection: Connection, rule: Rule) -> Choice:
    """The batches that a rule lets go.

    A batch stays while one that stays has tried it again and taken results over, since those are
    read where they were made. A retry is always newer, so one pass from the newest finds them all.
    """
    b = batches.c
    rows = connection.execute(
        select(b.number, b.batch_id, b.project, b.status, b.retry_of, b.reused, b.finished_ms)
        .order_by(b.number.desc())
    ).all()  # fmt: skip
    ended: dict[str, int] = {}
    needed: set[str] = set()
    candidates: list[Candidate] = []
    held = 0
    for row in rows:
        is_ended = row.status in TERMINAL_BATCH
        takes = row.retry_of if row.reused else None
        rank = ended.get(row.project, 0)
        ended[row.project] = rank + is_ended
        may_go = (
            is_ended
            and row.status in rule.statuses
            and row.finished_ms < rule.ended_before_ms
            and rank >= rule.keep_last
            and rule.project in {None, row.project}
        )
        if may_go and row.batch_id not in needed:
            candidates.append(Candidate(row.batch_id, takes))
            continue
        held += may_go
        if takes is not None:
            needed.add(takes)
    newest = rows[0].number if rows else 0
    return Choice(candidates, frozenset(needed), held, newest)


def measure(connection: Connection, batch_ids: Iterable[str]) -> Amount:
    """How much batches are."""
    executed = logged = text_bytes = 0
    for batch_id in batch_ids:
        total = select(batches.c.total).where(batches.c.batch_id == batch_id)
        executed += connection.execute(total).scalar_one_or_none() or 0
        last = select(streams.c.last_seq).where(streams.c.stream == batch_id)
        logged += connection.execute(last).scalar_one_or_none() or 0
        for owner, text in _TEXTS:
            size = select(func.coalesce(func.sum(func.length(text)), 0)).where(owner == batch_id)
            text_bytes += int(connection.execute(size).scalar_one())
    return Amount(executed, logged, text_bytes)


def hide(connection: Connection, batch_id: str, newest: int) -> bool:
    """Take a batch out of sight; false when it has to stay.

    That is when it was tried again since `newest` was the newest batch, or is gone already.
    """
    taken = select(batches.c.number).where(
        batches.c.number > newest, batches.c.retry_of == batch_id
    )
    if connection.execute(taken).first() is not None:
        return False
    gone = connection.execute(
        delete(batches).where(batches.c.batch_id == batch_id, batches.c.status.in_(TERMINAL_BATCH))
    )
    if gone.rowcount == 0:
        return False
    connection.execute(delete(labels).where(labels.c.batch_id == batch_id))
    connection.execute(delete(streams).where(streams.c.stream == batch_id))
    return True


def find_hidden(connection: Connection) -> list[str]:
    """Batches that are out of sight and still have rows."""
    found: set[str] = set()
    for _, owner, _ in _PARTS:
        name: str | None = ""
        while name is not None:
            found.add(name)
            query = select(func.min(owner)).where(owner > name)
            name = connection.execute(query).scalar_one_or_none()
    known = connection.execute(select(batches.c.batch_id)).scalars()
    return sorted(found.difference(known, {"", POOL_STREAM}))


def delete_chunk(connection: Connection, batch_id: str) -> bool:
    """Delete the next rows of a batch that is out of sight; false when none is left."""
    for table, owner, number in _PARTS:
        first = connection.execute(select(func.min(number)).where(owner == batch_id)).scalar_one()
        if first is not None:
            connection.execute(delete(table).where(owner == batch_id, number < first + CHUNK_ROWS))
            return True
    return False


def find_oldest_unfinished_ms(connection: Connection) -> int | None:
    """When the oldest batch that has not ended was submitted."""
    query = select(func.min(batches.c.created_ms)).where(batches.c.status.not_in(TERMINAL_BATCH))
    return connection.execute(query).scalar_one_or_none()


class Named(NamedTuple):
    """A batch, and what its own row names."""

    batch_id: str
    project_version: str
    total: int
    references: References


def list_batches(connection: Connection) -> list[Named]:
    """Every batch with the blobs that it names itself."""
    b = batches.c
    found = connection.execute(select(b.batch_id, b.project_version, b.total, b.origin))
    named: list[Named] = []
    for row in found:
        references = References(set(), set(), set())
        if row.origin is not None:
            origin = json.loads(row.origin)
            references.histories.add(origin["history"])
            references.commits.add(origin["file_commit_id"])
        named.append(Named(row.batch_id, row.project_version, row.total, references))
    return named


def read_references(connection: Connection, batch_id: str, first: int) -> References:
    """The blobs that a batch's executions from `first` on name, at most `PAGE` of them."""
    found = References(set(), set(), set())
    ran = connection.execute(
        select(executions.c.result, executions.c.output_blob).where(
            executions.c.batch_id == batch_id,
            executions.c.number >= first,
            executions.c.number < first + PAGE,
        )
    )
    for row in ran:
        _add(found, row.result)
        _add_known(found.plain, row.output_blob)
    tried = connection.execute(
        select(attempts.c.result, attempts.c.resume).where(
            attempts.c.batch_id == batch_id,
            attempts.c.number >= first,
            attempts.c.number < first + PAGE,
        )
    )
    for row in tried:
        _add(found, row.result)
        if row.resume is not None:
            _add_known(found.histories, json.loads(row.resume)["history"])
    return found


def _add(found: References, text: str | None) -> None:
    if text is None:
        return
    result: dict[str, Any] = json.loads(text)
    _add_known(found.histories, result.get("history"))
    _add_known(found.commits, result.get("start_commit_id"), result.get("file_commit_id"))
    _add_known(found.plain, result.get("stdout"), result.get("stderr"))


def _add_known(target: set[str], *digests: str | None) -> None:
    target.update(digest for digest in digests if digest is not None)
