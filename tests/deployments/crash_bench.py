"""A bench for crash points: real parties in processes that are killed, and what must hold after it.

The test plays what is none of them: the clients, Serve, and where no ingress runs the dispatcher.
User code is the project `staged`, which tells what it does at a `Stage`.
"""

import asyncio
import contextlib
import json
import multiprocessing
import os
import pickle
import signal
import socket
import socketserver
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from deployments.messages import Death, PoolReport
from tests.contract.store_bench import Store, check_store, make_batch, make_template, short
from tests.deployments import crash_parties
from tests.deployments.crash_parties import (
    PROJECTS,
    SIZE_BYTES,
    Broken,
    Ground,
    Role,
    actor_id,
    frame,
)
from wtb_core.data import DataDir
from wtb_core.files import commits
from wtb_core.files.blobs import BlobStore
from wtb_core.ids import new_batch_id, new_event_id
from wtb_core.projects import ProjectVersions

NODES = ["a", "b", "c"]
"""Those of the project, in their turn."""
WAIT_S = 60.0
QUICK = {
    "deployments.variant_executor.HEARTBEAT_S": 0.1,
    "deployments.variant_executor.TIDY_S": 0.5,
    "wtb_core.supervisors.UPKEEP_S": 0.2,
}

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([crash_parties.__name__])


def until[Found](condition: Callable[[], Found], what: Callable[[], str] | str) -> Found:
    """What the condition says, once it is true."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        time.sleep(0.01)
    return found


def ask(address: Path, method: str, *arguments: Any) -> Any:
    """One call of a party, as `crash_parties.ask` makes it, without an event loop."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(WAIT_S)
        sock.connect(str(address))
        sock.sendall(frame((method, arguments)))
        with sock.makefile("rb") as answer:
            try:
                size = int.from_bytes(answer.read(SIZE_BYTES))
                data = answer.read(size)
            except ConnectionError:
                raise Broken from None
    if not data:
        raise Broken
    raised, value = pickle.loads(data)
    if raised:
        raise value
    return value


