"""The interpreters that projects run with: found, looked at once, looked at again when changed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from wtb_core.sandbox import probe

MIN_PYTHON = (3, 12)
MIN_LANGGRAPH = (1, 0)
PROBE_TIMEOUT_S = 30.0

_PROBE = str(Path(probe.__file__).resolve())


Evidence = tuple[str, int, int]


class Probe(NamedTuple):
    """What an interpreter said of itself; `packages` as in `sandbox.probe`.

    `evidence` changes when something is installed or removed.
    """

    version: tuple[int, ...]
    langgraph: str | None
    path: list[Path]
    packages: dict[str, list[Path] | None]
    evidence: list[Evidence] = []


class Interpreters:
    """Probes, kept as long as the interpreter and its directories of packages are unchanged.

    One that does not answer is not waited for again until its file changes.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, tuple[str, ...]], Probe] = {}
        self._silent: dict[str, tuple[list[Evidence], str]] = {}

    def probe(self, python: str, names: tuple[str, ...]) -> Probe:
        """What `python` has, and where it finds the top-level modules `names`.

        Raises:
            ValueError: when it cannot be used; says why and what to do.
        """
        if python == sys.executable and not names:
            path = [Path(entry) for entry in sys.path]
            return Probe(sys.version_info[:3], None, path, {}, _look(python, path))
        known = self._known.get((python, names))
        if known is not None and known.evidence == _look(python, known.path):
            return known
        evidence, fault = self._silent.get(python, ([], ""))
        if fault and evidence == _look(python, []):
            raise ValueError(fault)
        try:
            found = _ask(python, names)
        except subprocess.TimeoutExpired as error:
            fault = f"{python} did not answer in {PROBE_TIMEOUT_S:.0f} s"
            self._silent[python] = (_look(python, []), fault)
            raise ValueError(fault) from error
        _check(python, found)
        found = found._replace(evidence=_look(python, found.path))
        self._known[python, names] = found
        return found


def _look(python: str, places: list[Path]) -> list[Evidence]:
    """The times of the interpreter and of the directories that it imports from."""
    evidence: list[Evidence] = []
    for path in (Path(python), *places):
        try:
            info = path.stat()
        except OSError:  # many interpreters list a zip file that is not there
            continue
        evidence.append((str(path), info.st_mtime_ns, info.st_ino))
    return evidence


def _ask(python: str, names: tuple[str, ...]) -> Probe:
    """What the interpreter says.

    Raises:
        ValueError: when it cannot be started or says nothing of use.
        subprocess.TimeoutExpired: when it does not answer; it is killed with what it started.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - the interpreter is the project file's
            [python, "-I", "-B", _PROBE, *names],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
            env={},
        )
    except FileNotFoundError as error:
        raise ValueError(f"there is no interpreter {python}; make the environment first") from error
    except OSError as error:
        raise ValueError(f"{python} cannot be started: {error.strerror}") from error
    with process:
        try:
            stdout, stderr = process.communicate(timeout=PROBE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    try:
        said = json.loads(stdout)
        packages: dict[str, list[str] | None] = said["packages"]
        return Probe(
            tuple(said["version"]),
            said["langgraph"],
            [Path(entry) for entry in said["path"]],
            {n: None if at is None else [Path(p) for p in at] for n, at in packages.items()},
        )
    except (ValueError, KeyError, TypeError) as error:
        lines = stderr.decode(errors="replace").strip().splitlines()
        last = f": {lines[-1][:300]}" if lines else ""
        raise ValueError(f"{python} is no Python 3 that can be used{last}") from error


def _check(python: str, found: Probe) -> None:
    if found.version[:2] < MIN_PYTHON:
        version, needed = (".".join(map(str, part)) for part in (found.version, MIN_PYTHON))
        raise ValueError(f"{python} is Python {version}; use {needed} or newer")
    if found.langgraph is None:
        raise ValueError(f"{python} has no langgraph; run `{python} -m pip install langgraph`")
    release = tuple(int(part) for part in found.langgraph.split(".")[:2] if part.isdigit())
    if release < MIN_LANGGRAPH:
        needed = ".".join(map(str, MIN_LANGGRAPH))
        raise ValueError(
            f"{python} has langgraph {found.langgraph}; use {needed} or newer: run "
            f"`{python} -m pip install --upgrade langgraph`"
        )
