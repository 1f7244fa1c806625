"""Graphs whose nodes say what they did in the state and in files, so that the two can be compared.

A node that runs twice, or finds the files of a node that did not count, leaves other files.
"""

import operator
import time
from pathlib import Path
from typing import Annotated, TypedDict

from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send, interrupt


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


def note(name, state):
    with Path(f"{name}.txt").open("a") as file:
        file.write(f"after {','.join(state.get('log', []))}\n")


def says(name):
    def node(state):
        note(name, state)
        return {"log": [name]}

    return node


def says_later(name):
    async def node(state):
        note(name, state)
        return {"log": [name]}

    return node


def asks(name):
    def node(state):
        note(name, state)
        answers = [interrupt(f"{name} first?"), interrupt(f"{name} second?")]
        return {"log": [f"{name}: {answers}"]}

    return node


def chain(**nodes) -> StateGraph:
    builder = StateGraph(State)
    previous = START
    for name, node in nodes.items():
        builder.add_node(name, node)
        builder.add_edge(previous, name)
        previous = name
    builder.add_edge(previous, END)
    return builder


def fan(**nodes) -> StateGraph:
    """`first`, then all others at once, then a join."""
    builder = StateGraph(State)
    builder.add_node("first", says("first"))
    builder.add_edge(START, "first")
    for name, node in nodes.items():
        builder.add_node(name, node)
        builder.add_edge("first", name)
    builder.add_node("join", says("join"))
    builder.add_edge([*nodes], "join")
    builder.add_edge("join", END)
    return builder


plain = chain(a=says("a"), b=says("b"), c=says("c"))
asynchronous = chain(a=says_later("a"), b=says_later("b"), c=says_later("c"))
parallel = fan(left=says("left"), middle=says("middle"), right=says("right"))
asking = chain(a=says("a"), one=asks("one"), b=says("b"), two=asks("two"), c=says("c"))
asking_later = chain(a=says_later("a"), one=asks("one"), b=says_later("b"), two=asks("two"))
asking_together = fan(left=asks("left"), right=asks("right"), other=says("other"))


# Subgraphs that are called twice: one begins anew each time, one remembers.
class Kept(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    calls: Annotated[int, operator.add]


def count(state):
    note("count", state)
    return {"calls": 1}


def tell(state):
    note("tell", state)
    return {"log": [f"call {state['calls']}"]}


_inner = StateGraph(Kept, input_schema=State, output_schema=State)
_inner.add_node("count", count)
_inner.add_node("tell", tell)
_inner.add_edge(START, "count")
_inner.add_edge("count", "tell")


def caller(inner):
    def call(state):
        note("call", state)
        return {"log": inner.invoke({"log": []})["log"][-1:]}

    return call


def twice(inner) -> StateGraph:
    return chain(a=says("a"), first=caller(inner), b=says("b"), second=caller(inner), c=says("c"))


forgetting = twice(_inner.compile())
remembering = twice(_inner.compile(checkpointer=True))
as_node = chain(a=says("a"), inner=chain(x=says("x"), one=asks("one"), y=says("y")).compile())
deep = chain(
    a=says("a"),
    outer=chain(x=says("x"), inner=chain(u=says("u"), v=says("v")).compile()).compile(),
    b=says("b"),
)


def scatter(_state):
    return [Send("work", {"log": [str(number)]}) for number in range(3)]


def work(state):
    note(f"work{state['log'][0]}", state)
    return {"log": [f"worked {state['log'][0]}"]}


def scattering(join) -> StateGraph:
    builder = chain(split=says("split"))
    builder.add_node("work", work)
    builder.add_node("join", join)
    builder.add_conditional_edges("split", scatter, ["work"])
    builder.add_edge("work", "join")
    return builder


sending = scattering(says("join"))

# Breakpoints take answers too.
_before = chain(a=says("a"), b=says("b"), one=asks("one"), c=says("c"))
breakpoint_before = _before.compile(interrupt_before=["b", "c"])
breakpoint_after = _before.compile(interrupt_after=["a", "one"])
breakpoint_everywhere = _before.compile(interrupt_before="*")
breakpoint_after_sends = scattering(asks("join")).compile(
    interrupt_after=["work"], interrupt_before=["split"]
)


def wait(state):
    note("wait", state)
    while not Path("go.txt").exists():
        time.sleep(0.01)
    return {"log": ["waited"]}


waiting = chain(a=says("a"), wait=wait, c=says("c"))


# The functional API.
@task
def square(number):
    note(f"square{number}", {})
    return number * number


@entrypoint()
def functional(given):
    note("functional", {})
    squares = [square(number).result() for number in range(3)]
    return {"log": [*given["log"], *map(str, squares), interrupt("what?")]}


def turn(state):
    note("turn", state)
    return {"log": [str(len(state["log"]))]}


_looping = StateGraph(State)
_looping.add_node("turn", turn)
_looping.add_edge(START, "turn")
_looping.add_conditional_edges("turn", lambda state: "turn" if len(state["log"]) < 4 else END)
looping = _looping.compile()


def ask_in_turn(state):
    note("turn", state)
    answer = interrupt("go on?") if len(state["log"]) == 1 else "unasked"
    return {"log": [answer]}


_asking = StateGraph(State)
_asking.add_node("turn", ask_in_turn)
_asking.add_edge(START, "turn")
_asking.add_conditional_edges("turn", lambda state: "turn" if len(state["log"]) < 4 else END)
looping_asking = _asking.compile()
