"""Projects: what a user's file says, its content as a version, and what its code offers.

No process of ours imports project code. A version is the digest of the project's definition, code
and workspace; it is ingested into blobs once and materialised where it is needed, so a batch keeps
its version however the directory changes.
"""

import asyncio
import contextlib
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

from wtb_core.errors import NotFound, Problem, ProjectError
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
            str(Problem(format_path(fault["loc"]), _explain(fault["type"], fault["msg"])))
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
        _check_environment_file(path, definition)
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
        text = json.dumps(ingested.model_dump(by_alias=True))
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


class _Known(NamedTuple):
    """What was found at a path: a usable project, or why it is none."""

    stamps: list[Stamp]
    project: Project | None
    error: ProjectError | None


class Registry:
    """The projects that a service offers: found by globs, described when they change.

    A project that cannot be used is listed with its problems; neither it nor one that is slow to
    describe stands in another's way.
    """

    def __init__(
        self, root: Path, patterns: Sequence[str], versions: ProjectVersions, describe: Describe
    ) -> None:
        self._root = root
        self._patterns = patterns
        self._versions = versions
        self._describe = describe
        self._known: dict[Path, _Known] = {}
        self._locks: dict[Path, asyncio.Lock] = {}

    async def refresh(self) -> None:
        """Look for new and changed projects."""
        paths = await asyncio.to_thread(self._find)
        for gone in self._known.keys() - set(paths):
            del self._known[gone]
        await asyncio.gather(*(self._refresh(path) for path in paths))

    async def get(self, name: str) -> Project:
        """The project's newest version.

        Raises:
            NotFound: when no project has that name.
            ProjectError: when its file cannot be used.
        """
        names = await asyncio.to_thread(self._read_names)
        paths = [path for path, found in names.items() if found == name]
        if not paths:
            raise NotFound("project", name)
        if len(paths) > 1:
            others = ", ".join(str(path) for path in paths[1:])
            raise ProjectError(str(paths[0]), [f"the name {name!r} is also that of {others}"])
        known = await self._refresh(paths[0])
        if known.error is not None:
            raise known.error
        assert known.project is not None
        return known.project

    async def names(self) -> list[str]:
        """The names in all project files that can be read."""
        return sorted((await asyncio.to_thread(self._read_names)).values())

    def summaries(self) -> list[dict[str, Any]]:
        """Every project with what it offers and its problems, as last refreshed."""
        items = [_summarise(path, known) for path, known in self._known.items()]
        return sorted(items, key=lambda item: (str(item["name"]), str(item["source"])))

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

    def _read_names(self) -> dict[Path, str]:
        names: dict[Path, str] = {}
        for path in self._find():
            with contextlib.suppress(ProjectError):  # it is listed with its problems
                names[path] = read_project_file(path).name
        return names

    async def _refresh(self, path: Path) -> _Known:
        async with self._locks.setdefault(path, asyncio.Lock()):
            self._known[path] = await self._look(path, self._known.get(path))
            return self._known[path]

    async def _look(self, path: Path, known: _Known | None) -> _Known:
        stamps: list[Stamp] = []
        try:
            stamps = await asyncio.to_thread(_stamp_project, path)
            if known is not None and known.project is not None and known.stamps == stamps:
                return known
            version = await asyncio.to_thread(self._versions.ingest, path)
        except ProjectError as error:
            return _Known(stamps, None, error)
        if known is not None and known.project is not None and known.project.version == version:
            return known._replace(stamps=stamps)
        setup = await self._versions.prepare(version)
        definition = (await asyncio.to_thread(self._versions.read, version)).definition
        description = await self._describe(setup)
        project = Project(definition.name, version, path, definition, description)
        return _Known(stamps, project, None)


def _summarise(path: Path, known: _Known) -> dict[str, Any]:
    project = known.project
    if project is None:
        problems = known.error.problems if known.error is not None else []
        name = path.parent.name
        return {"name": name, "version": None, "source": str(path), "problems": problems}
    return {
        "name": project.name,
        "version": project.version,
        "source": str(path),
        "graphs": project.description["graphs"],
        "nodes": project.description["nodes"],
        "evaluators": sorted(project.description["evaluators"]),
        "scores": {name: rule.model_dump() for name, rule in project.definition.scores.items()},
        "start": project.description["start"],
        "start_reason": project.description["start_reason"],
        "problems": project.problems,
    }


def _stamp_project(path: Path) -> list[Stamp]:
    definition = read_project_file(path)
    workspace = _find_workspace(path, definition)
    try:
        stamps = stamp(path.parent, _skip_in_code(workspace))
        return stamps if workspace is None else stamps + stamp(workspace, _skip_caches)
    except OSError as error:
        raise ProjectError(str(path), [f"cannot be read: {error}"]) from error


def _find_workspace(path: Path, definition: ProjectFile) -> Path | None:
    if definition.workspace is None:
        return None
    workspace = (path.parent / definition.workspace).resolve()
    if not workspace.is_dir():
        raise ProjectError(str(path), [f"workspace: {definition.workspace} is not a directory"])
    return workspace


def _check_environment_file(path: Path, definition: ProjectFile) -> None:
    """It is read from the ingested copy, so it must be part of it."""
    file = definition.environment.file
    if file is None:
        return
    target = (path.parent / file).resolve()
    if not target.is_file() or not target.is_relative_to(path.parent.resolve()):
        problem = f"environment.file: {file} is not a file in the project's directory"
        raise ProjectError(str(path), [problem])


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
        values: Mapping[str, str | None] = dotenv_values(code / wanted.file, interpolate=False)
        environment |= {name: value for name, value in values.items() if value is not None}
    environment |= {name: os.environ[name] for name in wanted.pass_ if name in os.environ}
    return environment | wanted.set


def _python(wanted: Environment, directory: Path) -> str:
    if wanted.python is None:
        return sys.executable
    path = Path(wanted.python)
    return str(path if path.is_absolute() else directory / path)
