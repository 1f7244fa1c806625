"""An attempt that is lost anywhere is gone on from: it ends as if nothing had been lost."""

import json
import logging
import sqlite3
from collections import Counter
from contextlib import closing
from typing import NamedTuple

import pytest
from levels import LEVELS, find_obstacle
from losses import (
    GRAPHS,
    Death,
    Losses,
    add_graphs,
    after_root,
    assign,
    before,
    result,
)
from sandbox_bench import Bench

from wtb_core import attempt_run, history
from wtb_core.attempts import Origin, ResumePoint
from wtb_core.checkpoint_store import Scope
from wtb_core.errors import FenceError
from wtb_core.files.blobs import DURABLE_MODE
from wtb_core.files.commits import decode
from wtb_core.store.records import Lookup, Offer


@pytest.fixture(scope="module")
def resumed(bench, tmp_path_factory):
    return add_graphs(bench, tmp_path_factory.mktemp("base"))


@pytest.fixture
def losses(resumed, monkeypatch):
    return Losses(resumed, monkeypatch)


@pytest.fixture
def whole(losses, graph):
    """The execution that nothing happens to."""
    assignment = assign(losses.bench, graph)
    return Whole(
        result(losses.run(assignment)),
        losses.names(assignment, 1),
        losses.list_messages(assignment),
    )


class Whole(NamedTuple):
    result: tuple
    nodes: list
    messages: list


def list_again(losses, lost, whole, attempts):
    """The nodes that ran more often than without losses."""
    ran = Counter(name for k in range(attempts) for name in losses.names(lost, k + 1))
    return ran - Counter(whole.nodes)


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_loss_once_a_superstep_is_stored_repeats_nothing(losses, graph, whole):
    """The next one waits for that; only a graph's first one does not wait for the input."""
    roots = [message for message in whole.messages if message.source is not None]
    assert Counter(root.source for root in roots)["loop"] >= 1
    for root in roots:
        lost = assign(losses.bench, graph)
        outcome, points = losses.run_to_end(lost, after_root(root.roots))
        assert len(points) == 2
        assert points[1] is not None
        assert result(outcome) == whole.result
        again = list_again(losses, lost, whole, 2)
        assert again <= Counter(losses.interrupted(lost, 1))
        if root.source == "loop":
            assert again == Counter()


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_loss_at_any_moment_repeats_the_interrupted_superstep_only(losses, graph, whole):
    for message in whole.messages:
        lost = assign(losses.bench, graph)
        outcome, points = losses.run_to_end(lost, before(message.number))
        assert len(points) == 2
        assert (points[1] is None) == (losses.list_messages(lost)[-1].roots == 0)
        assert result(outcome) == whole.result
        assert list_again(losses, lost, whole, 2) <= Counter(losses.interrupted(lost, 1))


@pytest.mark.parametrize("graph", GRAPHS)
def test_losses_at_every_checkpoint_change_nothing(losses, graph, whole):
    """Each attempt but the last stores one checkpoint."""

    def dies(message, done):
        return done and message.source is not None and message.attempt <= 12

    lost = assign(losses.bench, graph)
    outcome, points = losses.run_to_end(lost, dies)
    assert result(outcome) == whole.result
    assert len(points) > 3
    assert len(set(points)) == len(points), "an attempt has made no progress"
    interrupted = Counter(
        name for k in range(len(points)) for name in losses.interrupted(lost, k + 1)
    )
    assert list_again(losses, lost, whole, len(points)) <= interrupted


# -- forks ---------------------------------------------------------------------------------------


def make_origin(bench, outcome, log, state):
    """The checkpoint of an execution at which its state was `log`."""
    rows = history.decode(bench.blobs.get(outcome.history)).checkpoints
    wanted = {"log": log}
    [row] = [r for r in rows if r.source == "loop" and json.loads(r.shown or "{}") == wanted]
    return Origin(
        execution_id="parent",
        attempt=1,
        checkpoint_id=row.checkpoint_id,
        history=outcome.history,
        file_commit_id=row.file_commit,
        state=state,
    )


