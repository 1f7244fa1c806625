"""Whose a directory is: those of a process that was killed are removed by the ones that live.

A process holds a lock on a file of its own for as long as it lives, and names that file in each
directory that it makes. The kernel gives the lock free when the process dies, however it dies.
"""

import contextlib
import fcntl
import logging
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from wtb_core.sandbox.leftovers import remove_tree

MARK = "owner"

_log = logging.getLogger(__name__)


class Owner:
    """This process among those that share the directory `root` of lock files."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._gone = root.parent / "gone"
        self._gone.mkdir(exist_ok=True)
        self._lock, self.name = _lock_new_file(root)

    def make(self, directory: Path) -> None:
        """Make a new directory that is this process's until its end."""
        directory.mkdir(parents=True)
        (directory / MARK).write_text(self.name, encoding="ascii")

    def remove(self, directory: Path) -> bool:
        """Remove a directory that another process may be removing too; whether it was there.

        It is moved away first, so that only one removes it and its name is free at once.
        """
        aside = self._gone / f"{self.name}.{secrets.token_hex(4)}"
        try:
            directory.rename(aside)
        except FileNotFoundError:
            return False
        remove_tree(aside)
        return True

    def sweep(self, directories: Iterable[Path]) -> int:
        """Remove the directories whose owners are dead; how many there were."""
        found = 0
        for directory in directories:
            try:
                name = (directory / MARK).read_text(encoding="ascii")
            except OSError:  # nobody's: kept on purpose, or going away now
                continue
            if name == self.name or not self._is_dead(name):
                continue
            try:
                found += self.remove(directory)
            except OSError as error:
                _log.warning("%s could not be removed: %s", directory, error)
                continue
            with contextlib.suppress(OSError):  # the executions' directories hold attempts' ones
                directory.parent.rmdir()
        for directory in self._gone.iterdir():  # moved away by one that was killed then
            if self._is_dead(directory.name.partition(".")[0]):
                found += self.remove(directory)
        for file in self._root.iterdir():
            if file.name != self.name:
                self._is_dead(file.name, is_removed=True)
        return found

    def close(self) -> None:
        """Own nothing more."""
        (self._root / self.name).unlink(missing_ok=True)
        os.close(self._lock)

    def _is_dead(self, name: str, *, is_removed: bool = False) -> bool:
        if "/" in name:
            return False  # no name of ours
        try:
            lock = os.open(self._root / name, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_removed:
                (self._root / name).unlink(missing_ok=True)
        except BlockingIOError:
            return False
        finally:
            os.close(lock)
        return True


def _lock_new_file(root: Path) -> tuple[int, str]:
    """A locked file that is still there: another process may have taken it for a dead one's."""
    while True:
        name = f"{os.getpid()}-{secrets.token_hex(8)}"
        lock = os.open(root / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (root / name).exists():
            return lock, name
        os.close(lock)
