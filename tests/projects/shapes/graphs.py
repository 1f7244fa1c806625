"""Graphs of every shape, each compared with a direct invoke."""

import asyncio
import operator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, Send, interrupt
from pydantic import BaseModel


class Number(TypedDict):
    x: int


def double(state):
    return {"x": state["x"] * 2}


def increment(state):
    return {"x": state["x"] + 1}


def decrement(state):
    return {"x": state["x"] - 1}


async def increment_async(state):
    await asyncio.sleep(0)
    return {"x": state["x"] + 1}


def chain(schema, *steps) -> StateGraph:
    builder = StateGraph(schema)
    previous = START
    for name, step in steps:
        builder.add_node(name, step)
        builder.add_edge(previous, name)
        previous = name
    builder.add_edge(previous, END)
    return builder


sync = chain(Number, ("double", double), ("increment", increment))
compiled = sync.compile(name="compiled")
asynchronous = chain(Number, ("double", double), ("increment", increment_async)).compile()
own_saver = sync.compile(checkpointer=InMemorySaver())


class Whole(TypedDict, total=False):
    x: int
    hidden: int


_narrow = StateGraph(Whole, input_schema=Number, output_schema=Number)
_narrow.add_node("split", lambda state: {"x": state["x"] + 1, "hidden": 7})
_narrow.add_edge(START, "split")
_narrow.add_edge("split", END)
narrow = _narrow.compile()


def factory():
    return chain(Number, ("double", double))


def configured_factory(config):
    step = increment if config["configurable"].get("step") == "up" else decrement
    return chain(Number, ("step", step)).compile()


# Subgraphs, one of them with an async-only node.
inner = chain(Number, ("inner_double", double), ("inner_increment", increment)).compile()
nested = chain(Number, ("first", increment), ("inner", inner)).compile()
inner_async = chain(Number, ("inner_increment", increment_async)).compile()
nested_async = chain(Number, ("first", increment), ("inner", inner_async)).compile()


def largest(left: int, right: int) -> int:
    return max(left, right)


class Log(TypedDict):
    log: Annotated[list[str], operator.add]
    count: Annotated[int, largest]


def jump(state) -> Command[Literal["left", "right"]]:
    target = "left" if len(state["log"]) % 2 else "right"
    return Command(goto=target, update={"log": [f"to {target}"]})


_commands = StateGraph(Log)
_commands.add_node("jump", jump)
_commands.add_node("left", lambda state: {"log": ["left"], "count": 1})
_commands.add_node("right", lambda state: {"log": ["right"], "count": 2})
_commands.add_edge(START, "jump")
command = _commands.compile()


def fan_out(state):
    return [Send("work", {"item": item}) for item in ("a", "b", "c")]


_sends = StateGraph(Log)
_sends.add_node("split", lambda state: {"log": ["split"]})
_sends.add_node("work", lambda state: {"log": [state["item"]], "count": ord(state["item"])})
_sends.add_edge(START, "split")
_sends.add_conditional_edges("split", fan_out, ["work"])
send = _sends.compile()

_loop = StateGraph(Log)
_loop.add_node("again", lambda state: {"log": [f"turn {len(state['log'])}"]})
_loop.add_edge(START, "again")
_loop.add_conditional_edges(
    "again", lambda state: "again" if len(state["log"]) < 5 else END, ["again", END]
)
loop = _loop.compile()
endless = chain(Log, ("step", lambda state: {"log": ["x"]}))
endless.add_edge("step", "step")


async def choose(state):
    return "left" if state["x"] > 0 else "right"


_async_branch = StateGraph(Number)
_async_branch.add_node("left", increment)
_async_branch.add_node("right", decrement)
_async_branch.add_conditional_edges(START, choose, ["left", "right"])
async_branch = _async_branch.compile()


class Model(BaseModel):
    name: str
    tags: list[str] = []


def tag(state: Model):
    return {"tags": [*state.tags, state.name.upper()]}


pydantic_state = chain(Model, ("tag", tag)).compile()


@dataclass
class Record:
    name: str
    seen: list[str] = field(default_factory=list)


dataclass_state = chain(Record, ("see", lambda state: {"seen": [state.name]})).compile()
messages = chain(
    MessagesState,
    ("answer", lambda state: {"messages": [AIMessage("hello", id="answer")]}),
).compile()


def greet(state):
    return {"messages": [HumanMessage("hi", id="greeting")]}


@task
def square(x):
    return x * x


@entrypoint()
def functional(x):
    return [square(item).result() for item in range(x)]


@dataclass
class Settings:
    factor: int


def scale(state, runtime: Runtime[Settings]):
    return {"x": state["x"] * runtime.context.factor}


_context = StateGraph(Number, context_schema=Settings)
_context.add_node("scale", scale)
_context.add_edge(START, "scale")
context = _context.compile()


class Asked(TypedDict):
    answers: Annotated[list[Any], operator.add]


def ask_twice(state):
    return {"answers": [interrupt("first?"), interrupt({"second": 2})]}


ask = chain(Asked, ("ask", ask_twice)).compile()
_both = StateGraph(Asked)
_both.add_node("one", lambda state: {"answers": [("one", interrupt("one?"))]})
_both.add_node("two", lambda state: {"answers": [("two", interrupt("two?"))]})
_both.add_edge(START, "one")
_both.add_edge(START, "two")
ask_both = _both.compile()
breakpoint_graph = sync.compile(interrupt_before=["increment"])


class Seen(TypedDict):
    seen: dict[str, Any]


def look_around(state):
    import os
    import random
    import sys
    import tempfile

    text = Path("notes/hello.txt").read_text() if Path("notes/hello.txt").exists() else None
    link = str(Path("link").readlink()) if Path("link").is_symlink() else None
    Path("made.txt").write_text("made")
    print("said on stdout")
    print("said on stderr", file=sys.stderr)
    return {
        "seen": {
            "cwd": str(Path.cwd()),
            "home": os.environ["HOME"],
            "tmp": tempfile.gettempdir(),
            "environment": sorted(os.environ),
            "text": text,
            "link": link,
            "random": random.random(),
            "stdin": sys.stdin.read(),
            "host_packages": [path for path in sys.path if path == ""],
        }
    }


look = chain(Seen, ("look", look_around)).compile()
