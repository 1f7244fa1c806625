"""Everything on disk that a version of a project is made of, checked before any of it is read.

Code is the project's directory and the top-level package of each dotted reference that is neither
there, nor installed, nor of the standard library.
"""

import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from dotenv import dotenv_values

from wtb_core.errors import ProjectError
from wtb_core.files.manifests import Skip, Stamp, iterate_stamps
from wtb_core.projects import langgraph_json
from wtb_core.projects.definition import ProjectFile, read_project_file
from wtb_core.projects.interpreters import Evidence, Interpreters

MAX_FILES = 50_000
MAX_TREE_BYTES = 2 * 1024**3

_CACHES = {"__pycache__", ".git", ".wtb", ".pytest_cache", ".ruff_cache", ".mypy_cache"}
_MODULE_SUFFIXES = (".py", ".so", ".pyc")


class Sources(NamedTuple):
    """A project as it lies on disk. `packages` are the places of each module outside of it.

    `stamps` are equal for two looks between which nothing was written, `interpreter` for two
    between which nothing was installed.
    """

    path: Path
    definition: ProjectFile
    ignored: list[str]
    workspace: Path | None
    packages: dict[str, list[Path]]
    skip_in_code: Skip
    stamps: list[Stamp]
    interpreter: list[Evidence]

    @property
    def root(self) -> Path:
        """The project's directory."""
        return self.path.parent

    @property
    def workspace_in_code(self) -> str | None:
        """Where the workspace lies in the project's directory, when it is below it."""
        workspace = self.workspace
        if workspace is None or workspace == self.root or not workspace.is_relative_to(self.root):
            return None
        return workspace.relative_to(self.root).as_posix()


def resolve(path: Path) -> Path:
    """`path` without links; as it is when it leads to itself, which is told when it is read."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path.absolute()


def find_sources(path: Path, interpreters: Interpreters, private: list[Path]) -> Sources:
    """What lies at a project file, with evidence of its content.

    Args:
        path: the project file, resolved.
        interpreters: what is known of interpreters.
        private: directories of ours, which are no part of any project.

    Raises:
        ProjectError: with every problem found before the first one that hides the others.
    """
    definition, ignored = read_project_file(path)
    problems: list[str] = []
    root = path.parent
    if _holds(root, _home()):
        problems.append(f"{root} is or holds the home directory; give the project one of its own")
    workspace = None
    if definition.workspace is not None:
        try:
            workspace = _find_workspace(root, definition.workspace, private)
        except ValueError as error:
            problems.append(f"workspace: {error}")
    if (problem := _check_environment_file(path, definition, workspace)) is not None:
        problems.append(problem)
    packages: dict[str, list[Path]] = {}
    evidence: list[Evidence] = []
    try:
        packages, evidence = _find_packages(root, definition, interpreters)
    except ValueError as error:
        key = "environment.python: " if definition.environment.python else ""
        problems.append(f"{key}{error}")
    if problems:
        raise ProjectError(str(path), problems)
    skip = _skip_in_code(workspace, {*private, *(place.parent for place in private)})
    stamps: list[Stamp] = []
    try:
        stamps += stamp_tree(root, skip, "the project's directory")
        if workspace is not None:
            stamps += stamp_tree(workspace, skip_caches, "the workspace")
        for name, places in packages.items():
            for place in places:
                stamps += stamp_tree(place, skip_in_package, f"the package {name}")
    except OSError as error:
        raise ProjectError(str(path), [describe_os_error(error)]) from error
    except ValueError as error:
        raise ProjectError(str(path), [str(error)]) from error
    return Sources(path, definition, ignored, workspace, packages, skip, stamps, evidence)


def find_python(definition: ProjectFile, root: Path) -> str:
    """The interpreter of a project; a relative path starts at the project's directory."""
    wanted = definition.environment.python
    return sys.executable if wanted is None else str(root / wanted)


def stamp_tree(root: Path, skip: Skip, noun: str) -> list[Stamp]:
    """The stamps of a directory, or of a single file, named so that two trees never mix.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is too large to be ingested.
    """
    if root.is_file():
        info = root.stat()
        return [Stamp(str(root), info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)]
    stamps: list[Stamp] = []
    size = 0
    for found in iterate_stamps(root, skip):
        stamps.append(found._replace(path=f"{root}/{found.path}"))
        size += found.size
        if len(stamps) > MAX_FILES:
            raise ValueError(
                f"{noun} {root} holds more than {MAX_FILES} files; keep what is no code or base "
                "file elsewhere"
            )
        if size > MAX_TREE_BYTES:
            raise ValueError(
                f"{noun} {root} holds more than {MAX_TREE_BYTES // 1024**2} MiB; keep data "
                "elsewhere and name it by an absolute path"
            )
    return stamps


