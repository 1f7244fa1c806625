"""Three nodes in a row that leave their names in a file and the state, and tell it outside.

Outside is the port `stage` of the loopback, which answers when a node may go on, and how.
"""

import operator
import os
import signal
import socket
from pathlib import Path
from typing import Annotated, TypedDict

from langgraph.graph import END, START, StateGraph

NAMES = ("a", "b", "c")
DIE = b"die"


class State(TypedDict, total=False):
    stage: int
    ran: Annotated[list[str], operator.add]
    log: str


def tell(port: int, name: str) -> bytes:
    """Say that `name` runs and wait until it may go on; the answer says how."""
    with socket.create_connection(("127.0.0.1", port)) as stage:
        stage.sendall(f"{name}\n".encode())
        return stage.recv(16)


def make_node(name: str):
    def run(state: State) -> State:
        with Path("log.txt").open("a") as file:
            file.write(f"{name}\n")
        if tell(state["stage"], name) == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"ran": [name], "log": Path("log.txt").read_text()}

    return run


def build() -> StateGraph:
    graph = StateGraph(State)
    for before, name in zip((START, *NAMES), NAMES, strict=False):
        graph.add_node(name, make_node(name))
        graph.add_edge(before, name)
    graph.add_edge(NAMES[-1], END)
    return graph
