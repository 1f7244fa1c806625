"""The projects that a service offers. No process of ours imports project code."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wtb_core.errors import NotFound, ProjectError
from wtb_core.files.manifests import Stamp
from wtb_core.projects.definition import ProjectFile, read_project_file
from wtb_core.projects.versions import ProjectVersions, stamp_project
from wtb_core.sandbox.setup import ProjectSetup

Describe = Callable[[ProjectSetup], Awaitable[dict[str, Any]]]


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
            stamps = await asyncio.to_thread(stamp_project, path)
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
