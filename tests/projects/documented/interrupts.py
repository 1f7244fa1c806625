"""Graphs that wait for a person: one answer, several, in parallel, in subgraphs, at breakpoints."""

import operator
from typing import Annotated, Any, Literal, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send, interrupt


class Form(TypedDict, total=False):
    name: str
    age: int
    log: Annotated[list[Any], operator.add]


def chain(**nodes) -> StateGraph:
    builder = StateGraph(Form)
    previous = START
    for name, node in nodes.items():
        builder.add_node(name, node)
        builder.add_edge(previous, name)
        previous = name
    return builder


def ask_name(state):
    return {"name": interrupt("your name?"), "log": ["asked"]}


def greet(state):
    return {"log": [f"hello {state['name']}"]}


one = chain(ask_name=ask_name, greet=greet).compile()


def ask_all(state):
    """The node starts anew for each answer; the earlier ones are given to it again."""
    name = interrupt({"field": "name"})
    age = interrupt({"field": "age", "name": name})
    return {"name": name, "age": age, "log": [interrupt(["sure?", name, age])]}


several = chain(ask_all=ask_all).compile()


def ask_until_valid(state):
    question = "your age?"
    while not isinstance(age := interrupt(question), int):
        question = f"{age!r} is no age. Your age?"
    return {"age": age}


validated = chain(ask_until_valid=ask_until_valid, end=lambda s: {"log": [s["age"]]}).compile()


def _asks(name: str):
    def node(state):
        return {"log": [(name, interrupt(f"{name}?"))]}

    return node


_parallel = StateGraph(Form)
for _name in ("a", "b", "c"):
    _parallel.add_node(_name, _asks(_name))
    _parallel.add_edge(START, _name)
_parallel.add_node("quiet", lambda state: {"log": ["quiet"]})
_parallel.add_edge(START, "quiet")
_parallel.add_node("end", lambda state: {"log": [f"{len(state['log'])} in all"]})
_parallel.add_edge(["a", "b", "c", "quiet"], "end")
parallel = _parallel.compile()


def ask_worker(state):
    first = interrupt(f"first of {state['age']}")
    return {"log": [[state["age"], first, interrupt(f"second of {state['age']}")]]}


_sent = StateGraph(Form)
_sent.add_node("worker", ask_worker)
_sent.add_conditional_edges(START, lambda state: [Send("worker", {"age": i}) for i in range(2)])
sent = _sent.compile()

_inner = chain(prepare=lambda state: {"log": ["prepared"]}, ask=_asks("inside")).compile()
in_subgraph = chain(
    before=lambda s: {"log": ["before"]}, inner=_inner, ask=_asks("after")
).compile()


def call_inner(state):
    called = chain(ask=_asks("called")).compile()
    return {"log": called.invoke({"log": []})["log"]}


in_called_graph = chain(call=call_inner, end=lambda s: {"log": ["end"]}).compile()


def review(state) -> Command[Literal["accept", "revise"]]:
    verdict = interrupt({"draft": state["log"]})
    return Command(goto="accept" if verdict["ok"] else "revise", update={"log": [verdict["why"]]})


_reviewed = StateGraph(Form)
_reviewed.add_node("review", review)
_reviewed.add_node("accept", lambda state: {"log": ["accepted"]})
_reviewed.add_node("revise", lambda state: {"log": ["revised"]})
_reviewed.add_edge(START, "review")
_reviewed.add_edge("revise", "review")
_reviewed.add_edge("accept", END)
reviewed = _reviewed.compile()


async def ask_async(state):
    return {"log": [interrupt("async?"), interrupt("async again?")]}


asynchronous = chain(ask_async=ask_async).compile()

_steps = chain(
    one=lambda state: {"log": ["one"]},
    two=lambda state: {"log": ["two"]},
    three=lambda state: {"log": ["three"]},
)
breakpoint_before = _steps.compile(interrupt_before=["two", "three"])
breakpoint_after = _steps.compile(interrupt_after=["one", "three"])
breakpoint_everywhere = _steps.compile(interrupt_before="*")
breakpoint_and_question = chain(one=lambda s: {"log": ["one"]}, ask=_asks("two")).compile(
    interrupt_before=["ask"]
)


def raise_after_answer(state):
    raise RuntimeError(f"did not like {interrupt('do you like it?')}")


raising = chain(raise_after_answer=raise_after_answer).compile()
