"""Digests that work to come may name although nothing does yet, each with the time of its hand-out.

A service hands out a project's version to whoever submits next, long after it was stored. It notes
that here each time, beside the blobs, where collecting them sees it. What was not handed out for
long is withdrawn: who had it must then store it again.
"""

import contextlib
import os
from collections.abc import Container
from pathlib import Path

_ASIDE = ".old"


class HandOuts:
    """Notes below `root`: an empty file for each digest. Any number of processes may share them."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def add(self, digest: str) -> None:
        """Note that a digest, with all that it names, has been stored and may be handed out."""
        path = self._root / digest
        try:
            path.touch()
        except FileNotFoundError:
            self._root.mkdir(parents=True, exist_ok=True)
            path.touch()

    def renew(self, digest: str) -> bool:
        """Note another hand-out; false when the digest was withdrawn and must be stored again."""
        try:
            os.utime(self._root / digest)
        except FileNotFoundError:
            return False
        return True

    def has(self, digest: str) -> bool:
        """Whether a digest may be handed out."""
        return (self._root / digest).exists()

    def find_recent(self, since: float) -> set[str]:
        """What was handed out since a time as `time.time` tells it."""
        return {path.name for path in self._list() if _time(path) >= since}

    def withdraw(self, before: float, kept: Container[str]) -> None:
        """Withdraw what was not handed out since `before`, but for what is kept.

        It is moved aside and looked at once more, so that a hand-out meanwhile is not overlooked.
        """
        for path in self._list():
            if path.suffix == _ASIDE:
                path.unlink(missing_ok=True)
            elif path.name not in kept and _time(path) < before:
                aside = path.with_suffix(_ASIDE)
                with contextlib.suppress(FileNotFoundError):
                    path.rename(aside)
                    if _time(aside) >= before:
                        aside.rename(path)
                    else:
                        aside.unlink()

    def _list(self) -> list[Path]:
        try:
            return list(self._root.iterdir())
        except FileNotFoundError:
            return []


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
