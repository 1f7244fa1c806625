"""The collector without Serve: leases, deaths, draining, dispatchers and admission."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployments import event_collector
from deployments.event_collector import (
    DISPATCH_LEASE_S,
    DROPPED_S,
    LATE_S,
    LEASE_S,
    SILENT_S,
    EventCollector,
)
from deployments.messages import Death, Directives, Heartbeat, PoolReport
from tests.contract.store_bench import make_batch, make_template
from wtb_core import events as ev
from wtb_core import space
from wtb_core.attempts import Assignment, Outcome
from wtb_core.errors import DiskFull, StaleEpoch, TooManyPending
from wtb_core.ids import new_event_id
from wtb_core.store.database import sqlite_url
from wtb_core.store.ledger import Ledger
from wtb_core.store.records import Claimant, Finish, Lookup, Offer

START_S = 1_000_000.0
ADMISSION = 5


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_template(tmp_path_factory.mktemp("template") / "wtb.db")


class Bench:
    """Collectors on one store, whose time is `now_s` and whose ticks are the test's."""

    def __init__(self, path: Path) -> None:
        self.now_s = START_S
        self._path = path
        self._opened: list[EventCollector] = []
        self.collector = self.open()

    def open(self) -> EventCollector:
        """A collector that takes over from the one before."""
        self.collector = EventCollector(sqlite_url(self._path), ADMISSION)
        self.collector._ticking.cancel()
        self._opened.append(self.collector)
        return self.collector

    async def close(self) -> None:
        for collector in self._opened:
            await collector._writer.close()
            collector._readers.shutdown()
            collector._engine.dispose()

    async def pass_time(self, seconds: float, *heard: str) -> None:
        """Time goes on with ticks and the heartbeats of who is heard."""
        for _ in range(round(seconds / 0.5)):
            self.now_s += 0.5
            for name in heard:
                await self.beat(name)
            await self.collector._tick()

    async def register(self, name: str) -> None:
        payload = ev.ActorInitialized(
            actor_id=f"actor-{name}",
            replica_id=name,
            node_id="n",
            initialization_ms=1,
            isolation={"workspace": "overlay"},
        )
        await self.collector.register(payload)

    async def submit(self, batch_id: str = "b", cases: int = 1, **fields: Any) -> None:
        await self.collector.accept(make_batch(batch_id, cases=cases, **fields))

    async def claim(
        self, name: str, claim_id: str | None = None, offers: tuple[Offer, ...] = ()
    ) -> Any:
        claimant = Claimant(claim_id or new_event_id(), name, f"actor-{name}", offers)
        return await self.collector.claim(claimant)

    async def finish(self, name: str, assignment: Assignment) -> str:
        finish = Finish(
            event_id=new_event_id(),
            execution_id=assignment.execution_id,
            attempt=assignment.attempt,
            replica_id=name,
            actor_id=f"actor-{name}",
            outcome=Outcome(status="succeeded", output="1"),
        )
        return await self.collector.finish(finish)

    async def beat(self, name: str, *held: Assignment) -> Directives:
        keys = [(one.execution_id, one.attempt) for one in held]
        return await self.collector.heartbeat(Heartbeat(name, keys))

    async def report_pool(self, *running: str, stopping: tuple[str, ...] = ()) -> bool:
        listed = [*running, *stopping]
        report = PoolReport(listed, list(running), list(stopping), 2, 4, 16)
        return await self.collector.report_pool(report)

    async def report_death(self, name: str) -> None:
        death = Death(f"actor-{name}", "ActorDiedError", "it was killed")
        await self.collector.report_death(death)

    async def read_pool(self, kind: str) -> list[dict[str, Any]]:
        """The payloads of the pool's events of a kind."""
        items = await self.collector.read_pool_events(0, 1000, 0)
        return [item["payload"] for item in items if item["type"] == f"ray_{kind}"]

    async def read_failures(self, batch_id: str = "b") -> list[dict[str, Any]]:
        items, _ = await self.collector.read_events(batch_id, 0, 1000, 0)
        return [e["payload"] for e in items if e["type"] == "ray_variant_execution_failed"]

    async def list_replicas(self) -> dict[str, str]:
        replicas = (await self.collector.get_pool())["replicas"]
        return {replica["replica_id"]: replica["status"] for replica in replicas}


