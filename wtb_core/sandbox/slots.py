"""A slot: the namespaces of one process of user code, and the init in them.

The init is pid 1 of the slot. It mounts what the process may see and write, says so, and from then
on reaps orphans and watches what all processes in the slot hold of memory and of deleted files.
When it ends, the kernel kills them. It ends with its leash, which the kernel closes for a
supervisor that was killed.
"""

import contextlib
import itertools
import os
import select
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, NoReturn, TypedDict

from wtb_core.errors import SetupError
from wtb_core.sandbox import init, kernel
from wtb_core.sandbox.root import Sources, protect_proc
from wtb_core.sandbox.wire import Channel, encode
from wtb_core.sandbox.writing import write_files

NAMESPACES: Final = ("pid", "mnt", "ipc")

_TMP: Final = "/tmp"  # noqa: S108
_SHM: Final = "/dev/shm"  # noqa: S108
_SHM_BYTES: Final = 1024**3  # where memory has no bound
_WATCH_MS: Final = 250
_UNNAMED_LOOK: Final = 4  # every which look at the memory is one at open files too
_ROOM_OPTIONS: Final = {"mode": "755", "size": "1m"}
_RESERVED_PIDS: Final = 300  # of the kernel: numbers below are not used again


class Overlay(TypedDict):
    """An overlay of host directories, the topmost lower one first."""

    lower: list[str]
    upper: str
    work: str


class Mount(TypedDict):
    """What the process may write: a host directory or an overlay, and where it is seen."""

    source: str | Overlay
    targets: list[str]


class Request(TypedDict):
    """What a slot is made of.

    `tmp` is the host directory that is its /tmp. `rooms` are directories that hold nothing but the
    targets below them. `files` are written to the
    first target of the first mount. `memory` bounds the processes' memory together, `disk` the
    space of files that they have open and deleted, `processes` their number where no limit of the
    user does, each null for no bound.
    """

    tmp: str
    rooms: list[str]
    mounts: list[Mount]
    files: dict[str, str]
    network: bool
    memory: int | None
    disk: int | None
    processes: int | None


def can_limit_root() -> bool:
    """Whether `pid_max` belongs to a pid namespace: from Linux 6.14 on."""
    release = os.uname().release.split("-")[0].split(".")
    return [int(part) for part in release[:2]] >= [6, 14]


