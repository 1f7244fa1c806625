"""A project's content as a version: the digest of its definition, code and workspace.

It is ingested into blobs once and materialised where it is needed, so a batch keeps its version
however the directory changes.
"""

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict

from wtb_core.errors import ProjectError
from wtb_core.files.blobs import BlobStore
from wtb_core.files.manifests import Manifest, Stamp, materialise, scan, stamp
from wtb_core.projects.definition import Environment, ProjectFile, read_project_file
from wtb_core.sandbox.setup import ProjectSetup

_CACHES = {"__pycache__", ".git", ".wtb", ".pytest_cache", ".ruff_cache", ".mypy_cache"}
_INHERITED = ("PATH", "LANG", "TZ")


class Ingested(BaseModel):
    """One version of a project: its definition and its two trees."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    definition: ProjectFile
    directory: str
    code: Manifest
    workspace: Manifest | None
    workspace_in_code: str | None


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
            graphs=definition.named_graphs,
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


def stamp_project(path: Path) -> list[Stamp]:
    """Cheap evidence of all that a version is made of.

    Raises:
        ProjectError: when the file or a directory cannot be read.
    """
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
