"""The single writer of the store: takes batches in, answers claims, appends events, serves reads.

Its state is the store; what it keeps in memory (leases, waiters) is remade by the next collector.
A collector that was replaced finds its epoch stale and answers every write with `StaleEpoch`, upon
which callers try again and reach its successor.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from deployments.logs import quieten
from deployments.messages import Death, Demand, Directives, Heartbeat, PoolReport, Pressure
from deployments.metrics import CollectorMetrics
from wtb_core import events as ev
from wtb_core.attempts import Assignment
from wtb_core.errors import DiskFull, StaleEpoch, TooManyPending
from wtb_core.ids import new_batch_id, now_ms
from wtb_core.parameters import BatchFilter
from wtb_core.space import MIN_FREE_BYTES, DiskSpace
from wtb_core.store import acceptance, admission, claims, endings, log, pool, reuse, views
from wtb_core.store.database import migrate, open_engine
from wtb_core.store.leases import Held, Leases
from wtb_core.store.ledger import Ledger
from wtb_core.store.records import (
    Answer,
    Claimant,
    Finish,
    ForkSource,
    Lookup,
    NewBatch,
    Receipt,
    Trace,
)
from wtb_core.store.rows import get_batch, get_execution, parse_execution_id
from wtb_core.store.tables import POOL_STREAM
from wtb_core.store.views import ExecutionFilter
from wtb_core.store.writer import Commit, Writer

logger = logging.getLogger("ray.serve")

LEASE_S = 15.0
SILENT_S = 3.0
"""How long a replica that Serve does not list is waited for: six heartbeats."""
DROPPED_S = 90.0
"""How long after a claim its replica holds the attempt, or has never had the answer."""
DISPATCH_LEASE_S = 3.0
TICK_S = 0.25
SLOW_TICK_S = 1.0
LATE_S = 1.0
"""How long after a tick the next one may look at the leases without having been held up."""
MAX_POLL_S = 5.0
MAX_POLLS = 256


class EventCollector:
    """Deployment class; `max_pending_executions` is the admission limit."""

    def __init__(
        self,
        store_url: str,
        max_pending_executions: int,
        disks: Sequence[Path] = (),
        min_free_bytes: int = MIN_FREE_BYTES,
    ) -> None:
        quieten()
        self._space = DiskSpace(disks, min_free_bytes)
        migrate(store_url)
        self._engine = open_engine(store_url)
        self._ledger = Ledger(producer="event_collector", admission=max_pending_executions)
        self._changed = asyncio.Event()
        self._metrics = CollectorMetrics()
        self._writer = Writer(self._engine, self._ledger, self._announce_change)
        self._readers = ThreadPoolExecutor(2, "store-reader")
        self._polls = asyncio.Semaphore(MAX_POLLS)
        self._leases = Leases(time.monotonic, LEASE_S)
        self._began_ms = now_ms()
        self._looked_at = 0.0
        self._admission = admission.Pressure()
        self._refused = 0
        self._dispatcher: tuple[str, float] = ("", 0.0)
        self._urgent = asyncio.Event()
        with self._engine.connect() as connection:
            self._leases.grant(pool.find_watched(connection))
            self._admission.load(self._ledger, connection)
        self._ticking = asyncio.create_task(self._tick_forever())
        logger.info("collector has the store at epoch %d", self._writer.epoch)

    # -- batches -------------------------------------------------------------------------------

    async def accept(self, batch: NewBatch) -> Receipt:
        """Store a batch durably; see `acceptance.accept`.

        Raises:
            DiskFull: when a disk has too little room for new work.
        """
        self._space.check()
        try:
            receipt = await self._writer.write(
                lambda connection: acceptance.accept(self._ledger, connection, batch)
            )
        except TooManyPending as error:
            refusal = error
            await self._writer.write(lambda c: self._admission.apply(self._ledger, c, refusal))
            raise
        self._urgent.set()
        return receipt

    async def cancel_batch(self, batch_id: str, reason: str, by: str) -> dict[str, Any]:
        """Begin to cancel a batch; `changed` is false for one that had ended."""
        changed = await self._writer.write(
            lambda connection: endings.cancel(connection, batch_id, reason, by)
        )
        self._urgent.set()
        status = await self._read(lambda connection: get_batch(connection, batch_id).status)
        return {"batch_id": batch_id, "status": status, "changed": changed}

    async def renew(
        self, batch_id: str, idempotency_key: str | None, submitted_by: str | None
    ) -> NewBatch:
        """See `reuse.renew`."""
        new_id = new_batch_id()
        return await self._read(
            lambda c: reuse.renew(c, batch_id, new_id, idempotency_key, submitted_by)
        )

    async def cancel_execution(self, text: str, reason: str) -> dict[str, Any]:
        """See `endings.cancel_execution`; `changed` is false when there was nothing to stop."""
        changed = await self._writer.write(
            lambda c: endings.cancel_execution(self._ledger, c, text, reason)
        )
        self._urgent.set()
        status = await self._read(lambda c: get_execution(c, *parse_execution_id(text)).status)
        return {"execution_id": text, "status": status, "changed": changed}

    async def get_batch(self, batch_id: str) -> dict[str, Any]:
        """See `views.read_batch`."""
        return await self._read(lambda c: views.read_batch(c, batch_id, now_ms()))

    async def list_batches(
        self, after: int | None, limit: int, wanted: BatchFilter
    ) -> tuple[list[dict[str, Any]], int | None]:
        """See `views.read_batches`."""
        return await self._read(
            lambda c: views.read_batches(c, now_ms(), wanted, after=after, limit=limit)
        )

    async def list_executions(
        self, batch_id: str, wanted: ExecutionFilter, after: int, limit: int
    ) -> tuple[list[dict[str, Any]], int | None]:
        """See `views.read_executions`."""
        return await self._read(
            lambda c: views.read_executions(c, batch_id, wanted, after=after, limit=limit)
        )

    async def get_execution(self, text: str) -> dict[str, Any]:
        """See `views.read_execution`."""
        return await self._read(lambda c: views.read_execution(c, text))

    async def get_origin(self, text: str) -> dict[str, Any]:
        """See `views.read_origin`."""
        return await self._read(lambda c: views.read_origin(c, text))

    async def get_trace(self, text: str, attempt: int | None) -> Trace:
        """See `views.read_trace`."""
        return await self._read(lambda c: views.read_trace(c, text, attempt))

    async def get_fork_source(self, text: str, attempt: int | None) -> ForkSource:
        """See `views.read_fork_source`."""
        return await self._read(lambda c: views.read_fork_source(c, text, attempt))

    async def get_outputs(
        self, batch_id: str, numbers: list[int]
    ) -> dict[int, tuple[str | None, str | None]]:
        """See `views.read_outputs`."""
        return await self._read(lambda c: views.read_outputs(c, batch_id, numbers))

    # -- events --------------------------------------------------------------------------------

    async def read_events(
        self, batch_id: str, after: int, limit: int, wait_ms: int
    ) -> tuple[list[dict[str, Any]], bool]:
        """A batch's events above `after`, waiting for the first one at most `wait_ms`.

        The second item says that the batch has ended and no event follows.
        """
        return await self._poll(
            lambda c: _event_page(c, batch_id, after, limit),
            lambda page: bool(page[0]) or page[1],
            wait_ms,
        )

    async def read_pool_events(self, after: int, limit: int, wait_ms: int) -> list[dict[str, Any]]:
        """The pool's events above `after`."""
        return await self._poll(
            lambda c: log.read(c, POOL_STREAM, after, limit).items, bool, wait_ms
        )

    # -- executors -----------------------------------------------------------------------------

    async def register(self, payload: ev.ActorInitialized) -> None:
        """A replica says that it is ready."""
        self._leases.renew(payload.replica_id)  # nobody may see it live and without a lease
        await self._writer.write(lambda c: pool.register(self._ledger, c, payload))
        self._leases.renew(payload.replica_id)

    async def claim(self, claimant: Claimant) -> Assignment | Lookup | None:
        """Give the replica the next execution; the same claim gets the same answer.

        While a disk is full nothing new is given, and what runs may end.
        """
        only_given = self._space.find_full() is not None
        return await self._writer.write(
            lambda c: claims.claim(self._ledger, c, claimant, only_given=only_given)
        )

    async def finish(self, finish: Finish) -> Answer:
        """Record the end of an attempt; see `endings.finish`."""
        answer: Answer = await self._writer.write(lambda c: endings.finish(self._ledger, c, finish))
        if answer == "refused":
            self._refused += 1
            self._metrics.note_refusal()
            logger.warning("refused a late result of %s/%d", finish.execution_id, finish.attempt)
        return answer

    async def report_death(self, death: Death) -> None:
        """A replica's process is dead: what it held is lost now, not when its lease is over."""

        def lose(connection: Connection) -> str | None:
            replica_id = pool.find_by_actor(connection, death.actor_id)
            if replica_id is not None:
                reason = f"the replica died: {death.error_message}"
                endings.lose(self._ledger, connection, replica_id, death.error_type, reason)
            return replica_id

        replica_id = await self._writer.write(lose)
        if replica_id is not None:
            self._leases.forget(replica_id)
            self._urgent.set()

    async def find_ended(self, execution_ids: list[str]) -> list[str]:
        """Those of the executions that have ended or are not known: nobody needs their rows."""
        return await self._read(lambda c: views.find_ended(c, execution_ids))

    async def heartbeat(self, heartbeat: Heartbeat) -> Directives:
        """Renew a replica's lease and say which of its attempts must die.

        Raises:
            StaleEpoch: when another collector is the one that must hear of the replica.
        """
        name = heartbeat.replica_id
        if name in self._leases:
            self._leases.renew(name, heartbeat.held)

        def read(connection: Connection) -> tuple[str | None, set[Held]]:
            self._ledger.check_epoch(connection, self._writer.epoch)
            wanted = endings.find_wanted_attempts(connection, name) if heartbeat.held else set()
            return pool.find_status(connection, name), wanted

        status, wanted = await self._read(read)
        known = status in {"live", "draining"}
        if known:
            self._leases.renew(name, heartbeat.held)
        kill = [held for held in heartbeat.held if tuple(held) not in wanted]
        return Directives(known, kill, drain=status == "draining")

    # -- the dispatcher ------------------------------------------------------------------------

    async def wait_for_demand(self, dispatcher_id: str, wait_ms: int) -> Demand:
        """How much could start now; waits for something. One dispatcher at a time is granted."""
        holder, until = self._dispatcher
        now = time.monotonic()
        if holder not in {"", dispatcher_id} and now < until:
            await asyncio.sleep(min(wait_ms / 1000, until - now))
            return Demand(granted=False, claimable=0)
        self._dispatcher = (dispatcher_id, now + DISPATCH_LEASE_S)
        claimable, running = await self._wait_for(
            lambda c: (self._count_claimable(c), claims.count_running(c)),
            lambda counts: counts[0] > 0,
            wait_ms,
        )
        return Demand(granted=True, claimable=claimable, running=running)

    def _count_claimable(self, connection: Connection) -> int:
        if self._space.find_full() is not None:
            return 0
        return claims.count_claimable(self._ledger, connection)

    async def report_pool(self, report: PoolReport) -> bool:
        """What Serve lists has changed; false when it should be said again.

        That is while a listed replica has yet to register, or one that Serve does not list is
        waited for.
        """
        payload = ev.PoolCreated(
            replica_ids=report.running,
            slots=report.slots,
            max_replicas=report.max_replicas,
            max_queued=report.max_queued,
        )

        def change(connection: Connection) -> bool:
            pool.drain(connection, report.stopping)
            unlisted = pool.find_unlisted(connection, report.listed)
            settled = [self._settle_unlisted(connection, replica) for replica in unlisted]
            is_complete = pool.enrol(self._ledger, connection, payload)
            return is_complete and all(settled)

        return await self._writer.write(change)

    def _settle_unlisted(self, connection: Connection, replica: pool.Unlisted) -> bool:
        """End a replica that Serve does not list, once it is silent; true when that is done.

        One that held nothing and was there before this collector may have been stopped with the
        whole service: that is no failure.
        """
        if not self._leases.is_silent(replica.replica_id, SILENT_S):
            return False
        if not replica.held and replica.registered_ms < self._began_ms:
            pool.retire(connection, replica.replica_id)
            return True
        reason = "Serve does not list the replica any more, and nothing is heard of it"
        endings.lose(self._ledger, connection, replica.replica_id, "ReplicaGone", reason)
        return True

    async def report_pressure(self, pressure: Pressure) -> None:
        """The dispatcher was stopped by the executor queue, or goes on."""

        def change(connection: Connection) -> None:
            standing = pool.find_standing(connection, "executor_queue") is not None
            if pressure.applied == standing:  # it was told, and its answer was lost
                return
            if pressure.applied:
                pool.announce(
                    self._ledger,
                    connection,
                    ev.BackpressureApplied(
                        level="executor_queue",
                        queued=pressure.queued,
                        limit=pressure.limit,
                        held=pressure.held,
                    ),
                    standing_as="executor_queue",
                )
                return
            pool.stand_down(connection, "executor_queue")
            released = ev.BackpressureReleased(
                level="executor_queue", duration_ms=pressure.duration_ms
            )
            pool.announce(self._ledger, connection, released, standing_as=None)

        await self._writer.write(change)

    async def get_pool(self) -> dict[str, Any]:
        """Live replicas and what waits for them.

        Raises:
            StaleEpoch: when another collector writes, so that this one is of no use any more.
        """

        def read(connection: Connection) -> dict[str, Any]:
            self._ledger.check_epoch(connection, self._writer.epoch)
            return {
                "replicas": views.read_replicas(connection),
                "standing": {
                    topic: pool.find_standing(connection, topic)
                    for topic in ("executor_queue", "admission")
                },
                "refused_results": self._refused,
                "unfinished_executions": admission.count_unfinished(connection),
                "claimable_executions": claims.count_claimable(self._ledger, connection),
            }

        return await self._read(read)

    # -- inside --------------------------------------------------------------------------------

    def _announce_change(self, commit: Commit) -> None:
        self._metrics.note_commit(commit)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _read[Result](self, query: Callable[[Connection], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(
            self._readers, self._read_in_thread, query
        )

    def _read_in_thread[Result](self, query: Callable[[Connection], Result]) -> Result:
        with self._engine.connect().execution_options(read_only=True) as connection:
            return query(connection)

    async def _poll[Result](
        self,
        query: Callable[[Connection], Result],
        is_enough: Callable[[Result], bool],
        wait_ms: int,
    ) -> Result:
        """A client's `_wait_for`; so many at a time that dispatching never waits behind them."""
        async with self._polls:
            return await self._wait_for(query, is_enough, wait_ms)

    async def _wait_for[Result](
        self,
        query: Callable[[Connection], Result],
        is_enough: Callable[[Result], bool],
        wait_ms: int,
    ) -> Result:
        """Read until there is something, or the wait is over; every commit may bring it."""
        deadline = time.monotonic() + min(wait_ms / 1000, MAX_POLL_S)
        while True:
            changed = self._changed
            result = await self._read(query)
            left = deadline - time.monotonic()
            if is_enough(result) or left <= 0:
                return result
            try:
                await asyncio.wait_for(changed.wait(), left)
            except TimeoutError:
                return result

    async def _tick_forever(self) -> None:
        while True:
            try:
                await self._tick()
            except StaleEpoch:
                logger.warning("another collector has taken over; this one stops working")
                return
            except DiskFull as error:
                logger.warning("a tick waits: %s", error)
            except Exception:  # leases and chunks must go on whatever one tick met
                logger.exception("a collector tick failed; the next one tries again")
            try:
                await asyncio.wait_for(self._urgent.wait(), TICK_S)
            except TimeoutError:
                continue
            self._urgent.clear()

    async def _tick(self) -> None:
        """Deadlines, leases, and the next chunks of what is too large for one transaction."""
        for batch_id in await self._read(lambda c: endings.find_overdue(self._ledger, c)):
            await self._writer.write(
                lambda c, b=batch_id: endings.cancel(c, b, "batch_timeout is over", "deadline")
            )
        for batch_id in await self._read(endings.find_unsettled):
            done = await self._writer.write(
                lambda c, b=batch_id: endings.continue_batch(self._ledger, c, b)
            )
            if not done:
                self._urgent.set()
        self._metrics.note_admission(applied=self._admission.is_applied)
        await self._end_leases()
        now = time.monotonic()
        if now - self._looked_at >= SLOW_TICK_S:
            self._looked_at = now
            await self._look_slowly()

    async def _end_leases(self) -> None:
        """Give up the replicas that have not been heard of for a lease."""
        late_s = self._leases.extend(LATE_S)
        if late_s:
            logger.warning("the collector was held up for %.1f s; so are all leases", late_s)
        reason = f"the replica has not been heard of for {LEASE_S:.0f} s"
        for replica_id in self._leases.find_over():
            if not self._leases.is_over(replica_id):  # heard of meanwhile
                continue
            lost = await self._writer.write(
                lambda c, r=replica_id: endings.lose(self._ledger, c, r, "LeaseExpired", reason)
            )
            self._leases.forget(replica_id)
            if lost:
                logger.warning("replica %s is lost with %d attempts", replica_id, lost)

    async def _look_slowly(self) -> None:
        """What need not be looked at often: claims whose answer was lost, admission's end.

        Also that nobody who may be alive is without a lease: what a replica holds would never be
        given up.
        """
        self._leases.grant(await self._read(pool.find_watched))
        before_ms = now_ms() - round(DROPPED_S * 1000)
        for replica_id, held in self._leases.list_held():
            if await self._read(lambda c, r=replica_id: claims.has_running(c, r, before_ms)):
                await self._writer.write(
                    lambda c, r=replica_id, h=held: endings.lose_dropped(
                        self._ledger, c, r, h, before_ms
                    )
                )
        if self._admission.is_applied and await self._read(
            lambda c: self._admission.is_over(self._ledger, c)
        ):
            await self._writer.write(lambda c: self._admission.release(self._ledger, c))


def _event_page(
    connection: Connection, batch_id: str, after: int, limit: int
) -> tuple[list[dict[str, Any]], bool]:
    page, ended = views.read_events(connection, batch_id, after, limit)
    return page.items, ended
