"""Where a service's data lies: the store, the blobs, and this node's private cache."""

from pathlib import Path
from typing import NamedTuple

from wtb_core.store.database import sqlite_url


class DataDir(NamedTuple):
    """A data directory. Only `store_url` and `blobs` are shared between nodes."""

    path: Path

    @property
    def store_url(self) -> str:
        """The database of batches and events."""
        return sqlite_url(self.path / "wtb.db")

    @property
    def blobs(self) -> Path:
        """Files by content."""
        return self.path / "blobs"

    @property
    def bases(self) -> Path:
        """Project versions materialised on this node."""
        return self.path / "bases"

    @property
    def runs(self) -> Path:
        """Attempts' directories on this node."""
        return self.path / "runs"

    @property
    def checkpoints(self) -> Path:
        """The checkpoints of attempts on this node."""
        return self.path / "checkpoints.db"

    def create(self) -> "DataDir":
        """Make the directories, private to this user."""
        for directory in (self.path, self.blobs, self.bases, self.runs):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self
