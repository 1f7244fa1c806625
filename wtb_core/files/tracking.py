"""What one attempt did to its workspace, as commits.

A tracker looks at the tree from outside while user code waits, or while daemons it left behind do
not: a file that vanishes or becomes something else meanwhile is taken as it is later. No link is
ever followed: every directory is opened from the one above it.

A file is read again when its stamp (inode, size, mode, times) has changed, or when it was changed
so shortly before the last look that another change might have left the same stamp. A store through
a shared memory map that was writable before the last look leaves no stamp; it is found once
something else changes the file's.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Generator
from pathlib import Path
from time import time_ns
from typing import ClassVar, NamedTuple

from wtb_core.errors import TrackingError
from wtb_core.files.blobs import BlobStore, SourceError
from wtb_core.files.commits import LINK_MODE, BaseTree, Commit, FileEntry, FileTree

MAX_TRACKED_FILES = 200_000
"""How many paths may differ from the base."""

MAX_TRACKED_BYTES = 8 * 1024**3
"""How much content may differ from the base."""

_MAX_DEPTH = 200
_MAX_FAILED = 100
_TRIES = 3
_SETTLED_NS = 10_000_000
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NOT_THAT_KIND = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}
_OPAQUE = ("user.overlay.opaque", "trusted.overlay.opaque")

_Stamp = tuple[int, int, int, int, int]


class _Known(NamedTuple):
    """What a file was when it had a stamp. Only a settled one proves that it still is."""

    stamp: _Stamp
    is_settled: bool
    entry: FileEntry


class _ChangedMeanwhile(Exception):
    """A path is no longer what it was a moment ago."""


class Tracker:
    """The commits of one attempt's workspace; one call at a time, from any thread.

    `below` is the commit that the attempt began with, null when that is the base.
    """

    _is_overlay: ClassVar[bool]

    def __init__(
        self,
        blobs: BlobStore,
        base: BaseTree,
        root: Path,
        below: Commit | None = None,
        *,
        max_files: int = MAX_TRACKED_FILES,
        max_bytes: int = MAX_TRACKED_BYTES,
    ) -> None:
        self._blobs = blobs
        self._base = base
        self._root = root
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._last = below or Commit(base.version)
        self._lower = FileTree(self._last, base)
        self._known: dict[str, _Known] = {}

    def track(self) -> Commit:
        """The commit of the tree as it is now; the same object while nothing has changed.

        Blobs are stored without being synced.

        Raises:
            TrackingError: when something cannot be read or stored, or is too much. The next call
                may succeed.
        """
        scan = self._walk()
        entries, deleted = scan.entries, scan.deleted
        if entries == self._last.entries and frozenset(deleted) == self._last.tombstones:
            return self._last
        self._last = Commit(self._base.version, entries, tuple(sorted(deleted)))
        return self._last

    def _walk(self, *, is_priming: bool = False) -> "_Scan":
        scan = _Scan(
            self._blobs, self._base, self._lower, self._known, self._max_files, self._max_bytes
        )
        scan.is_priming = is_priming
        try:
            descriptor = os.open(self._root, _DIRECTORY)
            try:
                scan.visit(descriptor, "", is_merged=self._is_overlay, depth=1)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise TrackingError([], f"the workspace cannot be read: {error.strerror}") from error
        finally:
            self._known |= scan.known
        if self._is_overlay:
            scan.add_lower()
        scan.check()
        self._known = scan.known
        return scan


class TreeTracker(Tracker):
    """Tracks a directory of its own, `root`, that began as a copy."""

    _is_overlay = False

    def prime(self) -> None:
        """Take the tree for what the attempt begins with, without reading a file.

        To be called as soon as it is restored, before anything is written into it.

        Raises:
            TrackingError: when a directory cannot be read.
        """
        self._walk(is_priming=True)


class OverlayTracker(Tracker):
    """Tracks an overlay by its upper directory, `root`: at the cost of what is in there.

    The overlay's layers are the base and, above it, that of `below` (see `LayerCache`). It is
    mounted without `metacopy` and `redirect_dir`, as `userxattr` implies.
    See https://docs.kernel.org/filesystems/overlayfs.html for what whiteouts (a device 0:0) and
    opaque directories are.
    """

    _is_overlay = True


class _Scan:
    """One walk through a tree. `entries` and `deleted` are the commit's."""

    def __init__(
        self,
        blobs: BlobStore,
        base: BaseTree,
        lower: FileTree,
        known: dict[str, _Known],
        max_files: int,
        max_bytes: int,
    ) -> None:
        self.entries: dict[str, FileEntry] = {}
        self.deleted: set[str] = set()
        self.known: dict[str, _Known] = {}
        self.is_priming = False
        self._blobs = blobs
        self._base = base
        self._lower = lower
        self._before = known
        self._replaced: set[str] = set()
        self._merged: set[str] = set()
        self._failed: dict[str, str] = {}
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._left_out = 0
        self._size_bytes = 0
        self._settled_before_ns = time_ns() - _SETTLED_NS

    def visit(self, directory: int, path: str, *, is_merged: bool, depth: int) -> None:
        """Look at all in an open directory; merged are those through which lower ones show."""
        if depth > _MAX_DEPTH:
            raise TrackingError([path], f"directories are nested more than {_MAX_DEPTH} deep")
        found: set[str] = set()
        for name, info in _list(directory):
            inner = f"{path}/{name}" if path else name
            if self._take(directory, name, inner, info, is_merged=is_merged, depth=depth):
                found.add(name)
        if not is_merged:
            for name in self._base.children(path) - found:
                self.deleted.add(f"{path}/{name}" if path else name)
            self._check_files()

    def add_lower(self) -> None:
        """Add what the commit below says and nothing above it has replaced."""
        lower = self._lower.commit
        for path, entry in lower.entries.items():
            if path not in self._merged and not self._is_replaced(path):
                self.entries[path] = entry
                self._size_bytes += entry.size or 0
        self.deleted.update(path for path in lower.deleted if not self._is_replaced(path))

    def check(self) -> None:
        """Raise what stands in the way of a commit.

        Raises:
            TrackingError: when something could not be read, or is too much.
        """
        if self._failed:
            path, reason = next(iter(self._failed.items()))
            more = f", {len(self._failed) - 1} more likewise" if len(self._failed) > 1 else ""
            raise TrackingError(
                list(self._failed)[:_MAX_FAILED], f"{path!a} cannot be read: {reason}{more}"
            )
        self._check_files()
        self._check_bytes(0, None)

    def _take(
        self,
        directory: int,
        name: str,
        path: str,
        info: os.stat_result,
        *,
        is_merged: bool,
        depth: int,
    ) -> bool:
        """Note what is at a path; whether there is something that a commit can hold."""
        for _ in range(_TRIES):
            try:
                match stat.S_IFMT(info.st_mode):
                    case stat.S_IFDIR:
                        self._take_directory(directory, name, path, info, is_merged, depth)
                    case stat.S_IFREG:
                        self._replace(path, self._read_file(directory, name, path, info))
                    case stat.S_IFLNK:
                        self._replace(path, _read_link(directory, name))
                    case _:
                        self._leave_out(path)
                        return False
                return True
            except _ChangedMeanwhile:
                pass
            except OSError as error:
                self._failed[path] = error.strerror or str(error)
                return True
            try:
                info = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                return False
        self._failed[path] = "it keeps changing"
        return True

    def _leave_out(self, path: str) -> None:
        """A whiteout, or what a commit does not hold: it hides what is below all the same."""
        self._replaced.add(path)
        self._left_out += 1
        if path in self._base.entries:
            self.deleted.add(path)
        self._check_files()

    def _take_directory(
        self,
        parent: int,
        name: str,
        path: str,
        info: os.stat_result,
        is_merged: bool,  # noqa: FBT001
        depth: int,
    ) -> None:
        with _opened(parent, name, _DIRECTORY) as directory:
            if is_merged:
                below = self._lower.find(path)
                is_merged = (
                    below is not None and below.kind == "directory" and not _is_opaque(directory)
                )
            entry = FileEntry("directory", stat.S_IMODE(info.st_mode))
            if is_merged:
                self._merged.add(path)
                self._add(path, entry)
            else:
                self._replace(path, entry)
            self.visit(directory, path, is_merged=is_merged, depth=depth + 1)

    def _read_file(self, directory: int, name: str, path: str, info: os.stat_result) -> FileEntry:
        stamp = _stamp(info)
        known = self._before.get(path)
        if known is not None and known.is_settled and known.stamp == stamp:
            self.known[path] = known
            return known.entry
        expected = self._lower.find(path) if self.is_priming else None
        if expected is not None and _looks_like(expected, info):
            entry = expected
        else:
            stamp, entry = self._store(directory, name, path)
        is_settled = stamp[0] < self._settled_before_ns
        self.known[path] = _Known(stamp, is_settled, entry)
        return entry

    def _store(self, directory: int, name: str, path: str) -> tuple[_Stamp, FileEntry]:
        with _opened(directory, name, _FILE) as descriptor:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                raise _ChangedMeanwhile
            self._check_bytes(info.st_size, path)
            try:
                stored = self._blobs.put_descriptor(descriptor, sync=False)
            except SourceError:
                raise
            except OSError as error:
                raise TrackingError(
                    [path], f"the blob store cannot take more: {error.strerror}"
                ) from error
        mode = stat.S_IMODE(info.st_mode)
        return _stamp(info), FileEntry("file", mode, stored.digest, stored.size_bytes)

    def _replace(self, path: str, entry: FileEntry) -> None:
        self._replaced.add(path)
        self._add(path, entry)

    def _add(self, path: str, entry: FileEntry) -> None:
        if not entry.is_same(self._base.entries.get(path)):
            self.entries[path] = entry
            self._size_bytes += entry.size or 0
            self._check_files()

    def _is_replaced(self, path: str) -> bool:
        while path:
            if path in self._replaced:
                return True
            path = path.rpartition("/")[0]
        return False

    def _check_files(self) -> None:
        if len(self.entries) + len(self.deleted) + self._left_out > self._max_files:
            raise TrackingError([], f"more than {self._max_files} paths have changed")

    def _check_bytes(self, more: int, path: str | None) -> None:
        if self._size_bytes + more > self._max_bytes:
            raise TrackingError(
                [] if path is None else [path],
                f"more than {self._max_bytes} bytes of content have changed",
            )


