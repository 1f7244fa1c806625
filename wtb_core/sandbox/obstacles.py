"""What keeps a process from being forked safely, in words for the user.

A forked copy has only the thread that forked: a lock that another one held stays held for ever. And
copies of a socket talk over each other.
"""

import os
import socket
import threading
import time
from pathlib import Path

_SETTLE_S = 0.5


def find_fork_obstacle(own: frozenset[int]) -> str | None:
    """Why this process must not be forked, None when it may; `own` are our open sockets."""
    known, unnamed = _settled_threads()
    if known or unnamed:
        names = ", ".join([*known, *([f"{unnamed} not started by Python"] if unnamed else [])])
        count = 1 + len(known) + unnamed
        return f"{count} threads are alive after import: {names} beside the main thread"
    sockets = [number for number in _open_sockets() if number not in own]
    if sockets:
        count = f"{len(sockets)} sockets are" if len(sockets) > 1 else "a socket is"
        return f"{count} open after import: {', '.join(map(_name_socket, sockets))}"
    return None


def _settled_threads() -> tuple[list[str], int]:
    """The names of Python's other threads, and how many more there are.

    A thread that Python has joined is still listed by the kernel for a moment.
    """
    deadline = time.monotonic() + _SETTLE_S
    while True:
        known = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
        unnamed = max(0, len(list(Path("/proc/self/task").iterdir())) - 1 - len(known))
        if not unnamed or time.monotonic() > deadline:
            return known, unnamed
        time.sleep(0.002)


def _open_sockets() -> list[int]:
    found: list[int] = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:  # the listing's own descriptor
            continue
        if target.startswith("socket:"):
            found.append(int(entry.name))
    return sorted(found)


def _name_socket(number: int) -> str:
    with socket.socket(fileno=os.dup(number)) as sock:
        kind = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6", socket.AF_UNIX: "unix"}
        name = kind.get(sock.family, sock.family.name)
        try:
            return f"{name} to {sock.getpeername()}"
        except OSError:
            return f"{name} at {sock.getsockname()}"
