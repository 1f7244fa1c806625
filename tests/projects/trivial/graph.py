"""Two nodes: the first doubles a number, the second adds one."""

import socket
from typing import TypedDict

from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    value: int
    gate: int


def first(state: State) -> State:
    return {"value": state["value"] * 2}


def second(state: State) -> State:
    return {"value": state["value"] + 1}


def negate(state: State) -> State:
    return {"value": -state["value"]}


def fail(state: State) -> State:
    raise ValueError(f"no luck with {state['value']}")


def wait_at_gate(state: State) -> State:
    """Connects to the port `gate` and goes on when the connection ends; see tests/gates.py."""
    try:
        with socket.create_connection(("127.0.0.1", state["gate"])) as gate:
            gate.recv(1)
    except ConnectionError:
        pass
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
