"""The permit pump against an executor that refuses like Serve does."""

import asyncio
import itertools

import pytest
from ray.serve.exceptions import BackPressureError

from deployments import dispatcher as module
from deployments.dispatcher import Dispatcher
from deployments.messages import Demand, Pressure
from tests.deployments.fakes import FakeHandle

SLOTS = 4
QUEUE = 6


class Pool:
    """An executor pool of `SLOTS` slots, a queue of `QUEUE`, and `work` executions to claim."""

    def __init__(self, work: int) -> None:
        self.unclaimed = work
        self.done = 0
        self.most_outstanding = 0
        self.outstanding = 0
        self.refused = 0
        self.pressures: list[Pressure] = []
        self.finish = asyncio.Semaphore(0)
        self._slots = asyncio.Semaphore(SLOTS)
        self._over_reject = 0
        self._lost_replies = 0
        self.away = 0

    def over_reject(self, times: int) -> None:
        self._over_reject = times

    def lose_replies(self, permits: int) -> None:
        """The next permits reach nobody, and nobody says so."""
        self._lost_replies = permits

    async def run(self, _permit: str) -> bool:
        if self._lost_replies > 0:
            self._lost_replies -= 1
            await asyncio.Event().wait()
        if self.outstanding >= SLOTS + QUEUE or self._over_reject > 0:
            self._over_reject -= 1
            self.refused += 1
            raise BackPressureError(num_queued_requests=QUEUE, max_queued_requests=QUEUE)
        self.outstanding += 1
        self.most_outstanding = max(self.most_outstanding, self.outstanding)
        try:
            async with self._slots:
                if not self.unclaimed:
                    return False
                self.unclaimed -= 1
                await self.finish.acquire()
                self.done += 1
                return True
        finally:
            self.outstanding -= 1

    async def wait_for_demand(self, _dispatcher: str, wait_ms: int) -> Demand:
        if self.away:
            self.away -= 1
            raise TimeoutError
        if not self.unclaimed:
            await asyncio.sleep(min(wait_ms, 20) / 1000)
        return Demand(granted=True, claimable=self.unclaimed)

    async def report_pressure(self, pressure: Pressure) -> None:
        self.pressures.append(pressure)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_S", 0.01)
    monkeypatch.setattr(module, "RELEASE_AFTER_S", 0.05)


def pump(pool: Pool) -> Dispatcher:
    numbers = itertools.count()
    return Dispatcher(
        FakeHandle(wait_for_demand=pool.wait_for_demand, report_pressure=pool.report_pressure),
        FakeHandle(run=pool.run),
        lambda: SLOTS,
        QUEUE,
        new_id=lambda: str(next(numbers)),
    )


async def until(condition, timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


def run_with(pool_of: int, scenario) -> None:
    async def main() -> None:
        pool = Pool(pool_of)
        dispatcher = pump(pool)
        running = asyncio.create_task(dispatcher.run_forever())
        try:
            await scenario(pool, dispatcher)
        finally:
            running.cancel()

    asyncio.run(main())


def test_all_work_is_done_and_the_window_stays_bounded() -> None:
    async def scenario(pool: Pool, _: Dispatcher) -> None:
        for _ in range(200):
            pool.finish.release()
        await until(lambda: pool.done == 200)
        assert pool.most_outstanding <= SLOTS + QUEUE

    run_with(200, scenario)


def test_a_full_queue_is_applied_once_with_its_numbers_and_released_once() -> None:
    async def scenario(pool: Pool, dispatcher: Dispatcher) -> None:
        await until(lambda: bool(pool.pressures))
        await asyncio.sleep(0.05)
        assert len(pool.pressures) == 1
        applied = pool.pressures[0]
        assert applied.applied
        assert (applied.queued, applied.limit) == (QUEUE, QUEUE)
        assert applied.held >= 30 - QUEUE - SLOTS
        assert dispatcher.under_pressure
        for _ in range(30):
            pool.finish.release()
        await until(lambda: pool.done == 30 and not dispatcher.under_pressure)
        assert [p.applied for p in pool.pressures][:2] == [True, False]
        assert all(a.applied != b.applied for a, b in itertools.pairwise(pool.pressures))

    run_with(30, scenario)


def test_a_rejection_below_the_slots_is_no_backpressure() -> None:
    async def scenario(pool: Pool, _: Dispatcher) -> None:
        pool.over_reject(3)
        pool.finish.release()
        await until(lambda: pool.done == 1)
        assert pool.refused == 3
        assert pool.pressures == []

    run_with(1, scenario)


def test_permits_that_never_return_do_not_stop_the_pump(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as would fill the slots and serve the demand are lost; another one is sent."""
    monkeypatch.setattr(module, "STALLED_S", 0.05)

    async def scenario(pool: Pool, dispatcher: Dispatcher) -> None:
        pool.lose_replies(SLOTS + 1)
        pool.finish.release()
        await until(lambda: pool.done == 1)
        assert dispatcher.outstanding >= SLOTS + 1

    run_with(1, scenario)


def test_a_collector_that_is_away_pauses_the_pump_and_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.01)

    async def scenario(pool: Pool, _: Dispatcher) -> None:
        pool.away = 2
        pool.finish.release()
        await until(lambda: pool.done == 1)
        assert pool.away == 0

    run_with(1, scenario)
