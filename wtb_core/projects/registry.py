"""The projects that a service offers. No process of ours imports project code."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wtb_core.errors import DiskFull, NotFound, ProjectError, WtbError
from wtb_core.projects import langgraph_json
from wtb_core.projects.definition import ProjectFile, find_loose_ends, read_project_file
from wtb_core.projects.sources import Sources, describe_os_error, resolve
from wtb_core.projects.versions import ProjectVersions
from wtb_core.sandbox.setup import ProjectSetup

MAX_LOOKS = 5

Describe = Callable[[ProjectSetup], Awaitable[dict[str, Any]]]


class Project(NamedTuple):
    """A version of a project with what its code offers, as a child process described it."""

    name: str
    version: str
    source: Path
    definition: ProjectFile
    description: dict[str, Any]
    ignored: Sequence[str] = ()

    @property
    def problems(self) -> list[str]:
        """Why parts of it cannot be used, in plain words."""
        return [*find_loose_ends(self.definition), *self.description["problems"]]


class _Known(NamedTuple):
    """What was found at a path: a usable project, or why it is none."""

    sources: Sources | None
    project: Project | None
    error: ProjectError | DiskFull | None

    @property
    def problems(self) -> list[str]:
        """Why it is none."""
        if isinstance(self.error, ProjectError):
            return self.error.problems
        return [] if self.error is None else [str(self.error)]


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
            DiskFull: when it has changed and cannot be stored.
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
        for item in items:
            twins = [
                other["source"] for other in items if other is not item and _is_twin(item, other)
            ]
            if twins:
                shared = f"the name {item['name']!r} is also that of {', '.join(twins)}"
                item["problems"] = [*item["problems"], shared]
        return sorted(items, key=lambda item: (str(item["name"]), str(item["source"])))

    def _find(self) -> list[Path]:
        return find_project_files(self._root, self._patterns)

    def _read_names(self) -> dict[Path, str]:
        names: dict[Path, str] = {}
        for path in self._find():
            with contextlib.suppress(ProjectError):  # it is listed with its problems
                names[path] = read_project_file(path).definition.name
        return names

    async def _refresh(self, path: Path) -> _Known:
        async with self._locks.setdefault(path, asyncio.Lock()):
            self._known[path] = await self._look(path, self._known.get(path))
            return self._known[path]

    async def _look(self, path: Path, known: _Known | None) -> _Known:
        sources: Sources | None = None
        if _as_text(path) != str(path):
            return _Known(None, None, ProjectError(_as_text(path), ["its path is not UTF-8"]))
        try:
            sources = await asyncio.to_thread(self._versions.find, path)
            if known is not None and known.project is not None and _is_same(known, sources):
                version = known.project.version
                if await asyncio.to_thread(self._versions.hand_out, version):
                    return known
            sources, version = await self._ingest(sources)
            same_code = known and known.project and known.project.version == version
            if known is not None and same_code and _is_same_interpreter(known, sources):
                return known._replace(sources=sources)
            setup = await self._versions.prepare(version)
            definition = (await asyncio.to_thread(self._versions.read, version)).definition
            description = await self._describe(setup)
        except (ProjectError, DiskFull) as error:
            return _Known(sources, None, error)
        except WtbError as error:
            return _Known(sources, None, ProjectError(str(path), [str(error)]))
        except OSError as error:
            return _Known(sources, None, ProjectError(str(path), [describe_os_error(error)]))
        project = Project(
            definition.name, version, path, definition, description, tuple(sources.ignored)
        )
        return _Known(sources, project, None)

    async def _ingest(self, sources: Sources) -> tuple[Sources, str]:
        """A version of which no file was written while it was read.

        Raises:
            ProjectError: when it cannot be ingested, or changes all the time.
        """
        for _ in range(MAX_LOOKS):
            failure: ProjectError | None = None
            version = ""
            try:
                version = await self._versions.ingest(sources)
            except ProjectError as error:
                failure = error
            after = await asyncio.to_thread(self._versions.find, sources.path)
            if after.stamps == sources.stamps:
                if failure is not None:
                    raise failure
                return after, version
            sources = after
        raise ProjectError(
            str(sources.path), ["its files changed while they were read; try again when they rest"]
        )


def _is_same(known: _Known, sources: Sources) -> bool:
    return (
        known.sources is not None
        and known.sources.stamps == sources.stamps
        and _is_same_interpreter(known, sources)
    )


def _is_same_interpreter(known: _Known, sources: Sources) -> bool:
    return known.sources is not None and known.sources.interpreter == sources.interpreter


def _is_twin(item: dict[str, Any], other: dict[str, Any]) -> bool:
    return item["name"] == other["name"] and None not in {item["version"], other["version"]}


def _as_text(path: Path) -> str:
    """A path to show, also one that is not UTF-8."""
    return str(path).encode(errors="replace").decode()


def find_project_files(root: Path, patterns: Sequence[str]) -> list[Path]:
    """The project files that the patterns find, relative ones below `root`.

    A `langgraph.json` beside another of them gives way.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_absolute():
            anchor, relative = Path(path.anchor), str(path.relative_to(path.anchor))
        else:
            anchor, relative = root, pattern
        for match in sorted(anchor.glob(relative)):
            found.setdefault(resolve(match))
    taken = {path.parent for path in found if path.name != langgraph_json.FILE_NAME}
    return [
        path for path in found if path.name != langgraph_json.FILE_NAME or path.parent not in taken
    ]


def _summarise(path: Path, known: _Known) -> dict[str, Any]:
    project = known.project
    if project is None:
        ignored = known.sources.ignored if known.sources is not None else []
        name = (
            _as_text(Path(path.parent.name))
            if known.sources is None
            else known.sources.definition.name
        )
        return {
            "name": name,
            "version": None,
            "source": _as_text(path),
            "graphs": {},
            "nodes": {},
            "evaluators": [],
            "scores": {},
            "start": None,
            "start_reason": None,
            "ignored": ignored,
            "problems": known.problems,
        }
    return {
        "name": project.name,
        "version": project.version,
        "source": _as_text(path),
        "graphs": project.description["graphs"],
        "nodes": project.description["nodes"],
        "evaluators": sorted(project.description["evaluators"]),
        "scores": {name: rule.model_dump() for name, rule in project.definition.scores.items()},
        "start": project.description["start"],
        "start_reason": project.description["start_reason"],
        "ignored": list(project.ignored),
        "problems": project.problems,
    }
