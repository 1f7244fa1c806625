"""The parent of one execution's process: reaps it and leaves nothing alive behind it.

It is the child subreaper (prctl(2)) of everything the execution starts, so a daemon that called
setsid and forked twice is its child in the end. It kills all of them when the execution's process
has ended, when told to, and when its leash closes, which the kernel does for a supervisor that was
killed. It reports on the leash and exits.
"""

import contextlib
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from wtb_core.sandbox import kernel
from wtb_core.sandbox.wire import Channel

_REAP_INTERVAL_MS = 1000


def supervise(leash: socket.socket, run: Callable[[], NoReturn]) -> NoReturn:
    """Fork a process that calls `run`, see it and its descendants to their end, report, exit.

    The caller leads a session of its own.
    """
    kernel.become_subreaper()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        leash.close()
        kernel.die_with_parent(signal.SIGKILL)
        if os.getppid() not in {parent, 0}:  # 0 from inside of a pid namespace
            os._exit(1)
        os.setsid()  # so that a signal of user code to its own group does not reach this parent
        _run_to_exit(run)
    _close_all_but(leash.fileno())
    status = _await_end(leash, child)
    if (ended := kill_descendants(child)) is not None:
        status = ended
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    send_report(leash, status, usage)
    os._exit(0)


def send_report(leash: socket.socket, status: int | None, usage: resource.struct_rusage) -> None:
    """Say how a process ended and what it used, if somebody is left to read it."""
    report = {
        "status": status,
        "cpu_ms": round((usage.ru_utime + usage.ru_stime) * 1000),
        "peak_rss_bytes": usage.ru_maxrss * 1024,
    }
    with contextlib.suppress(OSError):
        Channel(leash).send(report)


def _run_to_exit(run: Callable[[], NoReturn]) -> NoReturn:
    try:
        run()
    except BaseException as error:  # noqa: BLE001 - never back into the parent's stack
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(1)


def _close_all_but(descriptor: int) -> None:
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, os.sysconf("SC_OPEN_MAX"))


def _await_end(leash: socket.socket, child: int) -> int | None:
    """The child's wait status, or None when the leash closed or asked for the end first."""
    handle = os.pidfd_open(child)
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.register(leash, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll(_REAP_INTERVAL_MS)}
        for pid, status in reap():
            if pid == child:
                return status
        if leash.fileno() in ready:
            return None


def reap() -> Iterator[tuple[int, int]]:
    """The children that have ended, as pids and wait statuses."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended


def kill_descendants(child: int = 0, spare: frozenset[int] = frozenset()) -> int | None:
    """Kill and reap everything below this process but `spare`; the wait status of `child`."""
    found: int | None = None
    delay_s = 0.0005
    while True:
        for pid in _descendants(os.getpid(), spare):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while True:
                pid, status = _wait_any(spare)
                if pid == 0:
                    break
                if pid == child:
                    found = status
        except ChildProcessError:
            return found
        time.sleep(delay_s)
        delay_s = min(delay_s * 2, 0.02)


def _wait_any(spare: frozenset[int]) -> tuple[int, int]:
    """One ended child; (0, 0) when all still run.

    Raises:
        ChildProcessError: when there are no children but the spared ones.
    """
    if not spare:
        return os.waitpid(-1, os.WNOHANG)
    strays = [pid for pid in find_children(os.getpid()) if pid not in spare]
    if not strays:
        raise ChildProcessError
    return next((ended for pid in strays if (ended := os.waitpid(pid, os.WNOHANG))[0]), (0, 0))


def _descendants(pid: int, spare: frozenset[int]) -> Iterator[int]:
    for child in find_children(pid):
        if child not in spare:
            yield child
            yield from _descendants(child, spare)


def find_children(pid: int) -> list[int]:
    """The children of all threads of a process, see proc_pid_task(5); none when it has gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (thread / "children").read_text().split())
    return found
