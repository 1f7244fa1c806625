"""A project's content as a version: the digest of its definition, code and workspace.

It is ingested into blobs once and materialised where it is needed, so a batch keeps its version
however the directory changes.
"""

import asyncio
import contextlib
import json
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from wtb_core.errors import DiskFull, NotFound, ProjectError
from wtb_core.files.blobs import BlobStore
from wtb_core.files.copying import copy_tree
from wtb_core.files.handouts import HandOuts
from wtb_core.files.manifests import Entry, Manifest, Stamp, materialise, scan
from wtb_core.projects.definition import ProjectFile
from wtb_core.projects.environment import read_environment
from wtb_core.projects.interpreters import Interpreters
from wtb_core.projects.sources import (
    Sources,
    describe_os_error,
    find_python,
    find_sources,
    resolve,
    skip_caches,
    skip_in_package,
    stamp_tree,
)
from wtb_core.sandbox import leftovers
from wtb_core.sandbox.building import build_workspace
from wtb_core.sandbox.ladder import Sandbox
from wtb_core.sandbox.setup import ProjectSetup
from wtb_core.space import is_full

HANDED_OUT = "versions"
"""The directory among the blobs that notes which versions may be handed out."""

Build = Callable[[Sandbox, ProjectSetup, str, Path, Path], Awaitable[str | None]]