def skip_caches(path: Path) -> bool:
    """What of a workspace is left out."""
    return path.name == "__pycache__"


def skip_in_package(path: Path) -> bool:
    """What of code is left out: caches and environments."""
    return path.name in _CACHES or path.name == "node_modules" or (path / "pyvenv.cfg").exists()


def describe_os_error(error: OSError) -> str:
    """Which file could not be read, and why."""
    if error.strerror is None:
        return f"cannot be ingested: {error}"
    return f"cannot be ingested: {error.filename or 'a file'}: {error.strerror}"


def _skip_in_code(workspace: Path | None, ours: set[Path]) -> Callable[[Path], bool]:
    def skip(path: Path) -> bool:
        return skip_in_package(path) or path == workspace or path in ours

    return skip


def _home() -> Path | None:
    try:
        return Path.home().resolve()
    except (OSError, RuntimeError):  # a user without one
        return None


def _holds(directory: Path, other: Path | None) -> bool:
    return other is not None and other.is_relative_to(directory)


def _find_workspace(root: Path, given: str, private: list[Path]) -> Path:
    try:
        workspace = (root / given).resolve(strict=True)
    except FileNotFoundError as error:
        raise ValueError(f"{given} is not a directory") from error
    except OSError as error:
        raise ValueError(f"{given} cannot be read: {error.strerror}") from error
    except RuntimeError as error:
        raise ValueError(f"{given} is a link that leads to itself") from error
    if not workspace.is_dir():
        raise ValueError(f"{given} is not a directory")
    if _holds(workspace, _home()):
        raise ValueError(f"{given} is or holds the home directory; name a smaller directory")
    if workspace != root and _holds(workspace, root):
        raise ValueError(f"{given} holds the project's own directory; name a smaller directory")
    if any(_holds(workspace, place.resolve()) for place in private):
        raise ValueError(f"{given} holds the service's data directory; name another directory")
    return workspace


def _check_environment_file(
    path: Path, definition: ProjectFile, workspace: Path | None
) -> str | None:
    """What is wrong with it. It is read from the ingested copy, so it must be part of that."""
    file = definition.environment.file
    if file is None:
        return None
    key = "env" if path.name == langgraph_json.FILE_NAME else "environment.file"
    try:
        target = (path.parent / file).resolve()
        if not stat.S_ISREG(target.stat().st_mode) or not target.is_relative_to(path.parent):
            return f"{key}: {file} is not a file in the project's directory"
        if workspace is not None and target.is_relative_to(workspace):
            return f"{key}: {file} lies in the workspace, where the graph's tools would see it"
        inner = [place for place in target.parents if place != path.parent]
        if any(skip_in_package(place) for place in inner if place.is_relative_to(path.parent)):
            return f"{key}: {file} lies in a directory that is no part of a project's version"
        values = dotenv_values(target, interpolate=False)
    except (OSError, RuntimeError):
        return f"{key}: {file} is not a file in the project's directory"
    except ValueError:
        return f"{key}: {file} is not UTF-8 text"
    if any("\0" in f"{name}{value}" or "=" in name for name, value in values.items()):
        return f"{key}: {file} holds a NUL character or a name with `=`"
    return None


def _find_packages(
    root: Path, definition: ProjectFile, interpreters: Interpreters
) -> tuple[dict[str, list[Path]], list[Evidence]]:
    names = tuple(sorted(set(_find_names(root, definition))))
    found = interpreters.probe(find_python(definition, root), names)
    entries = set(found.path)
    packages = {
        name: places
        for name, places in found.packages.items()
        if places and not all(p.is_relative_to(root) and p.parent in entries for p in places)
    }
    return packages, found.evidence


def _find_names(root: Path, definition: ProjectFile) -> Iterator[str]:
    """The top-level modules of dotted references that are not at the top of the directory."""
    for reference in definition.references:
        source, _, _ = reference.partition(":")
        if source.endswith(".py") and source.startswith("./"):
            continue
        name = source.partition(".")[0]
        is_there = (root / name).is_dir() or any(
            (root / f"{name}{suffix}").exists() for suffix in _MODULE_SUFFIXES
        )
        if not is_there and name not in sys.stdlib_module_names:
            yield name
