"""How long each replica is taken for alive, in the memory of one collector.

The next collector remakes it: it grants every replica that may be alive a full lease. What a lease
is for is in the store. Whether a replica gets work, and what becomes of what it held, is decided
there, in the transaction that does it.
"""

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet

Held = tuple[str, int]
"""An execution's id and the number of one of its attempts."""


class Leases:
    """A lease of `lease_s` seconds for each replica; `clock` gives seconds that only grow."""

    def __init__(self, clock: Callable[[], float], lease_s: float) -> None:
        self._clock = clock
        self._lease_s = lease_s
        self._until: dict[str, float] = {}
        self._held: dict[str, frozenset[Held]] = {}
        self._looked_at = clock()

    def __contains__(self, replica_id: str) -> bool:
        return replica_id in self._until

    def grant(self, replica_ids: Iterable[str]) -> None:
        """A full lease for those that have none."""
        until = self._clock() + self._lease_s
        for replica_id in replica_ids:
            self._until.setdefault(replica_id, until)

    def renew(self, replica_id: str, held: Iterable[Held] | None = None) -> None:
        """The replica was heard of; with `held`, what it said it holds."""
        self._until[replica_id] = self._clock() + self._lease_s
        if held is not None:
            self._held[replica_id] = frozenset((execution, attempt) for execution, attempt in held)

    def forget(self, replica_id: str) -> None:
        """The replica is dead, or taken for dead."""
        self._until.pop(replica_id, None)
        self._held.pop(replica_id, None)

    def extend(self, late_after_s: float) -> float:
        """Say that this process looks at the leases; returns by how much it was held up.

        So much longer do all leases last: while it was held up, heartbeats waited, and that is no
        replica's silence. It was held up when its last look is more than `late_after_s` ago.
        """
        now = self._clock()
        late_s = max(now - self._looked_at - late_after_s, 0.0)
        self._looked_at = now
        if late_s:
            self._until = {replica_id: until + late_s for replica_id, until in self._until.items()}
        return late_s

    def find_over(self) -> list[str]:
        """The replicas whose lease is over."""
        return [replica_id for replica_id in self._until if self.is_over(replica_id)]

    def is_over(self, replica_id: str) -> bool:
        """Whether there is a lease and it is over."""
        return self._until.get(replica_id, float("inf")) < self._clock()

    def is_silent(self, replica_id: str, for_s: float) -> bool:
        """Whether the replica was not heard of for so long."""
        until = self._until.get(replica_id)
        return until is None or self._clock() >= until - self._lease_s + for_s

    def list_held(self) -> list[tuple[str, AbstractSet[Held]]]:
        """What each replica said last that it holds."""
        return list(self._held.items())
