"""Attacks that use more than an execution may: a little above the limit, no more.

Memory is left to the machine and disk space is left free: where there is not twice what an attack
uses, it is not tried and counts as allowed.
"""

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

from wtb_core.sandbox.probes import kernel
from wtb_core.sandbox.probes.findings import (
    Seen,
    Surroundings,
    allowed,
    new_path,
    probe,
    refused,
)

_SLACK = 32
_OVER = 1.25
_CHUNK = 4 * 1024**2
_FILE = 64 * 1024**2
_HOLD_S = 3.0
_PARTS = 4


@probe("processes", time_limit_s=60)
def fork_bomb(s: Surroundings) -> Seen:
    """Start more processes than the execution may have."""
    most = int(s.processes or 0) + _SLACK
    children: list[int] = []
    try:
        while len(children) < most:
            children.append(_fork_waiting())
    except BlockingIOError:
        return refused(f"EAGAIN after {len(children)} processes")
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return allowed(f"{len(children)} processes with a limit of {s.processes}")


@probe("memory_bytes", time_limit_s=60, deadly=True)
def memory_bomb(s: Surroundings) -> Seen:
    """Use more memory in one process than the execution may have."""
    most = int(int(s.memory_bytes or 0) * _OVER)
    if (short := _short_of_memory(most)) is not None:
        return short
    held = _fill_memory(most)
    time.sleep(_HOLD_S)
    return allowed(f"{sum(map(len, held))} bytes with a limit of {s.memory_bytes}")


@probe("memory_bytes", time_limit_s=60, deadly=True)
def memory_bomb_together(s: Surroundings) -> Seen:
    """Use more memory in several processes than the execution may have, with less in each."""
    most = int(int(s.memory_bytes or 0) * _OVER)
    if (short := _short_of_memory(most)) is not None:
        return short
    parts = [_fork_filling(most // _PARTS) for _ in range(_PARTS)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in parts]
    if any(statuses):
        return refused(f"processes of {most // _PARTS} bytes ended with {statuses}")
    return allowed(f"{_PARTS} processes with {most} bytes; the limit is {s.memory_bytes}")


@probe("memory_bytes", time_limit_s=60, deadly=True)
def memory_bomb_files(s: Surroundings) -> Seen:
    """Use more memory in files without a name than the execution may have."""
    most = int(int(s.memory_bytes or 0) * _OVER)
    if (short := _short_of_memory(most)) is not None:
        return short
    written = 0
    while written < most:
        descriptor = os.memfd_create("probe")
        size = min(_FILE, s.file_bytes or _FILE, most - written)
        written += _write_bytes(descriptor, size)
    time.sleep(_HOLD_S)
    return allowed(f"{written} bytes with a limit of {s.memory_bytes}")


@probe("disk_bytes", time_limit_s=120, deadly=True)
def disk_fill(s: Surroundings) -> Seen:
    """Write more to the workspace than the execution may."""
    return _fill_disk(s, s.workspace)


@probe("disk_bytes", time_limit_s=120, deadly=True)
def disk_fill_tmp(s: Surroundings) -> Seen:
    """Write more to /tmp than the execution may."""
    return _fill_disk(s, "/tmp")  # noqa: S108 - what is attacked


@probe("disk_bytes", time_limit_s=120, deadly=True)
def disk_fill_deleted(s: Surroundings) -> Seen:
    """Write more to deleted files of the workspace than the execution may."""
    limit = int(s.disk_bytes or 0)
    most = int(limit * _OVER)
    if (free := shutil.disk_usage(s.workspace).free) < 2 * most:
        return allowed(f"not tried: {free} bytes are free in {s.workspace}")
    written = 0
    while written < most:
        descriptor = os.open(path := new_path(s.workspace), os.O_WRONLY | os.O_CREAT)
        Path(path).unlink()
        written += _write_bytes(descriptor, min(_FILE, s.file_bytes or _FILE, most - written))
    time.sleep(_HOLD_S)
    return allowed(f"{written} bytes with a limit of {limit}")


@probe("disk_bytes", time_limit_s=120, deadly=True)
def disk_fill_shared_memory(s: Surroundings) -> Seen:
    """Write more to /dev/shm than the execution may."""
    return _fill_disk(s, "/dev/shm")  # noqa: S108 - what is attacked


@probe("file_bytes", deadly=True)
def file_size(s: Surroundings) -> Seen:
    """Make a file that is larger than one may be; nothing is stored but its last byte."""
    size = int(s.file_bytes or 0)
    descriptor = os.open(path := new_path(s.workspace), os.O_RDWR | os.O_CREAT)
    Path(path).unlink()
    os.pwrite(descriptor, b"x", size)
    return allowed(f"{size + 1} bytes with a limit of {size}")


@probe("open_files")
def open_files(s: Surroundings) -> Seen:
    """Open more files than one process may."""
    most = int(s.open_files or 0) + _SLACK
    opened: list[int] = []
    try:
        while len(opened) < most:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        for number in opened:
            os.close(number)
        return refused(f"{error.strerror} after {len(opened)}")
    return allowed(f"{len(opened)} files with a limit of {s.open_files}")


def _fork_waiting() -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(0)
    return pid


def _fork_filling(size: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            held = _fill_memory(size)
            time.sleep(_HOLD_S)
            os._exit(0 if held else 1)
        finally:
            os._exit(1)
    return pid


def _fill_memory(size: int) -> list[bytes]:
    """Memory that is really used, in a process that is the first to be killed for it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    return [b"x" * _CHUNK for _ in range(size // _CHUNK + 1)]


def _short_of_memory(size: int) -> Seen | None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    sizes = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    available = int(sizes["MemAvailable"].split()[0]) * 1024
    if available > 2 * size:
        return None
    return allowed(f"not tried: {available} bytes of memory are available, {size} would be used")


def _fill_disk(s: Surroundings, directory: str) -> Seen:
    limit = int(s.disk_bytes or 0)
    most = int(limit * _OVER)
    usage = shutil.disk_usage(directory)
    if usage.total > limit and usage.free < 2 * most:
        return allowed(f"not tried: {usage.free} of {usage.total} bytes are free in {directory}")
    Path(target := new_path(directory)).mkdir()
    written = 0
    try:
        while written < most:
            size = min(_FILE, s.file_bytes or _FILE, most - written)
            descriptor = os.open(new_path(target), os.O_WRONLY | os.O_CREAT)
            try:
                written += _write_bytes(descriptor, size)
            finally:
                os.close(descriptor)
    except OSError as error:
        return refused(f"{error.strerror} after {written} bytes in {directory}")
    finally:
        shutil.rmtree(target)
    return allowed(f"{written} bytes in {directory} with a limit of {limit}")


def _write_bytes(descriptor: int, size: int) -> int:
    chunk = b"x" * min(size, _CHUNK)
    written = 0
    while written < size:
        written += os.write(descriptor, chunk[: size - written])
    return written
