"""Whether the executor queue holds work back: two changes, which alternate.

It is applied by a rejection that comes while every live slot has a permit and work is left without
one. Serve rejects bursts too early, so a rejection below that says nothing. It is released when
nothing is held back any more, or when nothing was rejected for a while.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

RELEASE_AFTER_S = 2.0


class Released(NamedTuple):
    """The end of backpressure and how long it lasted."""

    duration_s: float


class QueuePressure:
    """Holds the state; who changes it tells the others."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._applied_at: float | None = None
        self._rejected_at = 0.0

    @property
    def applied(self) -> bool:
        """Whether it is in force."""
        return self._applied_at is not None

    @property
    def duration_s(self) -> float:
        """How long it has been in force; 0 while it is not."""
        return 0.0 if self._applied_at is None else self._clock() - self._applied_at

    def reject(self, outstanding: int, slots: int, held: int) -> bool:
        """Note a rejection of a permit; true when it begins.

        `held` is how many executions are certain to wait without a permit.
        """
        if outstanding < slots or held <= 0:
            return False
        now = self._clock()
        self._rejected_at = now
        if self.applied:
            return False
        self._applied_at = now
        return True

    def settle(self, held: int) -> Released | None:
        """Release it where that is due; `held` is how many executions may wait without a permit."""
        if self._applied_at is None:
            return None
        if held > 0 and self._clock() - self._rejected_at < RELEASE_AFTER_S:
            return None
        released = Released(self.duration_s)
        self._applied_at = None
        return released

    def forget(self) -> None:
        """Be not in force, without a release: somebody else speaks for the queue now."""
        self._applied_at = None
