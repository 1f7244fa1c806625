"""One node that waits as long as it is told, in steps that each leave a checkpoint."""

import time
from typing import TypedDict

from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    steps: int
    step_s: float
    done: int


def wait(state: State) -> State:
    time.sleep(state["step_s"])
    return {"done": state.get("done", 0) + 1}


def decide(state: State) -> str:
    return END if state["done"] >= state["steps"] else "wait"


def build() -> StateGraph:
    graph = StateGraph(State)
    graph.add_node("wait", wait)
    graph.add_edge(START, "wait")
    graph.add_conditional_edges("wait", decide, ["wait", END])
    return graph
