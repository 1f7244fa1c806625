"""Feeds permits to the executor handle for as long as there is work, and sees backpressure.

A permit is a call that lasts as long as the execution it ends up with, so Serve's own queue limit
is what stops the pump: calls are submitted one at a time, and a `BackPressureError` ends a round.
Serve rejects bursts too early, so a rejection with fewer permits outstanding than there are slots
is tried again and is no backpressure. Memory is bounded by the window of outstanding permits.

One dispatcher works at a time: it holds a lease that the collector grants with each wait for
demand. Two would not be wrong, only wasteful, since claims are what assigns work.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException

from deployments.calls import Handle, call
from deployments.messages import Demand, Pressure
from wtb_core.errors import WtbError
from wtb_core.ids import new_event_id

logger = logging.getLogger("ray.serve")

REJECTION_WAIT_S = 0.005
PROBE_S = 0.25
RELEASE_AFTER_S = 2.0
STALLED_S = 2.0
DEMAND_WAIT_MS = 4_000
PAUSE_S = 0.5


def quieten_rejections() -> None:
    """Keep what is the pump's daily business, refusals and waits for a slot, out of the log."""

    def is_news(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(
            ("Request dropped due to backpressure", "Failed to route request after")
        )

    logger.addFilter(is_news)


class Dispatcher:
    """The pump. `count_slots` says how many slots live replicas have now."""

    def __init__(
        self,
        collector: Handle,
        executor: Handle,
        count_slots: Callable[[], int],
        max_queued: int,
        new_id: Callable[[], str] = new_event_id,
    ) -> None:
        self._collector = collector
        self._executor = executor
        self._count_slots = count_slots
        self._max_queued = max_queued
        self._new_id = new_id
        self._id = new_id()
        self._outstanding: set[asyncio.Task[bool]] = set()
        self._wake = asyncio.Event()
        self._dry = False
        self._applied_at: float | None = None
        self._rejected_at = 0.0
        self._moved_at = 0.0
        self._asked_at = 0.0
        self._taken = 0

    @property
    def outstanding(self) -> int:
        """Permits submitted and not yet returned."""
        return len(self._outstanding)

    @property
    def under_pressure(self) -> bool:
        """Whether executor backpressure is in force."""
        return self._applied_at is not None

    async def run_forever(self) -> None:
        """Pump until cancelled; a failure pauses it and never ends it."""
        while True:
            try:
                await self._run_once()
            except (WtbError, RayError, RayServeException) as error:
                logger.warning("the dispatcher pauses: %s", error)
                await asyncio.sleep(PAUSE_S)

    async def _run_once(self) -> None:
        """One wait for demand, then rounds of permits until nothing more is ready.

        Between two looks at the demand it is counted down by what the permits took.
        """
        claimable = await self._ask(DEMAND_WAIT_MS)
        self._dry = False
        while claimable and not self._dry:
            held = await self._fill(claimable)
            await self._release_if_calm(held)
            taken = self._taken
            await self._wait_for_change()
            claimable -= self._taken - taken
            if claimable <= 0 or time.monotonic() - self._asked_at >= PROBE_S:
                claimable = await self._ask(0)
        await self._release_if_calm(held=0)

    async def _ask(self, wait_ms: int) -> int:
        demand: Demand = await call(self._collector, "wait_for_demand", self._id, wait_ms)
        self._asked_at = time.monotonic()
        return demand.claimable

    async def _fill(self, claimable: int) -> int:
        """Submit permits until there are enough or Serve refuses; returns what is held back."""
        submitted = 0
        while submitted < claimable and not self._dry and self._is_wanted(claimable):
            if not await self._submit():
                held = claimable - submitted
                await self._note_rejection(held)
                return held
            submitted += 1
        return 0

    def _is_wanted(self, claimable: int) -> bool:
        """Whether another permit could find work, or none has moved for suspiciously long."""
        queued = self.outstanding - self._count_slots()
        return queued < claimable or time.monotonic() - self._moved_at > STALLED_S

    async def _submit(self) -> bool:
        """One permit; false when Serve's queue is full."""
        task = asyncio.ensure_future(self._await_permit(self._new_id()))
        done, _ = await asyncio.wait({task}, timeout=REJECTION_WAIT_S)
        if done and isinstance(task.exception(), BackPressureError):
            return False
        self._moved_at = time.monotonic()
        self._outstanding.add(task)
        task.add_done_callback(self._note_return)
        return True

    async def _await_permit(self, permit_id: str) -> bool:
        return bool(await self._executor.run.remote(permit_id))

    def _note_return(self, task: asyncio.Task[bool]) -> None:
        self._outstanding.discard(task)
        self._moved_at = time.monotonic()
        self._wake.set()
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._taken += task.result()
            self._dry = self._dry or not task.result()
        elif not isinstance(error, BackPressureError):
            logger.warning("a permit did not return: %s", error)

    async def _wait_for_change(self) -> None:
        """Until a permit returns, or it is time to probe whether slots have grown."""
        self._wake.clear()
        try:
            await asyncio.wait_for(self._wake.wait(), PROBE_S)
        except TimeoutError:
            return

    async def _note_rejection(self, held: int) -> None:
        now = time.monotonic()
        if self.outstanding < self._count_slots():
            return
        self._rejected_at = now
        if self._applied_at is None:
            self._applied_at = now
            await self._report(applied=True, held=held)

    async def _release_if_calm(self, held: int) -> None:
        if self._applied_at is None:
            return
        now = time.monotonic()
        if held == 0 or now - self._rejected_at >= RELEASE_AFTER_S:
            await self._report(applied=False, held=held)
            self._applied_at = None

    async def _report(self, *, applied: bool, held: int) -> None:
        started = self._applied_at if self._applied_at is not None else time.monotonic()
        slots = self._count_slots()
        pressure = Pressure(
            applied=applied,
            queued=max(self.outstanding - slots, 0),
            limit=self._max_queued,
            held=held,
            duration_ms=round((time.monotonic() - started) * 1000),
        )
        await call(self._collector, "report_pressure", pressure)