class Ingested(BaseModel):
    """One version of a project: its definition and its trees."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    definition: ProjectFile
    directory: str
    code: Manifest
    packages: Manifest = {}
    workspace: Manifest | None
    workspace_in_code: str | None


class ProjectVersions:
    """Versions on this node: ingested from directories, materialised from blobs.

    `build` is `sandbox.building.build_workspace`, or what a test has in its place; it runs in
    `sandbox`.
    """

    def __init__(
        self,
        blobs: BlobStore,
        bases: Path,
        sandbox: Sandbox | None = None,
        build: Build = build_workspace,
    ) -> None:
        self._blobs = blobs
        self._handouts = HandOuts(blobs.root / HANDED_OUT)
        self._bases = bases
        self._sandbox = sandbox or Sandbox(bases, hidden=[blobs.root])
        self._build = build
        self._interpreters = Interpreters()
        self._locks: dict[str, asyncio.Lock] = {}
        self._built: dict[Path, tuple[list[Stamp], Manifest | str]] = {}

    def find(self, path: Path) -> Sources:
        """What lies at a project file; see `find_sources`.

        Raises:
            ProjectError: when the file or something it names cannot be used.
        """
        return find_sources(resolve(path), self._interpreters, [self._blobs.root, self._bases])

    async def ingest(self, sources: Sources) -> str:
        """Store a project and return its version. Its build runs unless it has for these sources.

        Raises:
            ProjectError: when something cannot be read or the build fails.
            DiskFull: when it cannot be stored.
        """
        try:
            ingested = await asyncio.to_thread(self._scan, sources)
            if ingested.definition.build is not None:
                workspace = await self._find_built(sources, ingested)
                ingested = ingested.model_copy(update={"workspace": workspace})
            return await asyncio.to_thread(self._store, ingested)
        except OSError as error:
            if is_full(error):
                where = str(self._blobs.root)
                raise DiskFull(where, "the project's files cannot be stored") from error
            raise ProjectError(str(sources.path), [describe_os_error(error)]) from error

    def hand_out(self, version: str) -> bool:
        """Note that the next batch may have this version; false when it must be ingested again."""
        return self._handouts.renew(version)

    def read(self, version: str) -> Ingested:
        """A version's definition and trees.

        Raises:
            NotFound: when it was never ingested.
        """
        return Ingested.model_validate_json(self._blobs.get(version))

    async def prepare(self, version: str) -> ProjectSetup:
        """Materialise a version on this node and say how to start its processes.

        Raises:
            NotFound: when it was never ingested.
        """
        lock = self._locks.setdefault(version, asyncio.Lock())
        async with lock:
            return await asyncio.to_thread(self._prepare, version)

    async def discard(self, version: str) -> None:
        """Take a version that was changed on this node away; `prepare` makes it again.

        What has it mounted keeps it until it ends.
        """
        lock = self._locks.setdefault(version, asyncio.Lock())
        async with lock:
            await asyncio.to_thread(self._discard, version)

    def _store(self, ingested: Ingested) -> str:
        text = json.dumps(ingested.model_dump(by_alias=True))
        version = self._blobs.put(text.encode())
        self._handouts.add(version)
        return version

    def _discard(self, version: str) -> None:
        aside = Path(tempfile.mkdtemp(prefix="damaged-", dir=self._bases))
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            (self._bases / version).rename(aside / version)
        leftovers.remove_tree(aside)

    def _scan(self, sources: Sources) -> Ingested:
        packages: Manifest = {}
        for name, places in sources.packages.items():
            for place in places:
                packages = self._scan_package(name, place) | packages
        workspace = sources.workspace
        return Ingested(
            definition=sources.definition,
            directory=str(sources.root),
            code=scan(sources.root, self._blobs, sources.skip_in_code),
            packages=packages,
            workspace=None if workspace is None else scan(workspace, self._blobs, skip_caches),
            workspace_in_code=sources.workspace_in_code,
        )

    def _scan_package(self, name: str, place: Path) -> Manifest:
        if place.is_file():
            return {place.name: Entry(kind="file", blob=self._blobs.put_file(place))}
        below = scan(place, self._blobs, skip_in_package)
        inner = {f"{name}/{path}": entry for path, entry in below.items()}
        return {name: Entry(kind="directory"), **inner}

    async def _find_built(self, sources: Sources, ingested: Ingested) -> Manifest:
        """The built workspace; a failure is kept like a result, until something changes."""
        stamps, outcome = self._built.get(sources.path, ([], ""))
        is_known = stamps == sources.stamps
        if is_known and not isinstance(outcome, str):
            is_known = await asyncio.to_thread(self._are_stored, outcome)
        if not is_known:
            outcome = await self._run_build(ingested)
            self._built[sources.path] = (sources.stamps, outcome)
        if isinstance(outcome, str):
            raise ProjectError(str(sources.path), [outcome])
        return outcome

    def _are_stored(self, tree: Manifest) -> bool:
        try:
            for entry in tree.values():
                if entry.blob is not None:
                    self._blobs.use(entry.blob)
        except NotFound:
            return False
        return True

    async def _run_build(self, ingested: Ingested) -> Manifest | str:
        self._bases.mkdir(parents=True, exist_ok=True)
        directory = Path(await asyncio.to_thread(tempfile.mkdtemp, "", "build-", self._bases))
        try:
            base, workspace = directory / "base", directory / "room" / "workspace"
            await asyncio.to_thread(self._fill, ingested, base)
            setup = _make_setup(ingested, base, "building")
            await asyncio.to_thread(copy_tree, setup.workspace, workspace, reflink=False)
            reference = ingested.definition.build or ""
            problem = await self._build(
                self._sandbox, setup, reference, workspace, directory / "process"
            )
            if problem is not None:
                return problem
            return await asyncio.to_thread(self._scan_built, workspace)
        finally:
            await asyncio.to_thread(leftovers.remove_tree, directory)

    def _scan_built(self, workspace: Path) -> Manifest | str:
        try:
            stamp_tree(workspace, skip_caches, "the workspace that `build` made")
            return scan(workspace, self._blobs, skip_caches)
        except OSError as error:
            return f"build: what it made {describe_os_error(error)}"
        except ValueError as error:
            return f"build: {error}"

    def _prepare(self, version: str) -> ProjectSetup:
        ingested = self.read(version)
        base = self._bases / version
        if not base.exists():
            self._materialise(ingested, base)
        return _make_setup(ingested, base, version)

    def _materialise(self, ingested: Ingested, base: Path) -> None:
        """Make the trees aside, then name them at once; another process may win the race."""
        self._bases.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix="new-", dir=self._bases))
        try:
            self._fill(ingested, aside)
            aside.rename(base)
        except OSError:
            shutil.rmtree(aside)
            if not base.exists():
                raise

    def _fill(self, ingested: Ingested, base: Path) -> None:
        materialise(ingested.code, self._blobs, base / "code")
        if ingested.packages:
            materialise(ingested.packages, self._blobs, base / "packages")
        if ingested.workspace is not None:
            inside = ingested.workspace_in_code
            target = base / "workspace" if inside is None else base / "code" / inside
            materialise(ingested.workspace, self._blobs, target)


def _make_setup(ingested: Ingested, base: Path, version: str) -> ProjectSetup:
    definition = ingested.definition
    code = base / "code"
    if ingested.workspace is None:
        workspace = None
    elif ingested.workspace_in_code is not None:
        workspace = code / ingested.workspace_in_code
    else:
        workspace = base / "workspace"
    variables = read_environment(definition.environment, code)
    return ProjectSetup(
        project=definition.name,
        version=version,
        code=code,
        packages=base / "packages" if ingested.packages else None,
        directory=Path(ingested.directory),
        workspace=workspace,
        graphs=definition.named_graphs,
        nodes=definition.nodes,
        evaluators=definition.evaluators,
        environment=variables.values,
        secrets=variables.secrets,
        files=ingested.workspace,
        python=find_python(definition, Path(ingested.directory)),
        start=definition.start,
    )
