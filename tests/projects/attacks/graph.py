"""Hostile code in a node: the probes, and a second opinion that shares no code with them.

Input: `probes`, names or null for all; `surroundings`, fields of `probes.Surroundings` without the
workspace; `raw`, a list of `[attack, argument...]`. Output: `findings` and `outcomes`. Each finding
is printed as well, so that the log has those made before the execution was ended.

The graph `sibling` is the one that is attacked: it writes marks, waits for the file `go` in its
HOME, and says in `before` and `after` what it sees of its files.
"""

# The plain calls are the second opinion.
# ruff: noqa: PTH101, PTH104, PTH123, PTH211

import errno
import hashlib
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

from wtb_core.sandbox import probes


class State(TypedDict, total=False):
    probes: list[str] | None
    surroundings: dict[str, Any]
    raw: list[list[Any]]
    findings: list[list[Any]]
    outcomes: list[str]
    before: str
    after: str


def attack(state: State) -> State:
    surroundings = probes.Surroundings.read(
        {**state.get("surroundings", {}), "workspace": str(Path.cwd())}
    )
    findings = probes.run(surroundings, state.get("probes"), report)
    return {"findings": [[*finding] for finding in findings]}


def report(finding: probes.Finding) -> None:
    print(json.dumps(finding), flush=True)


def write(path, mode="r+b"):
    with open(path, mode) as file:
        file.write(b"PROBE")


def read(path):
    with open(path, "rb") as file:
        return file.read()


def link_and_write(path):
    os.link(path, "linked")
    write("linked")


def symlink_and_write(path):
    os.symlink(path, "symlinked")
    write("symlinked")


def connect(host, port):
    with socket.socket(socket.AF_INET) as sock:
        sock.settimeout(2)
        sock.connect((host, port))


def fork_many(count):
    children = []
    try:
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                signal.pause()
            children.append(pid)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


RAW = {
    "write": write,
    "append": lambda path: write(path, "ab"),
    "create": lambda path: write(path, "xb"),
    "truncate": lambda path: os.truncate(path, 0),
    "chmod": lambda path: os.chmod(path, 0o777),
    "utime": lambda path: os.utime(path, (1, 1)),
    "rename": lambda path: os.rename(path, f"{path}-renamed"),
    "delete": os.unlink,
    "link": link_and_write,
    "symlink": symlink_and_write,
    "read": read,
    "list": os.listdir,
    "signal": lambda pid: os.kill(pid, 0),
    "connect": connect,
    "fork": fork_many,
}


def attack_plainly(state: State) -> State:
    outcomes = []
    for name, *arguments in state.get("raw", []):
        try:
            RAW[name](*arguments)
        except OSError as error:
            outcomes.append(errno.errorcode[error.errno])
        else:
            outcomes.append("done")
    return {"outcomes": outcomes}


def build_graph() -> StateGraph:
    graph = StateGraph(State)
    graph.add_node("attack", attack)
    graph.add_node("attack_plainly", attack_plainly)
    graph.add_conditional_edges(START, chosen, ["attack", "attack_plainly"])
    graph.add_edge("attack", END)
    graph.add_edge("attack_plainly", END)
    return graph


def chosen(state: State) -> str:
    return "attack_plainly" if "raw" in state else "attack"


def stay(state: State) -> State:
    probes.put_marks(Path.cwd())
    before = digest(Path.cwd())
    print("here", flush=True)
    while not Path.home().joinpath("go").exists():
        time.sleep(0.02)
    return {"before": before, "after": digest(Path.cwd())}


def digest(directory: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        found.update(f"{path} {path.lstat().st_mode} {path.lstat().st_mtime_ns}".encode())
        found.update(path.read_bytes() if path.is_file() else b"")
    return found.hexdigest()


def build_sibling() -> StateGraph:
    graph = StateGraph(State)
    graph.add_node("stay", stay)
    graph.add_edge(START, "stay")
    graph.add_edge("stay", END)
    return graph
