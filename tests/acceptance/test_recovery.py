"""What was accepted is carried out, whatever is killed."""

from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from benchmarks.services import find_role, write_config
from wtb_core.demo import find_free_port, serving, wait_until_ready
from wtb_core.events import ends_execution
from wtb_core.report import BatchFold
from wtb_core.testbench import TestBench

GRAPH = """
import time
from typing import TypedDict

from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    n: int


def step(state):
    time.sleep(0.8)
    return {"n": state["n"] + 1}


def build():
    graph = StateGraph(State)
    graph.add_node("step", step)
    graph.add_edge(START, "step")
    graph.add_edge("step", END)
    return graph
"""
SPEC = {
    "project": "steps",
    "variants": [{"name": "one"}, {"name": "two"}],
    "cases": [{"input": {"n": n}} for n in range(40)],
}


def make_service(folder: Path, port: int) -> Path:
    """The config of a service with the project."""
    project = folder / "projects" / "steps"
    project.mkdir(parents=True, exist_ok=True)
    (project / "graph.py").write_text(GRAPH)
    (project / "project.yaml").write_text("name: steps\ngraph: ./graph.py:build\n")
    return write_config(folder, port)


def run_until(bench: TestBench, completed: int) -> str:
    """Until so many have completed and another one has just started: something is running."""
    batch_id = bench.submit(SPEC)
    count = 0
    for event in bench.events(batch_id):
        count += event["type"] == "ray_variant_execution_completed"
        if count >= completed and event["type"] == "ray_variant_execution_started":
            return batch_id
    raise AssertionError("the batch ended early")


def check(bench: TestBench, batch_id: str) -> list[dict[str, Any]]:
    """The batch ends with every execution succeeded once, and says what its events say."""
    fold = BatchFold()
    ends: Counter[str] = Counter()
    events = []
    for event in bench.events(batch_id):
        events.append(event)
        fold.feed(event)
        if ends_execution(event["type"], event["payload"]):
            ends[event["payload"]["execution_id"]] += 1
    batch = bench.batch(batch_id)
    assert batch["status"] == fold.status == "completed"
    assert batch["counts"] == fold.counts
    assert batch["counts"]["succeeded"] == len(ends) == 80
    assert set(ends.values()) == {1}
    return events


def test_a_killed_replica_and_a_killed_service_lose_nothing(tmp_path: Path) -> None:
    port = find_free_port()
    url = f"http://127.0.0.1:{port}"
    config = make_service(tmp_path, port)
    with serving(config, tmp_path / "first.log") as service:
        wait_until_ready(url, service, tmp_path / "first.log")
        with TestBench.connect(url) as bench:
            # Looking for processes takes a while, in which what runs could end.
            victims = find_role(service.pid, "replica")
            batch_id = run_until(bench, 4)
            for victim in victims:
                victim.kill()
            events = check(bench, batch_id)
            failed = [e["payload"] for e in events if e["type"] == "ray_variant_execution_failed"]
            assert failed
            assert {(p["kind"], p["will_retry"]) for p in failed} == {("lost", True)}
            family = psutil.Process(service.pid).children(recursive=True)
            interrupted = run_until(bench, 10)
        for process in [psutil.Process(service.pid), *family]:
            if process.is_running():
                process.kill()
    with serving(config, tmp_path / "second.log") as service:
        wait_until_ready(url, service, tmp_path / "second.log")
        with TestBench.connect(url) as bench:
            check(bench, interrupted)
