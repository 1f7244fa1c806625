"""A graph that ends in whichever way its input asks for."""

import ctypes
import os
import sys
import time
from pathlib import Path
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt


class State(TypedDict, total=False):
    do: str
    result: Any


def act(state: State) -> State:
    do = state["do"]
    print(f"doing {do}")
    if do == "raise":
        raise ValueError("asked to")
    if do == "exit":
        os._exit(7)
    if do == "segv":
        ctypes.string_at(0)
    if do == "loop":
        while True:
            time.sleep(0.01)
    if do == "memory":
        return {"result": len(bytearray(8 << 30))}
    if do == "large":
        return {"result": "x" * 100_000}
    if do == "dishonest":
        return {"result": object()}
    if do == "nan":
        return {"result": float("nan")}
    if do == "ask":
        return {"result": interrupt("how many?")}
    if do == "slow":
        time.sleep(30)
    with Path("note.txt").open("a") as note:
        note.write(f"{os.getpid()}\n")
    sys.stderr.write("done\n")
    return {"result": do}


def build_graph() -> StateGraph:
    graph = StateGraph(State)
    graph.add_node("act", act)
    graph.add_edge(START, "act")
    graph.add_edge("act", END)
    return graph


def grade(output, workspace):
    lines = (workspace / "note.txt").read_text().splitlines()
    return {"score": float(len(lines)), "comment": output["result"]}


def broken():
    raise RuntimeError("this evaluator never works")
