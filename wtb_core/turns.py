"""Writing to an SQLite file in turns: one transaction at a time, and what comes after it.

SQLite itself lets one process write while another copies its log into the database. Up to version
3.51.2 that could, very rarely, lose what was written (https://sqlite.org/wal.html#walresetbug). And
who waits for a turn is woken, where SQLite would look again and again.
"""

import contextlib
import fcntl
import os
from collections.abc import Generator
from pathlib import Path


class WriteTurn:
    """The turn of one process, and of one thread in it, to write to the SQLite file at `path`."""

    def __init__(self, path: Path | None) -> None:
        self._path = None if path is None else Path(f"{path}-turn")

    @contextlib.contextmanager
    def take(self) -> Generator[None]:
        """Wait for the turn and have it; a database that is no SQLite file needs none."""
        if self._path is None:
            yield
            return
        lock = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
