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

    `known` is false when the collector does not know the replica, which then registers again. With
    `drain` it takes no more work, stops what it holds at the next checkpoint and hands it back.
    """

    known: bool
    kill: list[tuple[str, int]]
    drain: bool = False


class Demand(NamedTuple):
    """How many executions could start now; zero for a dispatcher without the lease.

    `running` counts the attempts that run.
    """

    granted: bool
    claimable: int
    running: int | None = None


class Pressure(NamedTuple):
    """The dispatcher's report on the executor queue: applied with numbers, or released."""

    applied: bool
    queued: int
    limit: int
    held: int
    duration_ms: int


class PoolReport(NamedTuple):
    """The executor replicas that Serve lists, those of them that run and those it stops."""

    listed: list[str]
    running: list[str]
    stopping: list[str]
    slots: int
    max_replicas: int
    max_queued: int


class Death(NamedTuple):
    """An executor replica whose process is known to be dead, found by its actor."""

    actor_id: str
    error_type: str
    error_message: str
