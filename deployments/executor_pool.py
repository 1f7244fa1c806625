"""The executor pool as the ingress has it: who watches it, who feeds it, and what they know."""

import asyncio
from typing import Any

from deployments.calls import Handle, call
from deployments.deaths import Deaths
from deployments.dispatcher import Dispatcher
from deployments.pool_watcher import PoolLimits, PoolWatcher, ServeView

EXECUTOR = "VariantExecutor"


class ExecutorPool:
    """Watches and feeds the executors of the application from within the ingress.

    `max_pending` is the admission limit, in executions.
    """

    def __init__(
        self,
        collector: Handle,
        executor: Handle,
        app_name: str,
        limits: PoolLimits,
        max_pending: int,
    ) -> None:
        self._collector = collector
        self._limits = limits
        self._max_pending = max_pending
        deaths = Deaths(collector)
        self._watcher = PoolWatcher(
            collector, limits, deaths, ServeView(app_name, EXECUTOR), on_change=self._note_change
        )
        self._dispatcher = Dispatcher(
            collector, executor, self._watcher.count_slots, deaths, limits.max_queued
        )

    def start(self) -> list[asyncio.Task[None]]:
        """Begin to watch and to feed; ends with the tasks."""
        return [
            asyncio.create_task(self._watcher.run_forever()),
            asyncio.create_task(self._dispatcher.run_forever()),
        ]

    async def describe(self) -> dict[str, Any]:
        """Replicas, slots, queues and backpressure, as `GET /v1/pool` answers them."""
        known = await call(self._collector, "get_pool")
        standing = known.pop("standing")
        slots = self._watcher.count_slots()
        outstanding = self._dispatcher.outstanding
        queued = max(outstanding - slots, 0)
        held = standing["admission"]["held"] if standing["admission"] else 0
        return {
            **known,
            "replicas": [{**item, "slots": self._limits.slots} for item in known["replicas"]],
            "listed": [replica._asdict() for replica in self._watcher.replicas],
            "slots": slots,
            "running_executions": sum(item["running"] for item in known["replicas"]),
            "outstanding_permits": outstanding,
            "permits": {
                "outstanding": outstanding,
                "queued": queued,
                "most_outstanding": self._dispatcher.most_outstanding,
                "window": slots + self._limits.max_queued,
            },
            "backpressure": standing["executor_queue"] is not None,
            "pressure": {
                "executor_queue": _describe_level(
                    standing["executor_queue"],
                    queued,
                    self._limits.max_queued,
                    self._dispatcher.held,
                ),
                "admission": _describe_level(
                    standing["admission"], known["unfinished_executions"], self._max_pending, held
                ),
            },
            "limits": self._limits._asdict(),
            "max_pending_executions": self._max_pending,
        }

    async def find_problems(self) -> list[str]:
        """What stands in the way of running executions; a pool may have no replicas when idle.

        Raises:
            Unavailable: when the collector does not answer.
        """
        known = await call(self._collector, "get_pool")
        is_live = any(replica["status"] == "live" for replica in known["replicas"])
        if is_live or self._limits.min_replicas == 0:
            return []
        return ["no executor replica is ready yet"]

    def _note_change(self) -> None:
        self._dispatcher.wake()


def _describe_level(
    applied: dict[str, Any] | None, queued: int, limit: int, held: int
) -> dict[str, Any]:
    """A level of backpressure with its present numbers."""
    since = None if applied is None else applied["occurred_at"]
    numbers = {"queued": queued, "limit": limit, "held": held}
    return {"applied": applied is not None, "since": since, **numbers}
