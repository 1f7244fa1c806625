"""The parties of the protocol as processes, without Ray: they die where a test wants them to.

A party has the real object of its deployment and serves its methods on a Unix socket, one call per
connection; its handles call the others' sockets. It comes to points that have names, and at the one
that it was given it kills itself with SIGKILL:

- `send METHOD`: a handle is about to send this call
- `answer METHOD`: the answer to it has come, and nobody has it yet
- `asked METHOD`: the call has come, and nothing has been done
- `done METHOD`: it has been done, and the answer has not been sent
- and those of `set_replica_points` and `set_collector_points`
"""

import asyncio
import functools
import inspect
import logging
import os
import pickle
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from ray.exceptions import ActorDiedError

from deployments import batch_ingress, executor_pool
from deployments.batch_ingress import BatchIngress, Settings
from deployments.event_collector import EventCollector
from deployments.pool_watcher import PoolLimits, Replica
from deployments.variant_executor import Identity, VariantExecutor
from tests.deployments.fakes import FakeHandle
from wtb_core.checkpoint_store import CheckpointSession
from wtb_core.data import DataDir
from wtb_core.engine import Engine
from wtb_core.errors import StaleEpoch, Unavailable
from wtb_core.sandbox.supervisor import Supervisor
from wtb_core.sandbox.workspaces import Workspace
from wtb_core.store import claims, endings

PROJECTS = Path(__file__).parents[1] / "projects"
SIZE_BYTES = 8
CUT_LOOK_S = 0.02
SLOTS = 2


class Ground(NamedTuple):
    """What the parties of one test share: the data, and a short path for their sockets."""

    data: DataDir
    sockets: Path

    def find(self, role: str) -> list[Path]:
        """The sockets of a role's parties, living or dead, the oldest first."""
        return sorted(self.sockets.glob(f"{role}-*"), key=lambda path: path.stat().st_mtime_ns)

    def find_log(self, name: str) -> Path:
        """What a party has said."""
        return self.data.path / f"{name}.log"

    def cut(self, name: str, method: str = "") -> Path:
        """While this file is there, no call of that party arrives, or none of that method."""
        return self.sockets / f"cut-{name}-{method}"


class Role(NamedTuple):
    """One party: what it is called, where it dies, and module attributes that it changes.

    It dies when it comes to `point` for the `nth` time. A replica has `drain_s` to hand back.
    """

    name: str
    point: str | None = None
    nth: int = 1
    changes: Mapping[str, Any] = {}
    drain_s: float = 100.0


class Broken(Exception):
    """The other side of a call died before it answered."""


class Points:
    """The points that a party comes to."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._left = role.nth

    def reach(self, point: str) -> None:
        """Die here, if this is where."""
        if point == self._role.point:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, owner: Any, method: str, point: str, *, after: bool) -> None:
        """Come to `point` before, or after, each call of the method, which may be async."""
        original = getattr(owner, method)

        @functools.wraps(original)
        def call(*arguments: Any, **options: Any) -> Any:
            if not after:
                self.reach(point)
            answer = original(*arguments, **options)
            if after:
                self.reach(point)
            return answer

        @functools.wraps(original)
        async def call_async(*arguments: Any, **options: Any) -> Any:
            if not after:
                self.reach(point)
            answer = await original(*arguments, **options)
            if after:
                self.reach(point)
            return answer

        is_async = inspect.iscoroutinefunction(original)
        setattr(owner, method, call_async if is_async else call)


# -- calls -----------------------------------------------------------------------------------------


async def ask(address: Path, method: str, *arguments: Any) -> Any:
    """One call of a party.

    Raises:
        ConnectionError: when it is not there.
        Broken: when it died before it answered.
    """
    reader, writer = await asyncio.open_unix_connection(address)
    try:
        writer.write(frame((method, arguments)))
        answer = await _read(reader)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise Broken from error
    finally:
        writer.close()
    raised, value = answer
    if raised:
        raise value
    return value


async def listen(
    address: Path, methods: Mapping[str, Callable[..., Awaitable[Any]]], points: Points
) -> None:
    """Serve calls for ever."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            method, arguments = await _read(reader)
        except asyncio.IncompleteReadError:  # it only looked whether somebody is there
            return
        points.reach(f"asked {method}")
        try:
            answer = (False, await methods[method](*arguments))
        except Exception as error:
            answer = (True, error)
        points.reach(f"done {method}")
        writer.write(frame(answer))
        writer.close()

    server = await asyncio.start_unix_server(serve, address)
    await server.serve_forever()


def frame(content: Any) -> bytes:
    """One message on a party's socket."""
    data = pickle.dumps(content)
    return len(data).to_bytes(SIZE_BYTES) + data


async def _read(reader: asyncio.StreamReader) -> Any:
    size = int.from_bytes(await reader.readexactly(SIZE_BYTES))
    return pickle.loads(await reader.readexactly(size))