@pytest.mark.parametrize("state", [None, {"log": ["changed"]}])
@pytest.mark.parametrize("graph", ["plain", "remembering"])
def test_a_fork_goes_on_and_its_state_is_applied_once(losses, graph, state):
    bench = losses.bench
    parent = losses.run(assign(bench, graph))
    origin = make_origin(bench, parent, ["a"], state)
    options = {"origin": origin, "case_files": {"case.txt": "of the case"}}
    forked = assign(bench, graph, **options)
    expected = result(losses.run(forked))
    assert expected[0]["log"].count("changed") == bool(state)
    messages = losses.list_messages(forked)
    first = next(message.source for message in messages if message.source)
    assert first == ("update" if state else "fork")

    for message in messages:
        lost = assign(bench, graph, **options)
        outcome, points = losses.run_to_end(lost, before(message.number))
        assert result(outcome) == expected
        assert (points[1] is None) == (losses.list_messages(lost)[-1].roots == 0)
        assert points[1] != origin.checkpoint_id


# -- what counts on ------------------------------------------------------------------------------


def is_enough(losses, graph, limit, dies=lambda message, done: False, **options):
    """Whether an execution ends within a recursion limit."""
    assignment = assign(losses.bench, graph, variant={"recursion_limit": limit}, **options)
    outcome, _ = losses.run_to_end(assignment, dies)
    if outcome.failure is None:
        return True
    assert outcome.failure.error_type == "langgraph.errors.GraphRecursionError"
    assert f"Recursion limit of {limit} reached" in outcome.failure.message
    return False


def check_limits(losses, graph, **options):
    """The same limit is enough, and the same one is not, wherever the attempt is lost."""

    def everywhere(message, done):
        return done and message.source is not None and message.attempt <= 20

    enough = next(limit for limit in range(1, 9) if is_enough(losses, graph, limit, **options))
    for root in range(enough):
        assert is_enough(losses, graph, enough, after_root(root), **options), root
        assert not is_enough(losses, graph, enough - 1, after_root(root), **options), root
    assert is_enough(losses, graph, enough, everywhere, **options)
    assert not is_enough(losses, graph, enough - 1, everywhere, **options)


@pytest.mark.parametrize("graph", ["looping", "looping_asking", "asynchronous"])
def test_the_recursion_limit_counts_on(losses, graph):
    check_limits(losses, graph)


@pytest.mark.parametrize("state", [None, {"log": ["changed"]}])
def test_the_recursion_limit_of_a_fork_counts_on(losses, state):
    parent = losses.run(assign(losses.bench, "looping"))
    origin = make_origin(losses.bench, parent, [], state)
    check_limits(losses, "looping", origin=origin)


def test_a_graph_that_had_ended_is_not_run_again_only_its_evaluators(losses, monkeypatch):
    whole = assign(losses.bench, "plain", evaluators=["logged", "files"])
    expected = losses.run(whole)
    assert expected.evaluation.scores == {"logged": 3, "files": 4}
    evaluate, calls = attempt_run.evaluate, []

    async def die_once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise Death
        return await evaluate(*arguments)

    monkeypatch.setattr(attempt_run, "evaluate", die_once)
    lost = assign(losses.bench, "plain", evaluators=["logged", "files"])
    outcome, points = losses.run_to_end(lost)
    assert len(calls) == len(points) == 2
    assert result(outcome) == result(expected)
    assert outcome.evaluation == expected.evaluation
    assert losses.names(lost, 2) == []
    assert outcome.files.checkpoint_id is not None


def test_files_of_the_variant_and_the_case_are_not_written_again(losses):
    """The graph may have changed or removed them since."""
    bench = losses.bench
    files = {"a.txt": "of the case\n", "base.txt": "of the case"}
    options = {"case_files": files, "variant": {"files": {"b.txt": "of the variant\n"}}}
    whole = result(losses.run(assign(bench, "plain", **options)))
    for root in range(5):
        outcome, _ = losses.run_to_end(assign(bench, "plain", **options), after_root(root))
        assert result(outcome) == whole
        final = decode(bench.blobs.get(outcome.files.file_commit_id))
        assert bench.blobs.get(final.entries["a.txt"].blob) == b"of the case\nafter \n"


@pytest.mark.parametrize("level", ["overlay", "landlock_copy"])
def test_a_loss_is_gone_on_from_at_every_level(tmp_path, monkeypatch, level):
    obstacle = find_obstacle(LEVELS[level], tmp_path / "check")
    if obstacle is not None:
        pytest.skip(obstacle)
    bench = add_graphs(Bench(tmp_path / "data", grade=LEVELS[level]), tmp_path / "base")
    try:
        losses = Losses(bench, monkeypatch)
        expected = result(losses.run(assign(bench, "parallel")))
        for dies in (before(4), after_root(2), after_root(3)):
            outcome, _ = losses.run_to_end(assign(bench, "parallel"), dies)
            assert result(outcome) == expected
    finally:
        bench.close()


