"""Watches the executor replicas and tells the collector when they change.

Serve tells user code nothing before it stops a replica, so the watcher asks its controller, several
times a second: the sooner a stop is seen, the more of its grace is left for handing back.

A replica whose process died passes through the state STOPPING as well, for a moment. So one that is
stopping, or gone, is asked whether it lives: the dead are reported as such, and only those that
live are being stopped.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayError

from deployments.calls import Handle, call
from deployments.deaths import Deaths
from deployments.messages import PoolReport
from wtb_core.errors import WtbError

logger = logging.getLogger("ray.serve")

WATCH_S = 0.25
LATE_S = 0.75
"""Between two looks that are further apart Serve may have stopped an idle replica altogether."""
CONTROLLER = "SERVE_CONTROLLER_ACTOR"
NAMESPACE = "serve"
CONTROLLER_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 1.0
STOPPED_BY_SERVE = "killed by `ray.kill`"
"""How Serve ends a process that it has stopped; part of Ray's message for it."""


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


class ServeView:
    """What Serve and Ray say of the replicas of a deployment."""

    def __init__(self, app_name: str, deployment: str) -> None:
        self._app_name = app_name
        self._deployment = deployment
        self._controller: Any = None
        self._actors: dict[str, Any] = {}

    async def look(self) -> list[Replica]:
        """The replicas that the controller lists, also those that start or stop."""
        if self._controller is None:
            self._controller = ray.get_actor(CONTROLLER, namespace=NAMESPACE)
        try:
            details: dict[str, Any] = await asyncio.wait_for(
                self._controller.get_serve_instance_details.remote(), CONTROLLER_TIMEOUT_S
            )
        except RayActorError:
            self._controller = None
            raise
        deployments = details["applications"].get(self._app_name, {}).get("deployments", {})
        prefix = f"SERVE_REPLICA::{self._app_name}#{self._deployment}#"
        found = [
            Replica(
                prefix + str(replica["replica_id"]).rpartition("#")[2],
                str(replica.get("actor_id") or ""),
                str(getattr(replica["state"], "value", replica["state"])),
            )
            for replica in deployments.get(self._deployment, {}).get("replicas", [])
        ]
        for replica in found:
            self._meet(replica.replica_id)
        return found

    def _meet(self, replica_id: str) -> None:
        """Take hold of an actor while it lives: the dead cannot be looked up by name."""
        if replica_id not in self._actors:
            with contextlib.suppress(ValueError):
                self._actors[replica_id] = ray.get_actor(replica_id, namespace=NAMESPACE)

    async def find_death(self, replica_id: str) -> ActorDiedError | None:
        """How the replica's process died; None for one that lives, hangs, or was never met.

        Raises:
            ActorUnavailableError: when Ray cannot reach it and does not know why yet.
        """
        actor = self._actors.get(replica_id)
        if actor is None:
            return None
        try:
            await asyncio.wait_for(actor.__ray_ready__.remote(), PROBE_TIMEOUT_S)
        except ActorDiedError as error:
            return error
        except TimeoutError:
            return None
        return None

    def forget(self, replica_id: str) -> None:
        """Let go of a replica that is no more."""
        self._actors.pop(replica_id, None)


class PoolWatcher:
    """Knows the executor replicas; `on_change` is called whenever they have changed."""

    def __init__(
        self,
        collector: Handle,
        limits: PoolLimits,
        deaths: Deaths,
        view: ServeView,
        on_change: Callable[[], None],
    ) -> None:
        self._collector = collector
        self._limits = limits
        self._deaths = deaths
        self._view = view
        self._on_change = on_change
        self._looked_at: float | None = None
        self._stopping: set[str] = set()
        self._reported: PoolReport | None = None
        self.replicas: list[Replica] = []

    def count_slots(self) -> int:
        """Slots of the replicas that run now."""
        return self._limits.slots * len(self._running())

    async def run_forever(self) -> None:
        """Look until cancelled; a failed look is tried again."""
        while True:
            try:
                await self._look()
            except (RayError, WtbError, TimeoutError, ValueError) as error:
                logger.warning("the pool could not be looked at: %s", error)
            await asyncio.sleep(WATCH_S)

    async def _look(self) -> None:
        found = await self._view.look()
        now = time.monotonic()
        late = self._looked_at is None or now - self._looked_at > LATE_S
        self._looked_at = now
        listed = {replica.replica_id for replica in found}
        self._stopping &= {replica.replica_id for replica in self.replicas}
        for replica in found:
            if replica.state == "STOPPING":
                await self._judge(replica, late=late, listed=True)
        for replica in self.replicas:
            if replica.replica_id not in listed:
                await self._judge(replica, late=late, listed=False)
                self._view.forget(replica.replica_id)
        if found != self.replicas:
            self.replicas = found
            self._on_change()
        report = self._make_report()
        if report != self._reported and await call(self._collector, "report_pool", report):
            self._reported = report

    async def _judge(self, replica: Replica, *, late: bool, listed: bool) -> None:
        """Whether a replica that leaves has died, or is being stopped by Serve.

        One that lives and is listed no more is no news: a controller that has just restarted does
        not list everything yet.
        """
        if replica.replica_id in self._stopping or replica.actor_id in self._deaths:
            return
        try:
            death = await self._view.find_death(replica.replica_id)
        except ActorUnavailableError:  # dead or not: the next look tells
            return
        if death is None and not listed:
            return
        if death is not None and not (late and STOPPED_BY_SERVE in str(death)):
            self._deaths.report(death)
            return
        self._stopping.add(replica.replica_id)
        names = {"replica_id": replica.replica_id, "executor_actor_id": replica.actor_id}
        logger.info("Serve stops replica %s", replica.replica_id, extra=names)

    def _running(self) -> list[str]:
        return [
            replica.replica_id
            for replica in self.replicas
            if replica.state == "RUNNING" and replica.actor_id not in self._deaths
        ]

    def _make_report(self) -> PoolReport:
        return PoolReport(
            listed=[replica.replica_id for replica in self.replicas],
            running=self._running(),
            stopping=sorted(self._stopping),
            slots=self._limits.slots,
            max_replicas=self._limits.max_replicas,
            max_queued=self._limits.max_queued,
        )
