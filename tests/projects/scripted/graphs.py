"""A graph whose node runs the code that it is given and returns what that calls `value`."""

from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    code: str
    value: Any


def run(state):
    names = {}
    exec(state["code"], names)
    return {"value": names.get("value")}


builder = StateGraph(State)
builder.add_node("run", run)
builder.add_edge(START, "run")
builder.add_edge("run", END)
