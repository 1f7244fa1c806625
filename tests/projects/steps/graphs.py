"""A graph whose node runs one after the other of the pieces of code that it is given."""

from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph


def extend(before, more):
    return [*before, *more]


class State(TypedDict, total=False):
    steps: list[str]
    values: Annotated[list[Any], extend]


def run(state):
    names = {}
    exec(state["steps"][len(state["values"])], names)
    return {"values": [names.get("value")]}


def choose(state):
    return END if len(state["values"]) == len(state["steps"]) else "run"


builder = StateGraph(State)
builder.add_node("run", run)
builder.add_conditional_edges(START, choose, ["run", END])
builder.add_conditional_edges("run", choose, ["run", END])