@pytest.fixture
def drive(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Bench], Awaitable[None]]], None]:
    """Runs a test's coroutine with a bench whose time only the test moves."""
    path = tmp_path / "wtb.db"
    path.write_bytes(template.read_bytes())

    async def run(test: Callable[[Bench], Awaitable[None]]) -> None:
        benches: list[Bench] = []

        def now_s() -> float:
            return benches[0].now_s if benches else START_S

        def now_ms() -> int:
            return round(now_s() * 1000)

        monkeypatch.setattr(event_collector, "time", SimpleNamespace(monotonic=now_s))
        monkeypatch.setattr(event_collector, "now_ms", now_ms)
        monkeypatch.setattr(event_collector, "Ledger", partial(Ledger, clock=now_ms))
        bench = Bench(path)
        benches.append(bench)
        try:
            await test(bench)
        finally:
            await bench.close()

    return lambda test: asyncio.run(run(test))


# -- leases ----------------------------------------------------------------------------------------


def test_a_replica_that_is_heard_keeps_what_it_holds_and_a_silent_one_loses_it(drive):
    async def test(bench):
        await bench.submit(cases=2)
        for name in ("r1", "r2"):
            await bench.register(name)
            await bench.claim(name)

        await bench.pass_time(LEASE_S, "r1")
        assert await bench.read_failures() == []
        await bench.pass_time(1, "r1")

        (lost,) = await bench.read_failures()
        assert (lost["replica_id"], lost["kind"], lost["will_retry"]) == ("r2", "lost", True)
        (failed,) = await bench.read_pool("actor_failed")
        assert (failed["error_type"], failed["execution_ids"]) == ("LeaseExpired", ["b-1"])
        assert await bench.list_replicas() == {"r1": "live"}

    drive(test)


def test_a_collector_that_was_held_up_takes_no_replica_for_lost(tmp_path, monkeypatch):
    """Heartbeats wait while the loop is busy; the ticks that come first must not end leases."""
    monkeypatch.setattr(event_collector, "LEASE_S", 0.5)
    monkeypatch.setattr(event_collector, "LATE_S", 0.3)

    async def main() -> None:
        collector = EventCollector(sqlite_url(tmp_path / "wtb.db"), 10)
        try:
            payload = ev.ActorInitialized(
                actor_id="a", replica_id="r", node_id="n", initialization_ms=1, isolation={}
            )
            await collector.register(payload)
            await collector.claim(Claimant("k", "r", "a"))
            await asyncio.sleep(0.05)
            time.sleep(1.5)  # noqa: ASYNC251 - the stall
            await collector._tick()
            assert "r" in collector._leases
            deadline = time.monotonic() + 20
            while "r" in collector._leases:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
        finally:
            collector._ticking.cancel()

    asyncio.run(main())


def test_the_time_that_a_collector_was_held_up_is_added_once(drive):
    async def test(bench):
        await bench.submit()
        await bench.register("r1")
        await bench.claim("r1")
        bench.now_s += LEASE_S * 3
        await bench.collector._tick()
        assert await bench.read_failures() == []

        await bench.pass_time(LEASE_S - 1)
        assert await bench.read_failures() == []
        await bench.pass_time(1 + LATE_S + 0.5)
        assert len(await bench.read_failures()) == 1

    drive(test)


def test_the_next_collector_grants_every_replica_a_full_lease(drive):
    async def test(bench):
        await bench.submit()
        await bench.register("r1")
        held = await bench.claim("r1")
        await bench.pass_time(LEASE_S - 1)

        bench.open()
        assert await bench.beat("r1", held) == Directives(known=True, kill=[], drain=False)
        bench.open()
        await bench.pass_time(LEASE_S)
        assert await bench.read_failures() == []
        await bench.pass_time(1)
        assert len(await bench.read_failures()) == 1

    drive(test)


def test_a_replica_that_may_live_and_has_no_lease_is_granted_one(drive):
    """Whatever came between: what it holds must be given up some day."""

    async def test(bench):
        await bench.submit()
        await bench.register("r1")
        await bench.claim("r1")
        bench.collector._leases.forget("r1")

        await bench.pass_time(LEASE_S + 2)

        assert len(await bench.read_failures()) == 1

    drive(test)


# -- heartbeats ------------------------------------------------------------------------------------


