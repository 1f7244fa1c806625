"""A stand-in for Serve, the executors and the collector, as the dispatcher meets them."""

import asyncio
import itertools
from collections.abc import Callable

from fakes import FakeHandle
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from deployments.deaths import Deaths
from deployments.dispatcher import Dispatcher
from deployments.messages import Death, Demand, Pressure
from wtb_core.ids import format_time, now_ms

SLOTS = 4
QUEUE = 6


class PermitPool:
    """Executors of `slots` slots behind a queue of `queue`, and `work` executions to claim.

    After an execution its slot is taken again only `lag_s` later, as Serve's router does it. An
    execution lasts until `finish` is released once for it, or with `lasts_s` that long.
    """

    def __init__(
        self,
        work: int,
        *,
        slots: int = SLOTS,
        queue: int = QUEUE,
        lag_s: float = 0.0,
        lasts_s: float | None = None,
    ) -> None:
        self.slots = slots
        self.queue = queue
        self.lag_s = lag_s
        self.lasts_s = lasts_s
        self.unclaimed = work
        self.running = 0
        self.queued = 0
        self.done = 0
        self.dry = 0
        self.refused = 0
        self.most_queued = 0
        self.pressures: list[Pressure] = []
        self.deaths: list[Death] = []
        self.standing: dict | None = None
        self.finish = asyncio.Semaphore(0)
        self.looks = 0
        self.away = 0
        self.granted = True
        self.counts_running = True
        self.over_rejections = 0
        self.lost_replies = 0
        self.before_answer: Callable[[], None] | None = None
        self.failures: list[BaseException] = []
        self._free = asyncio.Semaphore(slots)

    async def run(self, _permit: str) -> bool:
        if self.failures:
            raise self.failures.pop()
        if self.lost_replies > 0:
            self.lost_replies -= 1
            await asyncio.Event().wait()
        if self.over_rejections > 0 or self.queued >= self.queue:
            self.over_rejections -= 1
            self.refused += 1
            raise BackPressureError(num_queued_requests=self.queue, max_queued_requests=self.queue)
        self.queued += 1
        self.most_queued = max(self.most_queued, self.queued)
        await self._free.acquire()
        self.queued -= 1
        try:
            return await self._claim()
        finally:
            asyncio.get_running_loop().call_later(self.lag_s, self._free.release)

    async def _claim(self) -> bool:
        if not self.unclaimed:
            self.dry += 1
            return False
        self.unclaimed -= 1
        self.running += 1
        if self.lasts_s is None:
            await self.finish.acquire()
        else:
            await asyncio.sleep(self.lasts_s)
        self.running -= 1
        self.done += 1
        return True

    async def wait_for_demand(self, _dispatcher: str, wait_ms: int) -> Demand:
        self.looks += 1
        if self.away:
            self.away -= 1
            raise TimeoutError
        if not self.granted:
            await asyncio.sleep(min(wait_ms, 5) / 1000)
            return Demand(granted=False, claimable=0)
        if not self.unclaimed:
            await asyncio.sleep(min(wait_ms, 5) / 1000)
        running = self.running if self.counts_running else None
        answer = Demand(granted=True, claimable=self.unclaimed, running=running)
        if self.before_answer is not None:
            self.before_answer()
            await asyncio.sleep(0.001)
        return answer

    async def report_pressure(self, pressure: Pressure) -> None:
        self.pressures.append(pressure)
        occurred_at = format_time(now_ms())
        self.standing = {"occurred_at": occurred_at} if pressure.applied else None

    async def report_death(self, death: Death) -> None:
        self.deaths.append(death)

    async def get_pool(self) -> dict:
        return {"standing": {"executor_queue": self.standing, "admission": None}}

    def make_dispatcher(self, **collector) -> Dispatcher:
        methods = {
            "wait_for_demand": self.wait_for_demand,
            "report_pressure": self.report_pressure,
            "report_death": self.report_death,
            "get_pool": self.get_pool,
        }
        handle = FakeHandle(**(methods | collector))
        numbers = itertools.count()
        return Dispatcher(
            handle,
            FakeHandle(run=self.run),
            lambda: self.slots,
            Deaths(handle),
            self.queue,
            new_id=lambda: str(next(numbers)),
        )


def make_death(actor_id: str) -> ActorDiedError:
    error = ActorDiedError()
    error.actor_id = actor_id
    error.error_msg = "killed by SIGKILL"
    return error
