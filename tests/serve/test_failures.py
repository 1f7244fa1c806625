"""Each way to fail ends one execution with its kind, and the replica goes on."""

import pytest

from wtb_core.testbench import BatchResult, TestBench

CASES = [
    ("raise", "error"),
    ("exit", "crash"),
    ("segv", "crash"),
    ("loop", "timeout"),
    ("memory", "out_of_memory"),
    ("large", "invalid_output"),
    ("dishonest", "invalid_output"),
    ("nan", "invalid_output"),
    ("ask", "interrupted"),
    ("unmade", "setup"),
    ("fine", None),
    ("answered", None),
]


@pytest.fixture(scope="module")
def result(service) -> BatchResult:
    cases = [{"id": name, "input": {"do": name}} for name, _ in CASES]
    by_id = {case["id"]: case for case in cases}
    by_id["unmade"]["files"] = {"note.txt/below": "below a file of the base workspace"}
    by_id["answered"] |= {"input": {"do": "ask"}, "resume": [42]}
    spec = {
        "project": "failing",
        "variants": [{"name": "only"}],
        "cases": cases,
        "limits": {"timeout": 3, "output": 50_000, "memory": "1GiB"},
        "retry": {"max_attempts": 1},
    }
    with TestBench.connect(service.url) as bench:
        return bench.run_batch(spec)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_an_execution_ends_with_its_kind(result: BatchResult, name: str, kind: str | None) -> None:
    execution = next(e for e in result.executions if e["case_id"] == name)
    if kind is None:
        assert execution["status"] == "succeeded", execution["failure"]
        assert execution["failure"] is None
    else:
        assert execution["status"] == "failed"
        assert execution["failure"]["kind"] == kind, execution["failure"]
        assert execution["failure"]["reason"]


def test_a_node_that_raises_is_named_with_its_error(result: BatchResult) -> None:
    failure = next(e for e in result.executions if e["case_id"] == "raise")["failure"]
    assert (failure["error_type"], failure["message"]) == ("ValueError", "asked to")
    assert failure["node"] == "act"


def test_a_crash_names_its_cause(result: BatchResult) -> None:
    reasons = {e["case_id"]: e["failure"]["reason"] for e in result.executions if e["failure"]}
    assert "7" in reasons["exit"]
    assert "SIGSEGV" in reasons["segv"]


def test_an_interrupt_is_answered_in_order(result: BatchResult) -> None:
    execution = next(e for e in result.executions if e["case_id"] == "answered")
    assert execution["output"]["result"] == 42


def test_an_evaluator_that_raises_leaves_the_execution_succeeded(result: BatchResult) -> None:
    execution = next(e for e in result.executions if e["case_id"] == "fine")
    assert execution["scores"] == {"broken": None, "grade": 2.0}
    assert execution["score_comments"] == {"grade": "fine"}
    assert "this evaluator never works" in execution["score_errors"]["broken"]


def test_failures_of_variants_are_a_completed_batchs_result(result: BatchResult) -> None:
    assert result.batch["status"] == "completed"
    counts = result.batch["counts"]
    assert (counts["succeeded"], counts["failed"], counts["total"]) == (2, 10, 12)
    assert not result.succeeded


def test_own_failures_count_as_failure_score_and_setup_does_not(result: BatchResult) -> None:
    grade = result.comparison["variants"][0]["scores"]["grade"]
    own = [e for e in result.executions if e["failure"] and e["failure"]["kind"] != "setup"]
    assert grade["n"] == len(own) + 2
    assert grade["mean"] == pytest.approx(3.0 / grade["n"])


def test_a_crash_is_tried_again_and_the_retry_is_visible(bench: TestBench) -> None:
    events = []
    spec = {
        "project": "failing",
        "variants": [{"name": "only"}],
        "cases": [{"id": "exit", "input": {"do": "exit"}}],
        "retry": {"max_attempts": 2, "backoff": 0.1},
    }
    bench.run_batch(spec, on_event=events.append)
    failed = [e["payload"] for e in events if e["type"] == "ray_variant_execution_failed"]
    assert [(p["attempt"], p["will_retry"]) for p in failed] == [(1, True), (2, False)]
