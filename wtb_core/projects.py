"""Projects: what a user's file says, its content as a version, and what its code offers.

No process of ours imports project code. A version is the digest of the project's definition, code
and workspace; it is ingested into blobs once and materialised where it is needed, so a batch keeps
its version however the directory changes.
"""

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from wtb_core.errors import NotFound, ProjectError
from wtb_core.files.blobs import BlobStore
from wtb_core.files.manifests import Manifest, Stamp, materialise, scan, stamp
from wtb_core.sandbox.setup import ProjectSetup
from wtb_core.specs import Name, format_path

_CACHES = {"__pycache__", ".git", ".wtb", ".pytest_cache", ".ruff_cache", ".mypy_cache"}
_INHERITED = ("PATH", "LANG", "TZ")

Describe = Callable[[ProjectSetup], Awaitable[dict[str, Any]]]
Reference = Annotated[str, StringConstraints(pattern=r"^(\./[^:]+\.py|[A-Za-z_][\w.]*):[\w.]+$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScoreRule(_Strict):
    """How a metric enters means and the overall score."""

    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    higher_is_better: bool = True
    failure_score: float = Field(default=0.0, allow_inf_nan=False)


class Environment(_Strict):
    """What user code's environment has beside PATH, LANG, TZ and its own HOME and TMPDIR."""

    model_config = ConfigDict(populate_by_name=True)

    pass_: list[str] = Field(default=[], alias="pass")
    set: dict[str, str] = {}
    file: str | None = None
    python: str | None = None


class ProjectFile(_Strict):
    """The content of a `project.yaml`."""

    name: Name
    graph: Reference | None = None
    graphs: dict[str, Reference] = {}
    workspace: str | None = None
    nodes: dict[str, dict[str, Reference]] = {}
    evaluators: dict[str, Reference] = {}
    scores: dict[str, ScoreRule] = {}
    variant_files: list[str] = []
    environment: Environment = Environment()
    start: Literal["fork", "fresh"] = "fork"


class Ingested(_Strict):
    """One version of a project: its definition and its two trees."""

    definition: ProjectFile
    directory: str
    code: Manifest
    workspace: Manifest | None
    workspace_in_code: str | None


class Project(NamedTuple):
    """A version of a project with what its code offers, as a child process described it."""

    name: str
    version: str
    source: Path
    definition: ProjectFile
    description: dict[str, Any]

    @property
    def problems(self) -> list[str]:
        """Why parts of it cannot be used, in plain words."""
        return list(self.description["problems"])


def read_project_file(path: Path) -> ProjectFile:
    """The definition in a project file.

    Raises:
        ProjectError: with every problem of the file.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProjectError(str(path), [f"cannot be read: {error.strerror}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProjectError(str(path), [f"is not YAML: {error}"]) from error
    try:
        definition = ProjectFile.model_validate(raw)
    except ValidationError as error:
        problems = [
            f"{format_path(fault['loc'])}: {_explain(fault['type'], fault['msg'])}"
            for fault in error.errors(include_url=False, include_input=False)
        ]
        raise ProjectError(str(path), problems) from error
    if (definition.graph is None) == (not definition.graphs):
        raise ProjectError(str(path), ["give `graph` for one graph or `graphs` for several"])
    return definition


def _explain(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "missing":
        return "required"
    if kind == "string_pattern_mismatch":
        return "a reference is `module:attr` or `./file.py:attr`; a name is letters, digits, . _ -"
    if kind == "model_type":
        return "a project file is a mapping with at least `name` and `graph`"
    return message


class ProjectVersions:
    """Versions on this node: ingested from directories, materialised from blobs."""

    def __init__(self, blobs: BlobStore, bases: Path) -> None:
        self._blobs = blobs
        self._bases = bases
        self._locks: dict[str, asyncio.Lock] = {}

    def ingest(self, path: Path) -> str:
        """Store the project at `path` and return its version.

        Raises:
            ProjectError: when the file or a directory it names cannot be used.
        """
        definition = read_project_file(path)
        root = path.parent
        workspace = _find_workspace(path, definition)
        inside = workspace is not None and workspace != root and workspace.is_relative_to(root)
        try:
            ingested = Ingested(
                definition=definition,
                directory=str(root),
                code=scan(root, self._blobs, _skip_in_code(workspace if inside else None)),
                workspace=None if workspace is None else scan(workspace, self._blobs, _skip_caches),
                workspace_in_code=(
                    workspace.relative_to(root).as_posix() if workspace and inside else None
                ),
            )
        except OSError as error:
            raise ProjectError(str(path), [f"cannot be ingested: {error}"]) from error
        text = json.dumps(ingested.model_dump(by_alias=True), sort_keys=True)
        return self._blobs.put(text.encode())

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

    def _prepare(self, version: str) -> ProjectSetup:
        ingested = self.read(version)
        base = self._bases / version
        if not base.exists():
            self._materialise(ingested, base)
        definition = ingested.definition
        code = base / "code"
        if ingested.workspace is None:
            workspace = None
        elif ingested.workspace_in_code is not None:
            workspace = code / ingested.workspace_in_code
        else:
            workspace = base / "workspace"
        return ProjectSetup(
            project=definition.name,
            version=version,
            code=code,
            workspace=workspace,
            graphs=_graphs(definition),
            nodes=definition.nodes,
            evaluators=definition.evaluators,
            environment=_environment(definition.environment, code),
            python=_python(definition.environment, Path(ingested.directory)),
            start=definition.start,
        )

    def _materialise(self, ingested: Ingested, base: Path) -> None:
        """Make both trees aside, then name them at once; another process may win the race."""
        self._bases.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix="new-", dir=self._bases))
        materialise(ingested.code, self._blobs, aside / "code")
        if ingested.workspace is not None:
            inside = ingested.workspace_in_code
            target = aside / "workspace" if inside is None else aside / "code" / inside
            materialise(ingested.workspace, self._blobs, target)
        try:
            aside.rename(base)
        except OSError:
            shutil.rmtree(aside)
            if not base.exists():
                raise


class Registry:
    """The projects that a service offers: found by globs, described when they change.

    A project that cannot be used is listed with its problems and hinders no other.
    """

    def __init__(
        self, root: Path, patterns: Sequence[str], versions: ProjectVersions, describe: Describe
    ) -> None:
        self._root = root
        self._patterns = patterns
        self._versions = versions
        self._describe = describe
        self._projects: dict[Path, tuple[list[Stamp], Project]] = {}
        self._broken: dict[Path, ProjectError] = {}
        self._lock = asyncio.Lock()

    async def refresh(self) -> None:
        """Look for new and changed projects."""
        async with self._lock:
            paths = await asyncio.to_thread(self._find)
            for gone in (self._projects.keys() | self._broken.keys()) - set(paths):
                self._projects.pop(gone, None)
                self._broken.pop(gone, None)
            for path in paths:
                try:
                    await self._refresh_one(path)
                    self._broken.pop(path, None)
                except ProjectError as error:
                    self._projects.pop(path, None)
                    self._broken[path] = error

    async def get(self, name: str) -> Project:
        """The project's newest version.

        Raises:
            NotFound: when no project has that name.
            ProjectError: when its file cannot be used.
        """
        await self.refresh()
        found = [p for _, p in self._projects.values() if p.name == name]
        if found:
            return found[0]
        raise NotFound("project", name)

    def summaries(self) -> list[dict[str, Any]]:
        """Every project with what it offers and its problems, as last refreshed."""
        usable = [
            {
                "name": project.name,
                "version": project.version,
                "source": str(path),
                "graphs": project.description["graphs"],
                "nodes": project.description["nodes"],
                "evaluators": sorted(project.description["evaluators"]),
                "scores": {k: v.model_dump() for k, v in project.definition.scores.items()},
                "start": project.description["start"],
                "start_reason": project.description["start_reason"],
                "problems": project.problems,
            }
            for path, (_, project) in self._projects.items()
        ]
        broken = [
            {"name": path.parent.name, "version": None, "source": str(path), "problems": e.problems}
            for path, e in self._broken.items()
        ]
        return sorted([*usable, *broken], key=lambda item: (str(item["name"]), str(item["source"])))

    def _find(self) -> list[Path]:
        found: dict[Path, None] = {}
        for pattern in self._patterns:
            path = Path(pattern)
            if path.is_absolute():
                anchor, relative = Path(path.anchor), str(path.relative_to(path.anchor))
            else:
                anchor, relative = self._root, pattern
            for match in sorted(anchor.glob(relative)):
                found.setdefault(match.resolve())
        return list(found)

    async def _refresh_one(self, path: Path) -> None:
        stamps = await asyncio.to_thread(_stamp_project, path)
        known = self._projects.get(path)
        if known is not None and known[0] == stamps:
            return
        version = await asyncio.to_thread(self._versions.ingest, path)
        if known is not None and known[1].version == version:
            self._projects[path] = (stamps, known[1])
            return
        setup = await self._versions.prepare(version)
        definition = (await asyncio.to_thread(self._versions.read, version)).definition
        clash = [p for other, (_, p) in self._projects.items() if other != path]
        if any(other.name == definition.name for other in clash):
            raise ProjectError(str(path), [f"another project is named {definition.name!r} too"])
        description = await self._describe(setup)
        project = Project(definition.name, version, path, definition, description)
        self._projects[path] = (stamps, project)


def _stamp_project(path: Path) -> list[Stamp]:
    definition = read_project_file(path)
    workspace = _find_workspace(path, definition)
    stamps = stamp(path.parent, _skip_in_code(workspace))
    return stamps if workspace is None else stamps + stamp(workspace, _skip_caches)


def _find_workspace(path: Path, definition: ProjectFile) -> Path | None:
    if definition.workspace is None:
        return None
    workspace = (path.parent / definition.workspace).resolve()
    if not workspace.is_dir():
        raise ProjectError(str(path), [f"workspace: {definition.workspace} is not a directory"])
    return workspace


def _skip_caches(path: Path) -> bool:
    return path.name == "__pycache__"


def _skip_in_code(workspace: Path | None) -> Callable[[Path], bool]:
    def skip(path: Path) -> bool:
        return (
            path.name in _CACHES
            or path.name == "node_modules"
            or path == workspace
            or (path / "pyvenv.cfg").exists()
        )

    return skip


def _graphs(definition: ProjectFile) -> dict[str, str]:
    return definition.graphs if definition.graph is None else {"default": definition.graph}


def _environment(wanted: Environment, code: Path) -> dict[str, str]:
    """The complete environment of user code, in rising precedence: inherited, file, pass, set."""
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    if wanted.file is not None:
        values: Mapping[str, str | None] = dotenv_values(code / wanted.file)
        environment |= {name: value for name, value in values.items() if value is not None}
    environment |= {name: os.environ[name] for name in wanted.pass_ if name in os.environ}
    return environment | wanted.set


def _python(wanted: Environment, directory: Path) -> str:
    if wanted.python is None:
        return sys.executable
    path = Path(wanted.python)
    return str(path if path.is_absolute() else directory / path)
