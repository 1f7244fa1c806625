"""What crosses between deployments beside the core's own records.

Everything is small and plain, so that a call costs little and no version of a class must match.
"""

from typing import NamedTuple


class Heartbeat(NamedTuple):
    """What a replica holds: its running attempts, until their ends are acknowledged."""

    replica_id: str
    held: list[tuple[str, int]]


class Directives(NamedTuple):
    """What a replica must do: `kill` names attempts that are cancelled or no longer its own.

    `known` is false when the collector does not know the replica, which then registers again.
    """

    known: bool
    kill: list[tuple[str, int]]


class Demand(NamedTuple):
    """How many executions could start now; zero for a dispatcher without the lease."""

    granted: bool
    claimable: int


class Pressure(NamedTuple):
    """The dispatcher's report on the executor queue: applied with numbers, or released."""

    applied: bool
    queued: int
    limit: int
    held: int
    duration_ms: int


class PoolReport(NamedTuple):
    """The executor replicas that Serve lists, and those of them that run."""

    listed: list[str]
    running: list[str]
    slots: int
    max_replicas: int
    max_queued: int
