"""Attacks a project's isolation from where its executions run, and says what held.

The probes run in processes that are launched as an execution's are, with the project imported,
beside another process that is attacked as a sibling. Each probe that may end its process has one of
its own. What is attacked is put there for it; the project's graphs are not run.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from wtb_core.data import DataDir
from wtb_core.errors import WireError
from wtb_core.files.blobs import BlobStore
from wtb_core.files.commits import BaseTree
from wtb_core.files.layers import LayerCache
from wtb_core.sandbox import probes
from wtb_core.sandbox.confinement import MAX_OPEN_FILES
from wtb_core.sandbox.ladder import Grade, Sandbox
from wtb_core.sandbox.probes import PROBES, Finding, Surroundings
from wtb_core.sandbox.probes.findings import MARK
from wtb_core.sandbox.processes import Place, describe_status
from wtb_core.sandbox.runs import Ended, Run
from wtb_core.sandbox.setup import ProjectSetup
from wtb_core.sandbox.supervisor import Launched, Supervisor
from wtb_core.sandbox.wire import Frame
from wtb_core.sandbox.workspaces import Materials, Workspace

MEMORY_BYTES = 256 * 1024**2
PROCESSES = 64
FILE_BYTES = 64 * 1024**2
TIMEOUT_S = 300.0

_STAND_IN = "import sys; sys.stdin.read()"


class Audit(NamedTuple):
    """The isolation as executions record it, what was found, and the attacks without a target."""

    isolation: dict[str, Any]
    network: bool
    findings: list[Finding]
    left_out: list[str]

    @property
    def allowed(self) -> list[Finding]:
        """What reached the outside, or cannot be told from that."""
        return [finding for finding in self.findings if finding.verdict == "allowed"]


async def audit(data: DataDir, sandbox: Sandbox, setup: ProjectSetup, *, network: bool) -> Audit:
    """Attack from the setup's processes; `data` is thrown away by the caller.

    Raises:
        SetupError: when the project's processes cannot be started.
    """
    grade = await sandbox.find_grade()
    trees = [tree for tree in (setup.code, setup.workspace, data.path) if tree is not None]
    for tree in trees:
        await asyncio.to_thread(probes.put_marks, tree)
    (data.path / "wtb.db").touch()
    auditor = _Auditor(data, sandbox, setup, grade, network=network)
    try:
        async with auditor.surround() as surroundings:
            return await auditor.attack(surroundings)
    finally:
        await auditor.supervisor.close()


class _Auditor:
    def __init__(
        self, data: DataDir, sandbox: Sandbox, setup: ProjectSetup, grade: Grade, *, network: bool
    ) -> None:
        self._data = data
        self._setup = setup
        self._grade = grade
        self._network = network
        self._blobs = BlobStore(data.blobs)
        layers = data.cache / "layers"
        self.supervisor = Supervisor(
            sandbox, setup, data.cache / "zygotes" / "audit", data.runs, [layers]
        )
        base = BaseTree(setup.version, setup.files)
        layer_cache = LayerCache(layers, self._blobs)
        self._materials = Materials(self._blobs, layer_cache, base, setup.workspace)

    @asynccontextmanager
    async def surround(self) -> AsyncGenerator[Surroundings]:
        """What is attacked: a sibling, a process that stands for a replica, files, sockets."""
        secret = secrets.token_hex(16)
        async with _stand_in(secret) as pid, self._sibling() as sibling:
            with probes.targets() as targets, _home() as home:
                blob = self._blobs.put(secrets.token_bytes(16), sync=False)
                yield Surroundings(
                    workspace="",
                    base=None if self._setup.workspace is None else str(self._setup.workspace),
                    code=str(self._setup.code),
                    store=str(self._data.path),
                    sibling=str(sibling),
                    home=home,
                    blob=str(self._blobs.path(blob)),
                    replica_pid=pid,
                    pid_namespace=_read_pid_namespace(),
                    secret=secret,
                    network=self._network,
                    memory_bytes=MEMORY_BYTES,
                    file_bytes=FILE_BYTES,
                    processes=PROCESSES,
                    open_files=MAX_OPEN_FILES,
                    **targets,
                )

    async def attack(self, surroundings: Surroundings) -> Audit:
        """Run all probes that have a target, first together those that should end none."""
        chosen = probes.select_probes(surroundings)
        together = [probe.name for probe in chosen if not probe.deadly]
        groups = [together, *([probe.name] for probe in chosen if probe.deadly)]
        findings: list[Finding] = []
        for number, names in enumerate(groups):
            before = await asyncio.to_thread(probes.look, surroundings)
            found = await self._run(f"probes-{number}", names, surroundings)
            verified = await asyncio.to_thread(probes.verify, found, surroundings, before)
            findings += [self._shorten(finding) for finding in verified]
        tried = {probe.name for probe in chosen}
        left_out = [name for name in PROBES if name not in tried]
        return Audit(self._grade.describe(), self._network, findings, left_out)

    def _shorten(self, finding: Finding) -> Finding:
        """Names in place of the paths of what is thrown away."""
        detail = finding.detail
        places = {"BASE": self._setup.workspace, "CODE": self._setup.code, "DATA": self._data.path}
        for name, place in places.items():
            if place is not None:
                detail = detail.replace(str(place), name)
        return finding._replace(detail=detail)

    async def _run(self, name: str, names: list[str], given: Surroundings) -> list[Finding]:
        findings: list[Finding] = []

        async def take(header: dict[str, Any], _blobs: list[bytes]) -> Frame | None:
            try:
                found = Finding(*header["finding"])
            except (KeyError, TypeError) as error:
                raise WireError(f"a finding is malformed: {error}") from error
            findings.append(found._replace(touched=tuple(found.touched)))
            return None

        launched = await self._launch(name, {"probes": names, "surroundings": given._asdict()})
        ended = await Run(launched, take, TIMEOUT_S).follow("probe")
        if ended.result is None:
            done = {finding.name for finding in findings}
            missing = next((probe for probe in names if probe not in done), None)
            if missing is not None:
                findings.append(_explain_end(missing, ended))
        return findings

    async def _launch(self, name: str, job: dict[str, Any]) -> Launched:
        directory = self._data.runs / name
        workspace = Workspace(self._materials, self._grade, directory)
        for part in ("home", "tmp"):
            (directory / part).mkdir(parents=True)
        await asyncio.to_thread(workspace.make, {}, None)
        place = Place(
            home=directory / "home",
            tmp=directory / "tmp",
            stdout=directory / "stdout",
            stderr=directory / "stderr",
            network=self._network,
            memory=MEMORY_BYTES,
            processes=PROCESSES,
            file_size=FILE_BYTES,
        )
        job = {"workspace": str(directory / "workspace"), "memory": MEMORY_BYTES, **job}
        return await self.supervisor.launch(workspace.put_into(place), job)

    @asynccontextmanager
    async def _sibling(self) -> AsyncGenerator[Path]:
        """The files of a process that waits for its job meanwhile."""
        launched = await self._launch("sibling", {})
        try:
            part = "upper" if self._grade.has_overlay else "workspace"
            files = self._data.runs / "sibling" / part
            await asyncio.to_thread(probes.put_marks, files)
            yield files
        finally:
            await launched.process.close()


def _explain_end(name: str, ended: Ended) -> Finding:
    """The attack that a process ended with: over a limit it was held, else nobody knows."""
    if ended.exit.over is not None:
        return Finding(name, "contained", f"ended for its {ended.exit.over}")
    if ended.timed_out:
        return Finding(name, "allowed", f"did not end in {TIMEOUT_S:g} s")
    how = describe_status(ended.exit.status)
    return Finding(name, "contained" if PROBES[name].deadly else "allowed", f"the process {how}")


def _read_pid_namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


@asynccontextmanager
async def _stand_in(secret: str) -> AsyncGenerator[int]:
    """A process of this user, outside, with a secret in its environment."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", _STAND_IN),
        stdin=asyncio.subprocess.PIPE,
        env={"WTB_AUDIT_SECRET": secret},
    )
    try:
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@contextlib.contextmanager
def _home() -> Generator[str | None]:
    """A directory with marks in the home directory, null where that cannot be written."""
    home = Path.home()
    if not os.access(home, os.W_OK):
        yield None
        return
    directory = Path(tempfile.mkdtemp(prefix=".wtb-audit-", dir=home))
    try:
        probes.put_marks(directory)
        (directory / ".ssh").mkdir()
        (directory / ".ssh" / "id_mark").write_bytes(MARK)
        yield str(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
