"""Graphs in graphs: with shared and with private state, in parallel, nested, remembering."""

import operator
from typing import Annotated, Any, TypedDict

from langgraph.graph import START, StateGraph
from langgraph.types import Send


class Log(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    n: int


def says(text: str):
    def node(state):
        return {"log": [text]}

    return node


def chain(schema, **nodes) -> StateGraph:
    builder = StateGraph(schema)
    previous = START
    for name, node in nodes.items():
        builder.add_node(name, node)
        builder.add_edge(previous, name)
        previous = name
    return builder


# Shared keys: the subgraph is a node. Its log starts with its parent's, so it is there twice.
_shared = chain(Log, inner_one=says("inner one"), inner_two=says("inner two")).compile()
shared = chain(Log, before=says("before"), inner=_shared, after=says("after")).compile()


# Keys that only the subgraph has.
class Partly(TypedDict):
    n: int
    private: str


def set_private(state: Partly):
    return {"private": f"private {state.get('private')}"}


def use_private(state: Partly):
    return {"n": len(state["private"])}


_partly = chain(Partly, set_private=set_private, use_private=use_private).compile()
partly_shared = chain(Log, inner=_partly, after=says("after"), again=_partly).compile()


# No common key: a node calls the subgraph and translates.
class Other(TypedDict):
    number: int


_other = chain(Other, square=lambda state: {"number": state["number"] ** 2}).compile()


def call_other(state):
    return {"n": _other.invoke({"number": state["n"]})["number"]}


private = chain(Log, call=call_other, after=says("after")).compile()


# Three levels.
class Deepest(TypedDict):
    depth: str


_deepest = chain(Deepest, leaf=lambda state: {"depth": state["depth"] + " leaf"}).compile()


class Middle(TypedDict):
    middle: str


def call_deepest(state):
    return {"middle": _deepest.invoke({"depth": f"{state['middle']} middle"})["depth"]}


_middle = chain(Middle, call=call_deepest).compile()


def call_middle(state):
    return {"log": [_middle.invoke({"middle": "top"})["middle"]]}


three_levels = chain(Log, call=call_middle, inner=_shared).compile()


# Sent to in parallel.
_worker = chain(
    Log,
    double=lambda state: {"n": state["n"] * 2},
    tell=lambda state: {"log": [f"worked on {state['n']}"]},
).compile()
_mapped = StateGraph(Log)
_mapped.add_node("worker", _worker.with_config(run_name="worker"), input_schema=Log)
_mapped.add_node("gather", lambda state: {"log": [f"{len(state['log'])} done"]})
_mapped.add_conditional_edges(
    START, lambda state: [Send("worker", {"n": i}) for i in range(state["n"])], ["worker"]
)
_mapped.add_edge("worker", "gather")


def _only_log(state: dict[str, Any]) -> dict[str, Any]:
    return {"log": _worker.invoke(state)["log"]}


_mapped_privately = StateGraph(Log)
_mapped_privately.add_node("worker", _only_log)
_mapped_privately.add_conditional_edges(
    START, lambda state: [Send("worker", {"n": i}) for i in range(state["n"])], ["worker"]
)
mapped = _mapped_privately.compile()
# Two workers write the key `n`, which takes one value a step.
mapped_in_conflict = _mapped.compile()


# A subgraph that remembers its state between two calls of one run.
_remembering = chain(Log, once=lambda state: {"log": [f"call {len(state['log'])}"]})


remembering = chain(
    Log,
    first=_remembering.compile(checkpointer=True),
    between=says("between"),
).compile()


def raise_inside(state):
    raise LookupError(f"inside with {state['n']}")


_raising = chain(Log, fine=says("fine"), bad=raise_inside).compile()
raising_inside = chain(Log, before=says("before"), inner=_raising).compile()


async def inner_async(state):
    return {"log": ["awaited inside"]}


_async = chain(Log, inner_async=inner_async).compile()


async def call_async(state):
    return {"log": (await _async.ainvoke({"log": []}))["log"]}


asynchronous_inside = chain(Log, call=call_async, inner=_async).compile()
