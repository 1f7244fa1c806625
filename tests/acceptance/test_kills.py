"""Nothing stays behind: no process, mount, directory or descriptor, whatever is killed.

`WTB_KILLS=1000` runs as many executions; without it the run is short.
"""

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml

from benchmarks.services import (
    find_mounts,
    find_role,
    find_sandboxed,
    list_leftovers,
    split_sandboxed,
    write_config,
)
from wtb_core.demo import find_free_port, serving, wait_until_ready
from wtb_core.testbench import TestBench

EXECUTIONS = int(os.environ.get("WTB_KILLS", "150"))
CHILD_EVERY_S = 0.4
NURSERY_EVERY_S = 9.0
REPLICA_EVERY_S = 12.0
GRAPH = """
import os
import subprocess
import time
from pathlib import Path
from typing import TypedDict

from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    n: int


def write(state):
    Path("made.txt").write_text(str(state["n"]))
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    return {}


def step(state):
    time.sleep(0.05)
    return {"n": int(Path("made.txt").read_text()) + 1}


def build():
    graph = StateGraph(State)
    graph.add_node("write", write)
    graph.add_node("step", step)
    graph.add_edge(START, "write")
    graph.add_edge("write", "step")
    graph.add_edge("step", END)
    return graph
"""


def make_service(folder: Path, port: int) -> Path:
    """The config of a service with the project."""
    project = folder / "projects" / "steps"
    (project / "workspace").mkdir(parents=True)
    (project / "workspace" / "base.txt").write_text("base")
    (project / "graph.py").write_text(GRAPH)
    definition = {"name": "steps", "graph": "./graph.py:build", "workspace": "./workspace"}
    (project / "project.yaml").write_text(yaml.safe_dump(definition))
    return write_config(folder, port)


@contextlib.contextmanager
def killing(folder: Path, service_pid: int) -> Iterator[Counter[str]]:
    """Kill a process of user code every moment, now and then one that they come from, or a replica.

    What executions are forked from takes seconds to start, so it is left alone for that long.
    """
    chosen = random.Random(4)
    counts: Counter[str] = Counter()
    ended = threading.Event()

    def kill(kind: str, processes: list[psutil.Process]) -> None:
        if processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                chosen.choice(processes).kill()
                counts[kind] += 1

    def run() -> None:
        next_replica = time.monotonic() + REPLICA_EVERY_S / 2
        next_nursery = time.monotonic() + NURSERY_EVERY_S
        while not ended.wait(CHILD_EVERY_S):
            nurseries, children = split_sandboxed(folder)
            kill("child", children)
            if time.monotonic() > next_nursery:
                kill("nursery", nurseries)
                next_nursery = time.monotonic() + NURSERY_EVERY_S
            if time.monotonic() > next_replica:
                kill("replica", find_role(service_pid, "replica"))
                next_replica = time.monotonic() + REPLICA_EVERY_S

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield counts
    finally:
        ended.set()
        thread.join()


def wait_for_none(find, deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while found := find():
        assert time.monotonic() < end, found
        time.sleep(0.5)


def list_special_descriptors(pid: int) -> list[str]:
    """Handles of processes and namespaces that a replica has open."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(entry.readlink()))
    kinds = ("mnt:", "pid:", "net:", "ipc:")
    return [link for link in links if link.startswith(kinds) or "pidfd" in link]


def test_kills_leave_nothing_behind(tmp_path: Path) -> None:
    port = find_free_port()
    url = f"http://127.0.0.1:{port}"
    config = make_service(tmp_path, port)
    spec = {
        "project": "steps",
        "variants": [{"name": "only"}],
        "cases": [{"input": {"n": n}} for n in range(EXECUTIONS)],
        "retry": {"max_attempts": 50, "backoff": "0.1s", "on": ["crash", "lost"]},
        "workspace": {"keep": "never"},
    }
    with serving(config, tmp_path / "service.log") as service:
        wait_until_ready(url, service, tmp_path / "service.log")
        with TestBench.connect(url) as bench:
            with killing(tmp_path, service.pid) as counts:
                result = bench.run_batch(spec)
            failures = [row["failure"] for row in result.executions if row["failure"]]
            assert result.succeeded, failures
            assert min(counts["child"], counts["nursery"], counts["replica"]) > 0, counts
            wait_for_none(lambda: list_leftovers(tmp_path / ".wtb"), 90)
            sleeping = lambda: [p for p in find_sandboxed(tmp_path) if p.name() == "sleep"]  # noqa: E731
            wait_for_none(sleeping, 10)
            for replica in find_role(service.pid, "replica"):
                wait_for_none(lambda pid=replica.pid: list_special_descriptors(pid), 10)
    wait_for_none(lambda: find_sandboxed(tmp_path), 10)
    assert find_mounts(tmp_path) == []
