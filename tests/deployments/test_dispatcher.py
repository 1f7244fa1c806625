"""The permit pump against an executor that refuses like Serve does."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest
from permit_pool import QUEUE, SLOTS, PermitPool, make_death
from ray.exceptions import RayTaskError
from ray.serve.exceptions import RayServeException

from deployments import backpressure, calls
from deployments import dispatcher as module
from deployments.dispatcher import Dispatcher
from deployments.messages import Death
from wtb_core.ids import format_time, now_ms

Scenario = Callable[[PermitPool, Dispatcher], Awaitable[None]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_S", 0.02)
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.005)
    monkeypatch.setattr(module, "REFILL_S", 0.002)
    monkeypatch.setattr(module, "REJECTION_WAIT_S", 0.001)
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    monkeypatch.setattr(backpressure, "RELEASE_AFTER_S", 0.2)


async def until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


def run_with(make_pool: Callable[[], PermitPool], scenario: Scenario, **collector) -> None:
    async def main() -> None:
        pool = make_pool()
        dispatcher = pool.make_dispatcher(**collector)
        running = asyncio.create_task(dispatcher.run_forever())
        try:
            await scenario(pool, dispatcher)
            assert not running.done(), running.exception()
        finally:
            running.cancel()

    asyncio.run(main())


def run_with_work(work: int, scenario: Scenario, **options) -> None:
    run_with(lambda: PermitPool(work, **options), scenario)


def test_all_work_is_done_and_the_window_stays_bounded() -> None:
    async def scenario(pool: PermitPool, dispatcher: Dispatcher) -> None:
        await until(lambda: pool.done == 200)
        assert pool.most_queued <= QUEUE
        assert SLOTS < dispatcher.most_outstanding <= SLOTS + QUEUE
        await until(lambda: dispatcher.outstanding == 0)

    run_with_work(200, scenario, lasts_s=0.01)


@pytest.mark.parametrize("counts_running", [True, False])
def test_no_more_permits_go_out_than_there_is_work_for(counts_running: bool) -> None:
    async def scenario(pool: PermitPool, dispatcher: Dispatcher) -> None:
        pool.counts_running = counts_running
        await until(lambda: pool.running == 3)
        await asyncio.sleep(0.1)
        assert dispatcher.outstanding == 3
        for _ in range(3):
            pool.finish.release()
        await until(lambda: dispatcher.outstanding == 0)
        assert pool.dry == 0

    run_with_work(3, scenario)


def test_a_full_queue_is_applied_once_with_its_numbers_and_released_once() -> None:
    async def scenario(pool: PermitPool, dispatcher: Dispatcher) -> None:
        await until(lambda: bool(pool.pressures))
        await asyncio.sleep(0.05)
        assert len(pool.pressures) == 1
        applied = pool.pressures[0]
        assert applied.applied
        assert (applied.queued, applied.limit) == (QUEUE, QUEUE)
        assert applied.held == dispatcher.held == 30 - QUEUE - SLOTS
        assert dispatcher.pressure.applied
        for _ in range(30):
            pool.finish.release()
        await until(lambda: pool.done == 30 and not dispatcher.pressure.applied)
        assert [p.applied for p in pool.pressures] == [True, False]
        assert pool.pressures[1].duration_ms >= 50

    run_with_work(30, scenario)


@pytest.mark.parametrize("lag_s", [0.0, 0.005, 0.03])
@pytest.mark.parametrize("queue", [4, 40])
def test_a_batch_of_short_executions_is_one_stretch_of_backpressure(
    queue: int, lag_s: float
) -> None:
    """A release whenever a slot comes free would make a pair out of every few executions."""

    async def scenario(pool: PermitPool, dispatcher: Dispatcher) -> None:
        await until(lambda: pool.done == 120)
        await until(lambda: not dispatcher.pressure.applied)
        await asyncio.sleep(0.05)
        assert [p.applied for p in pool.pressures] == [True, False]
        assert dispatcher.most_outstanding <= SLOTS + queue

    run_with_work(120, scenario, queue=queue, lag_s=lag_s, lasts_s=0.02)


def test_a_permit_that_returns_while_the_work_is_counted_makes_no_backpressure() -> None:
    """Ten wait, ten have a permit: one that returns between count and answer is none held back."""

    async def scenario(pool: PermitPool, dispatcher: Dispatcher) -> None:
        await until(lambda: pool.queued == QUEUE)
        assert pool.unclaimed == QUEUE
        pool.before_answer = pool.finish.release
        await until(lambda: pool.done >= 3)
        pool.before_answer = None
        assert pool.pressures == []

    run_with_work(SLOTS + QUEUE, scenario, lag_s=0.05)


def test_pressure_without_a_rejection_for_a_while_is_released_although_work_waits() -> None:
    async def scenario(pool: PermitPool, dispatcher: Dispatcher) -> None:
        await until(lambda: dispatcher.pressure.applied)
        pool.queue = 10_000
        await until(lambda: len(pool.pressures) == 2)
        assert not pool.pressures[1].applied
        assert pool.pressures[1].duration_ms >= 200

    run_with_work(100_000, scenario)


def test_a_rejection_below_the_slots_is_no_backpressure() -> None:
    async def scenario(pool: PermitPool, _: Dispatcher) -> None:
        pool.over_rejections = 3
        pool.finish.release()
        await until(lambda: pool.done == 1)
        assert pool.refused == 3
        assert pool.pressures == []

    run_with_work(1, scenario)


def test_a_rejection_that_comes_late_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REJECTION_WAIT_S", 0.0)

    async def scenario(pool: PermitPool, dispatcher: Dispatcher) -> None:
        await until(lambda: dispatcher.pressure.applied)
        await until(lambda: pool.running == SLOTS and pool.queued == QUEUE)
        assert dispatcher.outstanding == SLOTS + QUEUE

    run_with_work(100, scenario)


def test_slots_that_come_are_filled() -> None:
    async def scenario(pool: PermitPool, dispatcher: Dispatcher) -> None:
        await until(lambda: dispatcher.outstanding == SLOTS + QUEUE)
        pool.slots += 3
        for _ in range(3):
            pool._free.release()
        dispatcher.wake()
        await until(lambda: dispatcher.outstanding == SLOTS + 3 + QUEUE)

    run_with_work(100, scenario)


def test_permits_that_never_return_do_not_stop_the_pump(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as would fill the slots and serve the demand are lost; another one is sent."""
    monkeypatch.setattr(module, "STALLED_S", 0.05)

    async def scenario(pool: PermitPool, dispatcher: Dispatcher) -> None:
        pool.lost_replies = SLOTS + 1
        pool.finish.release()
        await until(lambda: pool.done == 1)
        assert dispatcher.outstanding >= SLOTS + 1
        assert pool.pressures == []

    run_with_work(1, scenario)


