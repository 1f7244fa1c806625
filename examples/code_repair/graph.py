"""An agent that repairs one module of the package in the current directory.

    run_tests -> localise -> propose -> apply -> run_tests -> apply -> ... -> accept or give_up

One patch is in the file at a time, always made from the original source. An accepted patch stays
there; giving up puts the original back.
"""

from pathlib import Path
from typing import Literal, TypedDict

from langgraph.graph import END, START, StateGraph

from localise import Suspect, ochiai
from mutations import Patch, patched
from propose import ranked
from suite import PACKAGE, TestRun, run_suite


class Case(TypedDict):
    """What to repair: a file name in the package, such as `gcd.py`."""

    module: str


class Report(Case, total=False):
    """What became of it; `patch` is there if one was accepted."""

    status: Literal["repaired", "unrepaired"]
    tried: int
    patch: Patch


class Repair(Report, total=False):
    """The state of the loop."""

    tests: list[TestRun]
    source: str
    suspects: list[Suspect]
    candidates: list[Patch]


def run_tests(state: Repair) -> Repair:
    """Run the module's tests against the file as it is now."""
    tests = run_suite(state["module"])
    passed = sum(test["passed"] for test in tests)
    print(f"run_tests {state['module']}: {passed} of {len(tests)} passed")
    return {"tests": tests}


def localise(state: Repair) -> Repair:
    """Rank the lines by how much they have to do with the failures."""
    suspects = ochiai(state["tests"])
    for suspect in suspects[:3]:
        print(f"localise {state['module']}: line {suspect['line']} {suspect['score']:.2f}")
    return {"suspects": suspects, "source": _file(state).read_text(encoding="utf-8"), "tried": 0}


def apply(state: Repair) -> Repair:
    """Write the next candidate into the file."""
    number = state["tried"] + 1
    patch = state["candidates"][number - 1]
    change = f"line {patch['line']}: {patch['before']} => {patch['after']}"
    print(f"apply {state['module']}: {number} of {len(state['candidates'])}, {change}")
    _file(state).write_text(patched(state["source"], patch), encoding="utf-8")
    return {"tried": number}


def accept(state: Repair) -> Repair:
    """Keep the patch that is in the file."""
    print(f"accept {state['module']}: candidate {state['tried']}")
    return {"status": "repaired", "patch": state["candidates"][state["tried"] - 1]}


def give_up(state: Repair) -> Repair:
    """Put the original source back."""
    print(f"give_up {state['module']}: {state['tried']} candidates tried")
    _file(state).write_text(state["source"], encoding="utf-8")
    return {"status": "unrepaired"}


def next_step(state: Repair) -> Literal["localise", "apply", "accept", "give_up"]:
    """Decide after a test run, or after the candidates have been proposed."""
    if "candidates" not in state:
        return "localise"
    if state["tried"] and state["tests"] and all(test["passed"] for test in state["tests"]):
        return "accept"
    return "apply" if state["tried"] < len(state["candidates"]) else "give_up"


def build_graph() -> StateGraph:
    """Return the uncompiled graph; `propose` is the node to experiment with."""
    graph = StateGraph(Repair, input_schema=Case, output_schema=Report)
    graph.add_node("run_tests", run_tests)
    graph.add_node("localise", localise)
    graph.add_node("propose", ranked)
    graph.add_node("apply", apply)
    graph.add_node("accept", accept)
    graph.add_node("give_up", give_up)

    graph.add_edge(START, "run_tests")
    graph.add_conditional_edges("run_tests", next_step)
    graph.add_edge("localise", "propose")
    graph.add_conditional_edges("propose", next_step, ["apply", "give_up"])
    graph.add_edge("apply", "run_tests")
    graph.add_edge("accept", END)
    graph.add_edge("give_up", END)
    return graph


def _file(state: Repair) -> Path:
    return Path(PACKAGE, state["module"])