def _list(directory: int) -> list[tuple[str, os.stat_result]]:
    found: list[tuple[str, os.stat_result]] = []
    with os.scandir(directory) as children:
        for child in children:
            try:
                info = child.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            found.append((child.name, info))
    return found


@contextlib.contextmanager
def _opened(parent: int, name: str, flags: int) -> Generator[int]:
    try:
        descriptor = os.open(name, flags, dir_fd=parent)
    except OSError as error:
        if error.errno in _NOT_THAT_KIND:
            raise _ChangedMeanwhile from error
        raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read_link(directory: int, name: str) -> FileEntry:
    try:
        target = os.readlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.EINVAL}:
            raise _ChangedMeanwhile from error
        raise
    return FileEntry("link", LINK_MODE, target=target)


def _stamp(info: os.stat_result) -> _Stamp:
    return info.st_ctime_ns, info.st_mtime_ns, info.st_ino, info.st_size, info.st_mode


def _looks_like(entry: FileEntry, info: os.stat_result) -> bool:
    return (
        entry.kind == "file"
        and entry.mode == stat.S_IMODE(info.st_mode)
        and entry.size in {None, info.st_size}
    )


def _is_opaque(directory: int) -> bool:
    for name in _OPAQUE:
        try:
            if os.getxattr(directory, name) == b"y":
                return True
        except OSError as error:
            if error.errno not in {errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM}:
                raise
    return False
