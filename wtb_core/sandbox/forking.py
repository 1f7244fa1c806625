"""The loop of a process that forks one execution per request: a zygote, or a lean starter.

A request is one byte with descriptors: the session of the execution's process, where its end is
reported, its standard output and error, and then the namespaces of its slot, if there are slots.
Without them each process lies below an init of its own. Single-threaded. Ends with its control
socket.
"""

import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from wtb_core.sandbox import confinement, init, kernel
from wtb_core.sandbox.wire import Channel

_MAX_DESCRIPTORS = 8

Run = Callable[[int], NoReturn]


def start_fresh(control: socket.socket, boot: Path) -> NoReturn:
    """Give each execution a new interpreter; this process imports nothing of the project."""
    channel = Channel(control)
    channel.receive()
    channel.send({"obstacle": None})

    def run(session: int) -> NoReturn:
        os.set_inheritable(session, True)
        command = [sys.executable, "-I", "-B", str(boot), "child", "none", str(session)]
        os.execv(sys.executable, command)

    fork_on_request(control, run)


class _Request(NamedTuple):
    session: int
    report: int
    stdout: int
    stderr: int
    namespaces: list[int]

    def close(self) -> None:
        for number in (*self[:4], *self.namespaces):
            os.close(number)


def fork_on_request(control: socket.socket, run: Run) -> NoReturn:
    """Fork a process per request, which calls `run` with the number of its session."""
    kernel.become_subreaper()
    running: dict[int, _Child] = {}  # by pidfd
    helpers = init.find_children(os.getpid())  # processes that the project started at import
    pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for number, _ in poll.poll():
            if number == control.fileno():
                data, numbers, _, _ = socket.recv_fds(control, 1, _MAX_DESCRIPTORS)
                if not data:
                    os._exit(0)  # what is left ends with it
                for received in numbers:
                    os.set_inheritable(received, False)
                session, report, stdout, stderr, *namespaces = numbers
                request = _Request(session, report, stdout, stderr, namespaces)
                opened = [control.fileno(), pids, *running]
                opened += [child.report for child in running.values() if child.report is not None]
                try:
                    fork = _fork_into_slot if namespaces else _fork_init
                    child = fork(request, pids, opened, run)
                except OSError as error:  # the slot was killed meanwhile, or no process more
                    sys.stderr.write(f"no process was forked: {error}\n")
                    request.close()
                    continue
                handle = os.pidfd_open(child.pid)
                running[handle] = child
                poll.register(handle, select.POLLIN)
            else:
                poll.unregister(number)
                os.close(number)
                child = running.pop(number)
                if not child.end():
                    alive = [other.pid for other in running.values()]
                    init.kill_descendants(spare=frozenset([*alive, *helpers]))


class _Child(NamedTuple):
    """A process of ours: one in a slot, with where its end is reported, or an init."""

    pid: int
    report: int | None

    def end(self) -> bool:
        """Reap it and report; false for an init that user code killed, whose orphans came here."""
        _, status, usage = os.wait4(self.pid, 0)
        if self.report is None:
            return status == 0
        with socket.socket(fileno=self.report) as sock:
            init.send_report(sock, status, usage)
        return True


def _fork_into_slot(request: _Request, pids: int, opened: list[int], run: Run) -> _Child:
    pid_namespace, *others = request.namespaces
    os.setns(pid_namespace, os.CLONE_NEWPID)
    try:
        pid = os.fork()
    except OSError:
        os.setns(pids, os.CLONE_NEWPID)
        raise
    if pid == 0:
        try:
            for number in (*opened, request.report, pid_namespace):
                os.close(number)
            confinement.join(others)
            kernel.die_with_parent(signal.SIGKILL)
            os.setsid()
            _take_streams(request)
            run(request.session)
        except BaseException as error:  # noqa: BLE001 - never back into the parent's stack
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            os._exit(1)
    os.setns(pids, os.CLONE_NEWPID)
    report = os.dup(request.report)
    request.close()
    return _Child(pid, report)


def _fork_init(request: _Request, _pids: int, opened: list[int], run: Run) -> _Child:
    pid = os.fork()
    if pid == 0:
        try:
            for number in opened:
                os.close(number)
            os.setsid()
            _take_streams(request)

            def begin() -> NoReturn:
                confinement.give_up()
                run(request.session)

            init.supervise(socket.socket(fileno=request.report), begin)
        finally:
            os._exit(1)
    request.close()
    return _Child(pid, None)


def _take_streams(request: _Request) -> None:
    for number, target in ((request.stdout, 1), (request.stderr, 2)):
        os.dup2(number, target)
        os.close(number)
