"""Finds the checkpoint that a lost attempt's successor goes on from.

It is the last root checkpoint whose ancestors are there and whose files can be had, in the newest
lost attempt that has one: on this node, or in the blob of its history.
"""

import asyncio
import hashlib
import logging
from collections.abc import Sequence

from wtb_core import checkpoint_rows, history
from wtb_core.checkpoint_rows import StoredCheckpoint
from wtb_core.checkpoint_store import CheckpointStore, Scope
from wtb_core.errors import InvalidDocument, InvalidHistory, NotFound
from wtb_core.files import commits
from wtb_core.files.blobs import BlobStore
from wtb_core.files.commits import Commit
from wtb_core.history import CheckpointRow
from wtb_core.store.records import Lookup, Offer

UNUSABLE = (NotFound, InvalidHistory, InvalidDocument, OSError)
"""What there may be instead of a history or of a commit with its files."""

_log = logging.getLogger(__name__)

_Checkpoints = Sequence[CheckpointRow] | Sequence[StoredCheckpoint]


async def find_offer(lookup: Lookup, checkpoints: CheckpointStore, blobs: BlobStore) -> Offer:
    """What the attempt that `lookup` is about can go on from here; nothing makes it start clean.

    From now on no earlier attempt can store anything on this node.

    Raises:
        FenceError: when a newer attempt has begun here.
        Unavailable: when the checkpoint store cannot be read.
    """
    await checkpoints.raise_fence(lookup.execution_id, lookup.attempt)
    for attempt, blob in lookup.predecessors:
        stored = await checkpoints.list_checkpoints(lookup.execution_id, attempt)
        found = await asyncio.to_thread(_find_point, stored, lookup, blobs)
        if found is not None:
            return Offer(lookup.execution_id, lookup.attempt, attempt, found)
        if blob is None:
            continue
        try:
            past = await load_history(lookup.execution_id, attempt, blob, checkpoints, blobs)
        except UNUSABLE as error:
            _log.warning(
                "the history of %s/%d cannot be read: %s",
                *(lookup.execution_id, attempt, error),
                extra={"execution_id": lookup.execution_id, "attempt": attempt},
            )
            continue
        found = await asyncio.to_thread(_find_point, past.checkpoints, lookup, blobs)
        if found is not None:
            return Offer(lookup.execution_id, lookup.attempt, attempt, found, blob)
    return Offer(lookup.execution_id, lookup.attempt)


async def load_history(
    execution_id: str,
    attempt: int,
    blob: str | None,
    checkpoints: CheckpointStore,
    blobs: BlobStore,
) -> history.History:
    """An attempt's history from a blob, or what this node has of it.

    Raises:
        NotFound: when there is no such blob.
        InvalidHistory: when the blob is none.
        OSError: when the blob cannot be read.
    """
    if blob is None:
        return await checkpoints.export(Scope(execution_id, attempt))
    return await asyncio.to_thread(lambda: history.decode(blobs.get(blob)))


def secure_commit(blobs: BlobStore, commit_id: str) -> Commit:
    """A file commit, made durable with its files if it was not.

    An attempt that was lost has synced nothing: after a power loss its blobs may be anything.

    Raises:
        NotFound: when it or one of its files is gone.
        InvalidDocument: when it is no commit.
        OSError: when a blob is not what its name says, or cannot be synced.
    """
    data = blobs.get(commit_id)
    if hashlib.sha256(data).hexdigest() != commit_id:
        raise InvalidDocument("a file commit", f"{commit_id} is not what its name says")
    commit = commits.decode(data)
    blobs.sync(entry.blob for entry in commit.entries.values() if entry.blob is not None)
    blobs.sync([commit_id])
    return commit


def _find_point(stored: _Checkpoints, lookup: Lookup, blobs: BlobStore) -> str | None:
    for row in reversed(stored):
        if row.ns:
            continue
        if row.checkpoint_id == lookup.origin_checkpoint_id:
            return None
        if row.file_commit is None:
            continue
        try:
            checkpoint_rows.choose(stored, row.checkpoint_id)
            secure_commit(blobs, row.file_commit)
        except UNUSABLE as error:
            _log.warning(
                "%s cannot go on from checkpoint %s: %s",
                *(lookup.execution_id, row.checkpoint_id, error),
                extra={"execution_id": lookup.execution_id, "attempt": lookup.attempt},
            )
            continue
        return row.checkpoint_id
    return None
