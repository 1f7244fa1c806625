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
from wtb_core.attempts import Assignment, Failure, Outcome
from wtb_core.checkpoint_store import CheckpointStore
from wtb_core.data import DataDir
from wtb_core.errors import FenceError, SetupError, Unavailable
from wtb_core.events import ActorInitialized
from wtb_core.files.blobs import BlobStore
from wtb_core.sandbox.ladder import Grade, Isolation
from wtb_core.sandbox.processes import Confinement
from wtb_core.specs import Limits, Variant, Workspace
from wtb_core.store.records import Claimant, Finish, Lookup, Offer


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
        self.work: list[Assignment | Lookup] = [make_assignment()]
        self.claims: list[Claimant] = []
        self.finishes: list[Finish] = []
        self.kill: list[tuple[str, int]] = []
        self.away = 0
        self.beats: list[Heartbeat] = []
        self.registrations: list[ActorInitialized] = []
        self.drain = False
        self.gone = False
        self.answer = "accepted"
        self.ended: list[str] = []
        self.asked: list[list[str]] = []
        self.slow = asyncio.Event()
        self.slow.set()

    async def register(self, payload: ActorInitialized) -> None:
        self.registrations.append(payload)

    async def claim(self, claimant: Claimant) -> Assignment | Lookup | None:
        self.claims.append(claimant)
        return self.work.pop(0) if self.work else None

    async def finish(self, finish: Finish) -> str:
        if self.gone or self.away:
            self.away = max(0, self.away - 1)
            raise Unavailable("the collector is being replaced")
        self.finishes.append(finish)
        return self.answer

    async def heartbeat(self, heartbeat: Heartbeat) -> Directives:
        self.beats.append(heartbeat)
        if self.gone:
            raise Unavailable("the collector is being replaced")
        return Directives(known=True, kill=self.kill, drain=self.drain)

    async def find_ended(self, execution_ids: list[str]) -> list[str]:
        self.asked.append(execution_ids)
        await self.slow.wait()
        return [name for name in execution_ids if name in self.ended]

    def handle(self) -> FakeHandle:
        names = ("register", "claim", "finish", "heartbeat", "find_ended")
        return FakeHandle(**{name: getattr(self, name) for name in names})


class FakeEngine:
    def __init__(self, *_: Any) -> None:
        self.release = asyncio.Event()
        self.output = "{}"
        self.cancelled: list[tuple[str, int]] = []
        self.forgotten: list[str] = []
        self.fault: Exception | None = None
        self.lookups: list[Lookup] = []
        self.unusable: Exception | None = None
        self.graces: list[float] = []
        self.outcome: Outcome | None = None

    async def execute(self, _assignment: Assignment) -> Outcome:
        await self.release.wait()
        if self.fault is not None:
            raise self.fault
        if self.cancelled:
            return Outcome(status="cancelled")
        return self.outcome or Outcome(status="succeeded", output=self.output)

    async def find_offer(self, lookup: Lookup) -> Offer:
        self.lookups.append(lookup)
        if self.unusable is not None:
            raise self.unusable
        return Offer(lookup.execution_id, lookup.attempt, 1, f"of {lookup.execution_id}")

    def drain(self, grace_s: float) -> None:
        self.graces.append(grace_s)

    async def cancel(self, execution_id: str, attempt: int, _reason: str) -> bool:
        self.cancelled.append((execution_id, attempt))
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
    monkeypatch.setattr(module, "LOOKUP_PAUSE_S", 0.01)
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
        executor._tidying.cancel()
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
        assert set(engine.cancelled) == {("b-0", 1)}
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


# -- executions whose last attempts were lost ----------------------------------------------------


def make_lookup(number: int = 0) -> Lookup:
    return Lookup(f"b-{number}", 2, [(1, None)])


def test_what_is_to_be_looked_up_is_looked_up_and_claimed_again(tmp_path: Path) -> None:
    async def scenario(collector: Collector, executor: VariantExecutor, engine: FakeEngine) -> None:
        collector.work = [make_lookup(0), make_lookup(1), make_assignment(1)]
        engine.release.set()
        assert await executor.run("permit") is True
        assert engine.lookups == [make_lookup(0), make_lookup(1)]
        assert {claimant.claim_id for claimant in collector.claims} == {"permit"}
        offers = (Offer("b-0", 2, 1, "of b-0"), Offer("b-1", 2, 1, "of b-1"))
        assert [claimant.offers for claimant in collector.claims] == [(), offers[:1], offers]

    run_with(tmp_path, scenario)


def test_a_permit_looks_up_so_many_and_no_more(tmp_path: Path) -> None:
    async def scenario(collector: Collector, executor: VariantExecutor, engine: FakeEngine) -> None:
        collector.work = [make_lookup(number) for number in range(100)]
        assert await executor.run("permit") is False
        assert len(engine.lookups) == module.MAX_LOOKUPS

    run_with(tmp_path, scenario)


def test_an_attempt_that_has_begun_elsewhere_is_claimed_without_a_point(tmp_path: Path) -> None:
    async def scenario(collector: Collector, executor: VariantExecutor, engine: FakeEngine) -> None:
        collector.work = [make_lookup(0), make_assignment(1)]
        engine.unusable = FenceError("b-0", 2, 3)
        engine.release.set()
        assert await executor.run("permit") is True
        assert [offer.checkpoint_id for offer in collector.claims[-1].offers] == [None]

    run_with(tmp_path, scenario)


