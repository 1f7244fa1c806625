import math

import pytest
from pydantic import ValidationError

from wtb_core.attempts import MAX_TEXT_CHARS, Assignment, Evaluation, Failure, NodeRun, Outcome
from wtb_core.specs import Limits, Variant, Workspace

FAILURE = Failure(kind="error", reason="it raised")


@pytest.mark.parametrize(
    ("status", "failure", "allowed"),
    [
        ("succeeded", None, True),
        ("succeeded", FAILURE, False),
        ("failed", None, False),
        ("failed", FAILURE, True),
        ("cancelled", None, True),
        ("cancelled", FAILURE, False),
    ],
)
def test_an_outcome_has_a_failure_exactly_when_it_failed(status, failure, allowed):
    if allowed:
        assert Outcome(status=status, failure=failure).failure == failure
        return

    with pytest.raises(ValidationError):
        Outcome(status=status, failure=failure)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_is_a_finite_number_or_null(score):
    with pytest.raises(ValidationError):
        Evaluation(scores={"m": score})

    assert Evaluation(scores={"m": None}).scores == {"m": None}


def test_what_crosses_processes_comes_back_equal():
    assignment = Assignment(
        execution_id="b-1-0",
        batch_id="b-1",
        attempt=1,
        project="p",
        project_version="0",
        variant=Variant(name="v", config={"x": [1, None]}),
        case={"id": "c", "input": {"a": 1.5}},
        repetition=0,
        evaluators=["e"],
        limits=Limits(max_failures=0.5),
        workspace=Workspace(),
    )
    outcome = Outcome(
        status="failed",
        failure=FAILURE,
        nodes=[NodeRun(name="n", superstep=1, start_ms=0)],
        usage={"m": {"cost_usd": 0.1}},
    )

    for message in (assignment, outcome):
        assert type(message).model_validate_json(message.model_dump_json()) == message


def test_text_of_a_failure_is_bounded():
    """A process of user code may send megabytes; events carry what is kept."""
    failure = Failure(kind="error", reason="r" * 10**6, traceback="t" * 10**6, node="n")

    assert {len(failure.reason), len(failure.traceback or "")} == {MAX_TEXT_CHARS}
    assert failure.node == "n"
