"""A gate at which user code waits, wherever it runs: a port of the loopback."""

import select
import socket
import time
from typing import Self

WAIT = """
import socket


def wait(port):
    try:
        with socket.create_connection(("127.0.0.1", port)) as gate:
            gate.recv(1)
    except ConnectionError:
        return
"""


class Gate:
    """Whoever connects to `port` has reached the gate, and goes on when the connection ends."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()

    def is_reached(self) -> bool:
        """Whether somebody waits."""
        return bool(select.select([self._listener], [], [], 0)[0])

    def wait_until_reached(self, timeout_s: float = 60.0) -> None:
        """Block until somebody waits."""
        deadline = time.monotonic() + timeout_s
        while not self.is_reached():
            assert time.monotonic() < deadline, "nobody has reached the gate"
            time.sleep(0.01)

    def open(self) -> None:
        """Let everybody go on, also who comes later."""
        self._listener.close()
