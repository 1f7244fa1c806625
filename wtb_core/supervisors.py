"""The warm processes of the project versions in use, and the directories that engines make."""

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

from wtb_core.files.blobs import BlobStore
from wtb_core.files.commits import BaseTree
from wtb_core.files.layers import LayerCache
from wtb_core.loops import Background, finish_in_thread
from wtb_core.sandbox.audit import BaseGuard
from wtb_core.sandbox.ladder import Sandbox
from wtb_core.sandbox.ownership import Owner
from wtb_core.sandbox.setup import ProjectSetup
from wtb_core.sandbox.supervisor import Supervisor
from wtb_core.sandbox.workspaces import Materials

MAX_ZYGOTES = 8
ZYGOTE_IDLE_S = 600.0
UPKEEP_S = 30.0

_log = logging.getLogger(__name__)


class Shared:
    """A supervisor, what its executions share, and how many use it."""

    def __init__(self, supervisor: Supervisor, materials: Materials, guard: BaseGuard) -> None:
        self.supervisor = supervisor
        self.materials = materials
        self.guard = guard
        self.users = 0
        self.used_at = 0.0


class Supervisors:
    """One supervisor per project version; used from one event loop.

    Attempts have their places below `runs`; what is made beside it is private to this process.
    """

    def __init__(
        self,
        runs: Path,
        blobs: BlobStore,
        find_setup: Callable[[str, str], Awaitable[ProjectSetup]],
        sandbox: Sandbox,
        discard_base: Callable[[str], Awaitable[None]],
        background: Background,
        clock: Callable[[], float],
    ) -> None:
        self.owner = Owner(runs.parent / "owners")
        self._runs = runs
        self._zygotes = runs.parent / "zygotes"
        self._layers_path = runs.parent / "layers"
        self._layers = LayerCache(self._layers_path, blobs)
        self._blobs = blobs
        self._find_setup = find_setup
        self._sandbox = sandbox
        self._discard_base = discard_base
        self._background = background
        self._clock = clock
        self._standing: dict[tuple[str, str], Shared] = {}
        self._dropped: set[Shared] = set()
        self._upkeep: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def borrow(self, project: str, version: str) -> AsyncGenerator[Shared]:
        """The supervisor of a project's version; idle ones of others make room for it."""
        shared = await self._find(project, version)
        shared.users += 1
        self._retire_idle()
        if self._upkeep is None:
            self._upkeep = asyncio.create_task(self._keep_up())
        try:
            yield shared
        finally:
            self._release(shared)

    async def drop(self, shared: Shared) -> None:
        """Use this supervisor and its base for no more attempts: what they share has changed.

        Those that run go on: ending them would let one attempt end the others.
        """
        if shared in self._dropped:
            return
        self._dropped.add(shared)
        version = shared.supervisor.setup.version
        try:
            await self._discard_base(version)  # first, or the next supervisor begins with it
        except OSError as error:
            _log.exception("the base of %s cannot be made again: %s", version, error)
        finally:
            for key in [key for key, other in self._standing.items() if other is shared]:
                del self._standing[key]

    async def rest(self) -> None:
        """End the upkeep for good."""
        if self._upkeep is not None:
            self._upkeep.cancel()
            await asyncio.wait([self._upkeep])

    async def close(self) -> None:
        """End the processes of all supervisors."""
        supervisors = [shared.supervisor for shared in self._standing.values()]
        self._standing.clear()
        await asyncio.gather(*(supervisor.close() for supervisor in supervisors))

    async def _find(self, project: str, version: str) -> Shared:
        key = (project, version)
        if key not in self._standing:
            setup = await self._find_setup(project, version)
            guard = await asyncio.to_thread(
                BaseGuard, (setup.code, setup.packages, setup.workspace)
            )
            if key not in self._standing:
                self._standing[key] = self._share(setup, guard)
        shared = self._standing.pop(key)
        self._standing[key] = shared  # the most recently used is last
        return shared

    def _retire_idle(self) -> None:
        idle = [key for key, other in self._standing.items() if not other.users]
        for old in idle[: max(0, len(self._standing) - MAX_ZYGOTES)]:
            self._retire(old)

    def _release(self, shared: Shared) -> None:
        shared.users -= 1
        shared.used_at = self._clock()
        if shared in self._dropped and not shared.users:
            self._dropped.remove(shared)
            self._background.start(shared.supervisor.close())

    def _share(self, setup: ProjectSetup, guard: BaseGuard) -> Shared:
        name = f"{os.getpid()}-{setup.project}-{setup.version[:16]}-{secrets.token_hex(4)}"
        directory = self._zygotes / name
        self.owner.make(directory)
        places = (directory, self._runs, [self._layers_path])
        supervisor = Supervisor(self._sandbox, setup, *places)
        base = BaseTree(setup.version, setup.files)
        materials = Materials(self._blobs, self._layers, base, setup.workspace)
        return Shared(supervisor, materials, guard)

    def _retire(self, key: tuple[str, str]) -> None:
        self._background.start(self._standing.pop(key).supervisor.close())

    async def _keep_up(self) -> None:
        """Remove what processes that were killed left, and what has long been idle."""
        while True:
            try:
                await finish_in_thread(self._sweep)
            except OSError:
                _log.exception("what is no longer used cannot be removed")
            await asyncio.sleep(UPKEEP_S)
            for key, shared in list(self._standing.items()):
                if not shared.users and self._clock() - shared.used_at > ZYGOTE_IDLE_S:
                    self._retire(key)

    def _sweep(self) -> None:
        self._layers.trim()
        swept = self.owner.sweep([*self._runs.glob("*/*"), *self._zygotes.glob("*")])
        if swept:
            _log.info("%d directories of processes that were killed are removed", swept)
