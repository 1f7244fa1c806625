"""A replica that is stopped hands its attempts back, and what they stored is not done again."""

import asyncio
import json
import time
from collections import Counter

import pytest
from losses import Losses, add_graphs, after_root, assign, result
from sandbox_bench import Bench

from wtb_core import attempt_run, history
from wtb_core.checkpoint_store import Scope
from wtb_core.files.commits import decode

LONG_S = 600.0


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A replica on another node, which shares the blobs only."""
    root = tmp_path_factory.mktemp("elsewhere")
    bench = add_graphs(Bench(root / "data"), root / "base")
    yield bench
    bench.close()


@pytest.fixture
def others(elsewhere, monkeypatch):
    return Losses(elsewhere, monkeypatch)


@pytest.fixture
def losses(tmp_path, elsewhere, monkeypatch):
    """The replica that is stopped: its engine takes up nothing more."""
    bench = add_graphs(Bench(tmp_path / "data", blobs=elsewhere.blobs.root), tmp_path / "base")
    yield Losses(bench, monkeypatch)
    bench.close()


def drain_at(losses, number, grace_s=LONG_S):
    """Tell the engine while an attempt stores a root checkpoint, counted from 0."""

    def look(message, done):
        if not done and message.source is not None and message.roots == number:
            losses.bench.engine.drain(grace_s)
        return False

    losses.dies = look


def end_grace(bench):
    async def run():
        bench.engine.drain(0.0)
        await asyncio.sleep(0.05)

    bench.call(run())


async def until_stored(bench, assignment, count):
    while len(await bench.store.list_checkpoints(assignment.execution_id, 1)) < count:
        await asyncio.sleep(0.01)


def check_handed_back(bench, outcome):
    """Its root checkpoints."""
    assert (outcome.status, outcome.drained) == ("failed", True)
    assert (outcome.failure.kind, outcome.failure.reason) == ("lost", "drained")
    assert outcome.files is not None
    rows = history.decode(bench.blobs.get(outcome.history)).checkpoints
    return [row for row in rows if not row.ns]


def go_on(losses, given, outcome):
    """The end of the next attempt, which is a replica's elsewhere."""
    losses.dies = lambda message, done: False
    point = losses.find_point(given, 2, outcome.history)
    assert point.history == outcome.history
    return losses.run(given.model_copy(update={"attempt": 2, "resume": point}))


@pytest.mark.parametrize("graph", ["plain", "asynchronous", "parallel", "remembering", "asking"])
def test_an_attempt_stops_at_a_superstep_and_another_node_goes_on(losses, others, graph):
    whole = assign(others.bench, graph)
    expected = result(others.run(whole))
    given = assign(losses.bench, graph)
    drain_at(losses, 2)

    outcome = losses.run(given)

    rows = check_handed_back(losses.bench, outcome)
    assert [row.source for row in rows] == ["input", "loop", "loop"]
    assert result(go_on(others, given, outcome)) == expected
    ran = Counter(losses.names(given, 1)) + Counter(others.names(given, 2))
    assert ran == Counter(others.names(whole, 1))


def test_a_checkpoint_that_user_code_does_not_wait_for_is_not_one_to_stop_at(losses):
    """The first superstep may have begun before the input is stored."""
    drain_at(losses, 0)
    rows = check_handed_back(losses.bench, losses.run(assign(losses.bench, "plain")))
    assert [row.source for row in rows] == ["input", "loop"]


def test_the_last_superstep_is_one_to_stop_at(losses, others):
    """Only the evaluators are left then."""
    given = assign(losses.bench, "plain", evaluators=["logged"])
    drain_at(losses, 4)
    outcome = losses.run(given)
    rows = check_handed_back(losses.bench, outcome)
    assert json.loads(rows[-1].shown) == {"log": ["a", "b", "c"]}
    end = go_on(others, given, outcome)
    assert json.loads(end.output) == {"log": ["a", "b", "c"]}
    assert (end.evaluation.scores, others.names(given, 2)) == ({"logged": 3}, [])


