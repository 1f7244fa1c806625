"""A test for each row of the table of crash points in docs/protocol.md, named by its number.

Row 21, power, is tested where torn writes are.
"""

import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.deployments.crash_bench import WAIT_S, Bench, Broken, Party, until
from wtb_core.errors import StaleEpoch
from wtb_core.parameters import BatchFilter

ALL = ["a", "b", "c", "score"]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="wtb-") as sockets:  # a socket's path is short
        bench = Bench(tmp_path, Path(sockets))
        try:
            yield bench
        finally:
            bench.close()


def count_batches(bench: Bench) -> int:
    return len(bench.ask("list_batches", None, 10, BatchFilter())[0])


def wait_for_end(bench: Bench, batch: str) -> None:
    until(lambda: bench.has_ended(batch), lambda: f"it does not end: {bench.read_story(batch)}")


# -- the ingress -----------------------------------------------------------------------------------


def test_01_an_ingress_dies_before_a_batch_is_stored(bench: Bench) -> None:
    bench.start("collector")
    bench.start("replica")
    ingress = bench.start("ingress", "send accept")

    with pytest.raises(Broken):
        ingress.ask("submit_batch", bench.make_spec(), "key")

    ingress.wait_until_dead()
    assert count_batches(bench) == 0
    receipt = bench.start("ingress").ask("submit_batch", bench.make_spec(), "key")
    assert receipt["created"]
    wait_for_end(bench, receipt["batch_id"])
    bench.check(receipt["batch_id"], ran=ALL, story=["started", "completed"])


def test_02_an_ingress_dies_before_it_answers_for_a_stored_batch(bench: Bench) -> None:
    bench.start("collector")
    bench.start("replica")
    ingress = bench.start("ingress", "answer accept")

    with pytest.raises(Broken):
        ingress.ask("submit_batch", bench.make_spec(), "key")

    ingress.wait_until_dead()
    assert count_batches(bench) == 1
    receipt = bench.start("ingress").ask("submit_batch", bench.make_spec(), "key")
    assert not receipt["created"]
    assert count_batches(bench) == 1
    wait_for_end(bench, receipt["batch_id"])
    bench.check(receipt["batch_id"], ran=ALL, story=["started", "completed"])


def test_03_an_ingress_dies_after_its_answer_and_before_any_permit(bench: Bench) -> None:
    bench.start("collector")
    bench.start("replica")
    ingress = bench.start("ingress")
    bench.ground.cut(ingress.name, "run").touch()
    batch = ingress.ask("submit_batch", bench.make_spec())["batch_id"]

    ingress.kill()

    assert bench.read_story(batch) == []
    bench.start("ingress")
    wait_for_end(bench, batch)
    bench.check(batch, ran=ALL, story=["started", "completed"])


def test_04_an_ingress_dies_with_permits_out(bench: Bench) -> None:
    bench.start("collector")
    bench.start("replica")
    ingress = bench.start("ingress")
    bench.stage.hold("b")
    batch = ingress.ask("submit_batch", bench.make_spec(cases=3))["batch_id"]
    bench.stage.wait_for("b", 2)

    ingress.kill()

    bench.stage.release("b")
    until(lambda: bench.read_story(batch).count("completed") == 2, "what was claimed is not ended")
    assert bench.read_story(batch).count("started") == 2
    bench.start("ingress")
    wait_for_end(bench, batch)
    bench.check(batch, ran=ALL * 3, story=["started", "completed"] * 3, executions=3)


# -- a replica -------------------------------------------------------------------------------------


def test_05_a_replica_dies_with_a_permit_and_before_its_claim(bench: Bench) -> None:
    bench.start("collector")
    victim, heir = bench.start("replica", "send claim"), bench.start("replica")
    batch = bench.submit()

    bench.bury(victim, bench.permit(victim))

    assert bench.read_story(batch) == []
    bench.run_to_end(heir, batch)
    bench.check(batch, ran=ALL, story=["started", "completed"])