# -- what an attempt that went on leaves ---------------------------------------------------------


def test_the_history_is_whole_and_all_its_files_are_durable(losses):
    bench = losses.bench
    whole = history.decode(bench.blobs.get(losses.run(assign(bench, "asking")).history))
    lost = assign(bench, "asking")
    outcome, points = losses.run_to_end(lost, after_root(3))
    found = history.decode(bench.blobs.get(outcome.history))
    assert [row.source for row in found.checkpoints].count("fork") == 1
    kept = [row for row in found.checkpoints if row.source != "fork"]
    assert [row.answered for row in whole.checkpoints] == [0, 0, 0, 2, 2, 4, 4]
    for one, other in zip(whole.checkpoints, kept, strict=True):
        same = {"ns", "source", "file_commit", "shown", "answered"}
        assert one.model_dump(include=same) == other.model_dump(include=same)
    assert points[1] == kept[3].checkpoint_id
    for commit_id in {row.file_commit for row in kept}:
        blobs = [entry.blob for entry in decode(bench.blobs.get(commit_id)).entries.values()]
        for digest in (commit_id, *filter(None, blobs)):
            assert bench.blobs.look(digest).st_mode & 0o777 == DURABLE_MODE


def test_a_checkpoint_whose_files_were_lost_meanwhile_is_no_fork_point(losses):
    bench = losses.bench
    expected = result(losses.run(assign(bench, "plain")))
    lost = assign(bench, "plain", case_files={"own.txt": "of this execution alone"})
    losses.dies = after_root(3)
    assert losses.run(lost) is None
    point = losses.find_point(lost, 2)
    rows = bench.call(bench.store.export(Scope(lost.execution_id, 1))).checkpoints
    bench.blobs.path(rows[2].file_commit).unlink()
    losses.dies = lambda message, done: False
    outcome = losses.run(lost.model_copy(update={"attempt": 2, "resume": point}))
    assert json.loads(outcome.output) == expected[0]
    found = history.decode(bench.blobs.get(outcome.history)).checkpoints
    assert [row.file_commit is None for row in found] == [False, False, True, *[False] * 3]


# -- looking for the point -----------------------------------------------------------------------


@pytest.fixture
def lost(losses):
    """An attempt that died after it had stored the input and three supersteps."""
    assignment = assign(losses.bench, "plain", case_files={"own.txt": "of this execution alone"})
    assignment = assignment.model_copy(update={"execution_id": f"lost-{assignment.execution_id}"})
    losses.dies = after_root(3)
    assert losses.run(assignment) is None
    losses.dies = lambda message, done: False
    return assignment


def stored(losses, assignment, attempt=1):
    scope = Scope(assignment.execution_id, attempt)
    return losses.bench.call(losses.bench.store.export(scope))


def find_offer(losses, assignment, attempt, *predecessors, origin=None):
    lookup = Lookup(assignment.execution_id, attempt, [*predecessors], origin)
    return losses.bench.call(losses.bench.engine.find_offer(lookup))


def go_on(losses, assignment, offer):
    point = ResumePoint(
        attempt=offer.source, checkpoint_id=offer.checkpoint_id, history=offer.history
    )
    changes = {"attempt": offer.attempt, "resume": point}
    return losses.run(assignment.model_copy(update=changes))


def keep_history(losses, assignment):
    """The history of the attempt as a blob, in place of its rows."""
    bench = losses.bench
    blob = bench.blobs.put(history.encode(stored(losses, assignment)))
    bench.call(bench.store.forget(assignment.execution_id, 1))
    return blob


def test_a_history_elsewhere_is_gone_on_from(losses, lost):
    expected = result(
        losses.run(assign(losses.bench, "plain", case_files={"own.txt": "of this execution alone"}))
    )
    last = stored(losses, lost).checkpoints[-1].checkpoint_id
    assert find_offer(losses, lost, 2, (1, None)) == Offer(lost.execution_id, 2, 1, last)
    blob = keep_history(losses, lost)
    assert find_offer(losses, lost, 2, (1, None)) == Offer(lost.execution_id, 2)
    offer = find_offer(losses, lost, 2, (1, blob))
    assert offer == Offer(lost.execution_id, 2, 1, last, blob)
    assert result(go_on(losses, lost, offer)) == expected


