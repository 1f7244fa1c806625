"""What an attempt begins with: the base alone, a fork's checkpoint, or a lost attempt's."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wtb_core import checkpoint_rows, history
from wtb_core.attempts import Assignment, Origin, ResumePoint
from wtb_core.checkpoint_store import CheckpointStore, Scope
from wtb_core.errors import NotResumable, Unavailable
from wtb_core.files import commits
from wtb_core.files.blobs import BlobStore
from wtb_core.files.commits import Commit
from wtb_core.history import CheckpointRow, History
from wtb_core.resumption import UNUSABLE, load_history, secure_commit


class Beginning(NamedTuple):
    """The workspace is the base, on it the commit `below`, on it `files`.

    `origin` is what the graph's process is told of the checkpoint that it goes on from. Of an
    attempt that goes on for a lost one, `checkpoint_id` is that checkpoint and `start` the files
    that the execution's user code found first.
    """

    files: Mapping[str, str]
    below: Commit | None = None
    origin: dict[str, Any] | None = None
    checkpoint_id: str | None = None
    start: Commit | None = None


async def begin(
    assignment: Assignment, checkpoints: CheckpointStore, blobs: BlobStore
) -> Beginning:
    """What the attempt begins with, once the checkpoints before it have become its own.

    Raises:
        NotResumable: when the lost attempt's checkpoint cannot be had any more.
        NotFound, InvalidHistory, InvalidDocument: when a fork's cannot.
        FenceError: when a newer attempt has begun.
    """
    origin, resume = assignment.origin, assignment.resume
    if resume is not None:
        try:
            return await _go_on(assignment, resume, checkpoints, blobs)
        except (*UNUSABLE, Unavailable) as error:
            raise NotResumable(resume.checkpoint_id, resume.attempt, str(error)) from error
    files = {**assignment.variant.files, **assignment.case.get("files", {})}
    if origin is None:
        return Beginning(files)
    past = await asyncio.to_thread(lambda: history.decode(blobs.get(origin.history)))
    scope = Scope(assignment.execution_id, assignment.attempt)
    await checkpoints.import_history(scope, past, origin.checkpoint_id)
    below = await asyncio.to_thread(lambda: commits.decode(blobs.get(origin.file_commit_id)))
    return Beginning(files, below, {"state": origin.state})


async def _go_on(
    assignment: Assignment, resume: ResumePoint, checkpoints: CheckpointStore, blobs: BlobStore
) -> Beginning:
    execution_id, checkpoint_id = assignment.execution_id, resume.checkpoint_id
    past = await load_history(execution_id, resume.attempt, resume.history, checkpoints, blobs)
    scope = Scope(execution_id, assignment.attempt)
    await checkpoints.import_history(scope, past, checkpoint_id)
    chain = _find_own(past, checkpoint_id, assignment.origin)
    head = chain[-1]
    if head.file_commit is None:
        raise NotResumable(checkpoint_id, resume.attempt, "its files could not be committed")
    below = await asyncio.to_thread(secure_commit, blobs, head.file_commit)
    origin = {"state": None, "answered": head.answered, "supersteps": _count_supersteps(chain)}
    start = await asyncio.to_thread(_find_start, chain, assignment.origin, blobs)
    return Beginning({}, below, origin, checkpoint_id, start or below)


def _find_own(past: History, checkpoint_id: str, origin: Origin | None) -> list[CheckpointRow]:
    """The checkpoint and its ancestors, the oldest first; of a fork only its own."""
    chosen = checkpoint_rows.choose(past.checkpoints, checkpoint_id)
    chain = [past.checkpoints[position] for position in chosen.positions]
    chain = [row for row in chain if not row.ns]
    names = [row.checkpoint_id for row in chain]
    if origin is not None and origin.checkpoint_id in names[:-1]:
        chain = chain[names.index(origin.checkpoint_id) + 1 :]
    return chain


def _count_supersteps(chain: Sequence[CheckpointRow]) -> int:
    """How many were made since the graph was last called: a call follows each answer.

    A fork's first call may make one more when it begins at a change of state.
    """
    answered = chain[-1].answered
    more = chain[0].source == "update" and not answered
    return sum(row.source == "loop" and row.answered == answered for row in chain) - more


def _find_start(
    chain: Sequence[CheckpointRow], origin: Origin | None, blobs: BlobStore
) -> Commit | None:
    """The files that the execution's user code found first; None when they are not known.

    What is no superstep's checkpoint was stored before any of its own user code ran.
    """
    first = chain[0]
    found = first.file_commit
    if first.source == "loop":
        found = None if origin is None else origin.file_commit_id
    if found is None:
        return None
    try:
        return secure_commit(blobs, found)
    except UNUSABLE:
        return None
