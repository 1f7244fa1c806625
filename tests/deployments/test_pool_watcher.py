"""The watcher of the executor pool: who runs, whom Serve stops, and who is dead."""

import asyncio

import pytest
from fakes import FakeHandle
from permit_pool import make_death
from ray.exceptions import ActorDiedError, ActorUnavailableError

from deployments import pool_watcher as module
from deployments.deaths import Deaths
from deployments.messages import Death, PoolReport
from deployments.pool_watcher import PoolLimits, PoolWatcher, Replica

LIMITS = PoolLimits(slots=4, min_replicas=1, max_replicas=3, max_queued=16)


class Serve:
    """What the watcher sees and says; `killed` actors are dead, with how they died."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.killed: dict[str, str] = {}
        self.unknown: set[str] = set()
        self.asked: list[str] = []
        self.forgotten: list[str] = []
        self.deaths: list[Death] = []
        self.reports: list[PoolReport] = []
        self.answers: list[bool] = []
        self.changes = 0
        self.unreachable = False
        collector = FakeHandle(report_death=self.report_death, report_pool=self.report_pool)
        self.known_deaths = Deaths(collector)
        self.watcher = PoolWatcher(
            collector, LIMITS, self.known_deaths, self, on_change=self.note_change
        )

    async def look(self) -> list[Replica]:
        if self.unreachable:
            raise ActorUnavailableError("the controller is away", None)
        return [Replica(name, f"actor-{name}", state) for name, state in self.states.items()]

    async def find_death(self, replica_id: str) -> ActorDiedError | None:
        self.asked.append(replica_id)
        if replica_id in self.unknown:
            raise ActorUnavailableError("the connection is lost", None)
        if replica_id not in self.killed:
            return None
        error = make_death(f"actor-{replica_id}")
        error.error_msg = self.killed[replica_id]
        return error

    def forget(self, replica_id: str) -> None:
        self.forgotten.append(replica_id)

    async def report_death(self, death: Death) -> None:
        self.deaths.append(death)

    async def report_pool(self, report: PoolReport) -> bool:
        self.reports.append(report)
        return self.answers.pop(0) if self.answers else True

    def note_change(self) -> None:
        self.changes += 1

    async def see(self, **states: str) -> None:
        self.states = states
        await self.watcher._look()
        await asyncio.sleep(0.01)


def watch(scenario) -> None:
    async def main() -> None:
        await scenario(Serve())

    asyncio.run(main())


def test_slots_are_those_of_replicas_that_run() -> None:
    async def scenario(serve: Serve) -> None:
        await serve.see(r1="RUNNING", r2="STARTING", r3="STOPPING")
        assert serve.watcher.count_slots() == 4
        await serve.see(r1="RUNNING", r2="RUNNING")
        assert serve.watcher.count_slots() == 8
        assert serve.changes == 2
        await serve.see(r1="RUNNING", r2="RUNNING")
        assert serve.changes == 2

    watch(scenario)


def test_a_change_is_reported_once_and_again_while_it_is_incomplete() -> None:
    async def scenario(serve: Serve) -> None:
        serve.answers = [False, True]
        await serve.see(r1="RUNNING")
        await serve.see(r1="RUNNING")
        await serve.see(r1="RUNNING")
        assert len(serve.reports) == 2
        assert serve.reports[1] == PoolReport(["r1"], ["r1"], [], 4, 3, 16)

    watch(scenario)


def test_a_replica_that_stops_and_lives_is_reported_as_stopping_and_is_no_death() -> None:
    async def scenario(serve: Serve) -> None:
        await serve.see(r1="RUNNING", r2="RUNNING")
        await serve.see(r1="RUNNING", r2="STOPPING")
        assert serve.reports[-1].stopping == ["r2"]
        assert serve.reports[-1].running == ["r1"]
        serve.killed["r2"] = "killed by `ray.kill`"
        await serve.see(r1="RUNNING", r2="STOPPING")
        await serve.see(r1="RUNNING")
        await serve.see(r1="RUNNING")
        assert serve.deaths == []
        assert serve.asked == ["r2"]
        assert serve.forgotten == ["r2"]
        assert serve.reports[-1] == PoolReport(["r1"], ["r1"], [], 4, 3, 16)

    watch(scenario)


@pytest.mark.parametrize("cause", ["its worker process has died", "killed by `ray.kill`"])
@pytest.mark.parametrize("seen_stopping", [True, False])
def test_a_replica_whose_process_is_dead_is_told_with_its_actor(
    seen_stopping: bool, cause: str
) -> None:
    """Serve puts it in the state STOPPING for a moment; a kill by hand looks like Serve's own."""

    async def scenario(serve: Serve) -> None:
        await serve.see(r1="RUNNING", r2="RUNNING")
        serve.killed["r2"] = cause
        if seen_stopping:
            await serve.see(r1="RUNNING", r2="STOPPING")
            assert serve.reports[-1].stopping == []
        await serve.see(r1="RUNNING")
        await serve.see(r1="RUNNING")
        assert serve.deaths == [Death("actor-r2", "ActorDiedError", cause)]
        assert all(report.stopping == [] for report in serve.reports)

    watch(scenario)


