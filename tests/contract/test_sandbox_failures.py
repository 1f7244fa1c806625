"""What goes wrong in a sandbox, by kind: errors, crashes, outputs that are none."""

import pytest

CRASHES = [
    ("exit_now_graph", "exit code 7"),
    ("exit_quietly_graph", "exit code 0"),
    ("fault_graph", "SIGSEGV"),
]


@pytest.mark.parametrize(("graph", "reason"), CRASHES)
def test_a_process_that_ends_without_a_result_has_crashed(hostile, graph, reason):
    outcome = hostile.run("hostile", graph, {})
    assert (outcome.status, outcome.failure.kind) == ("failed", "crash")
    assert reason in outcome.failure.reason
    assert outcome.failure.node == "bad"
    assert [run.name for run in outcome.nodes] == ["before", "bad"]


def test_a_crash_quotes_the_last_words_and_keeps_the_output(hostile):
    outcome = hostile.run("hostile", "exit_now_graph", {})
    assert "and last errors" in outcome.failure.reason
    assert hostile.blobs.get(outcome.stdout) == b"last words\n"


@pytest.mark.parametrize(
    ("graph", "error_type", "message"),
    [
        ("fail_graph", "ValueError", "this node does not work \\ud800"),
        (
            "fail_unprintably_graph",
            "graphs.Unprintable",
            "(its text cannot be shown: RuntimeError)",
        ),
        ("leave_graph", "SystemExit", "the code called sys.exit(3)"),
    ],
)
def test_what_a_node_raises_is_an_error_with_its_node(hostile, graph, error_type, message):
    outcome = hostile.run("hostile", graph, {})
    failure = outcome.failure
    assert (failure.kind, failure.error_type, failure.message) == ("error", error_type, message)
    assert failure.node == "bad"
    assert "graphs.py" in failure.traceback
    assert outcome.nodes[-1].error.startswith(error_type)


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        ("output_array", "output.value[2].scores: a numpy.ndarray has no JSON form; return a list"),
        ("output_nan", "output.value: nan is not a JSON number"),
        ("output_bytes", "output.value: a bytes has no JSON form"),
        ("output_keys", "output.value: the key 1 is a int; keys are text"),
        ("output_surrogate", "output.value: the text holds a lone surrogate"),
        ("output_object", "output.value: a type has no JSON form"),
        ("output_cycle", "output.value[0]: the list contains itself"),
    ],
)
def test_an_output_without_an_honest_json_form_is_refused(hostile, graph, reason):
    failure = hostile.run("hostile", graph, {}).failure
    assert failure.kind == "invalid_output", failure
    assert failure.reason.startswith(reason)
