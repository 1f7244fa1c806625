"""What every execution says of its isolation: levels, what was denied, whether the base held."""

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wtb_core.files.manifests import iterate_stamps
from wtb_core.sandbox.ladder import Grade

_SHARE_OF_TIME = 0.01


class BaseGuard:
    """Watches the trees that all executions of a version share, by the stamps of their entries.

    Where the kernel keeps them from being written, they are looked at for at most a hundredth of
    the time, so that the cost of an execution does not grow with the tree; elsewhere after each
    execution.
    """

    def __init__(self, trees: Iterable[Path | None]) -> None:
        self._trees = [tree for tree in trees if tree is not None and tree.is_dir()]
        self._next_look = 0.0
        self.before = self._read()

    def look(self, *, is_protected: bool) -> str | None:
        """The digest now; null when it is too early to look again."""
        if is_protected and time.monotonic() < self._next_look:
            return None
        return self._read()

    def _read(self) -> str:
        started_at = time.monotonic()
        digest = hashlib.sha256()
        for tree in self._trees:
            for stamp in iterate_stamps(tree, lambda _: False):
                digest.update(repr(stamp).encode(errors="surrogateescape"))
        now = time.monotonic()
        self._next_look = now + (now - started_at) / _SHARE_OF_TIME
        return digest.hexdigest()


def report(grade: Grade, guard: BaseGuard, after: str | None, *, network: bool) -> dict[str, Any]:
    """The isolation of one execution, as records show it.

    `base.after` is null when the base was not looked at again after this execution.
    """
    return {
        **grade.describe(),
        "denied": list(_list_denied(grade, network=network)),
        "base": {
            "before": guard.before,
            "after": after,
            "changed": after is not None and after != guard.before,
        },
    }


def _list_denied(grade: Grade, *, network: bool) -> Iterable[str]:
    landlock = grade.confinement.landlock
    if grade.in_slots or landlock:
        yield "writing outside of the workspace, HOME and TMPDIR"
        yield "reading home directories, /run, the store and other executions"
        yield "tracing other processes"
    if grade.in_slots:
        yield "seeing and signalling other processes"
        yield "shared memory and System V IPC with other executions"
        yield "more processes than limits.processes"
        if not network:
            yield "the network"
    yield "capabilities and set-user-ID programs"
