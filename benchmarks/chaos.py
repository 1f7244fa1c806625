"""Is anything lost when things die at random?

Starts the service in a folder of its own, submits a load of mixed batches, kills a process of it
every few seconds (a child, a nursery, a replica, the ingress, the collector, Serve's controller,
the proxy, all of Ray), deploys changed args in between, and lets clients follow every stream. When
the load has ended and the service was stopped, `chaos_checker` reads the store and the records. The
same seed kills the same kinds of things after the same pauses. A run ends in any case: what has not
ended `--drain` seconds after the kills is a violation.

Run: python -m benchmarks.chaos [--seed 1] [--minutes 20] [--executions 5000] [--pause 4]
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import chaos_checker
from benchmarks.chaos_clients import Clients
from benchmarks.chaos_plan import KILLS, Kill, Load, plan_kills, plan_loads
from benchmarks.chaos_records import Records
from benchmarks.chaos_service import Service
from benchmarks.chaos_witness import Witness
from wtb_core.demo import end_on_signals

BACKLOG = 600
"""Executions that clients wait for at most; so a slow machine is not buried."""
LOOK_S = 0.2
STALLED_S = 90.0
"""How long a service that is up may start no node while there is work."""


@dataclass
class Options:
    """What a run is asked for; `deck` says how often each kind of kill comes."""

    seed: int = 1
    minutes: float = 20.0
    executions: int = 5_000
    pause_s: float = 4.0
    drain_s: float = 300.0
    deck: Mapping[str, int] = field(default_factory=lambda: KILLS)


class Run:
    """One run: a load, kills, and a watch that it goes on."""

    def __init__(self, options: Options, folder: Path, service: Service, records: Records) -> None:
        self._options = options
        self._folder = folder
        self._service = service
        self._records = records
        self._over = asyncio.Event()
        self._up = asyncio.Lock()
        """Held while the service is started or stopped."""

    async def carry_out(self) -> None:
        """All of it; what is wrong is in the records then."""
        async with Witness(self._records) as witness:
            clients = Clients(self._service.url, self._records, witness.port)
            helpers = [
                asyncio.create_task(self._kill_again_and_again()),
                asyncio.create_task(self._watch(witness, clients)),
            ]
            try:
                running = await self._submit(clients)
                self._over.set()
                _, late = await asyncio.wait(running, timeout=self._options.drain_s)
                if late:
                    for what in clients.waiting[:20]:
                        self._complain("at the end", f"still waiting for {what}")
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)
            finally:
                self._over.set()
                for result in await asyncio.gather(*helpers, return_exceptions=True):
                    if isinstance(result, BaseException):
                        self._complain("the run", f"{type(result).__name__}: {result}")
                self._records.add("answers", **clients.answers)
                await clients.close()
            if not self._service.has_died():
                for what in await self._service.settle():
                    self._complain("while it runs", what)

    async def _submit(self, clients: Clients) -> set[asyncio.Task[None]]:
        """Spread the load over the time; a slow machine gets it later, up to twice the time."""
        options = self._options
        loads = plan_loads(options.seed, options.executions)
        planned_s = options.minutes * 60
        started_at = time.monotonic()
        submitted = 0
        running: set[asyncio.Task[None]] = set()
        for load in loads:
            due_s = planned_s * submitted / options.executions
            await asyncio.sleep(max(0.0, started_at + due_s - time.monotonic()))
            left_s = started_at + 2 * planned_s - time.monotonic()
            await clients.wait_for_room(BACKLOG, max(0.0, left_s))
            running.add(asyncio.create_task(self._carry(clients, load)))
            submitted += load.executions
        await asyncio.sleep(max(0.0, started_at + planned_s - time.monotonic()))
        return running

    async def _carry(self, clients: Clients, load: Load) -> None:
        try:
            await clients.carry(load)
        except Exception as error:  # noqa: BLE001 - a finding; the others go on
            self._complain(f"load {load.number} ({load.kind})", f"{type(error).__name__}: {error}")

    async def _kill_again_and_again(self) -> None:
        for kill in plan_kills(self._options.seed, self._options.pause_s, self._options.deck):
            try:
                await asyncio.wait_for(self._over.wait(), kill.pause_s)
                return
            except TimeoutError:
                async with self._up:
                    await self._kill(kill)

    async def _kill(self, kill: Kill) -> None:
        started_at, at = time.monotonic(), time.time()
        service, wrong = self._service, ""
        match kill.kind:
            case "ray":
                pids = await asyncio.to_thread(service.kill_all)
                await asyncio.to_thread(service.start)
            case "stop":
                pids = [0]
                await asyncio.to_thread(service.stop)
                await asyncio.to_thread(service.start)
            case "deploy":
                wrong = await asyncio.to_thread(service.deploy)
                pids = [] if wrong else [0]
            case _:
                at, pids = await asyncio.to_thread(service.kill, kill.kind, kill.pick)
        took_s = round(time.monotonic() - started_at, 2)
        self._records.add("kills", at=at, kind=kill.kind, pids=pids, took_s=took_s, wrong=wrong)

    async def _watch(self, witness: Witness, clients: Clients) -> None:
        """Start a service again that died of itself; complain once of each standstill."""
        complained_at = 0.0
        while not self._over.is_set() or clients.unfinished:
            await asyncio.sleep(LOOK_S)
            async with self._up:
                if self._service.has_died():
                    self._records.add_now("services", what="died", number=self._service.number)
                    await asyncio.to_thread(self._service.stop)
                    await asyncio.to_thread(self._service.start)
            heard_at = max(witness.heard_at, self._service.ready_at)
            stands = clients.unfinished and time.monotonic() - heard_at > STALLED_S
            if stands and heard_at != complained_at:
                complained_at = heard_at
                waiting = "; ".join(clients.waiting[:5])
                self._complain("progress", f"none for {STALLED_S:.0f} s; waiting: {waiting}")

    def _complain(self, when: str, what: str) -> None:
        self._records.add("left", when=when, what=what)


def run(options: Options, folder: Path) -> int:
    """Carry a run out in an empty folder and check it; how many violations there are."""
    with Records(folder) as records:
        service = Service(folder, records)
        try:
            service.start()
            asyncio.run(Run(options, folder, service, records).carry_out())
        finally:
            service.stop()
        for what in service.find_left():
            records.add("left", when="after the stop", what=what)
    return chaos_checker.report(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    defaults = Options()
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--minutes", type=float, default=defaults.minutes)
    parser.add_argument("--executions", type=int, default=defaults.executions)
    parser.add_argument("--pause", type=float, default=defaults.pause_s, help="s between kills")
    parser.add_argument("--drain", type=float, default=defaults.drain_s, help="s after the kills")
    parser.add_argument(
        "--kinds", help="what is killed, such as child,replica; each as often as the others"
    )
    parser.add_argument("--keep", action="store_true", help="keep the folder also when all is well")
    given = parser.parse_args()
    deck = KILLS if given.kinds is None else dict.fromkeys(given.kinds.split(","), 1)
    if unknown := deck.keys() - KILLS.keys():
        parser.error(f"--kinds: {', '.join(sorted(unknown))} is none of {', '.join(KILLS)}")
    options = Options(given.seed, given.minutes, given.executions, given.pause, given.drain, deck)
    folder = Path(tempfile.mkdtemp(prefix="wtb-chaos-"))
    print(f"seed {options.seed}, {options.minutes:g} minutes, {options.executions} executions")
    print(f"everything is in {folder}", flush=True)
    end_on_signals()
    violations = run(options, folder)
    if not violations and not given.keep:
        shutil.rmtree(folder)
    sys.exit(violations > 0)


if __name__ == "__main__":
    main()
