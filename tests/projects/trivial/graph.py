"""Two nodes: the first doubles a number, the second adds one."""

import time
from pathlib import Path
from typing import TypedDict

from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    value: int
    gate: str


def first(state: State) -> State:
    return {"value": state["value"] * 2}


def second(state: State) -> State:
    return {"value": state["value"] + 1}


def negate(state: State) -> State:
    return {"value": -state["value"]}


def fail(state: State) -> State:
    raise ValueError(f"no luck with {state['value']}")


def wait_at_gate(state: State) -> State:
    """Says that it is there by making `<gate>.reached`, and goes on when `<gate>` exists."""
    gate = Path(state["gate"])
    gate.with_name(f"{gate.name}.reached").touch()
    while not gate.exists():
        time.sleep(0.01)
    return {}


def _build(*, gated: bool) -> StateGraph:
    graph = StateGraph(State)
    graph.add_node("first", first)
    graph.add_node("second", second)
    graph.add_edge("first", "second")
    graph.add_edge("second", END)
    if gated:
        graph.add_node("wait", wait_at_gate)
        graph.add_edge(START, "wait")
        graph.add_edge("wait", "first")
    else:
        graph.add_edge(START, "first")
    return graph


def build() -> StateGraph:
    return _build(gated=False)


def build_gated() -> StateGraph:
    return _build(gated=True)
