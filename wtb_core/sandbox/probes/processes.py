"""Attacks on processes that are not the execution's."""

import ctypes
import errno
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

from wtb_core.sandbox.probes import kernel
from wtb_core.sandbox.probes.findings import (
    PROCESS,
    Seen,
    Surroundings,
    allowed,
    attempt,
    contained,
    describe,
    names_in,
    probe,
    read_mark,
    refused,
)
from wtb_core.sandbox.probes.findings import mark as mark_of

_DAEMON = "probe-"
_DAEMON_LIFE_S = 600
_NAMED = 5
_FIRST_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of linux/proc_ns.h: that of the machine
_NAMESPACES = ("user", "mnt", "net", "pid", "ipc", "uts", "cgroup")


@probe()
def processes_list(s: Surroundings) -> Seen:
    """See processes that are not the execution's."""
    del s
    own = _own_pids()
    others = [pid for pid in _all_pids() if pid not in own]
    names = ", ".join(f"{pid} {_name(pid)}" for pid in others[:_NAMED])
    if not others:
        return refused("no other process is to be seen")
    if others == [1]:
        return contained(f"sees its init: {names}")
    return allowed(f"sees {len(others)}: {names}")


@probe("replica_pid")
def replica_signal(s: Surroundings) -> Seen:
    """Signal the replica, with what it ignores."""
    return _try_on_replica(s, _signal)


@probe()
def processes_signal(s: Surroundings) -> Seen:
    """Send signal 0 to every other process."""
    return _try_each(s, lambda pid: os.kill(pid, 0))


@probe("secret")
def environment_secret(s: Surroundings) -> Seen:
    """Find a secret of the replica in any environment, its own included."""
    secret = str(s.secret).encode()
    found = ["os.environ"] if secret in os.environb.values() else []
    others = _all_pids() if _is_apart(s) else [s.replica_pid]
    for pid in ["self", *others]:
        try:
            if secret in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(f"/proc/{pid}/environ")
        except OSError:
            continue
    if found:
        return allowed(f"the replica's secret is in {', '.join(found[:_NAMED])}")
    return refused("no environment that can be read has it")


@probe()
def environment_read(s: Surroundings) -> Seen:
    """Read the environment of every other process."""
    return _try_each(s, lambda pid: Path(f"/proc/{pid}/environ").read_bytes())


@probe()
def trace(s: Surroundings) -> Seen:
    """Attach to every other process as a tracer, without stopping it."""
    return _try_each(s, _seize)


@probe()
def memory_read(s: Surroundings) -> Seen:
    """Read the memory of every other process with process_vm_readv."""
    return _try_each(s, _read_memory)


@probe()
def memory_open(s: Surroundings) -> Seen:
    """Open the memory of every other process in /proc."""
    return _try_each(s, lambda pid: os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY)))


@probe()
def root_of_others(s: Surroundings) -> Seen:
    """Reach files through the root and working directories of every other process."""
    seen = _try_each(s, lambda pid: _enter(s, pid))
    if seen.verdict == "contained":
        return contained(f"no file of the outside is below them; {seen.detail}")
    return seen


@probe()
def descriptors_of_others(s: Surroundings) -> Seen:
    """List the open descriptors of every other process."""
    return _try_each(s, lambda pid: names_in(f"/proc/{pid}/fd"))


@probe()
def descriptors_taken(s: Surroundings) -> Seen:
    """Copy an open descriptor out of every other process with pidfd_getfd."""
    return _try_each(s, _take_descriptor)


@probe()
def namespaces_of_others(s: Surroundings) -> Seen:
    """Join a namespace of any other process."""
    return _try_each(s, _join_namespace)


@probe("replica_pid")
def replica_priority(s: Surroundings) -> Seen:
    """Set the priority of the replica, to what it is."""
    return _try_on_replica(s, _set_same_priority)


@probe("replica_pid")
def replica_limits(s: Surroundings) -> Seen:
    """Read the limits of the replica."""
    return _try_on_replica(s, lambda pid: resource.prlimit(pid, resource.RLIMIT_NOFILE))


@probe()
def descriptors_inherited(s: Surroundings) -> Seen:
    """Find open descriptors that lead out of the execution."""
    kept: list[str] = []
    found: list[str] = []
    for name in sorted(names_in("/proc/self/fd"), key=int):
        try:
            target = str(Path(f"/proc/self/fd/{name}").readlink())
        except OSError:  # the listing's own
            continue
        (found if _leads_out(s, int(name), target) else kept).append(f"{name} {target}")
    if found:
        return allowed(f"open: {', '.join(found)}")
    return contained(f"open: {', '.join(kept)}")


@probe()
def daemon(s: Surroundings) -> Seen:
    """Leave a daemon behind: another session, two forks, signals ignored."""
    del s
    name = f"{_DAEMON}{os.urandom(4).hex()}"
    middle = os.fork()
    if middle == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        kernel.prctl(kernel.PR_SET_NAME, name.encode())
        os.closerange(0, 1024)
        time.sleep(_DAEMON_LIFE_S)
        os._exit(0)
    os.waitpid(middle, 0)
    return contained(f"left {name}", PROCESS + name)


def _signal(pid: int) -> None:
    os.kill(pid, 0)
    os.kill(pid, signal.SIGURG)


def _seize(pid: int) -> None:
    """The kernel detaches it again when the thread that attached ends."""
    kernel.check(kernel.libc.ptrace(kernel.PTRACE_SEIZE, pid, None, None), "ptrace")