def test_a_heartbeat_is_told_what_must_die(drive):
    async def test(bench):
        await bench.submit(cases=3)
        await bench.register("r1")
        wanted, cancelled, ended = [await bench.claim("r1") for _ in range(3)]
        await bench.collector.cancel_execution(cancelled.execution_id, "not this one")
        await bench.finish("r1", ended)
        foreign = wanted.model_copy(update={"attempt": 7})

        directives = await bench.beat("r1", wanted, cancelled, ended, foreign)

        assert [kill[0] for kill in directives.kill] == [
            cancelled.execution_id,
            ended.execution_id,
            foreign.execution_id,
        ]
        assert (directives.known, directives.drain) == (True, False)

    drive(test)


def test_a_zombie_is_told_to_kill_and_to_register_again(drive):
    async def test(bench):
        await bench.submit()
        await bench.register("r1")
        held = await bench.claim("r1", "k")
        await bench.pass_time(LEASE_S + 1)

        directives = await bench.beat("r1", held)
        assert directives == Directives(known=False, kill=[("b-0", 1)], drain=False)
        assert await bench.claim("r1") is None
        assert await bench.claim("r1", "k") is None
        assert await bench.finish("r1", held) == "refused"
        assert (await bench.collector.get_pool())["refused_results"] == 1

        await bench.register("r1")
        assert (await bench.beat("r1")).known
        await bench.pass_time(10, "r1")
        assert isinstance(await bench.claim("r1"), Lookup)
        (restarted,) = await bench.read_pool("actor_restarted")
        assert (restarted["replaces"], restarted["replica_id"]) == ("r1", "r1")

    drive(test)


def test_a_collector_that_was_replaced_answers_no_replica(drive):
    """Or its successor would take them for dead."""

    async def test(bench):
        await bench.register("r1")
        old = bench.collector
        bench.open()

        for call in (
            old.heartbeat(Heartbeat("r1", [])),
            old.heartbeat(Heartbeat("r1", [("b-0", 1)])),
            old.claim(Claimant("k", "r1", "a")),
            old.get_pool(),
        ):
            with pytest.raises(StaleEpoch):
                await call

    drive(test)


# -- deaths ----------------------------------------------------------------------------------------


def test_what_a_dead_replica_held_is_lost_at_once(drive):
    async def test(bench):
        await bench.submit(cases=3, retry={"backoff": 0})
        for name in ("r1", "r2"):
            await bench.register(name)
        held = [await bench.claim("r1"), await bench.claim("r1")]
        kept = await bench.claim("r2")

        await bench.report_death("r1")
        await bench.report_death("r1")
        await bench.report_death("unknown")

        (failed,) = await bench.read_pool("actor_failed")
        assert failed == {
            "actor_id": "actor-r1",
            "replica_id": "r1",
            "error_type": "ActorDiedError",
            "error_message": "the replica died: it was killed",
            "execution_ids": [one.execution_id for one in held],
        }
        assert [lost["execution_id"] for lost in await bench.read_failures()] == ["b-0", "b-1"]
        assert await bench.list_replicas() == {"r2": "live"}
        assert isinstance(await bench.claim("r2"), Lookup)
        assert await bench.finish("r2", kept) == "accepted"

    drive(test)


def test_a_claim_that_comes_with_the_news_of_its_replicas_death_gets_nothing(drive):
    """In one transaction, the death first: nobody would ever end what it were given."""

    async def test(bench):
        await bench.submit()
        await bench.register("r1")

        _, given = await asyncio.gather(bench.report_death("r1"), bench.claim("r1"))

        assert given is None
        await bench.register("r2")
        assert (await bench.claim("r2")).attempt == 1

    drive(test)


def test_a_late_claim_of_a_dead_replica_gets_nothing(drive):
    async def test(bench):
        await bench.submit()
        await bench.register("r1")
        await bench.report_death("r1")

        assert await bench.claim("r1") is None

    drive(test)


# -- draining --------------------------------------------------------------------------------------


def test_a_replica_that_serve_stops_is_told_to_drain_and_gets_nothing_new(drive):
    async def test(bench):
        await bench.submit(cases=2)
        await bench.register("r1")
        held = await bench.claim("r1", "k")
        assert await bench.report_pool("r1")
        assert not (await bench.beat("r1")).drain

        await bench.report_pool(stopping=("r1",))

        for _ in range(2):
            assert await bench.beat("r1", held) == Directives(known=True, kill=[], drain=True)
            assert await bench.claim("r1") is None
            assert await bench.claim("r1", "k") == held
            bench.open()
        assert await bench.list_replicas() == {"r1": "draining"}

    drive(test)


