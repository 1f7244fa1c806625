"""Graphs that go wrong, each in one way."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph


class State(TypedDict):
    value: Any


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def fail(state):
    raise ValueError("this node does not work \ud800")


def fail_unprintably(state):
    raise Unprintable


def leave(state):
    sys.exit(3)


def exit_now(state):
    print("last words", flush=True)
    print("and last errors", file=sys.stderr)
    os._exit(7)


def exit_quietly(state):
    os._exit(0)


def fault(state):
    ctypes.string_at(0)


def loop(state):
    while True:
        time.sleep(0.05)


def spawn_daemon(state):
    """A daemon in another session that ignores what it can, and its own child."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note = state["value"]
    if os.fork() == 0:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if os.fork():
            os._exit(0)
        child = subprocess.Popen(["sleep", "1000"])
        Path(note).write_text(f"{os.getpid()} {child.pid}")
        while True:
            time.sleep(100)
    while not Path(note).exists():
        time.sleep(0.01)
    return {"value": "daemon started"}


def kill_init(state):
    spawn_daemon(state)
    # In a slot the parent is out of sight, and its number 0: this process's own group.
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(100)


def hog(state):
    return {"value": len(bytearray(1024**3))}


def big(state):
    return {"value": "x" * 5000}


def big_file(state):
    with Path("big").open("wb") as file:
        file.writelines(bytes(1024**2) for _ in range(100))
    return {"value": "written"}


def close_everything(state):
    os.closerange(3, 100)
    while True:
        time.sleep(1)


def leave_threads(state):
    import threading

    threading.Thread(target=time.sleep, args=(1000,)).start()
    return {"value": "thread left"}


def chatter(state):
    print("y" * (11 * 1024**2))
    return {"value": "said"}


def dishonest(kind):
    def node(state):
        import numpy as np

        values = {
            "array": [1, 2, {"scores": np.zeros(2)}],
            "nan": float("nan"),
            "bytes": b"x",
            "keys": {1: 2},
            "surrogate": "\ud800",
            "object": object,
        }
        if kind == "cycle":
            values["cycle"] = []
            values["cycle"].append(values["cycle"])
        return {"value": values[kind]}

    return node


def graph_of(node):
    builder = StateGraph(State)
    builder.add_node("before", lambda state: None)
    builder.add_node("bad", node)
    builder.add_edge(START, "before")
    builder.add_edge("before", "bad")
    builder.add_edge("bad", END)
    return builder.compile()


for _name in ("array", "nan", "bytes", "keys", "surrogate", "object", "cycle"):
    globals()[f"output_{_name}"] = graph_of(dishonest(_name))
for _node in (
    *(fail, fail_unprintably, leave, exit_now, exit_quietly, fault, loop, spawn_daemon),
    *(kill_init, hog, big, big_file, close_everything, leave_threads, chatter),
):
    globals()[f"{_node.__name__}_graph"] = graph_of(_node)


def broken_factory():
    raise RuntimeError("the factory is broken")


not_a_graph = 42
