"""A fork is a batch of one execution that carries where it goes on from."""

import asyncio

import pytest
from store_bench import fail

from tests.left_behind import LeftBehind, Projects
from wtb_core import forks
from wtb_core.attempts import Origin
from wtb_core.errors import (
    Conflict,
    InvalidRequest,
    InvalidSpec,
    NotForkable,
    NotFound,
    TooManyPending,
)
from wtb_core.store import reuse, views
from wtb_core.submission import renew

FIELDS: dict = {
    "name": "nightly",
    "labels": {"team": "search"},
    "repetitions": 2,
    "evaluators": ["score"],
    "limits": {"timeout": "3m"},
    "variants": [
        {"name": "plain"},
        {"name": "tuned", "nodes": {"check": "old"}, "config": {"depth": 1, "width": 2}},
    ],
}
SCORES = {"score": {"weight": 1.0, "higher_is_better": True, "failure_score": 0.0}}


@pytest.fixture
def left(tmp_path):
    return LeftBehind(tmp_path)


@pytest.fixture
def parent(store, left):
    """A batch of two variants, two cases and two repetitions, of which all have ended."""
    batch = store.make(cases=2, scores=SCORES, **FIELDS)._replace(project_version=left.version)
    store.accept(batch)
    while (assignment := store.claim()) is not None:
        store.finish(assignment, left.outcome())
    return batch.batch_id


def make(store, left, execution_id, version=None, **asked):
    asked = {"checkpoint_id": "c-2", **asked}
    source = store.read(lambda c: views.read_fork_source(c, execution_id, asked.get("attempt")))
    return asyncio.run(forks.make(asked, source, left.files, Projects(version or left.version)))


def fork(store, left, execution_id, *, key=None, **asked):
    return store.accept(make(store, left, execution_id, **asked)._replace(idempotency_key=key))


def test_a_fork_is_one_execution_of_the_same_case_and_repetition(store, left, parent):
    chosen = f"{parent}-7"  # the second repetition of the second case with the second variant

    receipt = fork(
        store, left, chosen, state={"tries": 9}, nodes={"propose": "flip"}, config={"depth": 5}
    )

    assert (receipt.status, receipt.executions, receipt.created) == ("pending", 1, True)
    view = store.view(receipt.batch_id)
    assert view["forked_from"] == {"execution_id": chosen, "attempt": 1, "checkpoint_id": "c-2"}
    assert (view["name"], view["labels"], view["retry_of"]) == ("nightly", {"team": "search"}, None)
    assert [case["id"] for case in view["spec"]["cases"]] == ["c1"]
    assert view["spec"]["limits"]["timeout"] == 180
    (variant,) = view["variants"]
    assert variant["name"] == "tuned"
    assert variant["nodes"] == {"check": "old", "propose": "flip"}
    assert variant["config"] == {"depth": 5, "width": 2}
    assignment = store.claim()
    assert assignment.execution_id == f"{receipt.batch_id}-0"
    assert (assignment.case["id"], assignment.repetition) == ("c1", 1)
    assert (assignment.project_version, assignment.evaluators) == (left.version, ["score"])
    assert assignment.origin == Origin(
        execution_id=chosen,
        attempt=1,
        checkpoint_id="c-2",
        history=left.history,
        file_commit_id=left.middle,
        state={"tries": 9},
    )
    started = store.events(receipt.batch_id)[0]["payload"]
    assert (started["executions"], started["scores"]) == (1, SCORES)


def test_the_parent_is_not_touched(store, left, parent):
    before = store.snapshot(parent)

    fork(store, left, f"{parent}-0")
    store.finish(store.claim(), left.outcome())

    assert store.snapshot(parent) == before
    assert store.view(parent)["forked_from"] is None


def test_only_a_fork_has_an_origin(store, left, parent):
    store.submit()
    assert store.claim().origin is None


def test_a_later_writer_gives_the_origin_too(store, left, parent):
    fork(store, left, f"{parent}-0")
    store.restart()
    assert store.claim().origin.checkpoint_id == "c-2"


def test_a_retry_of_a_fork_goes_on_from_the_same_checkpoint(store, left, parent):
    first = fork(store, left, f"{parent}-7").batch_id
    store.finish(store.claim(), fail())

    second = store.renew(first).batch_id

    assignment = store.claim()
    assert assignment.batch_id == second
    assert (assignment.origin.checkpoint_id, assignment.repetition) == ("c-2", 1)
    assert store.view(second)["forked_from"] == store.view(first)["forked_from"]


def test_a_retry_of_a_fork_does_not_change_its_version(store, left, parent):
    first = fork(store, left, f"{parent}-0").batch_id
    store.finish(store.claim(), fail())
    batch = store.read(lambda c: reuse.renew(c, first, "b-new", None, None))

    class Changed(Projects):
        async def get(self, name):
            project = await super().get(name)
            project.description["nodes"]["check"] = ["old"]
            project.description["evaluators"] = ["score"]
            project.definition.scores = {}
            project.name = "p"
            return project

    with pytest.raises(InvalidRequest, match="has changed"):
        asyncio.run(renew(batch, Changed("f" * 64), admission=10))
    kept = asyncio.run(renew(batch, Changed(left.version), admission=10))
    assert (kept.origin, kept.repetition) == (batch.origin, batch.repetition)
    assert kept.origin is not None


def test_a_reused_execution_is_forked_from_the_one_that_ran(store, left):
    batch = store.make(cases=2)._replace(project_version=left.version)
    store.accept(batch)
    store.finish(store.claim(), left.outcome())
    store.finish(store.claim(), fail())
    second = store.renew(batch.batch_id).batch_id

    receipt = fork(store, left, f"{second}-0")

    assert store.view(receipt.batch_id)["forked_from"]["execution_id"] == f"{batch.batch_id}-0"