def test_evaluators_that_run_may_finish(losses, monkeypatch):
    evaluate = attempt_run.evaluate

    async def drain_first(*arguments):
        losses.bench.engine.drain(LONG_S)
        return await evaluate(*arguments)

    monkeypatch.setattr(attempt_run, "evaluate", drain_first)
    outcome = losses.run(assign(losses.bench, "plain", evaluators=["logged"]))
    assert (outcome.status, outcome.drained) == ("succeeded", False)
    assert outcome.evaluation.scores == {"logged": 3}


def test_evaluators_are_stopped_when_the_grace_is_over_and_run_again(losses, others, monkeypatch):
    evaluate = attempt_run.evaluate

    async def hang(*_arguments):
        losses.bench.engine.drain(0.1)
        await asyncio.sleep(60)

    monkeypatch.setattr(attempt_run, "evaluate", hang)
    given = assign(losses.bench, "plain", evaluators=["logged"])
    outcome = losses.run(given)
    check_handed_back(losses.bench, outcome)
    assert outcome.output is None
    monkeypatch.setattr(attempt_run, "evaluate", evaluate)
    end = go_on(others, given, outcome)
    assert (end.evaluation.scores, others.names(given, 2)) == ({"logged": 3}, [])


def test_what_reaches_no_checkpoint_is_stopped_when_the_grace_is_over(losses, others):
    """Its last superstep is undone, with its files."""
    given = assign(losses.bench, "waiting")
    losses.dies = lambda message, done: False

    async def run():
        running = asyncio.ensure_future(losses.bench.engine.execute(given))
        await until_stored(losses.bench, given, 3)
        while not losses.names(given, 1)[1:]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        losses.bench.engine.drain(0.2)
        return await running

    started = time.monotonic()
    outcome = losses.bench.call(run())
    assert time.monotonic() - started < 30
    rows = check_handed_back(losses.bench, outcome)
    assert json.loads(rows[-1].shown) == {"log": ["a"]}
    assert outcome.files.paths == ["a.txt", "wait.txt"]  # as it was when it was stopped
    point = others.find_point(given, 2, outcome.history)
    assert point.checkpoint_id == rows[-1].checkpoint_id
    assert "wait.txt" not in decode(losses.bench.blobs.get(rows[-1].file_commit)).entries


def test_an_attempt_that_is_cancelled_stays_cancelled(losses):
    engine = losses.bench.engine
    given = assign(losses.bench, "waiting")

    async def run():
        running = asyncio.ensure_future(engine.execute(given))
        await until_stored(losses.bench, given, 1)
        assert await engine.cancel(given.execution_id, 1, "by the user")
        engine.drain(0.0)
        return await running

    outcome = losses.bench.call(run())
    assert (outcome.status, outcome.drained) == ("cancelled", False)


def test_asking_again_changes_nothing_and_what_drains_can_be_cancelled(losses):
    engine = losses.bench.engine
    given = assign(losses.bench, "waiting")

    async def run():
        running = asyncio.ensure_future(engine.execute(given))
        await until_stored(losses.bench, given, 3)
        for grace_s in (LONG_S, 0.0, 0.0):
            engine.drain(grace_s)
        await asyncio.sleep(0.3)
        assert not running.done()
        assert await engine.cancel(given.execution_id, 1, "by the user")
        return await running

    assert losses.bench.call(run()).status == "cancelled"


def test_what_comes_when_the_grace_is_over_is_handed_back_before_user_code(losses):
    end_grace(losses.bench)
    outcome = losses.run(assign(losses.bench, "waiting"))
    assert (outcome.failure.kind, outcome.drained) == ("lost", True)
    assert (outcome.nodes, outcome.history) == ([], None)


def test_an_attempt_that_is_handed_back_early_costs_its_predecessor_nothing(losses):
    """It was given while its replica began to stop, and has not even imported the rows."""
    bench = losses.bench
    given = assign(bench, "plain")
    losses.dies = after_root(2)
    assert losses.run(given) is None
    losses.dies = lambda message, done: False
    point = losses.find_point(given, 2)
    end_grace(bench)
    outcome = losses.run(given.model_copy(update={"attempt": 2, "resume": point}))
    assert (outcome.drained, outcome.history) == (True, None)
    assert bench.call(bench.store.export(Scope(given.execution_id, 2))).checkpoints == []
    assert losses.find_point(given, 3) == point
