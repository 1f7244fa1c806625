"""What this machine offers a service, and what is wrong, in plain words.

Each check looks at one thing and answers with findings. A problem stands in the way of the service;
a warning is worth knowing. Project code is described in child processes, as the service does it, in
a data directory that is thrown away.
"""

import asyncio
import glob
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil
from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wtb_core.checking import PROJECT_FILES, find_project_file
from wtb_core.clients import HttpClient
from wtb_core.data import DataDir
from wtb_core.display import clean
from wtb_core.errors import InvalidRequest, Unavailable
from wtb_core.files.blobs import BlobStore
from wtb_core.projects import ProjectVersions, Registry
from wtb_core.sandbox.auditing import Audit, audit
from wtb_core.sandbox.ladder import Sandbox
from wtb_core.sandbox.probes import PROBES
from wtb_core.sandbox.supervisor import describe
from wtb_core.serving import ServeConfig, find_shadow, is_free, read_config

DISTRIBUTION = "wtb-serve"
PYTHON = (3, 12)
RANGED = ("ray", "langgraph")
MIN_OPEN_FILES = 4096
MIN_SHM_BYTES = 512 * 1024**2
LOW_DISK_BYTES = 2 * 1024**3
FULL_DISK_BYTES = 100 * 1024**2
NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs"})
PASSING_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})
CHILD_TIMEOUT_S = 60.0
CHECK_ARGS = """
import json, sys
from pydantic import ValidationError
from deployments.app import AppArgs
try:
    AppArgs.model_validate(json.loads(sys.argv[1]))
except ValidationError as error:
    faults = [(fault["loc"], fault["msg"]) for fault in error.errors()]
    print(json.dumps([".".join(["args", *map(str, loc)]) + ": " + msg for loc, msg in faults]))
else:
    print("[]")
"""

State = Literal["ok", "warning", "problem"]


class Finding(NamedTuple):
    """What a check found."""

    check: str
    state: State
    message: str


def diagnose(config: Path | None, data_dir: str | None, url: str) -> list[Finding]:
    """All checks, for a service of `config` (see `serving.read_config`) or the one at `url`."""
    findings = [*check_system(), *check_versions(), *check_limits(), *check_shared_memory()]
    try:
        chosen = read_config(config)
    except InvalidRequest as error:
        return [*findings, Finding("config", "problem", str(error))]
    if data_dir is not None:
        chosen = chosen.change(data_dir=data_dir)
    findings += check_isolation(probe_isolation(chosen.data_dir.absolute()))
    findings += check_config(chosen)
    findings += check_data_dir(chosen.data_dir)
    findings += check_port(chosen)
    if url.rstrip("/") != chosen.url:
        findings += check_service(url)
    findings += check_projects(chosen)
    return findings


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """One finding a line, and how many problems there are."""
    colours = {"ok": "green", "warning": "yellow", "problem": "red"}
    for finding in findings:
        colour = colours[finding.state]
        console.print(
            f"[{colour}]{finding.state:<8}[/] {finding.check:<14} {clean(finding.message, 2_000)}",
            soft_wrap=True,
        )
    problems = sum(finding.state == "problem" for finding in findings)
    warnings = sum(finding.state == "warning" for finding in findings)
    console.print(f"{problems} problems, {warnings} warnings")


def check_system(system: str | None = None) -> Iterator[Finding]:
    """The service runs on Linux."""
    found = system or platform.system()
    if found == "Linux":
        yield Finding("system", "ok", f"Linux {platform.release()} on {platform.machine()}")
    else:
        yield Finding("system", "problem", f"the service runs on Linux, not on {found}")


def check_versions(python: tuple[int, int] | None = None) -> Iterator[Finding]:
    """Python, ray and langgraph against the ranges that this version supports."""
    version = sys.version_info[:2] if python is None else python
    text = f"Python {version[0]}.{version[1]} at {sys.executable}"
    if version == PYTHON:
        yield Finding("python", "ok", text)
    elif version > PYTHON:
        yield Finding("python", "warning", f"{text}; tested is {PYTHON[0]}.{PYTHON[1]}")
    else:
        yield Finding("python", "problem", f"{text}; needed is {PYTHON[0]}.{PYTHON[1]}")
    wanted = {
        requirement.name: requirement.specifier
        for requirement in map(Requirement, importlib.metadata.requires(DISTRIBUTION) or [])
        if requirement.marker is None
    }
    for name in RANGED:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "problem", f"not installed; needed is {wanted[name]}")
            continue
        if Version(found) in wanted[name]:
            yield Finding(name, "ok", f"{found} ({wanted[name]})")
        else:
            yield Finding(name, "problem", f"{found} is installed; supported is {wanted[name]}")


