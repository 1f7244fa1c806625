"""What changed between two commits of one base: paths, sizes, modes, and text line by line."""

import difflib
import json
import os
from collections.abc import Iterator
from typing import Literal, NamedTuple

from wtb_core.errors import NotFound
from wtb_core.files.blobs import BlobStore
from wtb_core.files.commits import BaseTree, Commit, FileEntry, FileTree, Kind


class FileChange(NamedTuple):
    """One path that differs. A side without it has null everywhere; sizes are in bytes."""

    path: str
    change: Literal["created", "modified", "deleted"]
    kind_before: Kind | None
    kind_after: Kind | None
    size_before: int | None
    size_after: int | None
    mode_before: int | None
    mode_after: int | None
    blob_before: str | None
    blob_after: str | None
    target_before: str | None
    target_after: str | None


class DiffText(NamedTuple):
    """A unified diff; null when one side is `binary`, or too large, which is `truncated`."""

    text: str | None
    binary: bool
    truncated: bool


def compare(before: Commit, after: Commit, base: BaseTree, blobs: BlobStore) -> list[FileChange]:
    """Each path that differs, directories too, in the order of paths.

    A deleted directory is listed with all that was in it.

    Raises:
        NotFound: when the blob of a changed base file is not there to be measured.
    """
    if before is after:
        return []
    old, new = FileTree(before, base), FileTree(after, base)
    paths = {*before.entries, *after.entries, *old.gone(), *new.gone()}
    changes: list[FileChange] = []
    for path in sorted(paths):
        one, other = old.find(path), new.find(path)
        if one is not None and not one.is_same(other):
            changes.append(_describe(path, one, other, blobs))
        elif one is None and other is not None:
            changes.append(_describe(path, None, other, blobs))
    return changes


def unified(change: FileChange, blobs: BlobStore, limit_bytes: int) -> DiffText:
    """The lines that changed; a link is its target as text, a directory is empty.

    Text is UTF-8 without NUL. No side of more than `limit_bytes` is compared, and a longer diff is
    cut after a line.

    Raises:
        NotFound: when a blob is gone.
    """
    sizes = (change.size_before or 0, change.size_after or 0)
    if max(sizes) > limit_bytes:
        return DiffText(None, binary=False, truncated=True)
    before = _read_side(change.kind_before, change.blob_before, change.target_before, blobs)
    after = _read_side(change.kind_after, change.blob_after, change.target_after, blobs)
    if before is None or after is None:
        return DiffText(None, binary=True, truncated=False)
    name = change.path if change.path.isprintable() else json.dumps(change.path)
    lines = difflib.unified_diff(
        before,
        after,
        "/dev/null" if change.kind_before is None else f"a/{name}",
        "/dev/null" if change.kind_after is None else f"b/{name}",
    )
    return _join(lines, limit_bytes)


def find_entry(commit: Commit, base: BaseTree, path: str) -> FileEntry:
    """What a commit's tree has at a path.

    Raises:
        NotFound: when there is nothing.
    """
    entry = FileTree(commit, base).find(path)
    if entry is None:
        raise NotFound("file", path)
    return entry


def _describe(
    path: str, before: FileEntry | None, after: FileEntry | None, blobs: BlobStore
) -> FileChange:
    change = "created" if before is None else "deleted" if after is None else "modified"
    return FileChange(
        path=path,
        change=change,
        kind_before=before and before.kind,
        kind_after=after and after.kind,
        size_before=_measure(before, blobs),
        size_after=_measure(after, blobs),
        mode_before=None if before is None else before.mode,
        mode_after=None if after is None else after.mode,
        blob_before=before and before.blob,
        blob_after=after and after.blob,
        target_before=before and before.target,
        target_after=after and after.target,
    )


def _measure(entry: FileEntry | None, blobs: BlobStore) -> int | None:
    if entry is None or entry.blob is None:
        return None
    return blobs.size(entry.blob) if entry.size is None else entry.size


def _read_side(
    kind: Kind | None, blob: str | None, target: str | None, blobs: BlobStore
) -> list[str] | None:
    data = blobs.get(blob or "") if kind == "file" else os.fsencode(target or "")
    if b"\0" in data:
        return None
    try:
        return _split(data.decode())
    except UnicodeDecodeError:
        return None


def _split(text: str) -> list[str]:
    """Lines that end with a line feed and with nothing else; the last one may lack it."""
    lines = [f"{line}\n" for line in text.split("\n")]
    last = lines.pop().removesuffix("\n")
    return [*lines, last] if last else lines


def _join(lines: Iterator[str], limit_bytes: int) -> DiffText:
    parts: list[str] = []
    size = 0
    for line in lines:
        whole = line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
        size += len(whole.encode())
        if size > limit_bytes:
            return DiffText("".join(parts), binary=False, truncated=True)
        parts.append(whole)
    return DiffText("".join(parts), binary=False, truncated=False)