def test_06_a_replica_dies_before_it_has_the_answer_to_its_claim(bench: Bench) -> None:
    bench.start("collector")
    victim, heir = bench.start("replica", "answer claim"), bench.start("replica")
    batch = bench.submit()

    bench.bury(victim, bench.permit(victim))

    assert bench.read_story(batch) == ["started", "lost"]
    bench.run_to_end(heir, batch)
    bench.check(batch, ran=ALL, story=["started", "lost", "started", "completed"])


@pytest.mark.parametrize("point", ["execute", "launched"])
def test_07_a_replica_dies_after_the_answer_and_before_user_code(bench: Bench, point: str) -> None:
    bench.start("collector")
    victim, heir = bench.start("replica", point), bench.start("replica")
    batch = bench.submit()

    bench.bury(victim, bench.permit(victim))

    bench.run_to_end(heir, batch)
    bench.check(batch, ran=ALL, story=["started", "lost", "started", "completed"])


def test_05_a_replica_dies_between_a_lookup_and_its_second_claim(bench: Bench) -> None:
    """The execution's fence is raised by then, for an attempt that nobody has."""
    bench.start("collector")
    victim, second = bench.start("replica", "stored", 3), bench.start("replica", "send claim", 2)
    third = bench.start("replica")
    batch = bench.submit()
    bench.bury(victim, bench.permit(victim))
    stored = bench.read_checkpoints(f"{batch}-0", 1)

    bench.bury(second, bench.permit(second))

    assert bench.read_story(batch) == ["started", "lost"]
    bench.run_to_end(third, batch)
    events = bench.check(batch, ran=ALL, story=["started", "lost", "resumed", "completed"])
    assert find_resumed(events) == stored[-1:]


@pytest.mark.parametrize(
    ("point", "nth"),
    [
        pytest.param("answer claim", 2, id="6 before it has the answer"),
        pytest.param("execute", 1, id="7 before user code, with an assignment"),
        pytest.param("launched", 1, id="7 before user code, with a process"),
    ],
)
def test_06_and_07_a_replica_that_goes_on_for_another_dies_too(
    bench: Bench, point: str, nth: int
) -> None:
    """What the first one stored is not lost by an attempt that stored nothing."""
    bench.start("collector")
    victim, second = bench.start("replica", "stored", 3), bench.start("replica", point, nth)
    third = bench.start("replica")
    batch = bench.submit()
    bench.bury(victim, bench.permit(victim))
    stored = bench.read_checkpoints(f"{batch}-0", 1)

    bench.bury(second, bench.permit(second))

    bench.run_to_end(third, batch)
    story = ["started", "lost", "resumed", "lost", "resumed", "completed"]
    events = bench.check(batch, ran=ALL, story=story)
    assert find_resumed(events) == stored[-1:] * 2


@pytest.mark.parametrize("node", ["a", "b", "c"])
def test_08_a_replica_dies_in_user_code(bench: Bench, node: str) -> None:
    bench.start("collector")
    victim, heir = bench.start("replica"), bench.start("replica")
    batch = bench.submit()
    bench.stage.hold(node)
    permit = bench.permit(victim)
    bench.stage.wait_for(node)

    victim.kill()

    bench.bury(victim, permit)
    done = ALL.index(node)
    stored = bench.read_checkpoints(f"{batch}-0", 1)
    assert len(stored) == 1 + done
    bench.stage.release(node)
    bench.run_to_end(heir, batch)
    ran = [*ALL[: done + 1], *ALL[done:]]
    events = bench.check(batch, ran=ran, story=["started", "lost", "resumed", "completed"])
    assert find_resumed(events) == stored[-1:]


@pytest.mark.parametrize(
    ("point", "nth", "after"),
    [("stored", 1, "input"), ("stored", 2, "start"), ("stored", 3, "a"), ("tracked", 3, "start")],
)
def test_08_a_replica_dies_when_something_was_stored(
    bench: Bench, point: str, nth: int, after: str
) -> None:
    """Files that are committed without their checkpoint count for nothing."""
    bench.start("collector")
    victim, heir = bench.start("replica", point, nth), bench.start("replica")
    batch = bench.submit()

    bench.bury(victim, bench.permit(victim))

    told = list(bench.stage.told)
    stored = bench.read_checkpoints(f"{batch}-0", 1)
    assert len(stored) == {"input": 0, "start": 1, "a": 2}[after]
    bench.run_to_end(heir, batch)
    ran = [*told, *(ALL[1:] if after == "a" else ALL)]
    events = bench.check(batch, ran=ran, story=["started", "lost", "resumed", "completed"])
    assert not stored or find_resumed(events) == stored[-1:]


