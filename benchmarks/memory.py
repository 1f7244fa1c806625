"""Does a batch's size show in the memory of the ingress and the collector?

Starts the service in a folder of its own, runs a small and a large batch of a trivial graph, and
prints how far each process grew from the one to the other, and when the first result came.

Run: python -m benchmarks.memory [--small 1000] [--large 20000] [--stop-after 2000]
"""

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.services import find_role, write_config
from wtb_core.demo import find_free_port, serving, wait_until_ready
from wtb_core.testbench import TestBench

GRAPH = """
from typing import TypedDict

from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    n: int
    doubled: int


def double(state):
    return {"doubled": state["n"] * 2}


def check(state):
    return {"n": state["n"]}


def build_graph():
    graph = StateGraph(State)
    graph.add_node("double", double)
    graph.add_node("check", check)
    graph.add_edge(START, "double")
    graph.add_edge("double", "check")
    graph.add_edge("check", END)
    return graph
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=1_000)
    parser.add_argument("--large", type=int, default=20_000)
    parser.add_argument("--stop-after", type=int, default=None, help="cancel after so many results")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="wtb-memory-"))
    project = root / "projects" / "trivial"
    project.mkdir(parents=True)
    (project / "graph.py").write_text(GRAPH)
    (project / "project.yaml").write_text("name: trivial\ngraph: ./graph.py:build_graph\n")
    port = find_free_port()
    config = write_config(root, port)
    log = root / "serve.log"
    url = f"http://127.0.0.1:{port}"
    with serving(config, log) as service:
        wait_until_ready(url, service, log)
        family = {role: find_role(service.pid, role)[0] for role in ("ingress", "collector")}
        print("warm-up", run(url, 200, family, None))
        small = run(url, options.small, family, options.stop_after)
        print("small", json.dumps(small))
        large = run(url, options.large, family, options.stop_after)
        print("large", json.dumps(large))
    for name in family:
        grown = (large["peak_bytes"][name] - small["peak_bytes"][name]) / 1024**2
        print(f"{name}: peak grew by {grown:.1f} MiB from {options.small} to {options.large}")


def run(
    url: str, executions: int, family: dict[str, psutil.Process], stop_after: int | None
) -> dict[str, Any]:
    spec = {
        "project": "trivial",
        "variants": [{"name": "one"}, {"name": "two"}],
        "cases": [{"input": {"n": n}} for n in range(executions // 2)],
        "workspace": {"keep": "never"},
    }
    peaks = dict.fromkeys(family, 0)
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.05):
            for name, process in family.items():
                peaks[name] = max(peaks[name], process.memory_info().rss)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    started = time.monotonic()
    first = last_claim = None
    results = 0
    with TestBench.connect(url) as bench:
        batch_id = bench.submit(spec)
        accepted = time.monotonic() - started
        for event in bench.events(batch_id):
            if event["type"] == "ray_variant_execution_started":
                last_claim = time.monotonic() - started
            elif event["type"] == "ray_variant_execution_completed":
                first = first or time.monotonic() - started
                results += 1
                if results == stop_after:
                    bench.cancel(batch_id)
        counts = bench.batch(batch_id)["counts"]
    took = time.monotonic() - started
    done.set()
    sampler.join()
    return {
        "executions": executions,
        "accepted_share": accepted / took,
        "first_result_share": (first or took) / took,
        "last_claim_share": (last_claim or took) / took,
        "per_s": results / took,
        "counts": counts,
        "peak_bytes": peaks,
    }


if __name__ == "__main__":
    main()
