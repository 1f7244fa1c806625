"""Room on the disks: new work is refused while one has too little, and what runs goes on.

What is kept free is for the ends of what runs: their records, logs, histories and files.
"""

import errno
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from wtb_core.errors import DiskFull, SetupError

MIN_FREE_BYTES = 256 * 1024**2
"""How much must be free for new work where nothing else is said."""

MIN_FREE_FILES = 1_000

_FULL = {errno.ENOSPC, errno.EDQUOT}
_PRIMARY = 0xFF
"""The part of an extended result code that is the primary one."""


class DiskSpace:
    """The disks of some directories, and how much must be free on each for new work."""

    def __init__(self, directories: Iterable[Path], min_free_bytes: int = MIN_FREE_BYTES) -> None:
        self._directories = list(dict.fromkeys(directories))
        self._min_free_bytes = min_free_bytes

    def find_full(self) -> DiskFull | None:
        """Why there is no room for new work; null when there is. Costs a system call a disk."""
        for directory in self._directories:
            try:
                room = os.statvfs(_find_existing(directory))
            except OSError:  # whoever writes there will say so
                continue
            free = room.f_bavail * room.f_frsize
            if room.f_blocks and free < self._min_free_bytes:
                needed = f"{self._min_free_bytes} must be for new work (min_free)"
                return DiskFull(str(directory), f"{free} bytes are free and {needed}")
            if room.f_files and room.f_favail < MIN_FREE_FILES:
                left = f"{room.f_favail} more files can be made and {MIN_FREE_FILES} must be"
                return DiskFull(str(directory), left)
        return None

    def check(self) -> None:
        """Refuse new work while a disk has too little room.

        Raises:
            DiskFull: says which, and how much there is.
        """
        full = self.find_full()
        if full is not None:
            raise full


def is_full(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, says that a disk or a quota on it is full."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    return any(_says_full(cause) for cause in causes)


def _says_full(error: BaseException) -> bool:
    if isinstance(error, sqlite3.Error):
        code: int = getattr(error, "sqlite_errorcode", 0)
        return code & _PRIMARY == sqlite3.SQLITE_FULL
    if isinstance(error, OSError | SetupError):
        return error.errno in _FULL
    return isinstance(error, DiskFull)


def _find_existing(directory: Path) -> Path:
    return next(path for path in (directory, *directory.parents) if path.exists())