def _read_memory(pid: int) -> None:
    """No address is valid there: EFAULT comes after the permission was given."""
    buffer = ctypes.create_string_buffer(8)
    local = kernel.Vector(ctypes.cast(buffer, ctypes.c_void_p), 8)
    remote = kernel.Vector(8, 8)
    vectors = (ctypes.byref(local), ctypes.c_ulong(1), ctypes.byref(remote), ctypes.c_ulong(1))
    try:
        result = kernel.libc.process_vm_readv(pid, *vectors, ctypes.c_ulong(0))
        kernel.check(result, "process_vm_readv")
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise


def _enter(s: Surroundings, pid: int) -> None:
    """List the directories, then look for a file of the outside."""
    for link in ("root", "cwd"):
        names_in(f"/proc/{pid}/{link}/.")
    for directory in (s.sibling, s.store, s.home):
        if directory is not None:
            try:
                reached = read_mark(f"/proc/{pid}/root{mark_of(directory, 'read')}")
            except OSError:
                continue
            if reached.verdict == "allowed":
                raise _Reached(reached.detail)


class _Reached(Exception):
    """A file of the outside was read."""


def _take_descriptor(pid: int) -> None:
    handle = os.pidfd_open(pid)
    errors: list[OSError] = []
    for number in range(8):
        try:
            os.close(kernel.syscall(kernel.PIDFD_GETFD, "pidfd_getfd", handle, number, 0))
        except OSError as error:
            errors.append(error)
        else:
            return
    raise next((error for error in errors if error.errno != errno.EBADF), errors[0])


def _join_namespace(pid: int) -> None:
    """In a child for each, as one that has joined a namespace may not be able to join the next.

    Raises:
        OSError: when none is joined; the namespaces that this process is in do not count.
    """
    errors: list[str] = []
    for name in _NAMESPACES:
        path = f"/proc/{pid}/ns/{name}"
        if Path(path).stat().st_ino == Path(f"/proc/self/ns/{name}").stat().st_ino:
            continue
        descriptor = os.open(path, os.O_RDONLY)
        joined, said = attempt(lambda descriptor=descriptor: kernel.setns(descriptor))
        os.close(descriptor)
        if joined:
            return
        errors += said
    if errors:
        raise PermissionError(errno.EPERM, errors[0], f"/proc/{pid}/ns")
    raise FileNotFoundError(errno.ENOENT, "no other namespace", f"/proc/{pid}/ns")


def _set_same_priority(pid: int) -> None:
    os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid))


def _try_on_replica(s: Surroundings, attack: Callable[[int], object]) -> Seen:
    pid = int(s.replica_pid or 0)
    if pid in _own_pids():
        return refused(f"{pid} is a process of the execution here")
    attack(pid)
    return allowed(f"reached {pid}")


def _try_each(s: Surroundings, attack: Callable[[int], object]) -> Seen:
    """Attack the replica, and in a process namespace of its own all but the execution's own.

    The execution's init is a part of it: process 1 where no other process is to be seen.
    """
    own = _own_pids()
    others = [pid for pid in _all_pids() if pid not in own]
    visible = others if _is_apart(s) else []
    targets = sorted({*visible, *([s.replica_pid] if s.replica_pid else [])} - own)
    if others and not targets:
        return allowed(f"not tried: {len(others)} processes of the outside are to be seen")
    reached: list[int] = []
    errors: dict[str, int] = {}
    for pid in targets:
        try:
            attack(pid)
        except OSError as error:
            name = describe(error).partition(" ")[0]
            errors[name] = errors.get(name, 0) + 1
        except _Reached as reach:
            return allowed(str(reach))
        else:
            reached.append(pid)
    said = ", ".join(f"{name} {count} times" for name, count in sorted(errors.items()))
    if not reached:
        return refused(said or "no other process is to be seen")
    names = ", ".join(f"{pid} {_name(pid)}" for pid in reached[:_NAMED])
    detail = f"reached {len(reached)} of {len(targets)}: {names}{said and '; ' + said}"
    if reached == [1] and visible == [1]:
        return contained(detail)
    return allowed(detail)


def _is_apart(s: Surroundings) -> bool:
    """Whether /proc shows a process namespace that is not the outside's."""
    if s.pid_namespace is None:
        return False
    try:
        shown = str(Path("/proc/self").readlink())
        inode = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return False
    return inode not in {s.pid_namespace, _FIRST_NAMESPACE} and shown == str(os.getpid())


def _all_pids() -> list[int]:
    try:
        names = names_in("/proc")
    except OSError:
        return []
    return sorted(int(name) for name in names if name.isdecimal())


def _own_pids() -> set[int]:
    """The process that runs the probes, what is below it, and daemons of probes."""
    own = {os.getpid(), os.getppid()}
    parents = {pid: _parent(pid) for pid in _all_pids()}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    return own | {pid for pid in parents if (_name(pid) or "").startswith(_DAEMON)}


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


def _name(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return None


def _leads_out(s: Surroundings, number: int, target: str) -> bool:
    if number <= 2 or target.startswith(("pipe:", "/dev/null", "/dev/urandom")):
        return False
    if target.startswith("socket:"):
        return not _is_unix_socket(number)
    if target.startswith("anon_inode:"):
        return "pidfd" in target
    return not Path(target).is_relative_to(s.workspace)


def _is_unix_socket(number: int) -> bool:
    import socket

    with socket.socket(fileno=os.dup(number)) as found:
        return found.family == socket.AF_UNIX
