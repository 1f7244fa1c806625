"""A replica against a fake collector and a fake engine."""

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from deployments import calls
from deployments import variant_executor as module
from deployments.messages import Directives, Heartbeat
from deployments.variant_executor import Identity, VariantExecutor
from tests.deployments.fakes import FakeHandle
from wtb_core.attempts import Assignment, Outcome
from wtb_core.data import DataDir
from wtb_core.errors import SetupError, Unavailable
from wtb_core.events import ActorInitialized
from wtb_core.files.blobs import BlobStore
from wtb_core.sandbox.ladder import Grade, Isolation
from wtb_core.sandbox.processes import Confinement
from wtb_core.specs import Limits, Variant, Workspace
from wtb_core.store.records import Claimant, Finish


def make_assignment(number: int = 0) -> Assignment:
    return Assignment(
        execution_id=f"b-{number}",
        batch_id="b",
        attempt=1,
        project="p",
        project_version="0" * 64,
        variant=Variant(name="v"),
        case={"id": "c", "input": {}},
        repetition=0,
        evaluators=[],
        limits=Limits(),
        workspace=Workspace(),
    )


GRADE = Grade(workspace="B", confinement=Confinement("none", True), missed=[])


class Collector:
    def __init__(self) -> None:
        self.work = [make_assignment()]
        self.claims: list[Claimant] = []
        self.finishes: list[Finish] = []
        self.kill: list[tuple[str, int]] = []
        self.away = 0
        self.beats: list[Heartbeat] = []
        self.registrations: list[ActorInitialized] = []

    async def register(self, payload: ActorInitialized) -> None:
        self.registrations.append(payload)

    async def claim(self, claimant: Claimant) -> Assignment | None:
        self.claims.append(claimant)
        return self.work.pop(0) if self.work else None

    async def finish(self, finish: Finish) -> str:
        if self.away:
            self.away -= 1
            raise Unavailable("the collector is being replaced")
        self.finishes.append(finish)
        return "accepted"

    async def heartbeat(self, heartbeat: Heartbeat) -> Directives:
        self.beats.append(heartbeat)
        return Directives(known=True, kill=self.kill)

    def handle(self) -> FakeHandle:
        return FakeHandle(
            register=self.register, claim=self.claim, finish=self.finish, heartbeat=self.heartbeat
        )


class FakeEngine:
    def __init__(self, *_: Any) -> None:
        self.release = asyncio.Event()
        self.output = "{}"
        self.cancelled: list[str] = []
        self.forgotten: list[str] = []
        self.fault: Exception | None = None

    async def execute(self, _assignment: Assignment) -> Outcome:
        await self.release.wait()
        if self.fault is not None:
            raise self.fault
        if self.cancelled:
            return Outcome(status="cancelled")
        return Outcome(status="succeeded", output=self.output)

    async def cancel(self, execution_id: str, _reason: str) -> bool:
        self.cancelled.append(execution_id)
        self.release.set()
        return True

    async def forget(self, assignment: Assignment) -> None:
        self.forgotten.append(assignment.execution_id)


class FakeSandbox:
    """Reaches level B; at `overlay` less than is required."""

    def __init__(self, *_: Any, isolation: Isolation, **__: Any) -> None:
        self.isolation = isolation

    async def find_grade(self) -> Grade:
        if self.isolation == "overlay":
            raise SetupError("isolation", "level A is required, this machine reaches B")
        return GRADE


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Engine", FakeEngine)
    monkeypatch.setattr(module, "Sandbox", FakeSandbox)
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(calls, "MAX_PAUSE_S", 0.01)


def run_with(tmp_path: Path, scenario, isolation: Isolation = "auto") -> None:
    async def main() -> None:
        collector = Collector()
        executor = VariantExecutor(
            collector.handle(),
            DataDir(tmp_path),
            isolation,
            identify=lambda: Identity("replica", "actor", "node"),
        )
        async with asyncio.timeout(10):
            await scenario(collector, executor, executor._engine)
        executor._beating.cancel()
        executor._checkpoints.close()

    asyncio.run(main())


def test_a_permit_without_work_says_so(tmp_path: Path) -> None:
    async def scenario(collector: Collector, executor: VariantExecutor, _: FakeEngine) -> None:
        collector.work = []
        assert await executor.run("permit") is False
        assert collector.claims[0].claim_id == "permit"

    run_with(tmp_path, scenario)


