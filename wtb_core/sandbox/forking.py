"""The loop of a process that forks one execution per request: a zygote, or a lean launcher.

A request is one byte with two descriptors: the session of the execution's process and the leash of
its init. Single-threaded. Ends with its control socket.
"""

import os
import select
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from wtb_core.sandbox import init
from wtb_core.sandbox.wire import Channel


def launch_fresh(control: socket.socket, boot: Path) -> NoReturn:
    """Give each execution a new interpreter; this process imports nothing of the project."""
    channel = Channel(control)
    channel.receive()
    channel.send({"obstacle": None})

    def run(session: int) -> NoReturn:
        os.set_inheritable(session, True)
        command = [sys.executable, "-I", "-B", str(boot), "child", str(session)]
        os.execv(sys.executable, command)

    fork_on_request(control, run)


def fork_on_request(control: socket.socket, run: Callable[[int], NoReturn]) -> NoReturn:
    """Fork an init per request, whose child calls `run` with the number of its session."""
    init.become_subreaper()
    running: dict[int, int] = {}  # pidfd -> pid of an init
    helpers = init.find_children(os.getpid())  # processes that the project started at import
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for number, _ in poll.poll():
            if number == control.fileno():
                data, descriptors, _, _ = socket.recv_fds(control, 1, 2)
                if not data:
                    os._exit(0)  # the init above ends what is left
                handle, pid = _fork(control, running, descriptors, run)
                running[handle] = pid
                poll.register(handle, select.POLLIN)
            else:
                poll.unregister(number)
                os.close(number)
                _, status = os.waitpid(running.pop(number), 0)
                if status != 0:  # killed by user code, so its orphans came here
                    init.kill_descendants(spare=frozenset([*running.values(), *helpers]))


def _fork(
    control: socket.socket,
    running: dict[int, int],
    descriptors: list[int],
    run: Callable[[int], NoReturn],
) -> tuple[int, int]:
    session, leash = descriptors
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    pid = os.fork()
    if pid == 0:
        try:
            control.close()
            for handle in running:
                os.close(handle)
            os.setsid()
            init.supervise(socket.socket(fileno=leash), lambda: run(session))
        finally:
            os._exit(1)
    os.close(session)
    os.close(leash)
    return os.pidfd_open(pid), pid
