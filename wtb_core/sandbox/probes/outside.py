"""The outside of the probes: puts up what they try to reach, and sees what they did to it."""

import contextlib
import ctypes
import hashlib
import os
import secrets
import signal
import socket
import stat
import tempfile
import threading
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from wtb_core.sandbox.probes import kernel
from wtb_core.sandbox.probes.findings import MARK, MARKS, PROCESS, Finding, Surroundings

# Each attack on a file has a file of its own, so that what one does hides nothing from another.
_NAMES = (
    *("write", "append", "truncate", "map", "reopen", "chmod", "utime", "setxattr", "rename"),
    *("replace", "delete", "hard_link", "symbolic_link", "workspace", "read", "bind", "remount"),
    *("remount_attributes", "tree_clone", "nested_namespace"),
)
_IPC_CREATE = 0o1600
_IPC_REMOVE = 0
_SHARED = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # noqa: S108 - what is attacked

Stamp = tuple[Any, ...]


class Outside(NamedTuple):
    """What files were like before the probes ran."""

    stamps: dict[str, Stamp]


def put_marks(directory: str | Path) -> None:
    """Make the files that the probes attack; into a base before it is ingested."""
    marks = Path(directory, MARKS)
    marks.mkdir(parents=True, exist_ok=True)
    for name in _NAMES:
        (marks / name).write_bytes(MARK)


@contextlib.contextmanager
def targets() -> Generator[dict[str, Any]]:
    """What belongs to no directory of the service, as fields of `Surroundings`.

    Yields `marks`, `listener`, `socket`, `abstract` and `ipc_key`; all is gone afterwards.
    """
    with contextlib.ExitStack() as stack:
        marks = [_shared_mark(stack, directory) for directory in _SHARED]
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="wtb-probes-"))
        abstract = f"wtb-probes-{secrets.token_hex(6)}"
        for address in (path := f"{directory}/listener", f"\0{abstract}"):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(address)
            listener.listen(64)
        yield {
            "marks": tuple(mark for mark in marks if mark is not None),
            "listener": _listen(stack),
            "socket": path,
            "abstract": abstract,
            "ipc_key": _make_segment(stack),
        }


def look(s: Surroundings) -> Outside:
    """Remember the files, before the probes run."""
    return Outside({path: stamp for path, stamp in _stamps(s) if stamp is not None})


def verify(findings: Iterable[Finding], s: Surroundings, outside: Outside) -> list[Finding]:
    """The findings with what the outside saw: `contained` becomes `allowed` where it changed.

    To be called when the execution has ended: a daemon that is still there has outlived it. A
    change that no finding answers for is a finding of its own, `unexplained_changes`. Files and
    processes that probes made outside are removed.
    """
    now = look(s).stamps
    changed = {
        path
        for path in now.keys() | outside.stamps.keys()
        if now.get(path) != outside.stamps.get(path)
    }
    verified: list[Finding] = []
    explained: set[str] = set()
    for finding in findings:
        seen = [what for what in finding.touched if what in changed or _is_left(what, outside)]
        explained.update(seen)
        detail = f"outside: {', '.join(seen)}; {finding.detail}"
        verified.append(finding._replace(verdict="allowed", detail=detail) if seen else finding)
    if unexplained := sorted(changed - explained):
        verified.append(Finding("unexplained_changes", "allowed", ", ".join(unexplained[:10])))
    for finding in verified:
        for what in finding.touched:
            _remove(what, outside)
    return verified


def _is_left(what: str, outside: Outside) -> bool:
    if what.startswith(PROCESS):
        return any(_processes(what))
    return what not in outside.stamps and os.path.lexists(what)


def _remove(what: str, outside: Outside) -> None:
    if what.startswith(PROCESS):
        for pid in _processes(what):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    elif what not in outside.stamps and Path(what).name.startswith("probe-"):
        Path(what).unlink(missing_ok=True)


def _processes(what: str) -> list[int]:
    name = what.removeprefix(PROCESS)
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if (entry / "comm").read_text(errors="replace").strip() == name:
                    found.append(int(entry.name))
    return found


def _stamps(s: Surroundings) -> Iterator[tuple[str, Stamp | None]]:
    """Whole trees of what nobody changes meanwhile; elsewhere only what was put there."""
    roots = [root for root in (s.base, s.code, s.sibling) if root is not None]
    roots += [f"{root}/{MARKS}" for root in (s.store, s.home) if root is not None]
    for root in roots:
        yield root, _stamp(root)
        for parent, directories, files in os.walk(root):
            for name in (*directories, *files):
                yield (path := f"{parent}/{name}"), _stamp(path)
    for path in (*s.marks, *([s.blob] if s.blob else [])):
        yield path, _stamp(path)


def _stamp(path: str) -> Stamp | None:
    """Kind, mode, owner, extended attributes, and of files the time and the content."""
    try:
        status = os.lstat(path)
        attributes = tuple(
            (name, os.getxattr(path, name, follow_symlinks=False))
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        )
        stamp = (status.st_mode, status.st_uid, status.st_gid, attributes)
        if stat.S_ISLNK(status.st_mode):
            return (*stamp, str(Path(path).readlink()))
        if not stat.S_ISREG(status.st_mode):
            return stamp
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return (*stamp, status.st_mtime_ns, digest)
    except OSError:
        return None


def _shared_mark(stack: contextlib.ExitStack, directory: str) -> str | None:
    path = Path(directory, f"wtb-mark-{secrets.token_hex(6)}")
    try:
        path.write_bytes(MARK)
    except OSError:
        return None
    stack.callback(path.unlink, missing_ok=True)
    return str(path)


def _listen(stack: contextlib.ExitStack) -> tuple[str, int]:
    """A TCP port whose kernel accepts and the same UDP port, which answers."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
    address: tuple[str, int] = listener.getsockname()
    datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    datagrams.bind(address)
    thread = threading.Thread(target=_answer, args=(datagrams,), daemon=True)
    thread.start()

    def stop() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", address)
        thread.join()

    stack.callback(stop)
    return address


def _answer(datagrams: socket.socket) -> None:
    while True:
        data, sender = datagrams.recvfrom(16)
        if not data:
            return
        with contextlib.suppress(OSError):
            datagrams.sendto(data, sender)


def _make_segment(stack: contextlib.ExitStack) -> int | None:
    key = secrets.randbelow(2**31 - 1) + 1
    segment = kernel.libc.shmget(key, ctypes.c_size_t(4096), _IPC_CREATE)
    if segment < 0:
        return None
    stack.callback(kernel.libc.shmctl, segment, _IPC_REMOVE, None)
    return key