class Stage:
    """Where user code tells what it does, and is kept waiting where a test wants it."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self._held: dict[str, list[threading.Event]] = {}
        self._dying: Counter[str] = Counter()
        meet = self._meet

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(meet(self.rfile.readline().decode().strip()))

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        for name in list(self._held):
            self.release(name)
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def hold(self, name: str) -> None:
        """Keep `name` waiting from now on."""
        self._held[name] = []

    def release(self, name: str) -> None:
        """Let `name` go on, also when it comes again."""
        for waiting in self._held.pop(name):
            waiting.set()

    def release_first(self, name: str) -> None:
        """Let the first go on that waits as `name`."""
        self._held[name].pop(0).set()

    def kill(self, name: str) -> None:
        """The next time that `name` runs it kills its own process."""
        self._dying[name] += 1

    def wait_for(self, name: str, times: int = 1) -> None:
        """Until `name` has been told so often."""
        until(lambda: self.told.count(name) >= times, f"{name!r} did not run {times} times")

    def _meet(self, name: str) -> bytes:
        waiting = threading.Event()
        if name in self._held:
            self._held[name].append(waiting)
        else:
            waiting.set()
        self.told.append(name)
        waiting.wait()
        if self._dying[name]:
            self._dying[name] -= 1
            return b"die"
        return b"go on"


class Party:
    """A process of the protocol, as a test has it."""

    def __init__(self, ground: Ground, role: Role) -> None:
        self.name = role.name
        self._ground = ground
        self._address = ground.sockets / role.name
        self.process = _PROCESSES.Process(
            target=crash_parties.be, args=(ground, role), name=role.name, daemon=True
        )
        self.process.start()

    def ask(self, method: str, *arguments: Any) -> Any:
        """One call, once it is ready; see `crash_parties.ask`."""
        self.wait_until_ready()
        return ask(self._address, method, *arguments)

    def is_alive(self) -> bool:
        return self.process.exitcode is None

    def wait_until_ready(self) -> None:
        """Until it can be called, or has died before."""
        until(lambda: self._address.exists() or not self.is_alive(), f"{self.name} is not ready")

    def wait_until_dead(self) -> None:
        """Until it has killed itself, or was killed."""
        until(lambda: not self.is_alive(), f"{self.name} does not die")
        assert self.process.exitcode == -signal.SIGKILL, self.read_log()
        self._address.unlink(missing_ok=True)

    def kill(self) -> None:
        """Kill it, wherever it is."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.wait_until_dead()

    def find_family(self) -> list[psutil.Process]:
        """The processes below it, the nearest first."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def read_log(self) -> str:
        return self._ground.find_log(self.name).read_text()


class Bench:
    """One data directory, its parties and what they leave."""

    def __init__(self, root: Path, sockets: Path) -> None:
        self._root = root
        self.data = DataDir(root / "data").create()
        self.ground = Ground(self.data, sockets)
        self.stage = Stage()
        self.parties: list[Party] = []
        self._numbers: Counter[str] = Counter()
        self._permits = ThreadPoolExecutor(8)
        self._blobs = BlobStore(self.data.blobs)
        make_template(self.data.path / "wtb.db")

    def close(self) -> None:
        for party in self.parties:
            if party.is_alive():
                party.process.kill()
            party.process.join()
        self.stage.close()
        self._permits.shutdown()

    # -- parties -----------------------------------------------------------------------------------

    def start(
        self,
        kind: str,
        point: str | None = None,
        nth: int = 1,
        *,
        drain_s: float = 100.0,
        **changes: Any,
    ) -> Party:
        """Another party; it dies when it comes to `point` for the `nth` time.

        `changes` are of the collector's constants.
        """
        self._numbers[kind] += 1
        known = {f"deployments.event_collector.{name}": value for name, value in changes.items()}
        name = f"{kind}-{self._numbers[kind]}"
        party = Party(self.ground, Role(name, point, nth, QUICK | known, drain_s))
        self.parties.append(party)
        return party

    def ask(self, method: str, *arguments: Any) -> Any:
        """One call of the newest collector."""
        collectors = [party for party in self.parties if party.name.startswith("collector")]
        return collectors[-1].ask(method, *arguments)

    def permit(self, replica: Party) -> Future[bool]:
        """A permit on its way to the replica, as the dispatcher gives it."""
        return self._permits.submit(replica.ask, "run", new_event_id())

    def bury(self, replica: Party, permit: Future[bool]) -> None:
        """The permit's caller learns that the replica has died, and tells it."""
        replica.wait_until_dead()
        with pytest.raises(Broken):
            permit.result(WAIT_S)
        self.ask("report_death", Death(actor_id(replica.name), "ActorDiedError", "it was killed"))

    def list_pool(self, *running: Party, stopping: tuple[Party, ...] = ()) -> None:
        """Serve's list of replicas, told until the collector has made all of it."""
        names, ending = [p.name for p in running], [p.name for p in stopping]
        report = PoolReport(
            *([*names, *ending], names, ending), slots=1, max_replicas=4, max_queued=4
        )
        until(lambda: self.ask("report_pool", report), "the collector waits for a replica")

    # -- batches -----------------------------------------------------------------------------------

    def submit(self, cases: int = 1, **fields: Any) -> str:
        """Have the collector accept a batch of the project `staged`."""
        fields = {"project": "staged", "workspace": {"keep": "never"}, **fields}
        batch = make_batch(new_batch_id(), cases=cases, **fields)
        given = [case | {"input": {"stage": self.stage.port}} for case in batch.cases]
        batch = batch._replace(
            project_version=self._ingest(), cases=given, evaluators=["told"], scores={}
        )
        return self.ask("accept", batch).batch_id

    def make_spec(self, cases: int = 1) -> dict[str, Any]:
        """A client's spec of the project `staged`."""
        return {
            "project": "staged",
            "variants": [{"name": "v0"}],
            "cases": [{"id": f"c{n}", "input": {"stage": self.stage.port}} for n in range(cases)],
            "workspace": {"keep": "never"},
            "retry": {"backoff": 0},
        }

    def _ingest(self) -> str:
        versions = ProjectVersions(self._blobs, self.data.bases)
        sources = versions.find(PROJECTS / "staged/project.yaml")
        return asyncio.run(versions.ingest(sources))

    def run_to_end(self, replica: Party, batch_id: str) -> None:
        """Give permits until the batch has ended."""
        until(
            lambda: [replica.ask("run", new_event_id()), self.has_ended(batch_id)][1],
            lambda: f"the batch does not end: {self.read_story(batch_id)}",
        )

    def has_ended(self, batch_id: str) -> bool:
        return self.ask("read_events", batch_id, 0, 1_000, 0)[1]

    def read_events(self, batch_id: str) -> list[dict[str, Any]]:
        return self.ask("read_events", batch_id, 0, 1_000, 0)[0]

    def read_story(self, batch_id: str) -> list[str]:
        """What the attempts' events say, in their order."""
        return tell_story(self.read_events(batch_id))

    def read_checkpoints(self, execution_id: str, attempt: int) -> list[str]:
        """The root checkpoints of an attempt after START and each node, as they are stored now."""
        with contextlib.closing(sqlite3.connect(self.data.checkpoints)) as db:
            found = db.execute(
                "SELECT id FROM checkpoints WHERE storage_key = ? AND ns = '' AND source = 'loop'"
                " AND resumable ORDER BY seq",
                (f"{execution_id}/{attempt}",),
            )
            return [name for (name,) in found]

    # -- what must hold ----------------------------------------------------------------------------

    def check(
        self, batch_id: str, *, ran: list[str], story: list[str], executions: int = 1
    ) -> list[dict[str, Any]]:
        """The whole contract, after the end of a batch; returns its events.

        `ran` is what user code told, and `story` is what the events say.
        """
        events = self.read_events(batch_id)
        in_turn = list if executions == 1 else sorted
        assert in_turn(self.stage.told) == in_turn(ran)
        assert in_turn(tell_story(events)) == in_turn(story)
        self._check_leftovers()
        for party in self.parties:
            if party.is_alive():
                party.kill()
        until(lambda: not self._find_sandboxed(), lambda: f"alive: {self._find_sandboxed()}")
        self._check_store(batch_id, executions)
        return events

    def _check_leftovers(self) -> None:
        """Of the dead nothing is left: no process, no directory and no live checkpoint."""
        alive = {party.process.pid for party in self.parties if party.is_alive()}

        def find() -> list[str]:
            found = [str(path) for path in self.data.runs.glob("*/*")]
            found += [str(path) for path in (self.data.cache / "gone").glob("*")]
            zygotes = (self.data.cache / "zygotes").glob("*")
            found += [str(z) for z in zygotes if int(z.name.partition("-")[0]) not in alive]
            for process in self._find_sandboxed():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if not alive & {parent.pid for parent in process.parents()}:
                        found.append(str(process))
            return [*found, *self._find_rows()]

        until(lambda: not find(), lambda: f"left: {find()}")

    def _find_rows(self) -> list[str]:
        with contextlib.closing(sqlite3.connect(self.data.checkpoints)) as db:
            return [key for (key,) in db.execute("SELECT DISTINCT storage_key FROM checkpoints")]

    def _find_sandboxed(self) -> list[psutil.Process]:
        """Processes beside or of user code: they have a HOME in the data directory."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("HOME", "").startswith(str(self.data.path)):
                    found.append(process)
        return found

    def _check_store(self, batch_id: str, executions: int) -> None:
        copy = self._root / "copy.db"
        with (
            contextlib.closing(sqlite3.connect(self.data.path / "wtb.db")) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
        store = Store(copy, self._root / "checked.db")
        try:
            check_store(store)
            rows = store.executions(batch_id)
            assert [row.status for row in rows] == ["succeeded"] * executions
            assert store.batch(batch_id).status == "completed"
            for row in rows:
                self._check_result(json.loads(row.output), json.loads(row.result))
        finally:
            store.close()

    def _check_result(self, output: dict[str, Any], result: dict[str, Any]) -> None:
        """Each node has left its name once, in the state and in the files, in its turn."""
        lines = "".join(f"{name}\n" for name in NODES)
        assert (output["ran"], output["log"]) == (NODES, lines)
        assert result["scores"] == {"told": len(NODES)}
        commit = commits.decode(self._blobs.get(result["file_commit_id"]))
        assert self._blobs.get(commit.entries["log.txt"].blob or "").decode() == lines


def tell_story(events: list[dict[str, Any]]) -> list[str]:
    """Attempts' events in a word or two each."""
    story: list[str] = []
    for event in events:
        kind, payload = short(event).removeprefix("variant_execution_"), event["payload"]
        if kind == "started":
            story.append("started" if payload["resumed_from"] is None else "resumed")
        elif kind == "failed":
            story.append(payload["kind"] if payload["will_retry"] else f"failed: {payload['kind']}")
        elif kind in {"completed", "cancelled"}:
            story.append(kind)
    return story
