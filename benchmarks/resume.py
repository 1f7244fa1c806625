"""How long does it take from the death of a replica until its work goes on elsewhere?

Starts the service in a folder of its own, with two replicas that have slots to spare, and runs
executions of many short supersteps. Kills -9 the replica that holds most of them, again and again;
a lost execution may be tried again at once, so no backoff is in the figures. A witness outside
hears of every start of a node, so the time of a kill and that of the next node of a lost execution
come from one clock. A figure of each kill: seconds until the first lost execution starts a node
again, on the replica that is left, and until the last one does, which may have to wait for the
replica that comes instead. An execution that starts from its beginning is counted and is no
resumption.

Run: python -m benchmarks.resume [--kills 10]
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil

from benchmarks.chaos_records import Mark, Records
from benchmarks.chaos_service import Service
from benchmarks.chaos_witness import Witness
from wtb_core.demo import end_on_signals

RUNNING = 5
"""More than the slots of one replica, so both always have some."""
STEPS = 1_500
"""So many that none ends while replicas are killed."""
STEP_S = 0.2
LOOK_S = 0.02
QUIET_S = 3.0
"""How long everything runs undisturbed before the next kill."""
LIMIT_S = 60.0
MAX_TURNS = 3
"""Kills for each that is wanted: one may hit a replica between two executions."""


class Loss(NamedTuple):
    """What one kill cost: executions lost, started over, and seconds until nodes started again."""

    lost: int
    started_over: int
    first_s: float
    last_s: float


async def measure(service: Service, records: Records, kills: int) -> list[Loss]:
    async with (
        Witness(records) as witness,
        httpx.AsyncClient(base_url=service.url, timeout=LIMIT_S) as http,
    ):
        step = {"sleep_s": STEP_S}
        spec = {
            "project": "journal",
            "variants": [{"name": "line", "graph": "line", "recursion_limit": 10 * STEPS}],
            "cases": [
                {"input": {"witness": witness.port, "steps": [step] * STEPS}}
                for _ in range(RUNNING)
            ],
            "retry": {"max_attempts": 100, "backoff": 0},
            "workspace": {"keep": "never"},
        }
        batch = (await http.post("/v1/batches", json=spec)).raise_for_status().json()
        losses: list[Loss] = []
        for _ in range(MAX_TURNS * kills):
            if len(losses) == kills:
                break
            await _wait(lambda: len(service.find("replica")) == 2)
            await asyncio.sleep(QUIET_S)
            loss = await _kill(service, witness)
            if loss is not None:
                losses.append(loss)
        await http.post(batch["links"]["self"] + "/cancel", json={"reason": "measured"})
        await _wait(lambda: not service.find("child"))
        return losses


async def _kill(service: Service, witness: Witness) -> Loss | None:
    """Kill the replica with most below it; none when it held nothing."""
    victim = max(service.find("replica"), key=_count_descendants)
    before = dict(witness.latest)
    killed_at = time.time()
    victim.kill()
    deadline = time.monotonic() + LIMIT_S
    first: dict[str, Mark] = {}
    quiet_at = time.monotonic() + QUIET_S
    while time.monotonic() < deadline:
        await asyncio.sleep(LOOK_S)
        for execution_id, mark in before.items():
            now = witness.first_of.get((execution_id, mark.attempt + 1))
            if now is not None and execution_id not in first and now.at > killed_at:
                first[execution_id] = now
                quiet_at = time.monotonic() + QUIET_S
        if first and time.monotonic() > quiet_at:
            break
    if not first:
        return None
    times = [mark.at - killed_at for mark in first.values()]
    over = sum(mark.superstep == 0 for mark in first.values())
    return Loss(len(first), over, min(times), max(times))


def _count_descendants(process: psutil.Process) -> int:
    try:
        return len(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return 0


async def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not await asyncio.to_thread(condition):
        if time.monotonic() > deadline:
            raise TimeoutError
        await asyncio.sleep(LOOK_S * 10)


def describe(losses: list[Loss]) -> dict[str, Any]:
    """The figures of all kills."""
    firsts, lasts = [loss.first_s for loss in losses], [loss.last_s for loss in losses]
    return {
        "kills": len(losses),
        "executions_lost": sum(loss.lost for loss in losses),
        "started_over": sum(loss.started_over for loss in losses),
        "first_node_s": _spread(firsts),
        "last_node_s": _spread(lasts),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
    }


def _spread(values: list[float]) -> dict[str, float]:
    middle = statistics.median(values)
    found = {"min": min(values), "median": middle, "max": max(values)}
    return {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="wtb-resume-"))
    end_on_signals()
    with Records(folder) as records:
        service = Service(folder, records)
        try:
            service.start()
            losses = asyncio.run(measure(service, records, options.kills))
        finally:
            service.stop()
    print("kill  lost  started over  first node s  last node s")
    for number, loss in enumerate(losses, 1):
        print(
            f"{number:>4}  {loss.lost:>4}  {loss.started_over:>12}"
            f"  {loss.first_s:>12.2f}  {loss.last_s:>11.2f}"
        )
    print(json.dumps(describe(losses)))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
