"""How the executor pool grows and shrinks, and who watches it.

The policy is a plain function that Serve imports by name. The watcher asks Serve's controller for
its replicas, because Serve tells user code nothing of its own accord.
"""

import asyncio
import logging
import math
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError
from ray.serve.config import AutoscalingContext

from deployments.calls import Handle, call
from deployments.messages import PoolReport
from wtb_core.errors import WtbError

logger = logging.getLogger("ray.serve")

WATCH_S = 1.0
CONTROLLER = "SERVE_CONTROLLER_ACTOR"
CONTROLLER_TIMEOUT_S = 5.0


def never_shrink_while_busy(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Enough replicas for the calls that run or wait; fewer only when there are none.

    Serve stops the newest replica when it shrinks, not an idle one, so shrinking waits for calm.
    """
    calls = context.total_num_requests
    assert context.config is not None
    wanted = math.ceil(calls / context.config.get_target_ongoing_requests())
    return (max(wanted, context.target_num_replicas) if calls > 0 else wanted), {}


class Replica(NamedTuple):
    """An executor replica as Serve's controller lists it."""

    replica_id: str
    actor_id: str
    state: str


class PoolLimits(NamedTuple):
    """The executor deployment's configuration, for events and answers."""

    slots: int
    min_replicas: int
    max_replicas: int
    max_queued: int


class PoolWatcher:
    """Knows the executor replicas and tells the collector when they change."""

    def __init__(
        self, collector: Handle, app_name: str, deployment: str, limits: PoolLimits
    ) -> None:
        self._collector = collector
        self._app_name = app_name
        self._deployment = deployment
        self._limits = limits
        self._reported: list[Replica] | None = None
        self.replicas: list[Replica] = []

    def count_slots(self) -> int:
        """Slots of the replicas that run now."""
        return self._limits.slots * sum(r.state == "RUNNING" for r in self.replicas)

    async def run_forever(self) -> None:
        """Look once a second until cancelled; a failed look is tried again."""
        while True:
            try:
                self.replicas = await self._look()
                if self.replicas != self._reported:
                    await self._report()
            except (RayError, WtbError, TimeoutError, ValueError) as error:
                logger.warning("the pool could not be looked at: %s", error)
            await asyncio.sleep(WATCH_S)

    async def _look(self) -> list[Replica]:
        controller = ray.get_actor(CONTROLLER, namespace="serve")
        details: dict[str, Any] = await asyncio.wait_for(
            controller.get_serve_instance_details.remote(), CONTROLLER_TIMEOUT_S
        )
        deployments = details["applications"].get(self._app_name, {}).get("deployments", {})
        prefix = f"SERVE_REPLICA::{self._app_name}#{self._deployment}#"
        return [
            Replica(
                prefix + str(replica["replica_id"]).rpartition("#")[2],
                str(replica.get("actor_id") or ""),
                str(getattr(replica["state"], "value", replica["state"])),
            )
            for replica in deployments.get(self._deployment, {}).get("replicas", [])
        ]

    async def _report(self) -> None:
        report = PoolReport(
            listed=[replica.replica_id for replica in self.replicas],
            running=[r.replica_id for r in self.replicas if r.state == "RUNNING"],
            slots=self._limits.slots,
            max_replicas=self._limits.max_replicas,
            max_queued=self._limits.max_queued,
        )
        if await call(self._collector, "report_pool", report):
            self._reported = self.replicas