def test_the_end_of_a_replica_that_serve_stopped_is_no_failure(drive):
    async def test(bench):
        await bench.submit()
        await bench.register("r1")
        await bench.claim("r1")
        await bench.report_pool(stopping=("r1",))
        await bench.pass_time(SILENT_S)

        assert await bench.report_pool()

        assert [lost["kind"] for lost in await bench.read_failures()] == ["lost"]
        assert await bench.read_pool("actor_failed") == []
        assert await bench.list_replicas() == {}

    drive(test)


# -- what Serve does not list ----------------------------------------------------------------------


def test_a_replica_that_serve_does_not_list_is_given_up_once_it_is_silent(drive):
    async def test(bench):
        await bench.submit()
        await bench.register("r1")
        await bench.claim("r1")

        assert not await bench.report_pool()
        await bench.pass_time(SILENT_S - 0.5)
        assert not await bench.report_pool()
        assert await bench.read_failures() == []
        await bench.pass_time(0.5)
        assert await bench.report_pool()

        (failed,) = await bench.read_pool("actor_failed")
        assert (failed["error_type"], failed["execution_ids"]) == ("ReplicaGone", ["b-0"])
        assert len(await bench.read_failures()) == 1

    drive(test)


def test_a_replica_that_is_heard_is_kept_though_serve_does_not_list_it(drive):
    async def test(bench):
        await bench.submit()
        await bench.register("r1")
        held = await bench.claim("r1")
        for _ in range(10):
            await bench.pass_time(1, "r1")
            assert not await bench.report_pool()

        assert await bench.read_failures() == []
        assert await bench.finish("r1", held) == "accepted"

    drive(test)


def test_a_replica_that_registers_just_now_is_not_given_up(drive):
    """The report was made before Serve listed it."""

    async def test(bench):
        await asyncio.gather(bench.register("r1"), bench.report_pool())

        assert await bench.list_replicas() == {"r1": "live"}

    drive(test)


@pytest.mark.parametrize("holds", [True, False])
def test_an_idle_replica_of_before_this_collector_went_with_the_service(drive, holds):
    async def test(bench):
        await bench.submit()
        await bench.register("r1")
        if holds:
            await bench.claim("r1")
        bench.now_s += 100
        bench.open()

        assert not await bench.report_pool()
        await bench.pass_time(SILENT_S)
        assert await bench.report_pool()

        assert await bench.list_replicas() == {}
        assert len(await bench.read_pool("actor_failed")) == holds
        assert len(await bench.read_failures()) == holds

    drive(test)


def test_a_pool_is_complete_when_every_listed_replica_has_registered(drive):
    async def test(bench):
        await bench.register("r1")
        assert not await bench.report_pool("r1", "r2")
        await bench.register("r2")
        assert await bench.report_pool("r1", "r2")
        (created,) = await bench.read_pool("actor_pool_created")
        assert created["replica_ids"] == ["r1", "r2"]

    drive(test)


# -- claims whose answer was lost ------------------------------------------------------------------


def test_what_a_live_replica_never_had_is_given_up_by_the_slow_look(drive):
    async def test(bench):
        await bench.submit(cases=2)
        await bench.register("r1")
        held = await bench.claim("r1")
        await bench.claim("r1")

        async def hold(seconds):
            for _ in range(round(seconds)):
                bench.now_s += 1
                await bench.beat("r1", held)
                await bench.collector._tick()

        await hold(DROPPED_S)
        assert await bench.read_failures() == []
        await hold(2)

        assert [lost["execution_id"] for lost in await bench.read_failures()] == ["b-1"]
        assert await bench.list_replicas() == {"r1": "live"}
        assert await bench.read_pool("actor_failed") == []
        assert await bench.finish("r1", held) == "accepted"

    drive(test)


# -- dispatchers -----------------------------------------------------------------------------------


def test_one_dispatcher_has_the_lease_and_the_next_one_gets_it_in_time(drive):
    async def test(bench):
        await bench.submit(cases=3)

        async def ask(name):
            demand = await bench.collector.wait_for_demand(name, 0)
            return demand.granted, demand.claimable

        assert await ask("one") == (True, 3)
        bench.now_s += DISPATCH_LEASE_S - 0.5
        assert await ask("two") == (False, 0)
        assert await ask("one") == (True, 3)
        bench.now_s += DISPATCH_LEASE_S - 0.5
        assert await ask("two") == (False, 0)
        bench.now_s += 0.5
        assert await ask("two") == (True, 3)
        assert await ask("one") == (False, 0)

    drive(test)