def test_an_execution_is_held_until_its_end_is_acknowledged(tmp_path: Path) -> None:
    async def scenario(collector: Collector, executor: VariantExecutor, engine: FakeEngine) -> None:
        collector.away = 3
        permit = asyncio.create_task(executor.run("permit"))
        while not any(beat.held for beat in collector.beats):
            await asyncio.sleep(0.005)
        engine.release.set()
        assert await permit is True
        assert collector.away == 0
        assert engine.forgotten == ["b-0"]
        assert [finish.execution_id for finish in collector.finishes] == ["b-0"]

    run_with(tmp_path, scenario)


def test_work_goes_on_when_the_caller_goes_away(tmp_path: Path) -> None:
    async def scenario(collector: Collector, executor: VariantExecutor, engine: FakeEngine) -> None:
        permit = asyncio.create_task(executor.run("permit"))
        while not collector.claims:
            await asyncio.sleep(0.005)
        permit.cancel()
        with pytest.raises(asyncio.CancelledError):
            await permit
        engine.release.set()
        while not collector.finishes:
            await asyncio.sleep(0.005)
        assert collector.finishes[0].outcome.status == "succeeded"

    run_with(tmp_path, scenario)


def test_a_large_output_is_a_blob_before_the_report_names_it(tmp_path: Path) -> None:
    async def scenario(collector: Collector, executor: VariantExecutor, engine: FakeEngine) -> None:
        engine.output = '"' + "x" * 20_000 + '"'
        engine.release.set()
        await executor.run("permit")
        finish = collector.finishes[0]
        assert finish.outcome.output is None
        assert finish.output_bytes == 20_002
        assert executor._blobs.get(finish.output_blob or "").decode() == engine.output

    run_with(tmp_path, scenario)


def test_a_large_output_that_is_no_blob_is_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def scenario(collector: Collector, executor: VariantExecutor, engine: FakeEngine) -> None:
        engine.output = '"' + "x" * 20_000 + '"'
        engine.release.set()
        monkeypatch.setattr(BlobStore, "put", refuse)
        await executor.run("permit")
        finish = collector.finishes[0]
        assert (finish.outcome.output, finish.output_blob) == (engine.output, None)
        assert finish.output_bytes == 20_002

    run_with(tmp_path, scenario)


def test_an_attempt_that_the_collector_disowns_is_killed(tmp_path: Path) -> None:
    async def scenario(collector: Collector, executor: VariantExecutor, engine: FakeEngine) -> None:
        collector.kill = [("b-0", 1), ("b-9", 1)]
        assert await executor.run("permit") is True
        assert set(engine.cancelled) == {"b-0"}
        assert collector.finishes[0].outcome.status == "cancelled"

    run_with(tmp_path, scenario)


def test_a_replica_says_its_isolation_when_it_registers(tmp_path: Path) -> None:
    async def scenario(collector: Collector, executor: VariantExecutor, _: FakeEngine) -> None:
        await executor.check_health()
        while not collector.registrations:
            await asyncio.sleep(0.005)
        assert collector.registrations[0].isolation == GRADE.describe()

    run_with(tmp_path, scenario)


def test_a_replica_below_the_required_level_is_not_healthy_and_claims_nothing(
    tmp_path: Path,
) -> None:
    async def scenario(collector: Collector, executor: VariantExecutor, _: FakeEngine) -> None:
        with pytest.raises(SetupError, match="level A is required"):
            await executor.check_health()
        permit = asyncio.create_task(executor.run("permit"))
        await asyncio.sleep(0.1)
        permit.cancel()
        assert (collector.registrations, collector.claims) == ([], [])

    run_with(tmp_path, scenario, "overlay")


def test_a_fault_of_the_engine_is_reported_as_the_end_of_the_attempt(tmp_path: Path) -> None:
    async def scenario(collector: Collector, executor: VariantExecutor, engine: FakeEngine) -> None:
        engine.fault = TypeError("our own")
        engine.release.set()
        assert await executor.run("permit") is True
        outcome = collector.finishes[0].outcome
        assert outcome.failure is not None
        assert (outcome.failure.kind, outcome.failure.reason) == ("setup", "TypeError: our own")

    run_with(tmp_path, scenario)
