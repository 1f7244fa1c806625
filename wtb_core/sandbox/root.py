"""The file system that user code sees, made once per project version and copied for each slot.

It is a small tmpfs on which the interpreter, its packages, the system's programs and libraries and
the project's code are shown, all read-only. Nothing else of the machine is there: no home
directories, no /run, no store, no other execution. Sources of later mounts are kept in `_HIDDEN`,
which each namespace lets go of before user code runs in it.
"""

import functools
import json
import os
import pwd
import stat
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypedDict
from urllib.parse import unquote, urlsplit

from wtb_core.sandbox import kernel

SYSTEM: Final = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/nix/store"),
    "/sys/devices/system/cpu",
)
DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
ACCELERATORS: Final = ("nvidia*", "dri", "kfd")

# What an unprivileged user cannot read anyway and root's executions must not.
_SECRETS: Final = (
    *("shadow", "shadow-", "gshadow", "gshadow-", "sudoers", "sudoers.d", "ssh", "ssl/private"),
    *("krb5.keytab", "security/opasswd", "wireguard", "NetworkManager/system-connections"),
)
# As root, user code owns these files; Landlock forbids writing them too, where there is one.
_ROOT_OWNED: Final = ("sys", "sysrq-trigger", "irq", "bus", "fs")
_HIDDEN: Final = "/.wtb"


class Plan(TypedDict):
    """What a root is made of, as host paths.

    `visible` is shown read-only, `hidden` covered even inside of what is shown, `areas` hold what
    slots are made of, and `rooms` are the directories in which slots have places of their own.
    """

    visible: list[str]
    hidden: list[str]
    areas: list[str]
    rooms: list[str]


@functools.cache
def find_readable() -> list[str]:
    """What this interpreter and the programs of the system need, without home directories.

    Found once, before a project has changed `sys.path`.
    """
    homes = [Path.home(), *_find_account_home()]  # HOME may be one of ours
    entries = [sys.prefix, sys.base_prefix, sys.exec_prefix, sysconfig.get_path("stdlib")]
    entries += [str(Path(sys.executable).resolve().parent), str(Path(__file__).parents[1])]
    entries += [entry for entry in sys.path if entry]
    entries += _find_editable(sys.path)
    resolver = Path("/etc/resolv.conf")
    found = [path for path in SYSTEM if os.path.lexists(path)]
    if resolver.is_symlink() and resolver.exists():  # into /run, most often
        entries.append(str(resolver.resolve()))
    for entry in dict.fromkeys(entries):
        for path in dict.fromkeys([Path(entry), Path(entry).resolve()]):
            known = any(path.is_relative_to(other) for other in found)
            too_much = any(home.is_relative_to(path) for home in homes) or not path.is_absolute()
            if path.exists() and not known and not too_much:
                found.append(str(path))
    return found


def _find_account_home() -> Iterator[Path]:
    try:
        yield Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:  # a user without an account, as in many containers
        return


def find_secrets() -> list[str]:
    """What only root can read of what `find_readable` names."""
    return [f"/etc/{name}" for name in _SECRETS] if os.geteuid() == 0 else []


def _find_editable(path: Sequence[str]) -> Iterator[str]:
    """The directories of editable installs, which say so in direct_url.json (PEP 610)."""
    for entry in path:
        if not Path(entry).is_dir():
            continue
        for record in Path(entry).glob("*.dist-info/direct_url.json"):
            try:
                origin = json.loads(record.read_text(encoding="utf-8"))
                is_editable = origin.get("dir_info", {}).get("editable", False)
                url = urlsplit(origin["url"])
            except (OSError, ValueError, KeyError, AttributeError):
                continue
            if is_editable and url.scheme == "file":
                yield unquote(url.path)