def test_a_dispatcher_that_waits_hears_of_a_batch_at_once(drive):
    async def test(bench):
        waiting = asyncio.create_task(bench.collector.wait_for_demand("one", 60_000))
        await asyncio.sleep(0.05)
        assert not waiting.done()

        await bench.submit(cases=2)

        demand = await asyncio.wait_for(waiting, 5)
        assert (demand.granted, demand.claimable, demand.running) == (True, 2, 0)

    drive(test)


# -- admission -------------------------------------------------------------------------------------


def test_admission_is_told_when_a_batch_is_refused_and_when_it_would_fit(drive):
    async def test(bench):
        await bench.submit("b", cases=4)
        await bench.register("r1")
        for _ in range(2):
            with pytest.raises(TooManyPending) as refused:
                await bench.submit("c", cases=2)
        assert refused.value.limit == ADMISSION
        (applied,) = await bench.read_pool("backpressure_applied")
        assert applied == {"level": "admission", "queued": 4, "limit": ADMISSION, "held": 2}
        await bench.pass_time(1, "r1")
        assert await bench.read_pool("backpressure_released") == []

        bench.open()
        standing = (await bench.collector.get_pool())["standing"]
        assert standing["admission"]["held"] == 2
        await bench.finish("r1", await bench.claim("r1"))
        await bench.pass_time(1, "r1")
        (released,) = await bench.read_pool("backpressure_released")
        assert released == {"level": "admission", "duration_ms": 1_500}
        await bench.submit("c", cases=2)
        assert (await bench.collector.get_pool())["standing"]["admission"] is None

    drive(test)


# -- reading ---------------------------------------------------------------------------------------


def test_who_prunes_is_told_which_executions_have_ended(drive):
    async def test(bench):
        await bench.submit(cases=3)
        await bench.register("r1")
        ended, running = await bench.claim("r1"), await bench.claim("r1")
        await bench.finish("r1", ended)

        asked = [ended.execution_id, running.execution_id, "b-2", "gone-0", "b-9"]

        assert await bench.collector.find_ended(asked) == [ended.execution_id, "gone-0", "b-9"]

    drive(test)


def test_the_pool_says_who_is_there_and_what_waits(drive):
    async def test(bench):
        await bench.submit(cases=4, limits={"concurrency": 3})
        for name in ("r1", "r2", "r3"):
            await bench.register(name)
        await bench.report_death("r1")
        await bench.register("r4")
        await bench.claim("r2")
        await bench.report_pool("r2", "r4", stopping=("r3",))

        found = await bench.collector.get_pool()

        assert [
            (r["replica_id"], r["status"], r["running"], r["restart_count"])
            for r in found["replicas"]
        ] == [("r2", "live", 1, 0), ("r3", "draining", 0, 0), ("r4", "live", 0, 1)]
        assert found["replicas"][0]["isolation"] == {"workspace": "overlay"}
        assert (found["unfinished_executions"], found["claimable_executions"]) == (4, 2)
        assert found["refused_results"] == 0
        assert found["standing"] == {"executor_queue": None, "admission": None}

    drive(test)


# -- a full disk -----------------------------------------------------------------------------------


def test_on_a_full_disk_nothing_new_starts_and_what_runs_ends(drive, monkeypatch):
    """And it goes on by itself when there is room again."""
    free = 10**9

    def statvfs(_path):
        return SimpleNamespace(f_bavail=free, f_frsize=1, f_blocks=10**12, f_files=0, f_favail=0)

    async def test(bench):
        nonlocal free
        monkeypatch.setattr(space.os, "statvfs", statvfs)
        bench.collector._space = space.DiskSpace([Path("/")], min_free_bytes=10**6)
        await bench.register("r1")
        await bench.submit(cases=2)
        running = await bench.claim("r1", "k1")
        free = 10**6 - 1

        with pytest.raises(DiskFull, match="min_free"):
            await bench.submit("c")
        assert await bench.claim("r1", "k2") is None
        assert await bench.claim("r1", "k1") == running
        assert (await bench.collector.wait_for_demand("d", 0)).claimable == 0
        assert await bench.finish("r1", running) == "accepted"

        free = 10**6
        assert (await bench.collector.wait_for_demand("d", 0)).claimable == 1
        assert (await bench.claim("r1", "k2")).execution_id == "b-1"
        await bench.submit("c")

    drive(test)