def become_init(leash: socket.socket, sources: Sources) -> NoReturn:
    """Be pid 1 of a slot: receive the request, make the slot, hand out its namespaces, watch it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(leash)
    try:
        header, _ = channel.receive()
        request: Request = header["slot"]
        _make(request, sources)
    except OSError as error:
        _refuse(channel, str(error.filename or "slot"), error.errno, error.strerror or str(error))
    except SetupError as error:
        _refuse(channel, error.step, None, error.message)
    except EOFError:
        os._exit(0)
    names = [*NAMESPACES, *([] if request["network"] else ["net"])]
    opened = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in names]
    handles = [os.pidfd_open(os.getpid()), *opened]
    socket.send_fds(leash, [encode({"ready": True})], handles)
    for handle in handles:
        os.close(handle)
    _watch(channel, request["memory"], request["disk"])


def _refuse(channel: Channel, step: str, errno: int | None, message: str) -> NoReturn:
    with contextlib.suppress(OSError):
        channel.send({"failed": {"step": step, "errno": errno, "message": message}})
    os._exit(1)


def _make(request: Request, sources: Sources) -> None:
    kernel.unshare(os.CLONE_NEWNS | os.CLONE_NEWIPC, "mount namespace")
    if not request["network"]:
        kernel.unshare(os.CLONE_NEWNET, "network namespace")
        kernel.raise_loopback()
    cover_shared(sources.find(request["tmp"]), request["memory"] or _SHM_BYTES)
    for room in request["rooms"]:
        kernel.mount("tmpfs", room, dict(_ROOM_OPTIONS))
    for place in request["mounts"]:
        show(place, sources)
    if request["files"]:
        write_files(Path(request["mounts"][0]["targets"][0]), request["files"])
    kernel.mount("devpts", "/dev/pts", {"newinstance": None, "ptmxmode": "0666", "mode": "0620"})
    kernel.mount("proc", "/proc", {})
    if request["processes"] is not None:
        _limit_processes(request["processes"])
    protect_proc()
    sources.let_go()


def cover_shared(tmp: str, shm_bytes: int) -> None:
    """Make `tmp` the slot's /tmp, and give it a /dev/shm.

    What the root shows below them stays there: the data directory may lie in either.
    """
    options = {"mode": "1777", "size": str(shm_bytes)}
    _cover(_TMP, lambda: kernel.bind(tmp, _TMP))
    _cover(_SHM, lambda: kernel.mount("tmpfs", _SHM, dict(options)))


def _cover(place: str, mount: Callable[[], None]) -> None:
    shown = [(path, kernel.clone_tree(str(path))) for path in Path(place).iterdir()]
    mount()
    for path, tree in shown:
        path.mkdir(exist_ok=True)
        kernel.attach(tree, str(path))


def show(place: Mount, sources: Sources) -> None:
    """Mount one place."""
    first, *others = place["targets"]
    Path(first).mkdir(parents=True, exist_ok=True)
    source = place["source"]
    if isinstance(source, str):
        kernel.bind(sources.find(source), first)
    else:
        lower = [sources.find(path) for path in source["lower"]]
        kernel.mount_overlay(
            first, lower, sources.find(source["upper"]), sources.find(source["work"])
        )
    for other in others:
        Path(other).mkdir(parents=True, exist_ok=True)
        kernel.bind(first, other)


def _limit_processes(count: int) -> None:
    """Bound the slot's pids: RLIMIT_NPROC does not hold for uid 0.

    `pid_max` is a setting of the pid namespace since Linux 6.14, and of the machine before, which
    is why it is only asked for from then on. Numbers below 300 are given out once and never again;
    they are skipped where the kernel can (CONFIG_CHECKPOINT_RESTORE), else up to 300 processes more
    may be alive.
    """
    settings = Path("/proc/sys/kernel")
    with kernel.step("pid limit"):
        (settings / "pid_max").write_text(str(_RESERVED_PIDS + count), encoding="ascii")
    with contextlib.suppress(OSError):
        (settings / "ns_last_pid").write_text(str(_RESERVED_PIDS - 1), encoding="ascii")


def _watch(channel: Channel, memory: int | None, disk: int | None) -> NoReturn:
    poll = select.poll()
    poll.register(channel.sock, select.POLLIN)
    unnamed = _Unnamed(0, 0)
    for look in itertools.count():
        if poll.poll(_WATCH_MS):
            break  # nothing is sent to a running slot: the leash has closed
        for _ in init.reap():  # orphans
            pass
        if memory is None:
            continue
        if look % _UNNAMED_LOOK == 0:
            unnamed = _find_unnamed()
        files = _count_shared() + unnamed.memory
        used = _measure("status", "RssAnon:", "RssShmem:") + files
        if used > memory:  # shared pages once, and files that are mapped as well
            private = _measure("smaps_rollup", "Pss_Anon:")
            used = private + max(_measure("smaps_rollup", "Pss_Shmem:"), files)
        over = "memory" if used > memory else None
        if disk is not None and unnamed.disk > disk:
            over = "disk"
        if over is not None:
            with contextlib.suppress(OSError):
                channel.send({"over": over})
            break
    os._exit(0)


def _measure(file: str, *fields: str) -> int:
    """The sum of these fields over all processes of the slot, in bytes."""
    total = 0
    for process in _processes():
        with contextlib.suppress(OSError), Path(process, file).open(errors="replace") as lines:
            total += sum(int(line.split()[1]) for line in lines if line.startswith(fields))
    return total * 1024


def _processes() -> Iterator[str]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and entry.name != "1":
            yield entry.path


def _count_shared() -> int:
    """What lies in /dev/shm and in System V segments, mapped or not, in bytes."""
    room = os.statvfs(_SHM)
    total = (room.f_blocks - room.f_bfree) * room.f_frsize
    with contextlib.suppress(OSError), Path("/proc/sysvipc/shm").open() as lines:
        column = next(lines).split().index("rss")
        total += sum(int(line.split()[column]) for line in lines)
    return total


class _Unnamed(NamedTuple):
    """The bytes of open files that no directory has: of memfd_create(2), and deleted ones."""

    memory: int
    disk: int


def _find_unnamed() -> _Unnamed:
    sizes: dict[tuple[int, int], tuple[bool, int]] = {}
    for process in _processes():
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"{process}/fd"):
                with contextlib.suppress(OSError):
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode) and status.st_nlink == 0:
                        in_memory = str(Path(entry.path).readlink()).startswith("/memfd:")
                        key = status.st_dev, status.st_ino
                        sizes[key] = in_memory, status.st_blocks * 512
    return _Unnamed(
        sum(size for in_memory, size in sizes.values() if in_memory),
        sum(size for in_memory, size in sizes.values() if not in_memory),
    )