@pytest.mark.parametrize("content", [b"no history", None])
def test_a_history_that_cannot_be_read_is_passed_over_and_said(losses, lost, caplog, content):
    bench = losses.bench
    blob = keep_history(losses, lost)
    if content is None:
        bench.blobs.path(blob).unlink()
    else:
        bench.blobs.path(blob).chmod(0o600)
        bench.blobs.path(blob).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert find_offer(losses, lost, 2, (1, blob)) == Offer(lost.execution_id, 2)
    [record] = [each for each in caplog.records if "cannot be read" in each.message]
    assert (record.execution_id, record.attempt) == (lost.execution_id, 1)
    assert lost.execution_id in record.message


def test_the_newest_attempt_that_has_a_point_is_gone_on_from(losses, lost):
    last = stored(losses, lost).checkpoints[-1].checkpoint_id
    offer = find_offer(losses, lost, 3, (2, None), (1, None))
    assert (offer.source, offer.checkpoint_id) == (1, last)
    losses.dies = after_root(1, attempt=3)
    assert go_on(losses, lost, offer) is None
    newest = stored(losses, lost, 3).checkpoints[-1].checkpoint_id
    offer = find_offer(losses, lost, 4, (3, None), (2, None), (1, None))
    assert (offer.source, offer.checkpoint_id) == (3, newest)


@pytest.mark.parametrize("torn", ["commit", "file", "gone"])
def test_files_that_cannot_be_had_leave_the_checkpoint_before(losses, lost, torn):
    """As after a power loss: nothing of a lost attempt has been synced."""
    bench = losses.bench
    *_, before_last, last = stored(losses, lost).checkpoints
    commit = decode(bench.blobs.get(last.file_commit))
    earlier = decode(bench.blobs.get(before_last.file_commit))
    [changed] = commit.entries.keys() - earlier.entries.keys()
    path = bench.blobs.path(last.file_commit if torn == "commit" else commit.entries[changed].blob)
    bench.blobs._written.clear()  # as in another process
    path.unlink()
    if torn != "gone":
        path.write_bytes(b"")
        path.chmod(0o600)
    offer = find_offer(losses, lost, 2, (1, None))
    assert offer.checkpoint_id == before_last.checkpoint_id
    outcome = go_on(losses, lost, offer)
    assert outcome.status == "succeeded", outcome.failure
    assert json.loads(outcome.output) == {"log": ["a", "b", "c"]}


def test_a_lookup_stops_the_attempts_before_it(losses, lost):
    bench = losses.bench
    find_offer(losses, lost, 2, (1, None))
    with pytest.raises(FenceError):
        bench.call(bench.store.raise_fence(lost.execution_id, 1))
    bench.call(bench.store.raise_fence(lost.execution_id, 3))
    with pytest.raises(FenceError):
        find_offer(losses, lost, 2, (1, None))


def test_rows_that_do_not_hold_together_are_passed_over(losses, lost):
    bench = losses.bench
    rows = stored(losses, lost).checkpoints
    with closing(sqlite3.connect(bench.store.path)) as db:
        db.execute(
            "UPDATE checkpoints SET parent = 'nowhere' WHERE id = ?", (rows[-1].checkpoint_id,)
        )
        db.commit()
    offer = find_offer(losses, lost, 2, (1, None))
    assert offer.checkpoint_id == rows[-2].checkpoint_id


def test_a_point_that_is_gone_when_it_is_needed_is_a_loss_and_tried_again(losses, lost):
    """The started event says that it was gone on from, so the attempt does not start clean."""
    bench = losses.bench
    offer = find_offer(losses, lost, 2, (1, None))
    bench.call(bench.store.forget(lost.execution_id, 1))
    outcome = go_on(losses, lost, offer)
    assert (outcome.status, outcome.failure.kind) == ("failed", "lost")
    assert offer.checkpoint_id in outcome.failure.reason
    offer = find_offer(losses, lost, 3, (2, None), (1, None))
    assert offer == Offer(lost.execution_id, 3)
    outcome = losses.run(lost.model_copy(update={"attempt": 3}))
    assert json.loads(outcome.output) == {"log": ["a", "b", "c"]}


def test_files_that_are_gone_when_they_are_needed_are_a_loss_too(losses, lost):
    bench = losses.bench
    offer = find_offer(losses, lost, 2, (1, None))
    bench.blobs.path(stored(losses, lost).checkpoints[-1].file_commit).unlink()
    assert go_on(losses, lost, offer).failure.kind == "lost"
    again = find_offer(losses, lost, 3, (2, None), (1, None))
    assert again.checkpoint_id not in {None, offer.checkpoint_id}
