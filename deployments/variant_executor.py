"""A shell over the engine: one permit is one slot, filled by a claim.

A permit names no execution. The replica claims one when it has a slot, runs it in processes of its
own, and holds it until the collector has acknowledged its end. Work goes on when the caller of a
permit goes away: what was claimed is finished and reported.
"""

import asyncio
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal

import psutil
import ray
from ray import serve

from deployments.calls import Handle, call, call_until_answered
from deployments.logs import quieten
from deployments.messages import Directives, Heartbeat
from deployments.metrics import ExecutorMetrics
from deployments.pool_policy import describe_load
from wtb_core import events as ev
from wtb_core.attempts import Assignment, Failure, Outcome
from wtb_core.checkpoint_store import CheckpointStore
from wtb_core.data import DataDir
from wtb_core.engine import Engine
from wtb_core.errors import FenceError, Unavailable, WtbError
from wtb_core.files.blobs import BlobStore
from wtb_core.ids import new_event_id
from wtb_core.projects import ProjectVersions
from wtb_core.sandbox.ladder import Isolation, Sandbox
from wtb_core.store.records import Answer, Claimant, Finish, Lookup, Offer

logger = logging.getLogger("ray.serve")

HEARTBEAT_S = 0.5
INLINE_OUTPUT_BYTES = 8 * 1024
CLAIM_TIMEOUT_S = 60.0
CLOSE_GRACE_S = 2.0
CLOSE_TIMEOUT_S = 5.0
"""A replica is closed when Serve has waited for its permits; few others are left by then."""
MAX_LOOKUPS = 20
"""How many executions a permit may look up before another replica has its turn."""
LOOKUP_PAUSE_S = 1.0
"""How long a permit stays where nothing can be looked up, so that the next one is not in vain."""
TIDY_S = 60.0
TIDY_CHUNK = 500


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
        drain_s: float = 100.0,
        identify: Callable[[], Identity] = find_identity,
    ) -> None:
        quieten()
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
        self._drain_s = drain_s
        self._draining = False
        self._metrics = ExecutorMetrics()
        self._held: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._ended: set[tuple[str, int]] = set()  # of those held
        self._registration: ev.ActorInitialized | None = None
        self._registered = asyncio.Event()
        self._beating = asyncio.create_task(self._beat_forever())
        self._tidying = asyncio.create_task(self._tidy_forever())

    async def check_health(self) -> None:
        """Called by Serve: a replica below the level that is required never becomes ready."""
        await self._sandbox.find_grade()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve: what the autoscaling policy is to know of this replica."""
        return describe_load(len(self._held))

    async def close(self) -> None:
        """Hand back what still runs, end all processes, and remove what was made for them."""
        self._draining = True
        self._engine.drain(CLOSE_GRACE_S)
        if self._held:
            await asyncio.wait(list(self._held.values()), timeout=CLOSE_TIMEOUT_S)
        self._beating.cancel()
        self._tidying.cancel()
        await self._engine.close()
        await asyncio.to_thread(self._checkpoints.close)

    async def run(self, permit_id: str) -> bool:
        """Fill one slot: claim an execution, run it, report its end. False when none was ready.

        `permit_id` is also the claim's id, so a permit that Serve delivers twice claims once.
        """
        return await asyncio.shield(_start_detached(self._run(permit_id)))

    async def _run(self, permit_id: str) -> bool:
        await self._registered.wait()
        assignment = await self._claim(permit_id)
        if assignment is None:
            return False
        key = (assignment.execution_id, assignment.attempt)
        if key in self._held:
            await asyncio.shield(self._held[key])
            return True
        task = _start_detached(self._carry_out(assignment))
        self._held[key] = task
        try:
            await task
        finally:
            self._held.pop(key, None)
        return True

    async def _claim(self, permit_id: str) -> Assignment | None:
        """What the collector gives for a permit, after what it wants looked up was looked up."""
        claimant = Claimant(permit_id, self._identity.replica_id, self._identity.actor_id)
        for _ in range(MAX_LOOKUPS):
            if self._draining:
                return None
            answer: Assignment | Lookup | None = await call_until_answered(
                self._collector, "claim", claimant, give_up_after_s=CLAIM_TIMEOUT_S
            )
            if not isinstance(answer, Lookup):
                return answer
            offer = await self._look_up(answer)
            if offer is None:
                return None
            claimant = claimant._replace(offers=(*claimant.offers, offer))
        return None

    async def _look_up(self, lookup: Lookup) -> Offer | None:
        """None when this node cannot look: a clean start would do again what has been done."""
        try:
            return await self._engine.find_offer(lookup)
        except FenceError as error:  # it has begun elsewhere, so that nobody takes up this offer
            offer, reason = Offer(lookup.execution_id, lookup.attempt), error
        except Unavailable as error:
            offer, reason = None, error
        logger.warning(
            "%s/%d finds nothing to go on from: %s",
            *(lookup.execution_id, lookup.attempt, reason),
            extra={"execution_id": lookup.execution_id, "attempt": lookup.attempt},
        )
        if offer is None:
            await asyncio.sleep(LOOKUP_PAUSE_S)
        return offer

    async def _carry_out(self, assignment: Assignment) -> None:
        key, names = (assignment.execution_id, assignment.attempt), assignment.names
        try:
            outcome = await self._engine.execute(assignment)
        except Exception as error:  # what was claimed is reported, whatever our own fault is
            logger.exception("the engine failed on %s", assignment.execution_id, extra=names)
            outcome = Outcome(
                status="failed",
                failure=Failure(kind="setup", reason=f"{type(error).__name__}: {error}"),
            )
        finish = await asyncio.to_thread(self._make_finish, assignment, outcome)
        self._ended.add(key)
        try:
            answer: Answer = await call_until_answered(self._collector, "finish", finish)
        finally:
            self._ended.discard(key)
        if answer != "accepted":
            logger.warning(
                "%s/%d: %s", assignment.execution_id, assignment.attempt, answer, extra=names
            )
        if answer != "refused" and not outcome.is_lost:  # else the next attempt may need its rows
            await self._engine.forget(assignment)

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
                logger.exception(
                    "the output of %s is no blob", assignment.execution_id, extra=assignment.names
                )
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

    async def _tidy_forever(self) -> None:
        while True:
            await asyncio.sleep(TIDY_S)
            try:
                await self._tidy()
            except WtbError as error:
                logger.warning("old checkpoints stay for now: %s", error)

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
        self._metrics.note_held(len(self._held))
        directives: Directives = await call(
            self._collector, "heartbeat", Heartbeat(self._identity.replica_id, list(self._held))
        )
        if not directives.known:
            await self._register()
        for execution_id, attempt in directives.kill:
            if (execution_id, attempt) in self._held:
                await self._engine.cancel(execution_id, attempt, "cancelled on request")
        if directives.drain and not self._draining:
            self._draining = True
            logger.info("Serve stops this replica: %d executions are handed back", len(self._held))
            self._engine.drain(self._drain_s)

    async def _tidy(self) -> None:
        """Delete the checkpoints of executions that have ended: a lost attempt leaves its own."""
        last = ""
        while found := await self._checkpoints.list_executions(last, TIDY_CHUNK):
            last = found[-1]
            held = {execution_id for execution_id, _ in self._held}
            asked = [name for name in found if name not in held]
            ended: list[str] = await call(self._collector, "find_ended", asked)
            if ended:
                await self._checkpoints.forget_executions(ended)

    async def _repeat(self, action: Callable[[], Awaitable[None]]) -> None:
        """Do it, again and again while the collector is away."""
        while True:
            try:
                await action()
                return
            except WtbError as error:
                logger.warning(
                    "no heartbeat: %s; %d executions are held, %d of them have ended",
                    *(error, len(self._held), len(self._ended)),
                )
                await asyncio.sleep(HEARTBEAT_S)


def _start_detached[Result](work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
    """A task outside of the permit's request: Serve finds a request's calls by their context."""
    return asyncio.create_task(work, context=contextvars.Context())
