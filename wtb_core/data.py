"""Where a service's data lies: the store, the blobs, and this node's private cache."""

import fcntl
import hashlib
import os
from pathlib import Path
from typing import IO, NamedTuple

from wtb_core.errors import Unavailable
from wtb_core.store.database import sqlite_url


class DataDir(NamedTuple):
    """A data directory, whose blobs and cache may lie elsewhere.

    The store is the collector's. The blobs are shared by all nodes. The cache is a node's own: it
    can be remade from blobs, apart from the checkpoints of attempts that run there.
    """

    path: Path
    blob_dir: Path | None = None
    cache_dir: Path | None = None

    @property
    def store_url(self) -> str:
        """The database of batches and events."""
        return sqlite_url(self.path / "wtb.db")

    @property
    def blobs(self) -> Path:
        """Files by content."""
        return self.blob_dir or self.path / "blobs"

    @property
    def cache(self) -> Path:
        """What is private to a node."""
        return self.cache_dir or self.path

    @property
    def bases(self) -> Path:
        """Project versions materialised on this node."""
        return self.cache / "bases"

    @property
    def runs(self) -> Path:
        """Attempts' directories on this node."""
        return self.cache / "runs"

    @property
    def hidden(self) -> list[Path]:
        """What user code must not see."""
        return list(dict.fromkeys((self.path, self.blobs, self.cache)))

    @property
    def checkpoints(self) -> Path:
        """The checkpoints of attempts on this node."""
        return self.cache / "checkpoints.db"

    def create(self) -> "DataDir":
        """Make all directories, private to this user."""
        _make_private(self.path)
        self.create_on_node()
        if self.blob_dir is not None:
            note = self._note(self.blob_dir)
            note.parent.mkdir(mode=0o700, exist_ok=True)
            note.write_text(f"{self.path}\n", encoding="utf-8", errors="surrogateescape")
        return self

    def find_sharers(self) -> list[Path]:
        """The notes of other stores that have the same blobs; each says where its store is."""
        if self.blob_dir is None:
            return []
        own = self._note(self.blob_dir)
        return sorted(note for note in own.parent.glob("*") if note != own)

    def _note(self, blobs: Path) -> Path:
        name = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return blobs / "stores" / name

    def create_on_node(self) -> "DataDir":
        """Make what a node without the store needs."""
        for directory in (self.blobs, self.bases, self.runs):
            _make_private(directory)
        return self


def hold(path: Path, who: str, *, inheritable: bool = False) -> IO[str]:
    """Hold the lock file `path` for as long as the answer is open, by whoever inherits it too.

    Raises:
        Unavailable: when another process holds it; `who` is what such a process is.
    """
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise Unavailable(f"another {who} uses {path.parent}") from error
    os.set_inheritable(file.fileno(), inheritable)
    return file


def _make_private(directory: Path) -> None:
    """Make a directory and those above it that are missing; `parents=True` has modes of its own."""
    for missing in reversed([p for p in (directory, *directory.parents) if not p.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
