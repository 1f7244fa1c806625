"""A service in a folder of its own: its config, its processes, and what they leave.

Processes are found by ancestry from the one that was started, or by a HOME below the folder, never
by name alone: several Rays may run on a machine.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import yaml

ROLES = {
    "replica": "ray::ServeReplica:wtb:VariantExecutor",
    "ingress": "ray::ServeReplica:wtb:BatchIngress",
    "collector": "ray::ServeReplica:wtb:EventCollector",
    "controller": "ray::ServeController",
    "proxy": "ray::ProxyActor",
}
"""How the titles of a service's processes begin."""

_CHILD_DEPTH = 3


def write_config(
    folder: Path, port: int, projects: Iterable[str] = ("projects/*/project.yaml",), **args: Any
) -> Path:
    """A Serve config in `folder`, which holds the data too; `args` are the application's."""
    application = {
        "name": "wtb",
        "route_prefix": "/",
        "import_path": "deployments.app:build_app",
        "args": {"root": str(folder), "projects": list(projects), **args},
    }
    config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [application],
    }
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def find_role(service_pid: int, role: str) -> list[psutil.Process]:
    """The service's processes of a role, the oldest first."""
    found: list[tuple[float, psutil.Process]] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(service_pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(ROLES[role]):
                    found.append((process.create_time(), process))
    return [process for _, process in sorted(found, key=lambda item: (item[0], item[1].pid))]


def find_sandboxed(folder: Path) -> list[psutil.Process]:
    """Processes beside or of user code: all have the HOME of a zygote below the folder."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("HOME", "").startswith(f"{folder}/"):
                found.append(process)
    return found


def split_sandboxed(
    folder: Path,
) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """What executions are forked from, and the processes of executions.

    Above the latter are a stem, a launcher and a zygote.
    """
    found = find_sandboxed(folder)
    pids = {process.pid for process in found}
    nurseries: list[psutil.Process] = []
    children: list[psutil.Process] = []
    for process in found:
        depth = 0
        with contextlib.suppress(psutil.Error):
            depth = sum(parent.pid in pids for parent in process.parents())
        (children if depth >= _CHILD_DEPTH else nurseries).append(process)
    return nurseries, children


def list_leftovers(data: Path) -> list[str]:
    """Attempts' directories, and those of zygotes whose process is gone."""
    left = [str(path) for path in (data / "runs").glob("*/*")]
    alive = {path.name.partition("-")[0] for path in (data / "owners").glob("*")}
    zygotes = (data / "zygotes").glob("*")
    return left + [str(path) for path in zygotes if path.name.partition("-")[0] not in alive]


def find_mounts(folder: Path) -> list[str]:
    """Mounts of anything below the folder, in whatever namespace."""
    found: list[str] = []
    for mounts in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):
            found += [line for line in mounts.read_text().splitlines() if f"{folder}/" in line]
    return found