def test_09_a_replica_dies_while_evaluators_run(bench: Bench) -> None:
    bench.start("collector")
    victim, heir = bench.start("replica"), bench.start("replica")
    batch = bench.submit()
    bench.stage.hold("score")
    permit = bench.permit(victim)
    bench.stage.wait_for("score")

    victim.kill()

    bench.bury(victim, permit)
    stored = bench.read_checkpoints(f"{batch}-0", 1)
    bench.stage.release("score")
    bench.run_to_end(heir, batch)
    story = ["started", "lost", "resumed", "completed"]
    events = bench.check(batch, ran=[*ALL, "score"], story=story)
    assert find_resumed(events) == stored[3:]


def test_10_a_replica_dies_before_it_sends_the_end(bench: Bench) -> None:
    bench.start("collector")
    victim, heir = bench.start("replica", "send finish"), bench.start("replica")
    batch = bench.submit()

    bench.bury(victim, bench.permit(victim))

    assert bench.stage.told == ALL
    stored = bench.read_checkpoints(f"{batch}-0", 1)
    bench.run_to_end(heir, batch)
    story = ["started", "lost", "resumed", "completed"]
    events = bench.check(batch, ran=[*ALL, "score"], story=story)
    assert find_resumed(events) == stored[3:]


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("answer finish", id="11 before it has the answer"),
        pytest.param("forget", id="12 before it forgets"),
    ],
)
def test_11_and_12_a_replica_dies_after_the_end_is_stored(bench: Bench, point: str) -> None:
    bench.start("collector")
    victim, heir = bench.start("replica", point), bench.start("replica")
    batch = bench.submit()

    bench.bury(victim, bench.permit(victim))

    assert bench.has_ended(batch)
    assert len(bench.read_checkpoints(f"{batch}-0", 1)) == 4
    other = bench.submit()
    bench.run_to_end(heir, other)
    bench.check(batch, ran=ALL * 2, story=["started", "completed"])


# -- the collector ---------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["asked claim", "claimed", "asked finish", "finished"])
def test_13_a_collector_dies_before_it_stores(bench: Bench, point: str) -> None:
    """Before it does anything, and with the transaction not yet committed."""
    first, replica = bench.start("collector", point), bench.start("replica")
    batch = bench.submit()
    permit = bench.permit(replica)

    first.wait_until_dead()

    bench.start("collector")
    assert permit.result(WAIT_S)
    bench.check(batch, ran=ALL, story=["started", "completed"])


@pytest.mark.parametrize("method", ["claim", "finish"])
def test_14_a_collector_dies_before_it_answers(bench: Bench, method: str) -> None:
    first, replica = bench.start("collector", f"done {method}"), bench.start("replica")
    batch = bench.submit()
    permit = bench.permit(replica)

    first.wait_until_dead()

    bench.start("collector")
    assert permit.result(WAIT_S)
    assert (f"{batch}-0/1: duplicate" in replica.read_log()) == (method == "finish")
    bench.check(batch, ran=ALL, story=["started", "completed"])


@pytest.mark.parametrize(
    ("point", "nth"),
    [("asked claim", 3), ("claimed", 3), ("done claim", 2), ("done claim", 3)],
)
def test_13_and_14_a_collector_dies_while_a_lost_attempt_is_claimed(
    bench: Bench, point: str, nth: int
) -> None:
    """After the first claim come the one that is answered with a lookup, and that with an offer."""
    first = bench.start("collector", point, nth)
    victim, heir = bench.start("replica", "stored", 3), bench.start("replica")
    batch = bench.submit()
    bench.bury(victim, bench.permit(victim))
    stored = bench.read_checkpoints(f"{batch}-0", 1)
    permit = bench.permit(heir)

    first.wait_until_dead()

    bench.start("collector")
    assert permit.result(WAIT_S)
    events = bench.check(batch, ran=ALL, story=["started", "lost", "resumed", "completed"])
    assert find_resumed(events) == stored[-1:]


