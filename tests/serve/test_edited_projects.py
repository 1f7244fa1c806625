"""A project edited under a running batch, in real deployments."""

from tests.gates import WAIT, Gate
from wtb_core.testbench import TestBench

GRAPH = f"""{WAIT}
from pathlib import Path
from typing import TypedDict
from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    gate: int
    said: list[str]


def wait_at_gate(state):
    wait(state["gate"])


def tell(state):
    import late

    return {{"said": [late.VALUE, Path("file.txt").read_text(), Path("made.txt").read_text()]}}


def build():
    builder = StateGraph(State)
    builder.add_node("wait", wait_at_gate)
    builder.add_node("tell", tell)
    builder.add_edge(START, "wait")
    builder.add_edge("wait", "tell")
    builder.add_edge("tell", END)
    return builder
"""
PROJECT = """
name: edited
graph: ./graph.py:build
workspace: ./base
build: ./corpus.py:build
"""
CORPUS = """
def build(workspace):
    (workspace / "made.txt").write_text("made of " + (workspace / "file.txt").read_text())
"""


def test_a_running_batch_keeps_what_it_began_with(service, bench: TestBench) -> None:
    directory = service.projects / "edited"
    (directory / "base").mkdir(parents=True)
    for name, text in {
        "project.yaml": PROJECT,
        "graph.py": GRAPH,
        "corpus.py": CORPUS,
        "late.py": "VALUE = 'old code'",
        "base/file.txt": "old file",
    }.items():
        (directory / name).write_text(text)
    gate = Gate()
    # More cases than the pool has slots: most start after the edit.
    spec = {
        "project": "edited",
        "variants": [{"name": "v"}],
        "cases": [{"input": {"gate": gate.port}} for _ in range(12)],
    }

    batch_id = bench.submit(spec)
    gate.wait_until_reached()
    (directory / "late.py").write_text("VALUE = 'new code'")
    (directory / "base" / "file.txt").write_text("new file")
    second = bench.submit(spec)
    gate.open()
    for each in (batch_id, second):
        list(bench.events(each))
    before, after = bench.read(batch_id), bench.read(second)

    assert {tuple(e["output"]["said"]) for e in before.executions} == {
        ("old code", "old file", "made of old file")
    }
    assert {tuple(e["output"]["said"]) for e in after.executions} == {
        ("new code", "new file", "made of new file")
    }
    assert before.batch["project_version"] != after.batch["project_version"]
    assert before.succeeded
    assert after.succeeded
