"""What the kernel says of a connection: bytes acknowledged by the other end, no more."""

import socket
import time

import pytest

from deployments.tcp_acks import find_acked_bytes


@pytest.fixture(params=["127.0.0.1", "::1"])
def ends(request):
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    try:
        listener = socket.create_server((request.param, 0), family=family)
    except OSError:
        pytest.skip(f"{request.param} cannot be listened on here")
    with listener, socket.create_connection(listener.getsockname()[:2]) as client:
        accepted, _ = listener.accept()
        with accepted:
            yield accepted, client


def addresses(server: socket.socket):
    return server.getsockname()[:2], server.getpeername()[:2]


def test_all_that_arrived_is_acknowledged(ends) -> None:
    server, client = ends
    assert find_acked_bytes(*addresses(server)) == 0
    server.sendall(b"x" * 10_000)
    received = 0
    while received < 10_000:
        received += len(client.recv(10_000))
    deadline = time.monotonic() + 5
    while find_acked_bytes(*addresses(server)) != 10_000:
        assert time.monotonic() < deadline


def test_what_a_client_does_not_take_is_not_acknowledged(ends) -> None:
    server, client = ends
    server.setblocking(False)
    sent = 0
    while True:
        try:
            sent += server.send(b"x" * 65_536)
        except BlockingIOError:
            break
    acked = find_acked_bytes(*addresses(server))
    assert acked is not None
    assert acked < sent
    received = 0
    while received < sent:
        received += len(client.recv(1024**2))
    deadline = time.monotonic() + 5
    while find_acked_bytes(*addresses(server)) != sent:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "a-host-name", "fe80::1%nowhere"])
def test_a_connection_that_is_not_here_is_not_seen(host: str) -> None:
    assert find_acked_bytes((host, 1), (host, 2)) is None