def test_a_collector_that_is_away_pauses_the_pump_and_does_not_end_it() -> None:
    async def scenario(pool: PermitPool, _: Dispatcher) -> None:
        pool.away = 2
        pool.finish.release()
        await until(lambda: pool.done == 1)
        assert pool.away == 0

    run_with_work(1, scenario)


def test_an_executor_that_cannot_be_called_pauses_the_pump_and_does_not_end_it() -> None:
    async def scenario(pool: PermitPool, _: Dispatcher) -> None:
        pool.failures = [RayServeException("the deployment is unavailable")] * 2
        pool.finish.release()
        await until(lambda: pool.done == 1)
        assert pool.failures == []

    run_with_work(1, scenario)


def test_work_that_no_permit_can_claim_is_looked_for_without_haste() -> None:
    """The count says one, the claims find none: a few permits, not a storm of them."""

    async def scenario(pool: PermitPool, _: Dispatcher) -> None:
        pool._claim = pool.find_nothing
        await asyncio.sleep(0.2)
        assert 2 <= pool.dry <= 45

    class Elusive(PermitPool):
        async def find_nothing(self) -> bool:
            self.dry += 1
            return False

    run_with(lambda: Elusive(1), scenario)


def test_the_death_of_an_executor_is_told_once_and_until_it_is_heard() -> None:
    heard: list[Death] = []
    tries = itertools.count()

    async def report_death(death: Death) -> None:
        if next(tries) < 2:
            raise TimeoutError
        heard.append(death)

    async def scenario(pool: PermitPool, _: Dispatcher) -> None:
        pool.failures = [make_death("a1"), make_death("a1")]
        pool.finish.release()
        await until(lambda: pool.done == 1 and heard)
        assert heard == [Death("a1", "ActorDiedError", "killed by SIGKILL")]

    run_with(lambda: PermitPool(1), scenario, report_death=report_death)


def test_a_death_that_nobody_takes_does_not_stop_the_pump() -> None:
    async def report_death(_: Death) -> None:
        await asyncio.Event().wait()

    async def scenario(pool: PermitPool, _: Dispatcher) -> None:
        pool.failures = [make_death("a1")]
        for _ in range(20):
            pool.finish.release()
        await until(lambda: pool.done == 20)

    run_with(lambda: PermitPool(20), scenario, report_death=report_death)


def test_the_death_of_another_actor_that_an_executor_met_is_not_the_executors() -> None:
    wrapped = RayTaskError("run", "traceback", make_death("other")).as_instanceof_cause()

    async def scenario(pool: PermitPool, _: Dispatcher) -> None:
        pool.failures = [wrapped]
        pool.finish.release()
        await until(lambda: pool.done == 1)
        assert pool.deaths == []

    run_with_work(1, scenario)


def test_what_a_dead_dispatcher_left_in_force_is_released_before_anything_is_applied() -> None:
    async def scenario(pool: PermitPool, dispatcher: Dispatcher) -> None:
        await until(lambda: len(pool.pressures) == 2)
        assert [p.applied for p in pool.pressures] == [False, True]
        assert 5_000 <= pool.pressures[0].duration_ms < 10_000

    def make_pool() -> PermitPool:
        pool = PermitPool(100)
        pool.standing = {"occurred_at": format_time(now_ms() - 5_000)}
        return pool

    run_with(make_pool, scenario)


def test_a_dispatcher_that_loses_the_lease_stops_and_leaves_the_word_to_its_successor() -> None:
    async def scenario(pool: PermitPool, dispatcher: Dispatcher) -> None:
        await until(lambda: dispatcher.pressure.applied)
        pool.granted = False
        await until(lambda: not dispatcher.pressure.applied)
        for _ in range(5):
            pool.finish.release()
        await until(lambda: pool.done == 5)
        await asyncio.sleep(0.05)
        assert dispatcher.outstanding == SLOTS + QUEUE - 5
        assert [p.applied for p in pool.pressures] == [True]

        pool.granted = True
        await until(lambda: len(pool.pressures) == 3)
        assert [p.applied for p in pool.pressures] == [True, False, True]

    run_with_work(100, scenario)


def test_a_report_that_is_not_answered_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MAX_PAUSE_S", 0.01)
    reports: list[bool] = []

    async def report_pressure(pressure) -> None:
        reports.append(pressure.applied)
        if len(reports) == 1:
            raise TimeoutError

    async def scenario(pool: PermitPool, dispatcher: Dispatcher) -> None:
        await until(lambda: len(reports) == 2)
        assert reports == [True, True]

    run_with(lambda: PermitPool(100), scenario, report_pressure=report_pressure)
