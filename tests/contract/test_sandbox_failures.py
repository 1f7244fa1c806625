"""What goes wrong in a sandbox, by kind: errors, crashes, outputs that are none."""

import pytest

from wtb_core.attempts import Outcome

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


POST = """
import gc, json, socket, struct, time

session = next(o for o in gc.get_objects() if isinstance(o, socket.socket) and o.fileno() > 2)

def post(**header):
    text = json.dumps({"blobs": [], **header}).encode()
    session.sendall(struct.pack("!I", len(text)) + text)

post(**started)
post(**message)
time.sleep(0.2)
"""
NODE = {"op": "node_started", "index": 1, "at_ms": 1, "name": "n", "superstep": 1}
NODE_END = {"op": "node_ended", "index": 1, "at_ms": 1, "error": None}
RESULT = {"op": "result", "failure": None, "usage": {}}


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ({"op": []}, "crash"),
        ({"op": {}}, "crash"),
        ({**NODE, "at_ms": "Infinity"}, "crash"),
        ({**NODE, "superstep": "Infinity"}, "crash"),
        ({**NODE, "name": "\ud800"}, None),
        ({**NODE_END, "error": {"no": "text"}}, None),
        ({**NODE_END, "error": "\ud800"}, None),
        ({**RESULT, "failure": {"kind": "error", "reason": "\ud800"}}, "error"),
        ({**RESULT, "failure": {"kind": "lost", "reason": "not its own fault"}}, "crash"),
        ({**RESULT, "failure": {"kind": "timeout", "reason": "not so"}}, "crash"),
        ({**RESULT, "usage": {"\ud800": {"input_tokens": 10**400}}}, "invalid_output"),
    ],
)
def test_whatever_a_process_sends_its_execution_ends_and_can_be_reported(bench, message, kind):
    bench.add_scripted()
    given = repr(message).replace("'Infinity'", "float('inf')")
    outcome = bench.script(f"started = {NODE}\nmessage = {given}\n{POST}")
    assert (outcome.failure and outcome.failure.kind) == kind
    assert Outcome.model_validate_json(outcome.model_dump_json()) == outcome
