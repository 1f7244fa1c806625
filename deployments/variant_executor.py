"""A shell over the engine: one permit is one slot, filled by a claim.

A permit names no execution. The replica claims one when it has a slot, runs it in processes of its
own, and holds it until the collector has acknowledged its end. Work goes on when the caller of a
permit goes away: what was claimed is finished and reported.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import psutil
import ray
from ray import serve

from deployments.calls import Handle, call, call_until_answered
from deployments.messages import Directives, Heartbeat
from wtb_core import events as ev
from wtb_core.attempts import Assignment, Failure, Outcome
from wtb_core.checkpoint_store import CheckpointStore
from wtb_core.data import DataDir
from wtb_core.engine import Engine
from wtb_core.errors import Unavailable, WtbError
from wtb_core.files.blobs import BlobStore
from wtb_core.ids import new_event_id
from wtb_core.projects import ProjectVersions
from wtb_core.sandbox.ladder import Isolation, Sandbox
from wtb_core.store.records import Claimant, Finish

logger = logging.getLogger("ray.serve")

HEARTBEAT_S = 0.5
INLINE_OUTPUT_BYTES = 8 * 1024
CLAIM_TIMEOUT_S = 60.0


class Identity:
    """Who a replica is, for Ray, for Serve and for the store."""

    def __init__(self, replica_id: str, actor_id: str, node_id: str) -> None:
        self.replica_id = replica_id
        self.actor_id = actor_id
        self.node_id = node_id


def find_identity() -> Identity:
    """The identity of the replica that this code runs in."""
    runtime = ray.get_runtime_context()
    return Identity(
        serve.get_replica_context().replica_id.to_full_id_str(),
        str(runtime.get_actor_id()),
        str(runtime.get_node_id()),
    )


class VariantExecutor:
    """Deployment class; Serve admits at most `slots` calls of `run` at once."""

    def __init__(
        self,
        collector: Handle,
        data: DataDir,
        isolation: Isolation = "auto",
        require: Literal["A", "B"] | None = None,
        identify: Callable[[], Identity] = find_identity,
    ) -> None:
        data.create_on_node()
        self._collector = collector
        self._identity = identify()
        self._blobs = BlobStore(data.blobs)
        self._checkpoints = CheckpointStore(data.checkpoints)
        self._sandbox = Sandbox(data.runs, hidden=data.hidden, isolation=isolation, require=require)
        self._versions = ProjectVersions(self._blobs, data.bases, self._sandbox)
        self._engine = Engine(
            *(data.runs, self._blobs, self._checkpoints, self._find_setup, self._sandbox),
            self._versions.discard,
        )
        self._held: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._registration: ev.ActorInitialized | None = None
        self._registered = asyncio.Event()
        self._beating = asyncio.create_task(self._beat_forever())

    async def check_health(self) -> None:
        """Called by Serve: a replica below the level that is required never becomes ready."""
        await self._sandbox.find_grade()

    async def run(self, permit_id: str) -> bool:
        """Fill one slot: claim an execution, run it, report its end. False when none was ready.

        `permit_id` is also the claim's id, so a permit that Serve delivers twice claims once.
        """
        return await asyncio.shield(asyncio.ensure_future(self._run(permit_id)))

    async def _run(self, permit_id: str) -> bool:
        await self._registered.wait()
        claimant = Claimant(permit_id, self._identity.replica_id, self._identity.actor_id)
        assignment: Assignment | None = await call_until_answered(
            self._collector, "claim", claimant, give_up_after_s=CLAIM_TIMEOUT_S
        )
        if assignment is None:
            return False
        key = (assignment.execution_id, assignment.attempt)
        if key in self._held:
            await asyncio.shield(self._held[key])
            return True
        task = asyncio.ensure_future(self._carry_out(assignment))
        self._held[key] = task
        try:
            await task
        finally:
            self._held.pop(key, None)
        return True

    async def _carry_out(self, assignment: Assignment) -> None:
        try:
            outcome = await self._engine.execute(assignment)
        except Exception as error:  # what was claimed is reported, whatever our own fault is
            logger.exception("the engine failed on %s", assignment.execution_id)
            outcome = Outcome(
                status="failed",
                failure=Failure(kind="setup", reason=f"{type(error).__name__}: {error}"),
            )
        finish = await asyncio.to_thread(self._make_finish, assignment, outcome)
        answer = await call_until_answered(self._collector, "finish", finish)
        await self._engine.forget(assignment)
        if answer != "accepted":
            logger.warning("%s/%d: %s", assignment.execution_id, assignment.attempt, answer)

    def _make_finish(self, assignment: Assignment, outcome: Outcome) -> Finish:
        """The report of an end; a large output is a blob before the report names it.

        While no blob can be stored, the output is in the report whatever its size.
        """
        output = outcome.output
        size = None if output is None else len(output.encode())
        blob = None
        if output is not None and size is not None and size > INLINE_OUTPUT_BYTES:
            try:
                blob = self._blobs.put(output.encode())
                outcome = outcome.model_copy(update={"output": None})
            except OSError:
                logger.exception("the output of %s is no blob", assignment.execution_id)
        return Finish(
            event_id=new_event_id(),
            execution_id=assignment.execution_id,
            attempt=assignment.attempt,
            replica_id=self._identity.replica_id,
            actor_id=self._identity.actor_id,
            outcome=outcome,
            output_blob=blob,
            output_bytes=size,
        )

    async def _find_setup(self, _project: str, version: str) -> Any:
        return await self._versions.prepare(version)

    async def _beat_forever(self) -> None:
        await self._repeat(self._register)
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self._repeat(self._beat)

    async def _register(self) -> None:
        if self._registration is None:
            grade = await self._sandbox.find_grade()
            started_at = psutil.Process().create_time()
            self._registration = ev.ActorInitialized(
                actor_id=self._identity.actor_id,
                replica_id=self._identity.replica_id,
                node_id=self._identity.node_id,
                initialization_ms=round((time.time() - started_at) * 1000),
                isolation=grade.describe(),
            )
        await call(self._collector, "register", self._registration)
        self._registered.set()

    async def _beat(self) -> None:
        directives: Directives = await call(
            self._collector, "heartbeat", Heartbeat(self._identity.replica_id, list(self._held))
        )
        if not directives.known:
            await self._register()
        for execution_id, attempt in directives.kill:
            if (execution_id, attempt) in self._held:
                await self._engine.cancel(execution_id, "cancelled on request")

    async def _repeat(self, action: Callable[[], Awaitable[None]]) -> None:
        """Do it, again and again while the collector is away."""
        while True:
            try:
                await action()
                return
            except (WtbError, Unavailable) as error:
                logger.warning("no heartbeat: %s", error)
                await asyncio.sleep(HEARTBEAT_S)
