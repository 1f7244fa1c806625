"""The checkpoints and files of attempts, read from blobs alone, wherever they ran.

A point in an attempt is a checkpoint's id, `base` (the project's workspace), `start` (what user
code found) or `final` (what it left). Bytes come from blobs that a commit names, never from a path
that somebody gave.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from wtb_core.errors import InvalidRequest, NotAFile, NotFound
from wtb_core.files.blobs import BlobStore
from wtb_core.files.commits import BaseTree, Commit, decode
from wtb_core.files.diffs import FileChange, compare, find_entry, unified
from wtb_core.files.paths import show_path
from wtb_core.history import CheckpointSummary, find, read_summary
from wtb_core.parameters import check_limit, cut_page, make_page, parse_cursor
from wtb_core.projects import ProjectVersions
from wtb_core.store.records import Trace

MAX_DIFF_BYTES = 64 * 1024
MAX_PAGE_DIFF_BYTES = 4 * 1024**2
MAX_PAGE_STATE_BYTES = 16 * 1024**2
MAX_READ_BYTES = 64 * 1024**2
MAX_POINT_CHARS = 128
MAX_PAGE_DIFF_S = 2.0
KEPT_BASES = 4
KEPT_COMPARISONS = 4


class StoredFile(NamedTuple):
    """A file at a point: its path as it is, and the blob's file that has its bytes."""

    path: str
    blob: Path
    size_bytes: int
    mode: str


