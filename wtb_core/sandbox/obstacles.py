"""What keeps a process from being forked safely, in words for the user.

A forked copy has only the thread that forked: a lock that another one held stays held for ever. And
copies of a socket talk over each other.
"""

import os
import socket
import threading


def find_fork_obstacle(own: frozenset[int]) -> str | None:
    """Why this process must not be forked, None when it may; `own` are our open sockets."""
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1:
        known = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
        unnamed = len(threads) - 1 - len(known)
        names = ", ".join([*known, *([f"{unnamed} not started by Python"] if unnamed > 0 else [])])
        return f"{len(threads)} threads are alive after import: {names} beside the main thread"
    sockets = [number for number in _open_sockets() if number not in own]
    if sockets:
        count = f"{len(sockets)} sockets are" if len(sockets) > 1 else "a socket is"
        return f"{count} open after import: {', '.join(map(_name_socket, sockets))}"
    return None


def _open_sockets() -> list[int]:
    found: list[int] = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the listing's own descriptor
            continue
        if target.startswith("socket:"):
            found.append(int(name))
    return sorted(found)


def _name_socket(number: int) -> str:
    with socket.socket(fileno=os.dup(number)) as sock:
        kind = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6", socket.AF_UNIX: "unix"}
        name = kind.get(sock.family, sock.family.name)
        try:
            return f"{name} to {sock.getpeername()}"
        except OSError:
            return f"{name} at {sock.getsockname()}"
