"""Attacks over sockets and shared memory; `network: true` allows most of them by the spec."""

import ctypes
import os
import socket
from pathlib import Path

from wtb_core.sandbox.probes import kernel
from wtb_core.sandbox.probes.findings import (
    Seen,
    Surroundings,
    allowed,
    contained,
    place,
    probe,
    refused,
)

_TIMEOUT_S = 2.0
_DOCUMENTATION_ADDRESS = ("192.0.2.1", 9)  # RFC 5737; connecting a datagram socket sends nothing
_MOST_SOCKETS = 200


@probe("listener")
def tcp_connect(s: Surroundings) -> Seen:
    """Connect to a port of the machine."""
    assert s.listener is not None
    with socket.socket(socket.AF_INET) as sock:
        sock.settimeout(_TIMEOUT_S)
        sock.connect(s.listener)
    return allowed(f"connected to {s.listener[0]}:{s.listener[1]}")


@probe("listener")
def udp_send(s: Surroundings) -> Seen:
    """Send a datagram to a port of the machine and get an answer."""
    assert s.listener is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(_TIMEOUT_S)
        sock.connect(s.listener)
        sock.send(b"probe")
        try:
            sock.recv(16)
        except TimeoutError:
            return contained("sent, and not answered")
    return allowed(f"answered by {s.listener[0]}:{s.listener[1]}")


@probe()
def route(s: Surroundings) -> Seen:
    """Have a route to other machines; nothing is sent."""
    del s
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(_DOCUMENTATION_ADDRESS)
        return allowed(f"there is a route, from {sock.getsockname()[0]}")


@probe()
def interfaces(s: Surroundings) -> Seen:
    """See network interfaces."""
    del s
    names = [name for _, name in socket.if_nameindex()]
    if set(names) <= {"lo"}:
        return contained(f"interfaces: {', '.join(names) or 'none'}")
    return allowed(f"interfaces: {', '.join(names)}")


@probe()
def raw_socket(s: Surroundings) -> Seen:
    """Open sockets that see or forge packets."""
    del s
    errors: list[str] = []
    for family, name in ((socket.AF_INET, "raw"), (socket.AF_PACKET, "packet")):
        try:
            with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMP):
                return allowed(f"opened a {name} socket")
        except OSError as error:
            errors.append(error.strerror or "")
    return refused(", ".join(errors))


@probe()
def hypervisor_socket(s: Surroundings) -> Seen:
    """Open a socket to the hypervisor, which network namespaces do not separate; no connection."""
    del s
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM):
        return allowed("opened a vsock socket")


@probe("abstract")
def abstract_socket(s: Surroundings) -> Seen:
    """Connect to an abstract Unix socket of the outside."""
    return _connect(f"\0{s.abstract}")


@probe("socket")
def path_socket(s: Surroundings) -> Seen:
    """Connect to a Unix socket of the outside by its path."""
    return _connect(place(s, "socket"))


@probe()
def run_sockets(s: Surroundings) -> Seen:
    """See the sockets below /run and Docker's; none is connected to."""
    del s
    found = [path for path in ("/var/run/docker.sock", *_sockets("/run")) if Path(path).is_socket()]
    if not found:
        return refused("no socket is there")
    return allowed(f"{len(found)} sockets: {', '.join(found[:5])}")


@probe("ipc_key")
def system_v_memory(s: Surroundings) -> Seen:
    """Attach a shared memory segment of the outside."""
    kernel.libc.shmget.argtypes = (ctypes.c_int, ctypes.c_size_t, ctypes.c_int)
    kernel.check(kernel.libc.shmget(int(s.ipc_key or 0), 0, 0), "shmget")
    return allowed("found the segment of the outside")


def _connect(address: str) -> Seen:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_TIMEOUT_S)
        sock.connect(address)
    return allowed(f"connected to {address.replace(chr(0), '@')}")


def _sockets(directory: str) -> list[str]:
    found: list[str] = []
    for parent, _, names in os.walk(directory):
        found += [path for name in names if Path(path := f"{parent}/{name}").is_socket()]
        if len(found) >= _MOST_SOCKETS:
            break
    return found
