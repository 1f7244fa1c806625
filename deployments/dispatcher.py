"""Feeds permits to the executor handle for as long as there is work, and sees backpressure.

A permit is a call that lasts as long as the execution it ends up with, so Serve's own queue limit
is what stops the pump: permits are submitted one at a time, and a `BackPressureError` ends a round.
A permit that returns is followed by another one, as long as there is room by our own count: slots
and the queue. Four times a second one goes out beyond it, since Serve alone knows how much room
there is. Memory is bounded by the window of outstanding permits.

One dispatcher works at a time: it holds a lease that the collector grants with each look at the
demand. Two would not be wrong, only wasteful, since claims are what assigns work.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from deployments.backpressure import QueuePressure
from deployments.calls import Handle, call, call_until_answered
from deployments.deaths import Deaths
from deployments.messages import Demand, Pressure
from deployments.metrics import PoolMetrics
from wtb_core.errors import WtbError
from wtb_core.ids import new_event_id, now_ms, parse_time

logger = logging.getLogger("ray.serve")

REJECTION_WAIT_S = 0.005
REFILL_S = 0.01
"""After a rejection, how long until the next try to fill the room that there should be."""
PROBE_S = 0.25
LOOK_AGAIN_S = 0.05
"""How soon the demand is looked at again when it seems to be met."""
STALLED_S = 2.0
DEMAND_WAIT_MS = 1_000
PAUSE_S = 0.5


class Dispatcher:
    """The pump. `count_slots` says how many slots live replicas have now."""

    def __init__(
        self,
        collector: Handle,
        executor: Handle,
        count_slots: Callable[[], int],
        deaths: Deaths,
        max_queued: int,
        new_id: Callable[[], str] = new_event_id,
    ) -> None:
        self._collector = collector
        self._executor = executor
        self._count_slots = count_slots
        self._deaths = deaths
        self._max_queued = max_queued
        self._new_id = new_id
        self._id = new_id()
        self._granted = False
        self._outstanding: set[asyncio.Task[bool]] = set()
        self._most_outstanding = 0
        self._pressure = QueuePressure()
        self._metrics = PoolMetrics()
        self._wake = asyncio.Event()
        self._rejected_late: BackPressureError | None = None
        self._asked_at = 0.0
        self._moved_at = 0.0
        self._needed = 0
        self._held = (0, 0)

    @property
    def outstanding(self) -> int:
        """Permits submitted and not yet returned."""
        return len(self._outstanding)

    @property
    def most_outstanding(self) -> int:
        """The largest window of permits so far."""
        return self._most_outstanding

    @property
    def held(self) -> int:
        """Executions that are ready and have no permit, as far as is known."""
        return max(self._held[1], 0)

    @property
    def pressure(self) -> QueuePressure:
        """The backpressure of the executor queue."""
        return self._pressure

    def wake(self) -> None:
        """Something may have changed: a permit has returned, or slots have come or gone."""
        self._wake.set()

    async def run_forever(self) -> None:
        """Pump until cancelled; a failure pauses it and never ends it."""
        while True:
            try:
                await self._run_once()
            except (WtbError, RayError, RayServeException) as error:
                logger.warning(
                    "the dispatcher pauses: %s", error, extra={"dispatcher_id": self._id}
                )
                await asyncio.sleep(PAUSE_S)

    async def _run_once(self) -> None:
        """One wait for demand, then rounds of permits until there is none."""
        claimable = await self._look(DEMAND_WAIT_MS)
        probing = True
        while claimable:
            await self._fill(probing=probing)
            await self._wait_for_change()
            probing = self._is_due()
            if probing or self._needed <= 0:
                claimable = await self._look(0)

    async def _look(self, wait_ms: int) -> int:
        """How many executions could start now; notes how many permits that takes.

        A permit that waits has no execution yet. Some may have returned since the collector
        counted, so what is held back is known as at least and at most. Backpressure begins by the
        first and ends by the second: a count that is off by one does neither.
        """
        before = self.outstanding
        demand: Demand = await call(self._collector, "wait_for_demand", self._id, wait_ms)
        self._asked_at = time.monotonic()
        if not demand.granted:
            self._stand_back()
            self._note_state()
            return 0
        if not self._granted:
            await self._stand_in()
        slots = self._count_slots()
        running = slots if demand.running is None else min(demand.running, slots)
        self._held = (
            demand.claimable - max(before - running, 0),
            demand.claimable - max(self.outstanding - running, 0),
        )
        self._needed = self._held[1]
        if demand.claimable and self._needed <= 0 and self._is_stalled():
            self._needed = 1
        self._note_state()
        released = self._pressure.settle(self._held[1])
        if released is not None:
            await self._release(round(released.duration_s * 1000))
        return demand.claimable

    def _note_state(self) -> None:
        self._metrics.note_state(
            slots=self._count_slots(),
            permits=self.outstanding,
            held_back=self.held,
            applied=self._pressure.applied,
        )

    def _stand_back(self) -> None:
        """Another dispatcher has the lease, and with it the word on backpressure."""
        if self._granted:
            logger.warning("another dispatcher has taken over", extra={"dispatcher_id": self._id})
        self._granted = False
        self._needed, self._held = 0, (0, 0)
        self._pressure.forget()

    async def _stand_in(self) -> None:
        """Release what a predecessor has left in force: its queue died with it."""
        pool = await call(self._collector, "get_pool")
        standing = pool["standing"]["executor_queue"]
        if standing is not None:
            await self._release(now_ms() - parse_time(standing["occurred_at"]))
        self._granted = True

    def _is_stalled(self) -> bool:
        """Whether no permit has moved for so long that replies may have been lost."""
        return time.monotonic() - self._moved_at > STALLED_S

    def _is_due(self) -> bool:
        """Whether it is time to look at the demand again, and to probe."""
        return time.monotonic() - self._asked_at >= PROBE_S

    def _has_room(self) -> bool:
        return self.outstanding < self._count_slots() + self._max_queued

    async def _fill(self, *, probing: bool) -> None:
        """Submit what is needed, until a rejection while every slot has a permit.

        There is no more than room for by our own count, but with `probing` one permit further:
        Serve knows better how full its queue is.
        """
        while self._needed > 0 and not self._is_due():
            if not self._has_room():
                if not probing:
                    return
                probing = False
            rejection = await self._submit()
            if rejection is None:
                self._needed -= 1
                self._held = (self._held[0] - 1, self._held[1] - 1)
            elif self.outstanding >= self._count_slots():
                await self._note_rejection(rejection)
                return
            else:
                await asyncio.sleep(REJECTION_WAIT_S)

    async def _submit(self) -> BackPressureError | None:
        """One permit, or how Serve rejected it."""
        permit_id = self._new_id()
        task = asyncio.create_task(self._await_permit(permit_id), name=permit_id)
        done, _ = await asyncio.wait({task}, timeout=REJECTION_WAIT_S)
        error = task.exception() if done else None
        if isinstance(error, BackPressureError):
            self._metrics.note_rejection()
            return error
        if isinstance(error, RayServeException):
            raise error
        self._moved_at = time.monotonic()
        self._outstanding.add(task)
        self._most_outstanding = max(self._most_outstanding, self.outstanding)
        task.add_done_callback(self._note_return)
        return None

    async def _await_permit(self, permit_id: str) -> bool:
        return bool(await self._executor.run.remote(permit_id))

    def _note_return(self, task: asyncio.Task[bool]) -> None:
        self._outstanding.discard(task)
        self._moved_at = time.monotonic()
        self.wake()
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            if not task.result():
                self._needed = 0  # there was nothing to claim: look before the next one
            return
        if isinstance(error, BackPressureError):
            self._metrics.note_rejection()
            self._rejected_late = error
            return
        permit = {"permit_id": task.get_name()}
        logger.warning("permit %s did not return: %s", task.get_name(), error, extra=permit)
        if isinstance(error, ActorDiedError) and not isinstance(error, RayTaskError):
            self._deaths.report(error)

    async def _wait_for_change(self) -> None:
        """Until a permit returns or it is time for the next try, the next look or probe."""
        rejection, self._rejected_late = self._rejected_late, None
        if rejection is not None:
            await self._note_rejection(rejection)
        until_look_s = max(self._asked_at + PROBE_S - time.monotonic(), 0.0)
        refilling = self._needed > 0 and self._has_room()
        try:
            await asyncio.wait_for(self._wake.wait(), REFILL_S if refilling else until_look_s)
        except TimeoutError:
            return
        self._wake.clear()
        if self._needed <= 0:
            await asyncio.sleep(self._asked_at + LOOK_AGAIN_S - time.monotonic())

    async def _note_rejection(self, rejection: BackPressureError) -> None:
        if self._pressure.reject(self.outstanding, self._count_slots(), self._held[0]):
            queued, limit = rejection.args[:2]
            held = max(self._held[0], 0)
            await self._report(
                Pressure(applied=True, queued=queued, limit=limit, held=held, duration_ms=0)
            )

    async def _release(self, duration_ms: int) -> None:
        pressure = Pressure(
            applied=False,
            queued=max(self.outstanding - self._count_slots(), 0),
            limit=self._max_queued,
            held=self.held,
            duration_ms=max(duration_ms, 0),
        )
        await self._report(pressure)

    async def _report(self, pressure: Pressure) -> None:
        word = "applied" if pressure.applied else "released"
        names = {"dispatcher_id": self._id, **pressure._asdict()}
        logger.info("executor backpressure %s", word, extra=names)
        await call_until_answered(self._collector, "report_pressure", pressure)
