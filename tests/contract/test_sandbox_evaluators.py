"""Evaluators in a sandbox: what they return, and what one that fails leaves."""

import pytest
from sandbox_bench import wait_until


def test_evaluators_return_what_they_may(scored):
    outcome = scored.run(
        "scored",
        given={"x": 4},
        reference=5,
        evaluators=["correct", "distance", "several", "from_workspace", "from_execution"],
        variant={"config": {"extra": 10}},
    )
    assert outcome.evaluation.errors == {}
    assert outcome.evaluation.scores == {
        "correct": 1.0,
        "distance": 0.0,
        "several.input": 4.0,
        "several.odd": 1.0,
        "several.note": 0.5,
        "from_workspace": 5.0,
        "from_execution": 11.0,
    }
    assert outcome.evaluation.comments == {"distance": "steps away", "several.note": "half"}


def test_evaluators_work_on_a_throwaway_copy(scored):
    assignment = scored.assign(
        "scored", given={"x": 4}, evaluators=["from_workspace"], keep="always"
    )
    scored.call(scored.engine.execute(assignment))
    directory = scored.engine.attempt_directory(assignment)
    wait_until(lambda: [entry.name for entry in directory.iterdir()] == ["workspace"])
    assert (directory / "workspace" / "result.txt").read_text() == "5"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "KeyError: 'evaluator broke'"),
        ("returns_text", "it returned a str; return a bool, a number"),
        ("returns_nan", "it returned nan; a score is a finite number"),
        ("exits", "SystemExit: the code called sys.exit(1)"),
        ("crashes", "its process ended with exit code 5"),
        ("hangs", "it did not end within limits.evaluator_timeout of 0.5 s"),
        ("asks_too_much", "it takes 'weather', an evaluator takes any of input, output"),
        ("unknown", "the project has no such evaluator"),
    ],
)
def test_an_evaluator_that_fails_leaves_the_execution_and_the_others(scored, name, message):
    outcome = scored.run(
        "scored",
        given={"x": 4},
        reference=5,
        evaluators=["correct", name, "distance"],
        limits={"evaluator_timeout": 0.5},
    )
    assert outcome.status == "succeeded"
    assert outcome.evaluation.scores == {"correct": 1.0, name: None, "distance": 0.0}
    assert outcome.evaluation.errors[name].startswith(message)
