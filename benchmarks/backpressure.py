"""What a short executor queue costs: the same batch behind a limit of 4 and behind an ample one.

Two applications in one Ray, each with one replica of four slots. Batches of trivial executions run
in the one and in the other, in turn. A batch behind the short queue is one stretch of backpressure,
and its window of permits is bounded.

    python benchmarks/backpressure.py --executions 500 --rounds 3
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ray  # noqa: TID251 - it deploys
from ray import serve  # noqa: TID251

from deployments.app import AppArgs, build_app
from wtb_core.testbench import TestBench

PROJECTS = Path(__file__).parent.parent / "tests" / "projects"
SLOTS = 4
LIMITS = {"short": 4, "ample": 1_000}
WARM_UP = 20


def deploy(name: str, data_dir: str, max_queued: int) -> Any:
    """The application as `name`; returns its handle."""
    args = AppArgs.model_validate(
        {
            "root": str(PROJECTS),
            "data_dir": data_dir,
            "projects": ["trivial/project.yaml"],
            "executor": {
                "min_replicas": 1,
                "max_replicas": 1,
                "slots": SLOTS,
                "max_queued": max_queued,
                "num_cpus": 0.1,
            },
        }
    )
    return serve.run(build_app(args), name=name, route_prefix=None)


def run(handle: Any, executions: int) -> tuple[float, list[str]]:
    """Executions a second, and what was said of backpressure in the batch's stream."""
    spec = {
        "project": "trivial",
        "variants": [{"name": "only"}],
        "cases": [{"id": str(i), "input": {"value": i}} for i in range(executions)],
        "evaluators": [],
        "workspace": {"keep": "never"},
    }
    said: list[str] = []

    def note(event: dict[str, Any]) -> None:
        if event["type"].startswith("ray_backpressure"):
            said.append(event["type"].removeprefix("ray_backpressure_"))

    with TestBench.from_handle(handle) as bench:
        started = time.monotonic()
        result = bench.run_batch(spec, on_event=note)
        took_s = time.monotonic() - started
    assert result.batch["counts"]["succeeded"] == executions, result.batch["counts"]
    return executions / took_s, said


def measure(handles: dict[str, Any], executions: int, rounds: int) -> dict[str, Any]:
    """Rounds in turn; who begins alternates."""
    rates: dict[str, list[float]] = {name: [] for name in handles}
    said: dict[str, list[list[str]]] = {name: [] for name in handles}
    for number in range(rounds):
        order = list(handles) if number % 2 == 0 else list(reversed(handles))
        for name in order:
            rate, words = run(handles[name], executions)
            rates[name].append(rate)
            said[name].append(words)
            print(f"round {number}, {name}: {rate:.1f}/s {words}", flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    pools = {
        name: handle.get_pool.remote().result(timeout_s=30) for name, handle in handles.items()
    }
    return {
        "executions": executions,
        "rounds": rounds,
        "median_per_s": {name: round(rate, 2) for name, rate in medians.items()},
        "ratio": round(medians["short"] / medians["ample"], 3),
        "said": said,
        "permits": {name: pool["permits"] for name, pool in pools.items()},
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executions", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(address="local", include_dashboard=False, num_cpus=8, log_to_driver=False)
    serve.start(proxy_location="Disabled")
    with tempfile.TemporaryDirectory(prefix="wtb-backpressure-") as folder:
        try:
            handles = {
                name: deploy(name, f"{folder}/{name}", limit) for name, limit in LIMITS.items()
            }
            for handle in handles.values():
                run(handle, WARM_UP)
            print(json.dumps(measure(handles, options.executions, options.rounds), indent=2))
        finally:
            serve.shutdown()
            ray.shutdown()


if __name__ == "__main__":
    main()