def test_15_two_collectors_never_both_write(bench: Bench) -> None:
    first = bench.start("collector")
    busy, idle = bench.start("replica"), bench.start("replica")
    batch = bench.submit(cases=2)
    bench.stage.hold("b")
    running = bench.permit(busy)
    bench.stage.wait_for("b")

    second = bench.start("collector")
    second.wait_until_ready()

    with pytest.raises(StaleEpoch):
        first.ask("cancel_batch", batch, "too late", "user")
    waiting = bench.permit(idle)
    bench.stage.wait_for("b", 2)
    bench.stage.release("b")
    assert running.result(WAIT_S)
    assert waiting.result(WAIT_S)
    assert "finish reached a collector that was replaced" in busy.read_log()
    assert "claim reached a collector that was replaced" in idle.read_log()
    assert second.is_alive()
    first.kill()
    bench.check(batch, ran=ALL * 2, story=["started", "completed"] * 2, executions=2)


# -- what a replica runs ---------------------------------------------------------------------------


def test_16_a_zygote_dies_between_executions(bench: Bench) -> None:
    """And then the process that it came from."""
    bench.start("collector")
    replica = bench.start("replica")
    batch = bench.submit(cases=3)
    assert bench.permit(replica).result(WAIT_S)
    *_, zygote = replica.find_family()

    zygote.kill()

    assert bench.permit(replica).result(WAIT_S)
    nursery, *_ = replica.find_family()
    nursery.kill()
    bench.run_to_end(replica, batch)
    bench.check(batch, ran=ALL * 3, story=["started", "completed"] * 3, executions=3)


def test_17_a_graph_process_dies_in_user_code(bench: Bench) -> None:
    bench.start("collector")
    replica = bench.start("replica")
    batch = bench.submit()
    bench.stage.kill("b")

    bench.run_to_end(replica, batch)

    story = ["started", "crash", "started", "completed"]
    bench.check(batch, ran=["a", "b", *ALL], story=story)


# -- more than one ---------------------------------------------------------------------------------


def test_18_everything_dies(bench: Bench) -> None:
    collector = bench.start("collector")
    victim, idle = bench.start("replica"), bench.start("replica")
    bench.list_pool(victim, idle)
    batch = bench.submit()
    bench.stage.hold("b")
    permit = bench.permit(victim)
    bench.stage.wait_for("b")

    for party in (collector, victim, idle):
        party.kill()

    with pytest.raises(Broken):
        permit.result(WAIT_S)
    bench.stage.release("b")
    bench.start("collector", SILENT_S=0.5)
    heir = bench.start("replica")
    stored = bench.read_checkpoints(f"{batch}-0", 1)
    bench.list_pool(heir)
    assert bench.read_story(batch) == ["started", "lost"]
    bench.run_to_end(heir, batch)
    story = ["started", "lost", "resumed", "completed"]
    events = bench.check(batch, ran=["a", "b", *ALL[1:]], story=story)
    assert find_resumed(events) == stored[-1:]
    failed = [e["payload"] for e in events if e["type"] == "ray_actor_failed"]
    assert [(p["replica_id"], p["execution_ids"]) for p in failed] == [
        (victim.name, [f"{batch}-0"])
    ]


def cut_off(bench: Bench) -> tuple[str, Party, Future[bool]]:
    """A batch, and a replica that is cut off for a lease while its user code waits in the node `b`."""
    bench.start("collector", LEASE_S=2.0)
    zombie = bench.start("replica")
    batch = bench.submit()
    bench.stage.hold("b")
    permit = bench.permit(zombie)
    bench.stage.wait_for("b")
    bench.ground.cut(zombie.name).touch()
    until(lambda: bench.read_story(batch) == ["started", "lost"], "its lease does not end")
    return batch, zombie, permit