class Line:
    """What a handle does: it stays with one party of a role until that fails, then takes the next.

    At most `slots` calls are on their way at once, as Serve's router does it.
    """

    def __init__(
        self, ground: Ground, caller: str, role: str, points: Points, slots: int = 1_000
    ) -> None:
        self._ground = ground
        self._caller = caller
        self._role = role
        self._points = points
        self._slots = asyncio.Semaphore(slots)
        self._turn = 0

    async def call(self, method: str, *arguments: Any) -> Any:
        """The answer of a party that is there.

        Raises:
            ActorDiedError: when it died before it answered.
            Unavailable: when nobody is there.
        """
        async with self._slots:
            self._points.reach(f"send {method}")
            while any(self._ground.cut(self._caller, cut).exists() for cut in ("", method)):
                await asyncio.sleep(CUT_LOOK_S)
            answer = await self._call(method, *arguments)
            self._points.reach(f"answer {method}")
            return answer

    async def _call(self, method: str, *arguments: Any) -> Any:
        addresses = self._ground.find(self._role)
        for _ in addresses:
            address = addresses[self._turn % len(addresses)]
            try:
                return await ask(address, method, *arguments)
            except (FileNotFoundError, ConnectionError):
                self._turn += 1
            except Broken:
                self._turn += 1
                raise make_death(address.name) from None
            except StaleEpoch:
                self._turn += 1
                raise
        raise Unavailable(f"there is no {self._role}")

    def handle(self, *methods: str) -> FakeHandle:
        """The handle with these methods."""
        return FakeHandle(**{method: functools.partial(self.call, method) for method in methods})


def make_death(name: str) -> ActorDiedError:
    """What Ray tells the caller of an actor that has died."""
    error = ActorDiedError()
    error.actor_id = actor_id(name)
    return error


def actor_id(name: str) -> str:
    """The id of a party's actor."""
    return f"actor-of-{name}"


def methods_of(kind: type) -> list[str]:
    """The methods that a deployment offers."""
    return [name for name in vars(kind) if not name.startswith("_")]


# -- parties ---------------------------------------------------------------------------------------


def be(ground: Ground, role: Role) -> None:
    """What a process of the tests does: be the party that its name says, until it is killed."""
    log = os.open(ground.find_log(role.name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    logging.basicConfig(level=logging.INFO)
    for path, value in role.changes.items():
        module, _, attribute = path.rpartition(".")
        assert hasattr(sys.modules[module], attribute), path
        setattr(sys.modules[module], attribute, value)
    party = {"collector": collector, "replica": replica, "ingress": ingress}
    asyncio.run(party[role.name.partition("-")[0]](ground, role, Points(role)))


async def collector(ground: Ground, role: Role, points: Points) -> None:
    """The collector."""
    set_collector_points(points)
    served = EventCollector(ground.data.store_url, 1_000)
    methods = {name: getattr(served, name) for name in methods_of(EventCollector)}
    await listen(ground.sockets / role.name, methods, points)


def set_collector_points(points: Points) -> None:
    """`claimed` and `finished`: the change has been made, and its transaction is not committed."""
    points.wrap(claims, "claim", "claimed", after=True)
    points.wrap(endings, "finish", "finished", after=True)


async def replica(ground: Ground, role: Role, points: Points) -> None:
    """A replica."""
    set_replica_points(points)
    handle = Line(ground, role.name, "collector", points).handle(*methods_of(EventCollector))
    identity = Identity(role.name, actor_id(role.name), "node")
    served = VariantExecutor(handle, ground.data, drain_s=role.drain_s, identify=lambda: identity)
    await served.check_health()
    await listen(ground.sockets / role.name, {"run": served.run}, points)


def set_replica_points(points: Points) -> None:
    """What a replica comes to between its calls.

    - `execute`, `launched`: it has an assignment; and a process, which has no job yet
    - `tracked`: files are committed, first those of the start, then with each superstep
    - `stored`: a root checkpoint is stored, first the input's, then that of the start
    - `forget`: an end has been acknowledged, and its checkpoints are still there
    """
    points.wrap(Engine, "execute", "execute", after=False)
    points.wrap(Supervisor, "launch", "launched", after=True)
    points.wrap(Workspace, "track", "tracked", after=True)
    points.wrap(Engine, "forget", "forget", after=False)
    handle = CheckpointSession.handle

    async def handle_and_reach(
        self: CheckpointSession, header: dict[str, Any], blobs: list[bytes]
    ) -> Any:
        answer = await handle(self, header, blobs)
        if header.get("op") == "put" and header.get("ns") == "":
            points.reach("stored")
        return answer

    CheckpointSession.handle = handle_and_reach


class SocketView:
    """What Serve would list: the replicas whose sockets are there."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    async def look(self) -> list[Replica]:
        """Those that the tests have not buried."""
        names = [address.name for address in self._ground.find("replica")]
        return [Replica(name, actor_id(name), "RUNNING") for name in names]

    async def find_death(self, _replica_id: str) -> None:
        """Nobody's: the permits' callers tell of the dead."""

    def forget(self, _replica_id: str) -> None:
        """Nothing is kept."""


async def ingress(ground: Ground, role: Role, points: Points) -> None:
    """The ingress, with its dispatcher and its watcher."""
    batch_ingress.serve = SimpleNamespace(
        get_replica_context=lambda: SimpleNamespace(app_name="wtb")
    )

    executor_pool.ServeView = lambda *_: SocketView(ground)
    settings = Settings(
        data=ground.data,
        root=str(PROJECTS),
        projects=["staged/project.yaml"],
        max_pending_executions=1_000,
        max_body_bytes=1_000_000,
        tokens={},
    )
    served = BatchIngress(
        Line(ground, role.name, "collector", points).handle(*methods_of(EventCollector)),
        Line(ground, role.name, "replica", points, SLOTS).handle("run"),
        settings,
        PoolLimits(slots=SLOTS, min_replicas=1, max_replicas=2, max_queued=2),
    )
    await listen(ground.sockets / role.name, {"submit_batch": served.submit_batch}, points)