def test_what_cannot_be_looked_up_now_is_left_to_others_and_does_not_start_clean(
    tmp_path: Path,
) -> None:
    """Its checkpoints are there; they cannot be read at the moment."""

    async def scenario(collector: Collector, executor: VariantExecutor, engine: FakeEngine) -> None:
        collector.work = [make_lookup(0), make_assignment(0)]
        engine.unusable = Unavailable("the disk is full")
        assert await executor.run("permit") is False
        assert [claimant.offers for claimant in collector.claims] == [()]

    run_with(tmp_path, scenario)


LOST = Outcome(status="failed", failure=Failure(kind="lost", reason="fenced"))


@pytest.mark.parametrize(
    ("outcome", "answer", "forgotten"),
    [
        (None, "accepted", ["b-0"]),
        (None, "duplicate", ["b-0"]),
        (None, "refused", []),
        (Outcome(status="cancelled"), "accepted", ["b-0"]),
        (LOST, "accepted", []),
        (LOST.model_copy(update={"drained": True, "history": "f" * 64}), "accepted", []),
        (Outcome(status="failed", failure=Failure(kind="crash", reason="x")), "accepted", ["b-0"]),
    ],
)
def test_checkpoints_that_a_later_attempt_may_need_are_kept(
    tmp_path: Path, outcome: Outcome | None, answer: str, forgotten: list[str]
) -> None:
    async def scenario(collector: Collector, executor: VariantExecutor, engine: FakeEngine) -> None:
        engine.outcome, collector.answer = outcome, answer
        engine.release.set()
        assert await executor.run("permit") is True
        assert engine.forgotten == forgotten

    run_with(tmp_path, scenario)


# -- drain ---------------------------------------------------------------------------------------


def test_a_replica_that_is_told_to_drain_takes_nothing_more(tmp_path: Path) -> None:
    async def scenario(collector: Collector, executor: VariantExecutor, engine: FakeEngine) -> None:
        running = asyncio.create_task(executor.run("permit"))
        while not collector.claims:
            await asyncio.sleep(0.005)
        collector.drain = True
        while not engine.graces:
            await asyncio.sleep(0.005)
        collector.work = [make_assignment(1)]
        assert await executor.run("late") is False
        beats = len(collector.beats)
        while len(collector.beats) < beats + 3:
            await asyncio.sleep(0.005)
        assert engine.graces == [100.0]
        assert len(collector.claims) == 1
        assert collector.beats[-1].held == [("b-0", 1)]
        engine.release.set()
        assert await running is True

    run_with(tmp_path, scenario)


# -- while the collector is away, and what is left behind ----------------------------------------


def test_ends_that_wait_for_the_collector_are_counted_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module.logger.addHandler(caplog.handler)

    async def scenario(collector: Collector, executor: VariantExecutor, engine: FakeEngine) -> None:
        collector.work = [make_assignment(0), make_assignment(1)]
        permits = [asyncio.create_task(executor.run(f"permit-{n}")) for n in range(2)]
        while len(collector.claims) < 2:
            await asyncio.sleep(0.005)
        collector.gone = True
        engine.release.set()
        while not any("2 of them have ended" in message for message in caplog.messages):
            await asyncio.sleep(0.005)
        beats = len(collector.beats)
        collector.gone = False
        assert await asyncio.gather(*permits) == [True, True]
        assert sorted(finish.execution_id for finish in collector.finishes) == ["b-0", "b-1"]
        while len(collector.beats) < beats + 2:
            await asyncio.sleep(0.005)

    try:
        run_with(tmp_path, scenario)
    finally:
        module.logger.removeHandler(caplog.handler)


def test_rows_of_what_has_ended_are_deleted_and_the_heart_beats_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIDY_S", 0.01)
    kept = ["b-0", "b-1", "b-2"]  # b-0 is held

    async def list_executions(_: CheckpointStore, after: str, limit: int) -> list[str]:
        return [name for name in kept if name > after][:limit]

    async def forget_executions(_: CheckpointStore, names: list[str]) -> None:
        for name in names:
            kept.remove(name)

    monkeypatch.setattr(CheckpointStore, "list_executions", list_executions)
    monkeypatch.setattr(CheckpointStore, "forget_executions", forget_executions)

    async def scenario(collector: Collector, executor: VariantExecutor, engine: FakeEngine) -> None:
        collector.ended = ["b-0", "b-2"]
        collector.slow.clear()
        running = asyncio.create_task(executor.run("permit"))
        while not collector.asked:
            await asyncio.sleep(0.005)
        beats = len(collector.beats)
        while len(collector.beats) < beats + 3:
            await asyncio.sleep(0.005)
        collector.slow.set()
        while "b-2" in kept:
            await asyncio.sleep(0.005)
        while not any("b-0" not in names for names in collector.asked):
            await asyncio.sleep(0.005)
        assert "b-1" in kept
        engine.release.set()
        assert await running is True

    run_with(tmp_path, scenario)