def check_limits(soft: int | None = None) -> Iterator[Finding]:
    """Each replica, process and connection needs open files."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if soft is None else soft
    if limit in {resource.RLIM_INFINITY, -1}:
        yield Finding("open files", "ok", "unlimited")
    elif limit >= MIN_OPEN_FILES:
        yield Finding("open files", "ok", f"up to {limit}")
    else:
        message = f"up to {limit}; Ray wants more, try `ulimit -n {MIN_OPEN_FILES}` or above"
        yield Finding("open files", "warning", message)


def check_shared_memory(path: Path = Path("/dev/shm")) -> Iterator[Finding]:  # noqa: S108 - Ray's own
    """Ray keeps objects there."""
    try:
        free = shutil.disk_usage(path).free
    except OSError as error:
        yield Finding("shared memory", "warning", f"{path}: {error.strerror}; Ray will use /tmp")
        return
    if free >= MIN_SHM_BYTES:
        yield Finding("shared memory", "ok", f"{_size(free)} free in {path}")
    else:
        message = (
            f"{_size(free)} free in {path}; Ray will use /tmp, which is slower "
            "(in Docker: --shm-size=1g)"
        )
        yield Finding("shared memory", "warning", message)


def probe_isolation(place: Path) -> dict[str, Any]:
    """What executions whose files lie below `place` would be isolated by, found by trying."""
    directory = next(path for path in (place, *place.parents) if os.access(path, os.W_OK))
    with tempfile.TemporaryDirectory(prefix=".wtb-doctor-", dir=directory) as folder:
        return asyncio.run(Sandbox(Path(folder)).find_grade()).describe()


def check_isolation(isolation: dict[str, Any]) -> Iterator[Finding]:
    """How far executions are kept apart, and what is missed."""
    level, confinement = isolation["workspace"], isolation["confinement"]
    text = f"workspaces at level {level}, confinement {confinement}"
    if isolation["missed"]:
        reasons = "; ".join(missed["meaning"] for missed in isolation["missed"])
        yield Finding("isolation", "warning", f"{text}. Missed: {reasons}")
    else:
        yield Finding("isolation", "ok", text)


def audit_project(path: Path, place: Path, *, network: bool) -> Audit:
    """Attack the isolation of the project at `path`, with files below `place` as executions have.

    Raises:
        InvalidRequest: when there is no project, or it has problems.
        SetupError: when its processes cannot be started.
    """
    file = find_project_file(path)
    if file is None:
        raise InvalidRequest("--audit", f"there is no {' or '.join(PROJECT_FILES)} in {path}")
    directory = next(path for path in (place, *place.parents) if os.access(path, os.W_OK))
    with tempfile.TemporaryDirectory(prefix=".wtb-doctor-", dir=directory) as folder:
        data = DataDir(Path(folder, "data")).create()
        sandbox = Sandbox(data.runs, hidden=data.hidden)
        versions = ProjectVersions(BlobStore(data.blobs), data.bases, sandbox)
        patterns = [glob.escape(str(file))]
        registry = Registry(file.parent, patterns, versions, partial(describe, sandbox))

        async def run() -> Audit:
            await registry.refresh()
            [summary] = registry.summaries()
            if summary["problems"]:
                raise InvalidRequest("--audit", f"{file}: {'; '.join(summary['problems'])}")
            setup = await versions.prepare(summary["version"])
            return await audit(data, sandbox, setup, network=network)

        return asyncio.run(run())


def print_audit(report: Audit, console: Console) -> None:
    """A row for each attack, those that went through last, and what they add up to."""
    colours = {"refused": "green", "contained": "green", "allowed": "red"}
    table = Table(title="Audit", title_justify="left")
    for head in ("group", "attack", "verdict", "detail"):
        table.add_column(head, overflow="fold")
    for finding in sorted(report.findings, key=lambda found: found.verdict == "allowed"):
        attack = PROBES.get(finding.name)
        group = "outside" if attack is None else attack.group
        title = finding.name if attack is None else attack.title
        verdict = f"[{colours[finding.verdict]}]{finding.verdict}[/]"
        table.add_row(group, title, verdict, escape(clean(finding.detail, 200)))
    console.print(table)
    counts = Counter(finding.verdict for finding in report.findings)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in colours)
    isolation = report.isolation
    network = "with" if report.network else "without"
    console.print(
        f"{len(report.findings)} attacks {network} network: {said}. Workspaces at level "
        f"{isolation['workspace']}, confinement {isolation['confinement']}.",
        soft_wrap=True,
    )
    for missed in isolation["missed"]:
        console.print(f"missed: {clean(missed['meaning'], 2_000)}", soft_wrap=True, markup=False)
    if report.left_out:
        console.print(f"not tried, nothing to attack: {', '.join(report.left_out)}")


def describe_audit(report: Audit) -> dict[str, Any]:
    """`{isolation, network, findings, left_out}`; a finding has group, name, title, verdict."""
    findings = [
        {
            "name": finding.name,
            "group": PROBES[finding.name].group if finding.name in PROBES else "outside",
            "attack": PROBES[finding.name].title if finding.name in PROBES else finding.name,
            "verdict": finding.verdict,
            "detail": finding.detail,
        }
        for finding in report.findings
    ]
    return {
        "isolation": report.isolation,
        "network": report.network,
        "findings": findings,
        "left_out": report.left_out,
    }


def check_config(config: ServeConfig) -> Iterator[Finding]:
    """The application's arguments, in a child because checking them imports Ray."""
    where = str(config.path)
    try:
        done = subprocess.run(  # noqa: S603 - our own code, no shell
            [sys.executable, "-c", CHECK_ARGS, json.dumps(config.args)],
            capture_output=True,
            text=True,
            timeout=CHILD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        message = f"{where}: its args could not be checked in {CHILD_TIMEOUT_S:g} s"
        yield Finding("config", "warning", message)
        return
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        yield Finding("config", "problem", f"the application cannot be imported: {last}")
        return
    problems: list[str] = json.loads(done.stdout.splitlines()[-1])
    for problem in problems:
        yield Finding("config", "problem", f"{where}: {problem}")
    if not problems:
        yield Finding("config", "ok", where)


def check_data_dir(path: Path) -> Iterator[Finding]:
    """Whether data can be written, where to, and how much room there is."""
    existing = next(p for p in (path, *path.parents) if p.exists())
    if not existing.is_dir():
        yield Finding("data", "problem", f"{existing} is not a directory")
        return
    if not os.access(existing, os.W_OK | os.X_OK):
        yield Finding("data", "problem", f"{existing} cannot be written by this user")
        return
    kind = find_file_system(existing)
    free = shutil.disk_usage(existing).free
    text = f"{path} on {kind}, {_size(free)} free"
    if kind in NETWORK_FILE_SYSTEMS:
        message = f"{text}; SQLite's log does not work over a network, take a local directory"
        yield Finding("data", "problem", message)
    elif free < FULL_DISK_BYTES:
        yield Finding("data", "problem", f"{text}; there is no room for batches")
    elif kind in PASSING_FILE_SYSTEMS:
        yield Finding("data", "warning", f"{text}; what is in memory is gone after a restart")
    elif free < LOW_DISK_BYTES:
        yield Finding("data", "warning", f"{text}; workspaces and checkpoints need more")
    else:
        yield Finding("data", "ok", text)


def check_port(config: ServeConfig) -> Iterator[Finding]:
    """The port is free, or has our service behind it."""
    shadow = find_shadow(config.root)
    if shadow is not None:
        yield Finding("folder", "problem", f"{shadow} hides a package of WTB Serve")
    where = f"{config.host}:{config.port}"
    try:
        free = is_free(config.host, config.port)
    except InvalidRequest as error:
        yield Finding("port", "problem", str(error))
        return
    if free:
        yield Finding("port", "ok", f"{where} is free")
        return
    try:
        state = ask_service(config.url)
    except Unavailable as error:
        yield Finding("port", "problem", f"{where} is taken: {error.what}")
    else:
        yield _find_readiness("port", f"{where} has a WTB service", state)


def check_service(url: str) -> Iterator[Finding]:
    """The service that `--url` or `WTB_URL` names, when it is not that of the config."""
    try:
        state = ask_service(url)
    except (Unavailable, InvalidRequest) as error:
        yield Finding("service", "warning", str(error))
    else:
        yield _find_readiness("service", f"{url} is a WTB service", state)


def check_projects(config: ServeConfig) -> Iterator[Finding]:
    """The projects that the service would find, described as it describes them."""
    with tempfile.TemporaryDirectory(prefix="wtb-doctor-") as folder:
        data = DataDir(Path(folder)).create()
        sandbox = Sandbox(data.runs, hidden=data.hidden)
        versions = ProjectVersions(BlobStore(data.blobs), data.bases, sandbox)
        registry = Registry(config.root, config.patterns, versions, partial(describe, sandbox))
        asyncio.run(registry.refresh())
        items = registry.summaries()
    if not items:
        looked = ", ".join(config.patterns)
        yield Finding("projects", "warning", f"none found by {looked} in {config.root}")
    for item in items:
        if item["problems"]:
            for problem in item["problems"]:
                yield Finding("projects", "problem", f"{item['source']}: {problem}")
        else:
            yield Finding("projects", "ok", f"{item['name']} ({item['source']})")


def find_file_system(path: Path) -> str:
    """The type of the file system that `path` is on."""
    mounts = {Path(p.mountpoint): p.fstype for p in psutil.disk_partitions(all=True)}
    resolved = path.resolve()
    return next((mounts[p] for p in (resolved, *resolved.parents) if p in mounts), "unknown")


def ask_service(url: str) -> dict[str, Any]:
    """The readiness of the service at `url`.

    Raises:
        Unavailable: when nothing answers there, or something else does.
        InvalidRequest: when the URL cannot be one.
    """

    async def ask() -> dict[str, Any]:
        client = HttpClient(url)
        try:
            return await client.identify()
        finally:
            await client.close()

    return asyncio.run(ask())


def describe_service(url: str) -> str:
    """What listens at `url`, for a message."""
    try:
        ask_service(url)
    except Unavailable as error:
        return f"not by WTB Serve ({error.what})"
    return f"by a WTB service; see `wtb batch list --url {url}`"


def _find_readiness(check: str, text: str, state: dict[str, Any]) -> Finding:
    if state["ready"]:
        return Finding(check, "ok", f"{text} that is ready")
    return Finding(check, "warning", f"{text} that is not ready: {'; '.join(state['problems'])}")


def _size(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB"