def build(root: str, readable: Sequence[str], plan: Plan) -> None:
    """Make the root on the directory `root` and enter it; needs namespaces of its own.

    Raises:
        OSError: `filename` is the step that failed.
    """
    kernel.make_mounts_private()
    kernel.mount("tmpfs", root, {"mode": "755", "size": "16m"})
    for path in _without_nested([*readable, *plan["visible"]]):
        _show(root, path)
    _cover(root, plan["hidden"])
    _cover(root, find_secrets())
    for path in plan["visible"]:  # again, where a cover lies over them
        if not os.path.lexists(root + path):
            _show(root, path)
    for directory in ("/proc", "/run", "/tmp", "/var", "/home", "/root", "/mnt"):  # noqa: S108
        Path(root + directory).mkdir(exist_ok=True)
    Path(root, "var/tmp").symlink_to("/tmp")  # noqa: S108
    _make_devices(root)
    kernel.mount("proc", f"{root}/proc", {})
    for room in plan["rooms"]:
        Path(root + room).mkdir(parents=True, exist_ok=True)
    areas = [f"{root}{_HIDDEN}/{index}" for index in range(len(plan["areas"]))]
    for area in areas:
        Path(area).mkdir(parents=True)
    kernel.make_read_only(root)
    for source, area in zip(plan["areas"], areas, strict=True):
        kernel.bind(source, area)
    kernel.pivot_root(root)


def _without_nested(paths: Iterable[str]) -> list[str]:
    kept: list[str] = []
    for path in sorted(set(paths), key=lambda path: len(Path(path).parts)):
        if not any(Path(path).is_relative_to(other) for other in kept):
            kept.append(path)
    return kept


def _show(root: str, path: str) -> None:
    target = Path(root + path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if Path(path).is_symlink():
        target.symlink_to(Path(path).readlink())
        return
    if not Path(path).exists():
        return
    if Path(path).is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    kernel.bind(path, str(target))


def _cover(root: str, paths: Iterable[str]) -> None:
    empty = Path(root, ".empty")
    for path in paths:
        target = Path(root + path)
        try:
            is_directory = stat.S_ISDIR(target.lstat().st_mode)
        except OSError:  # not shown at all
            continue
        if is_directory:
            kernel.mount("tmpfs", str(target), {"mode": "755", "size": "1m"})
        else:
            empty.touch(0o000)
            kernel.bind(str(empty), str(target))


def _make_devices(root: str) -> None:
    directory = Path(root, "dev")
    directory.mkdir(exist_ok=True)
    sources = [Path("/dev", name) for name in DEVICES]
    for pattern in ACCELERATORS:
        sources += Path("/dev").glob(pattern)
    for source in sources:
        if source.exists():
            target = directory / source.name
            if source.is_dir():
                target.mkdir()
            else:
                target.touch()
            kernel.bind(str(source), str(target))
    for name, target in {
        "fd": "/proc/self/fd",
        "stdin": "/proc/self/fd/0",
        "stdout": "/proc/self/fd/1",
        "stderr": "/proc/self/fd/2",
        "ptmx": "pts/ptmx",
    }.items():
        (directory / name).symlink_to(target)
    for name in ("shm", "pts"):
        (directory / name).mkdir(exist_ok=True)


class Sources:
    """Where the root keeps the host's directories that mounts are made of."""

    def __init__(self, areas: Sequence[str]) -> None:
        self._areas = areas

    def find(self, path: str) -> str:
        """The place of a host path below one of the areas.

        Raises:
            ValueError: when it is below none.
        """
        for index, area in enumerate(self._areas):
            if Path(path).is_relative_to(area):
                return f"{_HIDDEN}/{index}/{Path(path).relative_to(area)}"
        raise ValueError(f"{path} is in none of the areas")

    def let_go(self) -> None:
        """Take them away from this mount namespace for good."""
        for index in range(len(self._areas)):
            kernel.detach(f"{_HIDDEN}/{index}")


def protect_proc() -> None:
    """Make the parts of a new /proc read-only that root may write even without capabilities.

    Not /proc/sys/user: it takes a capability, and each process limits its own user namespace there.
    """
    if os.geteuid() != 0:
        return
    limits = kernel.clone_tree("/proc/sys/user")
    for name in _ROOT_OWNED:
        path = f"/proc/{name}"
        if os.path.lexists(path):
            kernel.bind(path, path, kernel.MOUNT_READ_ONLY)
    kernel.attach(limits, "/proc/sys/user")
