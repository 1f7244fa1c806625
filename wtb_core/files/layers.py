"""A commit's files made again: as a lower layer of an overlay, or in a copy of the base.

A layer's files are hard links to blobs where that is possible. An overlay never writes to a lower
layer, and nothing else may. Layers are not synced, so none outlives the boot it was made in.

What is taken from a layer is missing in the overlays that are mounted on it. So whoever uses one
holds a shared lock on its directory, which the kernel gives free when its process dies; the time of
the last use is the directory's.
"""

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import shutil
import stat
import tempfile
import time
from pathlib import Path

from wtb_core.errors import NotFound
from wtb_core.files.blobs import BlobStore
from wtb_core.files.commits import BaseTree, Commit, FileEntry, FileTree
from wtb_core.files.copying import copy_file, for_each
from wtb_core.files.manifests import DIRECTORY_MODE, EXECUTABLE_MODE, FILE_MODE

UNUSED_S = 3600.0
"""How long a layer is kept that nobody uses."""

# Another process may remove a copy from the pool that no layer uses.
_CANNOT_LINK = {errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.ENOENT}
_LINKED_MODES = {FILE_MODE, EXECUTABLE_MODE}
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_OWNER = stat.S_IRWXU
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_log = logging.getLogger(__name__)


class HeldLayer:
    """A layer that stays until `close`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    def close(self) -> None:
        """Use it no more; what has it mounted must be gone."""
        os.utime(self._lock)
        os.close(self._lock)


class LayerCache:
    """Layers below `root`; any number of processes may share it.

    A layer belongs to a base: it holds a commit's entries, and a whiteout for each tombstone.
    """

    def __init__(self, root: Path, blobs: BlobStore) -> None:
        boot = _BOOT_ID.read_text("ascii").strip()
        for stale in root.glob("boot-*"):
            if stale.name != f"boot-{boot}":
                with contextlib.suppress(FileNotFoundError):  # another process removes it too
                    _remove(stale)
        self._layers = root / f"boot-{boot}" / "layers"
        self._pool = root / f"boot-{boot}" / "pool"
        self._blobs = blobs

    def hold(self, commit: Commit, base: BaseTree) -> HeldLayer:
        """The directory to put between the base and an upper one; made when there is none.

        Raises:
            NotFound: when a blob is gone.
            OSError: when the layer cannot be made: no whiteouts here, no space, a damaged blob.
        """
        target = self._layers / commit.id
        lock = _lock_shared(target)
        if lock is None:
            self._make(target, commit, base)
            lock = _lock_shared(target)
        if lock is None:
            raise OSError(errno.ESTALE, "the layer was removed at once", str(target))
        os.utime(lock)
        return HeldLayer(target, lock)

    def trim(self) -> int:
        """Remove layers that nobody has used for `UNUSED_S`; how many there were."""
        before = time.time() - UNUSED_S
        try:
            removed = sum(_remove_unused(layer, before) for layer in self._layers.iterdir())
            for file in self._pool.iterdir():
                info = file.lstat()
                if info.st_nlink == 1 and info.st_mtime < before:
                    file.unlink(missing_ok=True)
        except FileNotFoundError:  # nothing was made yet, or another process removes it too
            return 0
        return removed

    def _make(self, target: Path, commit: Commit, base: BaseTree) -> None:
        self._layers.mkdir(parents=True, exist_ok=True)
        self._pool.mkdir(exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix="new-", dir=self._layers))
        try:
            self._fill(aside, commit, base)
            aside.rename(target)
        except (OSError, NotFound):
            _remove(aside)
            if not target.exists():
                raise

    def _fill(self, layer: Path, commit: Commit, base: BaseTree) -> None:
        modes = _find_directories(commit, base)
        for path in modes:
            (layer / path).mkdir(_OWNER)
        for path in commit.deleted:
            _make_whiteout(f"{layer}/{path}")
        linked: set[str] = set()
        for path, entry in commit.entries.items():
            if entry.kind == "link":
                (layer / path).symlink_to(entry.target or "")
            elif entry.kind == "file":
                self._place(entry, f"{layer}/{path}", linked)
        for path, mode in reversed(modes.items()):
            (layer / path).chmod(mode)
        layer.chmod(DIRECTORY_MODE)

    def _place(self, entry: FileEntry, target: str, linked: set[str]) -> None:
        """One file: a link for the first with its content, so that no two paths are one file."""
        blob, mode = _find_blob(self._blobs, entry)
        digest = entry.blob or ""
        if digest not in linked and entry.mode in _LINKED_MODES:
            source = blob if mode == entry.mode else self._find_in_pool(entry, blob)
            try:
                os.link(source, target)
            except OSError as error:
                if error.errno not in _CANNOT_LINK:
                    raise
            else:
                linked.add(digest)
                return
        copy_file(blob, target, entry.mode, reflink=False)

    def _find_in_pool(self, entry: FileEntry, blob: str) -> str:
        """A copy of a blob with another mode, for layers to link to; made when there is none."""
        source = self._pool / f"{entry.blob}.{entry.mode:o}"
        if not source.exists():
            aside = source.with_name(f"{source.name}.{secrets.token_hex(4)}.tmp")
            try:
                copy_file(blob, aside, entry.mode, reflink=False)
                aside.rename(source)
            except OSError:
                aside.unlink(missing_ok=True)
                raise
        return os.fspath(source)


def _lock_shared(layer: Path) -> int | None:
    """A shared lock on a layer's directory; null when there is none, or it is being removed."""
    try:
        lock = os.open(layer, _DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if os.path.samestat(os.fstat(lock), layer.stat()):
            return lock
    except FileNotFoundError:
        pass
    os.close(lock)
    return None


def _remove_unused(layer: Path, before: float) -> bool:
    """Remove a layer, or what is left of one, that nobody has used since; whether it was so."""
    try:
        lock = os.open(layer, _DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        info = os.fstat(lock)
        if info.st_mtime >= before or not os.path.samestat(info, layer.stat()):
            return False
        aside = layer.with_name(f"old-{secrets.token_hex(8)}")
        layer.rename(aside)
        _remove(aside)
    except BlockingIOError:
        return False
    except OSError as error:
        _log.warning("%s could not be removed: %s", layer, error)
        return False
    finally:
        os.close(lock)
    return True


def restore(commit: Commit, base: BaseTree, blobs: BlobStore, root: Path, *, reflink: bool) -> None:
    """Make a full copy of the base, `root`, the tree of a commit.

    Raises:
        NotFound: when a blob is gone.
        OSError: when something cannot be made or removed.
    """
    for path in commit.deleted:
        _remove(root / path)
    modes = _find_directories(commit, base)
    files: list[tuple[str, FileEntry]] = []
    for path, entry in sorted(commit.entries.items()):
        target = root / path
        there = base.entries.get(path)
        if there is not None and (there.kind != "directory" or entry.kind != "directory"):
            _remove(target)
        if entry.kind == "directory":
            target.mkdir(_OWNER, exist_ok=True)
        elif entry.kind == "link":
            target.symlink_to(entry.target or "")
        else:
            files.append((str(target), entry))

    def place(file: tuple[str, FileEntry]) -> None:
        target, entry = file
        blob, _ = _find_blob(blobs, entry)
        copy_file(blob, target, entry.mode, reflink=reflink)

    errors = for_each(place, files)
    if errors:
        raise errors[0]
    for path, mode in reversed(modes.items()):
        (root / path).chmod(mode)


def _find_directories(commit: Commit, base: BaseTree) -> dict[str, int]:
    """The mode of each directory that a commit names or has something in, parents first."""
    tree = FileTree(commit, base)
    modes = {path: item.mode for path, item in commit.entries.items() if item.kind == "directory"}
    for path in (*commit.entries, *commit.deleted):
        parent = path.rpartition("/")[0]
        while parent and parent not in modes:
            entry = tree.find(parent)
            if entry is None or entry.kind != "directory":
                raise OSError(errno.ENOTDIR, "the base has no such directory", parent)
            modes[parent] = entry.mode
            parent = parent.rpartition("/")[0]
    return dict(sorted(modes.items()))


def _find_blob(blobs: BlobStore, entry: FileEntry) -> tuple[str, int]:
    """The place and the permission bits of an entry's blob, which is as long as it should be."""
    digest = entry.blob or ""
    info = blobs.look(digest)
    if info.st_size != entry.size:
        raise OSError(errno.EIO, "a blob is not as long as it was", str(blobs.path(digest)))
    return os.fspath(blobs.path(digest)), stat.S_IMODE(info.st_mode)


def _make_whiteout(path: str) -> None:
    try:
        os.mknod(path, stat.S_IFCHR, 0)
    except OSError as error:
        reason = f"no whiteout can be made here: {error.strerror}"
        raise OSError(error.errno, reason, path) from error


def _remove(path: Path) -> None:
    """Remove a file, a link or a whole directory, whatever its modes."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    path.chmod(_OWNER)
    for directory, names, _ in os.walk(path):
        for name in names:
            inner = Path(directory, name)
            if not inner.is_symlink():
                inner.chmod(_OWNER)
    shutil.rmtree(path)
