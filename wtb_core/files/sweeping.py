"""Collecting blobs that nothing names, while other processes store and read.

A blob is moved aside, looked at once more, and only then removed: one that somebody has stored or
used meanwhile has a new time, and goes back. Whoever looks for it in between puts it back, see
`BlobStore.look`. So a blob is lost only when it is older than `before` and nobody wants it.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from wtb_core.files.blobs import ASIDE, DURABLE_MODE, TEMPORARY, BlobStore

_BLOCK_BYTES = 512


class Swept(NamedTuple):
    """How many blobs went, what they had on disk, and how many nothing names but are too young."""

    blobs: int
    size_bytes: int
    young: int


class _Found(NamedTuple):
    digest: str
    path: Path
    info: os.stat_result


def sweep(
    blobs: BlobStore, is_named: Callable[[str], bool], before: float, *, dry_run: bool = False
) -> Swept:
    """Remove every blob that nothing names and that nobody has stored since `before`.

    One sweep at a time. What an earlier one left aside when it was killed is finished first, and so
    are files of writers that were killed. `before` is a time as `time.time` tells it.

    Raises:
        OSError: when the store cannot be read or changed.
    """
    if not dry_run:
        _finish_earlier(blobs, is_named, before)
    count = size_bytes = young = 0
    for found in _iterate(blobs.root):
        if is_named(found.digest):
            continue
        if found.info.st_mtime >= before:
            young += 1
        elif dry_run or _remove(blobs, found, before):
            count += 1
            size_bytes += found.info.st_blocks * _BLOCK_BYTES
    return Swept(count, size_bytes, young)


def _remove(blobs: BlobStore, found: _Found, before: float) -> bool:
    aside = blobs.aside(found.digest)
    try:
        found.path.rename(aside)
        if aside.stat().st_mtime >= before:
            aside.rename(found.path)
            return False
        aside.unlink()
    except FileNotFoundError:  # another one put it back
        return False
    return True


def _finish_earlier(blobs: BlobStore, is_named: Callable[[str], bool], before: float) -> None:
    try:
        left = [entry for entry in blobs.root.iterdir() if entry.suffix in {ASIDE, TEMPORARY}]
    except FileNotFoundError:
        return
    for path in left:
        with contextlib.suppress(FileNotFoundError):
            info = path.stat()
            wanted = path.suffix == ASIDE and is_named(path.stem)
            if info.st_mtime < before and not wanted:
                path.unlink()
            elif path.suffix == ASIDE and stat.S_IMODE(info.st_mode) == DURABLE_MODE:
                path.rename(blobs.path(path.stem))


def _iterate(root: Path) -> Iterator[_Found]:
    """Every blob. Those of a directory are read before the first of them is handed out."""
    for number in range(256):
        shard = root / f"{number:02x}"
        try:
            with os.scandir(shard) as entries:
                found = [(entry.name, Path(entry.path)) for entry in entries]
        except FileNotFoundError:
            continue
        for name, path in found:
            with contextlib.suppress(FileNotFoundError):
                info = path.lstat()
                if stat.S_ISREG(info.st_mode) and len(name) == 64:
                    yield _Found(name, path, info)