class FileHistory:
    """Reads what attempts left. Slow enough for a thread, and safe in several."""

    def __init__(self, blobs: BlobStore, versions: ProjectVersions) -> None:
        self._blobs = blobs
        self._versions = versions
        self._get_base = lru_cache(KEPT_BASES)(self._read_base)
        self._get_changes = lru_cache(KEPT_COMPARISONS)(self._compare)

    def list_checkpoints(
        self, trace: Trace, limit: int = 100, cursor: str | None = None
    ) -> dict[str, Any]:
        """A page of an attempt's checkpoints, oldest first; empty before it has a history.

        A page ends early when its states grow large.

        Returns:
            `{attempt, items: [CheckpointSummary], next_cursor}`.
        """
        page = cut_page(self._read_summary(trace), limit, cursor)
        start = parse_cursor(cursor) or 0
        items: list[dict[str, Any]] = []
        size = 0
        for summary in page["items"]:
            size += len(json.dumps(summary.state))
            if items and size > MAX_PAGE_STATE_BYTES:
                page["next_cursor"] = str(start + len(items))
                break
            items.append(summary.model_dump())
        return {"attempt": trace.attempt, "items": items, "next_cursor": page["next_cursor"]}

    def find_checkpoint(self, trace: Trace, checkpoint_id: str) -> CheckpointSummary:
        """The checkpoint that a fork may start from; see `history.find` for what it raises."""
        return find(self._read_summary(trace), checkpoint_id)

    def list_changes(
        self,
        trace: Trace,
        start: str = "start",
        end: str = "final",
        *,
        diff: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        """A page of the paths that differ between two points, in their order.

        With `diff` each file of at most `MAX_DIFF_BYTES` has its unified diff, and a page ends
        early when they grow large or take long: two texts can be made to cost seconds. The counts
        are those of all pages.

        Returns:
            `{attempt, from, to, items: [{path, change, kind, size_before, size_after, mode_before,
            mode_after, binary, diff, diff_truncated}], next_cursor, counts}`.

        Raises:
            NotFound: when there is no such point, or its files are not known.
        """
        check_limit(limit)
        first = parse_cursor(cursor) or 0
        before, after = self._find_commit_id(trace, start), self._find_commit_id(trace, end)
        changes = self._get_changes(trace.project_version, before, after)
        items: list[dict[str, Any]] = []
        size = 0
        deadline = time.monotonic() + MAX_PAGE_DIFF_S
        for change in changes[first : first + limit]:
            item = self._describe(change, diff=diff)
            size += len((item["diff"] or "").encode())
            if items and size > MAX_PAGE_DIFF_BYTES:
                break
            items.append(item)
            if time.monotonic() > deadline:
                break
        counts = Counter(change.change for change in changes)
        last = first + len(items)
        page = make_page(items, last if last < len(changes) else None)
        return {
            "attempt": trace.attempt,
            "from": start,
            "to": end,
            **page,
            "counts": {kind: counts[kind] for kind in ("created", "modified", "deleted")},
        }

    def find_file(self, trace: Trace, path: str, at: str = "final") -> StoredFile:
        """The file at a path, as `os.fsdecode` gives it; a link is not followed.

        Raises:
            NotFound: when there is no such point or path, or the bytes are gone.
            NotAFile: when a directory or a link is there.
        """
        base = self._get_base(trace.project_version)
        try:
            commit = self._load_commit(self._find_commit_id(trace, at), base)
            entry = find_entry(commit, base, path)
        except NotFound as error:
            raise NotFound(error.noun, show_path(error.key)) from None
        if entry.kind == "directory":
            raise NotAFile(show_path(path), "a directory")
        if entry.blob is None:
            target = show_path(entry.target or "")
            raise NotAFile(show_path(path), f"a link to {target!r}, and links are not followed")
        size_bytes = self._blobs.size(entry.blob)
        return StoredFile(path, self._blobs.path(entry.blob), size_bytes, _show_mode(entry.mode))

    def read_file(self, trace: Trace, path: str, at: str = "final") -> dict[str, Any]:
        """A file of at most `MAX_READ_BYTES` with its bytes.

        Returns:
            `{attempt, path, at, size_bytes, mode, data}`.

        Raises:
            InvalidRequest: when the file is larger.
            NotFound, NotAFile: see `find_file`.
        """
        found = self.find_file(trace, path, at)
        if found.size_bytes > MAX_READ_BYTES:
            message = (
                f"the file has {found.size_bytes} bytes and at most {MAX_READ_BYTES} are handed "
                "over at once; get it over HTTP"
            )
            raise InvalidRequest("path", message)
        return {
            "attempt": trace.attempt,
            "path": show_path(path),
            "at": at,
            "size_bytes": found.size_bytes,
            "mode": found.mode,
            "data": found.blob.read_bytes(),
        }

    def _read_base(self, version: str) -> BaseTree:
        return BaseTree(version, self._versions.read(version).workspace)

    def _read_summary(self, trace: Trace) -> list[CheckpointSummary]:
        if trace.history is None:
            return []
        self._blobs.size(trace.history)
        return read_summary(self._blobs.path(trace.history))

    def _compare(self, version: str, before: str | None, after: str | None) -> Sequence[FileChange]:
        base = self._get_base(version)
        old, new = self._load_commit(before, base), self._load_commit(after, base)
        return compare(old, new, base, self._blobs)

    def _load_commit(self, commit_id: str | None, base: BaseTree) -> Commit:
        return Commit(base.version) if commit_id is None else decode(self._blobs.get(commit_id))

    def _find_commit_id(self, trace: Trace, point: str) -> str | None:
        """The commit at a point; null is the base, which is no commit."""
        if point == "base":
            return None
        if point == "start":
            digest = trace.start_commit_id
        elif point == "final":
            digest = trace.file_commit_id
        else:
            digest = self._find_commit_of(trace, point)
        if digest is None:
            where = f"{trace.execution_id} at {point[:MAX_POINT_CHARS]}"
            raise NotFound("file commit of execution", where)
        return digest

    def _find_commit_of(self, trace: Trace, checkpoint_id: str) -> str | None:
        for summary in self._read_summary(trace):
            if summary.checkpoint_id == checkpoint_id and not summary.ns:
                return summary.file_commit_id
        raise NotFound("checkpoint", checkpoint_id[:MAX_POINT_CHARS])

    def _describe(self, change: FileChange, *, diff: bool) -> dict[str, Any]:
        text = unified(change, self._blobs, MAX_DIFF_BYTES) if diff else None
        return {
            "path": show_path(change.path),
            "change": change.change,
            "kind": change.kind_after or change.kind_before,
            "size_before": change.size_before,
            "size_after": change.size_after,
            "mode_before": _show_mode(change.mode_before),
            "mode_after": _show_mode(change.mode_after),
            "binary": None if text is None else text.binary,
            "diff": None if text is None else text.text,
            "diff_truncated": text is not None and text.truncated,
        }


def _show_mode(mode: int | None) -> Any:
    return None if mode is None else f"{mode:04o}"
