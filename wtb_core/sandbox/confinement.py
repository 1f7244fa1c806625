"""What a process of user code gives up before user code runs in it."""

import os
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, TypedDict

from wtb_core.sandbox import kernel
from wtb_core.sandbox.root import find_readable, find_secrets

MAX_OPEN_FILES: Final = 4096

_AF_VSOCK: Final = 40
_SHARED_WRITABLE: Final = ("/tmp", "/dev/shm", "/dev/pts")  # noqa: S108 - of the slot, not the host
_DEVICES: Final = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom"))
_STREAMS: Final = ("/proc/self/fd/1", "/proc/self/fd/2")  # so that /dev/stdout can be opened


class Bounds(TypedDict):
    """What a process may reach and use, as part of its job.

    A slot's root holds nothing that it must not read; elsewhere it may read what the interpreter
    needs and `readable`, and nothing of `hidden`. `landlock` is false where the kernel has none.
    `processes` counts those of this user in the process's user namespace, null where that is not
    its own.
    """

    landlock: bool
    in_slot: bool
    readable: list[str]
    hidden: list[str]
    writable: list[str]
    file_size: int
    processes: int | None
    cpu_seconds: int | None


def join(namespaces: Sequence[int]) -> None:
    """Enter a slot's namespaces and give up every privilege over them.

    The user namespace is the process's own, so that limits per user count its processes alone. None
    can be made in it: they give access to parts of the kernel that nobody but root reaches, and
    without Landlock to file systems in memory that no limit counts.
    """
    for namespace in namespaces:
        os.setns(namespace, 0)
        os.close(namespace)
    os.chdir("/")
    kernel.enter_user_namespace()
    kernel.forbid_user_namespaces()
    give_up()


def give_up() -> None:
    """Keep no capability, gain none by running a program, and do not reach the hypervisor."""
    kernel.limit_capabilities()
    kernel.forbid_new_privileges()
    kernel.forbid_sockets(_AF_VSOCK)  # no namespace separates these


def apply(bounds: Bounds) -> None:
    """Take on the limits and, last, the Landlock domain."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, bounds["file_size"])
    _limit(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    if bounds["processes"] is not None:
        _limit(resource.RLIMIT_NPROC, bounds["processes"])
    if bounds["cpu_seconds"] is not None:
        _limit(resource.RLIMIT_CPU, bounds["cpu_seconds"])
    if bounds["landlock"]:
        in_slot = bounds["in_slot"]
        readable = ["/"] if in_slot else [*_find_readable(bounds["hidden"]), *bounds["readable"]]
        writable = [*bounds["writable"], *(_SHARED_WRITABLE if in_slot else ())]
        kernel.restrict_self(readable, writable, [*_DEVICES, *_STREAMS])


def _find_readable(hidden: list[str]) -> Iterator[str]:
    """Nothing of /dev: its devices are granted one by one, and /dev/shm is shared by all."""
    covered = [Path(path) for path in (*hidden, *find_secrets())]
    for path in (*find_readable(), "/proc"):
        yield from _without(Path(path), covered)


def _without(path: Path, hidden: Sequence[Path]) -> Iterator[str]:
    """The path, or what it holds beside the hidden ones: Landlock grants whole trees only."""
    if any(path.is_relative_to(other) for other in hidden):
        return
    if any(other.is_relative_to(path) for other in hidden):
        for inner in path.iterdir():
            yield from _without(inner, hidden)
    else:
        yield str(path)


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))