@pytest.mark.parametrize("meets", ["the fence", "a kill"])
def test_19_a_replica_is_cut_off_and_another_goes_on(bench: Bench, meets: str) -> None:
    """It comes back after its user code has gone on, or before."""
    batch, zombie, permit = cut_off(bench)
    heir = bench.start("replica")
    stored = bench.read_checkpoints(f"{batch}-0", 1)
    resumed = bench.permit(heir)
    bench.stage.wait_for("b", 2)
    if meets == "the fence":
        running = len(zombie.find_family())
        bench.stage.release_first("b")
        until(lambda: len(zombie.find_family()) < running, "the zombie's process lives")
        assert bench.read_checkpoints(f"{batch}-0", 1) == stored
        assert bench.ask("get_pool")["refused_results"] == 0

    bench.ground.cut(zombie.name).unlink()

    assert permit.result(WAIT_S)
    assert bench.ask("get_pool")["refused_results"] == 1
    assert not bench.has_ended(batch)
    bench.stage.release("b")
    assert resumed.result(WAIT_S)
    check_cut_off(bench, batch, zombie, stored)


def test_19_a_replica_is_cut_off_and_comes_back_before_another_goes_on(bench: Bench) -> None:
    """A refused end deletes nothing that the next attempt needs."""
    batch, zombie, permit = cut_off(bench)
    stored = bench.read_checkpoints(f"{batch}-0", 1)

    bench.ground.cut(zombie.name).unlink()

    assert permit.result(WAIT_S)
    assert bench.ask("get_pool")["refused_results"] == 1
    bench.stage.release("b")
    bench.run_to_end(zombie, batch)
    check_cut_off(bench, batch, zombie, stored)


def check_cut_off(bench: Bench, batch: str, zombie: Party, stored: list[str]) -> None:
    """What the zombie has left to its successor, which may be the same replica."""
    story = ["started", "lost", "resumed", "completed"]
    events = bench.check(batch, ran=["a", "b", *ALL[1:]], story=story)
    assert find_resumed(events) == stored[-1:]
    failed = [e["payload"] for e in events if e["type"] == "ray_actor_failed"]
    assert [(p["replica_id"], p["error_type"]) for p in failed] == [(zombie.name, "LeaseExpired")]


@pytest.mark.parametrize("ends", ["at its next checkpoint", "with its grace"])
def test_20_serve_stops_a_replica(bench: Bench, ends: str) -> None:
    """What is handed back does not count against `max_attempts`."""
    bench.start("collector")
    victim = bench.start("replica", drain_s=1.0 if ends == "with its grace" else 100.0)
    heir = bench.start("replica")
    bench.list_pool(victim, heir)
    batch = bench.submit(retry={"max_attempts": 1})
    bench.stage.hold("b")
    permit = bench.permit(victim)
    bench.stage.wait_for("b")

    bench.list_pool(heir, stopping=(victim,))

    until(lambda: "Serve stops this replica" in victim.read_log(), "it is not told to drain")
    ran = ["a", "b", *ALL[1:]]
    if ends == "at its next checkpoint":
        bench.stage.release("b")
        ran = ALL
    assert permit.result(WAIT_S)
    assert bench.read_story(batch) == ["started", "lost"]
    stored = bench.read_checkpoints(f"{batch}-0", 1)
    assert not victim.ask("run", "another permit")
    victim.kill()
    if ends == "with its grace":
        bench.stage.release("b")
    bench.run_to_end(heir, batch)
    events = bench.check(batch, ran=ran, story=["started", "lost", "resumed", "completed"])
    assert find_resumed(events) == stored[-1:]
    (handed_back,) = [e["payload"] for e in events if e["type"].endswith("execution_failed")]
    assert (handed_back["reason"], handed_back["will_retry"]) == ("drained", True)
    assert "ray_actor_failed" not in [e["type"] for e in events]


def find_resumed(events: list[dict[str, Any]]) -> list[str]:
    """The checkpoints that attempts went on from."""
    started = [e["payload"] for e in events if e["type"] == "ray_variant_execution_started"]
    return [p["resumed_from"] for p in started if p["resumed_from"] is not None]
