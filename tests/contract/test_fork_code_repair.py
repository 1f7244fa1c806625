"""Forks of an agent that edits files: its state and its files go together, at levels A and C."""

from pathlib import Path

import pytest
from levels import LEVELS, find_obstacle

from wtb_core.sandbox.ladder import Sandbox
from wtb_core.testbench import TestBench

EXAMPLES = Path(__file__).parents[2] / "examples"
EDITED = "toolbox/bowling.py"
# Flipping operators tries 14 candidates in vain, shifting constants repairs it with the 8th.
SPEC = {
    "project": "code_repair",
    "variants": [{"name": "flip", "nodes": {"propose": "flip_operators"}}],
    "cases": [{"id": "bowling", "input": {"module": "bowling.py"}, "reference": {"tests": 8}}],
}
SHIFT = {"propose": "shift_constants"}


@pytest.fixture(scope="module", params=["A", "C"])
def bench(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("repair")
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "A":
            obstacle = find_obstacle(LEVELS["overlay"], directory / "check")
            if obstacle is not None:
                pytest.skip(obstacle)
        else:
            patched.setitem(Sandbox.__init__.__kwdefaults__, "isolation", "copy")
        projects = ["code_repair/project.yaml"]
        with TestBench.local(directory / "data", root=EXAMPLES, projects=projects) as bench:
            bench.level = request.param
            yield bench


@pytest.fixture(scope="module")
def parent(bench):
    (execution,) = bench.run_batch(SPEC).executions
    assert execution["isolation"]["workspace"] == bench.level
    assert (execution["output"]["status"], execution["output"]["tried"]) == ("unrepaired", 14)
    return execution["execution_id"]


def fork(bench, execution_id, checkpoint, **changes):
    """The one execution of a fork, at its end."""
    batch_id = bench.fork(execution_id, checkpoint["checkpoint_id"], **changes)
    list(bench.events(batch_id))
    (execution,) = bench.read(batch_id).executions
    assert execution["status"] == "succeeded", execution["failure"]
    return bench.execution(execution["execution_id"])


def find_checkpoint(bench, execution_id, **state):
    """The first checkpoint whose state has these values."""
    return next(
        item
        for item in bench.checkpoints(execution_id)
        if state.items() <= (item["state"] or {}).items()
    )


def look_at(bench, execution_id):
    """Everything that is to be known of an execution and its batch."""
    execution = bench.execution(execution_id)
    checkpoints = bench.checkpoints(execution_id)
    points = ["start", "final", *(item["checkpoint_id"] for item in checkpoints)]
    return {
        "execution": execution,
        "checkpoints": checkpoints,
        "changes": bench.files(execution_id, "base", diff=True),
        "files": {point: bench.read_file(execution_id, EDITED, point) for point in points},
        "log": bench.log_bytes(execution_id),
        "batch": bench.batch(execution["batch_id"]),
        "events": list(bench.events(execution["batch_id"])),
    }


def test_another_strategy_goes_on_where_the_first_one_began_to_differ(bench, parent):
    before = look_at(bench, parent)
    middle = find_checkpoint(bench, parent, tried=0)  # localised, nothing proposed

    forked = fork(bench, parent, middle, nodes=SHIFT)

    assert (forked["output"]["status"], forked["output"]["tried"]) == ("repaired", 8)
    assert forked["scores"]["tests_pass"] == 1.0
    log = bench.log(forked["execution_id"])
    assert log.startswith("propose bowling.py: 24 patches")
    assert look_at(bench, parent) == before


def test_a_fork_begins_with_the_state_and_the_files_of_its_checkpoint(bench, parent):
    before = look_at(bench, parent)
    middle = find_checkpoint(bench, parent, tried=5)
    at = middle["checkpoint_id"]
    edited = before["files"][at]
    assert edited not in {before["files"]["start"], before["files"]["final"]}

    forked = fork(bench, parent, middle, nodes=SHIFT)

    execution_id = forked["execution_id"]
    assert forked["start_commit_id"] == middle["file_commit_id"]
    assert bench.read_file(execution_id, EDITED, "start") == edited
    items = bench.checkpoints(execution_id)
    past = [item for item in before["checkpoints"] if item["step"] <= middle["step"]]
    same = ("checkpoint_id", "parent_id", "step", "state")
    shown = [[item[key] for key in same] for item in items[: len(past)]]
    assert shown == [[item[key] for key in same] for item in past]
    first = items[len(past)]
    assert (first["source"], first["state"]) == ("fork", middle["state"])
    assert first["file_commit_id"] == middle["file_commit_id"]
    found = bench.files(execution_id, "start", "final", diff=True)
    assert (found["from"], [item["path"] for item in found["items"]]) == ("start", [EDITED])
    removed = [line[1:] for line in found["items"][0]["diff"].splitlines() if line[0] == "-"]
    assert any(line in edited.decode().splitlines() for line in removed[1:])
    (from_base,) = bench.files(execution_id, "base", at)["items"]
    assert from_base["path"] == EDITED
    assert bench.log(execution_id).startswith("run_tests bowling.py")
    assert forked["output"]["tried"] == 14
    assert look_at(bench, parent) == before


def test_a_changed_state_is_what_the_fork_goes_on_with(bench, parent):
    middle = find_checkpoint(bench, parent, tried=5)
    candidates = middle["state"]["candidates"][:7]

    forked = fork(bench, parent, middle, state={"candidates": candidates})

    items = bench.checkpoints(forked["execution_id"])
    (changed,) = [item for item in items if item["source"] == "update"]
    assert changed["state"] == middle["state"] | {"candidates": candidates}
    assert changed["file_commit_id"] == middle["file_commit_id"]
    assert forked["output"]["tried"] == 7
    assert bench.execution(parent)["output"]["tried"] == 14


def test_the_first_and_the_last_checkpoint_are_forked_too(bench, parent):
    first, *_, last = bench.checkpoints(parent)

    whole = fork(bench, parent, first, nodes=SHIFT)
    nothing = fork(bench, parent, last)

    assert (whole["output"]["status"], whole["output"]["tried"]) == ("repaired", 8)
    assert whole["start_commit_id"] == first["file_commit_id"]
    assert nothing["output"] == bench.execution(parent)["output"]
    assert nothing["node_count"] == 0
    assert nothing["start_commit_id"] == nothing["file_commit_id"] == last["file_commit_id"]
    assert bench.files(nothing["execution_id"])["items"] == []


def test_a_fork_is_forked(bench, parent):
    forked = fork(bench, parent, find_checkpoint(bench, parent, tried=5))["execution_id"]
    later = find_checkpoint(bench, forked, tried=9)

    again = fork(bench, forked, later)

    assert again["start_commit_id"] == later["file_commit_id"]
    at_start = bench.read_file(again["execution_id"], EDITED, "start")
    assert at_start == bench.read_file(forked, EDITED, later["checkpoint_id"])
    assert again["output"]["tried"] == 14
