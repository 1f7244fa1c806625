"""The single writer of the store: takes batches in, answers claims, appends events, serves reads.

Its state is the store; what it keeps in memory (leases, waiters) is remade by the next collector.
A collector that was replaced finds its epoch stale and answers every write with `StaleEpoch`, upon
which callers try again and reach its successor.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import Connection, select

from deployments.calls import quieten_refusals
from deployments.messages import Demand, Directives, Heartbeat, PoolReport, Pressure
from wtb_core import events as ev
from wtb_core.attempts import Assignment
from wtb_core.errors import StaleEpoch
from wtb_core.ids import new_batch_id, now_ms
from wtb_core.parameters import BatchFilter
from wtb_core.store import acceptance, claims, endings, log, pool, reuse, views
from wtb_core.store.database import migrate, open_engine
from wtb_core.store.ledger import Ledger
from wtb_core.store.records import (
    Answer,
    Claimant,
    Finish,
    ForkSource,
    NewBatch,
    Receipt,
    Trace,
)
from wtb_core.store.rows import get_batch, get_execution, parse_execution_id
from wtb_core.store.tables import POOL_STREAM, attempts
from wtb_core.store.views import ExecutionFilter
from wtb_core.store.writer import Writer

logger = logging.getLogger("ray.serve")

LEASE_S = 15.0
DISPATCH_LEASE_S = 10.0
TICK_S = 0.25
LATE_S = 1.0
"""How long after a tick the next one may look at the leases without having been held up."""
MAX_POLL_S = 5.0
MAX_POLLS = 256


class EventCollector:
    """Deployment class; `max_pending_executions` is the admission limit."""

    def __init__(self, store_url: str, max_pending_executions: int) -> None:
        quieten_refusals()
        migrate(store_url)
        self._engine = open_engine(store_url)
        self._ledger = Ledger(producer="event_collector", admission=max_pending_executions)
        self._changed = asyncio.Event()
        self._writer = Writer(self._engine, self._ledger, self._announce_change)
        self._readers = ThreadPoolExecutor(2, "store-reader")
        self._polls = asyncio.Semaphore(MAX_POLLS)
        self._leases: dict[str, float] = {}
        self._leases_seen_at = time.monotonic()
        self._dispatcher: tuple[str, float] = ("", 0.0)
        self._urgent = asyncio.Event()
        self._grant_leases()
        self._ticking = asyncio.create_task(self._tick_forever())
        logger.info("collector has the store at epoch %d", self._writer.epoch)

    # -- batches -------------------------------------------------------------------------------

    async def accept(self, batch: NewBatch) -> Receipt:
        """Store a batch durably; see `acceptance.accept`."""
        receipt = await self._writer.write(
            lambda connection: acceptance.accept(self._ledger, connection, batch)
        )
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
        await self._writer.write(lambda c: pool.register(self._ledger, c, payload))
        self._leases[payload.replica_id] = time.monotonic() + LEASE_S

    async def claim(self, claimant: Claimant) -> Assignment | None:
        """Give the replica the next execution; the same claim gets the same answer."""
        self._leases[claimant.replica_id] = time.monotonic() + LEASE_S
        return await self._writer.write(lambda c: claims.claim(self._ledger, c, claimant))

    async def finish(self, finish: Finish) -> Answer:
        """Record the end of an attempt; see `endings.finish`."""
        answer: Answer = await self._writer.write(lambda c: endings.finish(self._ledger, c, finish))
        if answer == "refused":
            logger.warning("refused a late result of %s/%d", finish.execution_id, finish.attempt)
        return answer

    async def heartbeat(self, heartbeat: Heartbeat) -> Directives:
        """Renew a replica's lease and say which of its attempts must die."""
        known = heartbeat.replica_id in self._leases
        if known:
            self._leases[heartbeat.replica_id] = time.monotonic() + LEASE_S
        if not heartbeat.held:
            return Directives(known, [])
        mine = await self._read(lambda c: endings.find_wanted_attempts(c, heartbeat.replica_id))
        return Directives(known, [held for held in heartbeat.held if tuple(held) not in mine])

    # -- the dispatcher ------------------------------------------------------------------------

    async def wait_for_demand(self, dispatcher_id: str, wait_ms: int) -> Demand:
        """How much could start now; waits for something. One dispatcher at a time is granted."""
        holder, until = self._dispatcher
        now = time.monotonic()
        if holder not in {"", dispatcher_id} and now < until:
            await asyncio.sleep(min(wait_ms / 1000, until - now))
            return Demand(granted=False, claimable=0)
        self._dispatcher = (dispatcher_id, now + DISPATCH_LEASE_S)
        claimable = await self._wait_for(
            lambda c: claims.count_claimable(self._ledger, c), bool, wait_ms
        )
        return Demand(granted=True, claimable=claimable)

    async def report_pool(self, report: PoolReport) -> bool:
        """What Serve lists has changed; false when a listed replica has yet to register."""
        payload = ev.PoolCreated(
            replica_ids=report.running,
            slots=report.slots,
            max_replicas=report.max_replicas,
            max_queued=report.max_queued,
        )

        def change(connection: Connection) -> bool:
            for replica_id in pool.find_unlisted(connection, report.listed):
                pool.retire(connection, replica_id)
            return pool.enrol(self._ledger, connection, payload)

        return await self._writer.write(change)

    async def report_pressure(self, pressure: Pressure) -> None:
        """The dispatcher was stopped by the executor queue, or goes on."""

        def change(connection: Connection) -> None:
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
                "unfinished_executions": acceptance.count_unfinished(connection),
                "claimable_executions": claims.count_claimable(self._ledger, connection),
            }

        return await self._read(read)

    # -- inside --------------------------------------------------------------------------------

    def _extend_leases(self, now: float) -> None:
        """While this process was held up, heartbeats waited: that is no replica's silence."""
        late_s = now - self._leases_seen_at - LATE_S
        self._leases_seen_at = now
        if late_s > 0:
            self._leases = {replica_id: t + late_s for replica_id, t in self._leases.items()}
            logger.warning("the collector was held up for %.1f s; so are all leases", late_s)

    def _grant_leases(self) -> None:
        """Every replica that may be alive gets a full lease from now."""
        with self._engine.connect() as connection:
            holding = connection.execute(
                select(attempts.c.replica_id).where(attempts.c.status == "running").distinct()
            )
            live = [item["replica_id"] for item in views.read_replicas(connection)]
            deadline = time.monotonic() + LEASE_S
            self._leases = dict.fromkeys([*holding.scalars(), *live], deadline)

    def _announce_change(self) -> None:
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
        now = time.monotonic()
        self._extend_leases(now)
        for replica_id in [r for r, until in self._leases.items() if until < now]:
            lost = await self._writer.write(
                lambda c, r=replica_id: endings.lose(
                    self._ledger, c, r, f"the replica has not been heard of for {LEASE_S:.0f} s"
                )
            )
            self._leases.pop(replica_id, None)
            if lost:
                logger.warning("replica %s is lost with %d attempts", replica_id, lost)


def _event_page(
    connection: Connection, batch_id: str, after: int, limit: int
) -> tuple[list[dict[str, Any]], bool]:
    page, ended = views.read_events(connection, batch_id, after, limit)
    return page.items, ended