def test_a_replica_that_ray_cannot_reach_yet_is_neither_dead_nor_stopped() -> None:
    """Ray learns a moment later than Serve why it cannot reach an actor."""

    async def scenario(serve: Serve) -> None:
        await serve.see(r1="RUNNING", r2="RUNNING")
        serve.unknown = {"r2"}
        await serve.see(r1="RUNNING", r2="STOPPING")
        assert serve.reports[-1].stopping == []
        assert serve.deaths == []
        serve.unknown, serve.killed = set(), {"r2": "its worker process has died"}
        await serve.see(r1="RUNNING", r2="STOPPING")
        assert [death.actor_id for death in serve.deaths] == ["actor-r2"]

    watch(scenario)


def test_a_replica_that_a_permit_found_dead_has_no_slots_although_it_is_listed() -> None:
    async def scenario(serve: Serve) -> None:
        await serve.see(r1="RUNNING", r2="RUNNING")
        serve.known_deaths.report(make_death("actor-r2"))
        assert serve.watcher.count_slots() == 4
        await serve.see(r1="RUNNING", r2="RUNNING")
        assert serve.reports[-1].running == ["r1"]
        await serve.see(r1="RUNNING", r2="STOPPING")
        assert len(serve.deaths) == 1
        assert serve.asked == []

    watch(scenario)


def test_what_was_stopped_behind_a_late_watchers_back_is_no_death(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An idle replica may start to stop and be gone between two looks that are far apart."""
    monkeypatch.setattr(module, "LATE_S", -1.0)

    async def scenario(serve: Serve) -> None:
        await serve.see(r1="RUNNING", r2="RUNNING", r3="RUNNING")
        serve.killed = {"r2": "killed by `ray.kill`", "r3": "its worker process has died"}
        await serve.see(r1="RUNNING")
        assert [death.actor_id for death in serve.deaths] == ["actor-r3"]
        assert serve.reports[-1].stopping == ["r2"]
        await serve.see(r1="RUNNING")
        assert serve.reports[-1].stopping == []

    watch(scenario)


def test_a_controller_that_has_forgotten_replicas_for_a_moment_stops_none() -> None:
    async def scenario(serve: Serve) -> None:
        await serve.see(r1="RUNNING")
        await serve.see()
        assert serve.reports[-1].stopping == []
        await serve.see(r1="RUNNING")
        assert serve.deaths == []
        assert serve.watcher.count_slots() == 4

    watch(scenario)


def test_a_look_that_fails_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_S", 0.005)

    async def scenario(serve: Serve) -> None:
        serve.unreachable = True
        watching = asyncio.create_task(serve.watcher.run_forever())
        await asyncio.sleep(0.03)
        assert not watching.done()
        serve.states, serve.unreachable = {"r1": "RUNNING"}, False
        async with asyncio.timeout(2):
            while not serve.reports:
                await asyncio.sleep(0.002)
        watching.cancel()

    watch(scenario)
