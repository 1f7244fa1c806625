"""Graphs whose nodes leave a mark each, in state and in a file, and tell a witness outside.

A step of the input's `steps` says what happens in one turn of the graph: `sleep_s`; `ask` waits for
an answer; of the visits to a node the first `crash` end the process and the next `fail` raise. A
mark is `<index of the root superstep>.<node>`. Whatever is killed, a succeeded execution has each
mark once in `done` and once in the file.

The witness listens on the port `witness` of the loopback. It gets one line of JSON for each start
and end of a node and answers a start with the number of earlier starts of that mark.
"""

import json
import operator
import os
import socket
import time
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt

JOURNAL = Path("journal.txt")


class State(TypedDict, total=False):
    witness: int
    steps: list[dict[str, Any]]
    done: Annotated[list[str], operator.add]
    answers: Annotated[list[str], operator.add]
    journal: list[str]


def tell(state: State, what: str, mark: str) -> int:
    """Earlier starts of the mark, over all attempts of this execution."""
    attempt = Path.cwd().parent
    born = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    said = {
        "execution_id": attempt.parent.name,
        "attempt": int(attempt.name),
        "process": f"{os.getpid()}-{born}",
        "what": what,
        "mark": mark,
    }
    with socket.create_connection(("127.0.0.1", state["witness"]), timeout=20) as connection:
        connection.sendall(json.dumps(said).encode() + b"\n")
        return int(connection.makefile().readline())


def work(state: State, index: int, name: str, step: dict[str, Any]) -> str:
    mark = f"{index}.{name}"
    visits = tell(state, "started", mark)
    with JOURNAL.open("a") as journal:
        journal.write(mark + "\n")
    time.sleep(step.get("sleep_s", 0))
    if visits < step.get("crash", 0):
        os._exit(3)
    if visits < step.get("crash", 0) + step.get("fail", 0):
        raise ValueError("no luck at " + mark)
    tell(state, "ended", mark)
    return mark


def count(state: State, name: str) -> int:
    return sum(mark.endswith("." + name) for mark in state["done"])


def step(state: State) -> State:
    turn = count(state, "step")
    todo = state["steps"][turn]
    answers = [interrupt(f"question {turn}")] if todo.get("ask") else []
    return {"done": [work(state, turn, "step", todo)], "answers": answers}


def left(state: State) -> State:
    turn = count(state, "left")
    return {"done": [work(state, 2 * turn, "left", {})]}


def right(state: State) -> State:
    turn = count(state, "right")
    return {"done": [work(state, 2 * turn, "right", state["steps"][turn])]}


def join(state: State) -> State:
    turn = count(state, "join")
    return {"done": [work(state, 2 * turn + 1, "join", {})]}


def first(state: State) -> State:
    turn = count(state, "first")
    return {"done": [work(state, turn, "first", state["steps"][turn])]}


def second(state: State) -> State:
    turn = count(state, "second")
    return {"done": [work(state, turn, "second", state["steps"][turn])]}


def close(state: State) -> State:
    index = 1 + max((int(mark.partition(".")[0]) for mark in state["done"]), default=-1)
    mark = work(state, index, "close", {})
    return {"done": [mark], "journal": JOURNAL.read_text().split()}


def build_line() -> StateGraph:
    graph = StateGraph(State)
    graph.add_node("step", step)
    graph.add_node("close", close)

    def follow(state: State) -> str:
        return "step" if count(state, "step") < len(state["steps"]) else "close"

    graph.add_edge(START, "step")
    graph.add_conditional_edges("step", follow, ["step", "close"])
    graph.add_edge("close", END)
    return graph


def build_wide() -> StateGraph:
    """Two nodes at once, of which one takes its time, then one that joins them."""
    graph = StateGraph(State)
    for name, node in (("left", left), ("right", right), ("join", join), ("close", close)):
        graph.add_node(name, node)

    def follow(state: State) -> list[str]:
        return ["left", "right"] if count(state, "join") < len(state["steps"]) else ["close"]

    graph.add_edge(START, "left")
    graph.add_edge(START, "right")
    graph.add_edge(["left", "right"], "join")
    graph.add_conditional_edges("join", follow, ["left", "right", "close"])
    graph.add_edge("close", END)
    return graph


class Inner(TypedDict, total=False):
    witness: int
    steps: list[dict[str, Any]]
    done: list[str]


def inner_first(state: Inner) -> Inner:
    return {"done": state["done"] + first(state)["done"]}


def inner_second(state: Inner) -> Inner:
    return {"done": state["done"] + second(state)["done"]}


def build_nested() -> StateGraph:
    """A subgraph of two nodes in each root superstep."""
    inner = StateGraph(Inner)
    inner.add_node("first", inner_first)
    inner.add_node("second", inner_second)
    inner.add_edge(START, "first")
    inner.add_edge("first", "second")
    inner.add_edge("second", END)
    compiled = inner.compile()

    def turn(state: State) -> State:
        made = compiled.invoke({**state})["done"]
        return {"done": made[len(state["done"]) :]}

    def follow(state: State) -> str:
        return "turn" if count(state, "second") < len(state["steps"]) else "close"

    graph = StateGraph(State)
    graph.add_node("turn", turn)
    graph.add_node("close", close)
    graph.add_edge(START, "turn")
    graph.add_conditional_edges("turn", follow, ["turn", "close"])
    graph.add_edge("close", END)
    return graph


def exactly_once(output: dict, workspace: Path) -> bool:
    marks = (workspace / JOURNAL).read_text().split()
    return len(set(marks)) == len(marks) and sorted(marks) == sorted(output["done"])