def test_a_fork_of_a_fork_keeps_the_repetition(store, left, parent):
    first = fork(store, left, f"{parent}-7").batch_id
    store.finish(store.claim(), left.outcome())

    fork(store, left, f"{first}-0")

    assignment = store.claim()
    assert (assignment.repetition, assignment.origin.execution_id) == (1, f"{first}-0")


def test_the_same_key_makes_one_fork_and_asking_otherwise_is_a_conflict(store, left, parent):
    first = fork(store, left, f"{parent}-0", key="k")
    again = fork(store, left, f"{parent}-0", key="k")
    assert (again.batch_id, again.created) == (first.batch_id, False)

    for other in ({"state": {"a": 1}}, {"checkpoint_id": "c-1"}, {"config": {"a": 1}}):
        with pytest.raises(Conflict):
            fork(store, left, f"{parent}-0", key="k", **other)
    with pytest.raises(Conflict):
        fork(store, left, f"{parent}-1", key="k")


def test_a_fork_counts_against_the_admission_limit(open_store, left):
    store = open_store(admission=1)
    batch = store.make()._replace(project_version=left.version)
    store.accept(batch)
    store.finish(store.claim(), left.outcome())
    store.submit()

    with pytest.raises(TooManyPending):
        fork(store, left, f"{batch.batch_id}-0")


def test_the_latest_attempt_that_ended_is_meant_unless_one_is_named(store, left):
    batch = store.make()._replace(project_version=left.version)
    store.accept(batch)
    other = left.keep(left.checkpoint("c-9", left.start))
    crashed = fail("crash").model_copy(update={"history": left.history})
    store.finish(store.claim(), crashed)
    store.finish(store.claim(), left.outcome(history=other))
    execution = f"{batch.batch_id}-0"

    assert make(store, left, execution, checkpoint_id="c-9").origin.attempt == 2
    assert make(store, left, execution, checkpoint_id="c-1", attempt=1).origin.attempt == 1
    with pytest.raises(NotFound):
        make(store, left, execution, checkpoint_id="c-1")
    with pytest.raises(NotFound):
        make(store, left, execution, attempt=3)


def test_what_has_not_ended_cannot_be_forked(store, left):
    batch = store.make()._replace(project_version=left.version)
    store.accept(batch)
    execution = f"{batch.batch_id}-0"
    with pytest.raises(NotForkable, match="has not run"):
        make(store, left, execution)
    assignment = store.claim()
    with pytest.raises(NotForkable, match="still running"):
        make(store, left, execution)
    store.finish(assignment, left.outcome(history=None))
    with pytest.raises(NotForkable, match="left no history"):
        make(store, left, execution)


def test_a_history_that_is_gone_or_damaged_cannot_be_forked(store, left, parent):
    path = left.blobs.path(left.history)
    path.write_bytes(b"no history")
    with pytest.raises(NotForkable, match="damaged"):
        make(store, left, f"{parent}-0")
    path.unlink()
    with pytest.raises(NotForkable, match="gone"):
        make(store, left, f"{parent}-0")


@pytest.mark.parametrize("name", ["sub", "lost"])
def test_a_checkpoint_that_is_no_fork_point_is_refused(store, left, parent, name):
    with pytest.raises(NotForkable):
        make(store, left, f"{parent}-0", checkpoint_id=name)


def test_all_problems_come_in_one_answer(store, left, parent):
    with pytest.raises(InvalidSpec) as caught:
        make(
            store,
            left,
            f"{parent}-0",
            checkpoint_id="",
            state=[1],
            nodes={"nosuch": "flip", "propose": "nosuch", "check": 1},
            config={"thread_id": "x"},
        )

    assert sorted(problem.path for problem in caught.value.problems) == [
        "checkpoint_id",
        "config.thread_id",
        "nodes.check",
        "nodes.nosuch",
        "nodes.propose",
        "state",
    ]


@pytest.mark.parametrize("state", [{"a": {1, 2}}, {"a": float("inf")}, {"a": 2**70}, {1: 2}])
def test_a_state_is_json(store, left, parent, state):
    with pytest.raises(InvalidSpec) as caught:
        make(store, left, f"{parent}-0", state=state)
    assert caught.value.problems[0].path.startswith("state")


def test_a_state_has_a_size(store, left, parent, monkeypatch):
    monkeypatch.setattr(forks, "MAX_STATE_CHARS", 13)
    make(store, left, f"{parent}-0", state={"a": "1234"})
    with pytest.raises(InvalidSpec, match="14 characters"):
        make(store, left, f"{parent}-0", state={"a": "12345"})


def test_names_are_left_to_the_execution_when_the_version_is_gone(store, left, parent):
    batch = make(store, left, f"{parent}-0", version="f" * 64, nodes={"nosuch": "flip"})

    assert batch.project_version == left.version
    assert batch.variants[0]["nodes"] == {"nosuch": "flip"}
    with pytest.raises(InvalidSpec):
        make(store, left, f"{parent}-0", nodes={"nosuch": "flip"})


@pytest.mark.parametrize("attempt", [0, -1, True, "1", 1.0, 1_001])
def test_a_number_of_an_attempt_is_one(attempt):
    with pytest.raises(InvalidSpec):
        forks.check_attempt(attempt)


@pytest.mark.parametrize(
    ("document", "paths"),
    [
        ([], [""]),
        ({}, ["checkpoint_id"]),
        ({"checkpoint_id": "c", "surprise": 1, "node": {}}, ["surprise", "node"]),
    ],
)
def test_a_body_has_the_fields_of_a_request(document, paths):
    with pytest.raises(InvalidSpec) as caught:
        forks.read_body(document)
    assert [problem.path for problem in caught.value.problems] == paths
