"""A process in place of user code that tries whether the confinement holds; see `ladder.py`."""

import os
import socket
from pathlib import Path
from typing import Any, NoReturn

from wtb_core.sandbox import confinement
from wtb_core.sandbox.forking import fork_on_request
from wtb_core.sandbox.wire import Channel

FILE = "probe"
BEFORE, AFTER = "before", "after"


def serve(control: socket.socket) -> NoReturn:
    """Fork a process per request that does the job of `check`."""
    channel = Channel(control)
    channel.receive()
    channel.send({"obstacle": None})

    def run(session: int) -> NoReturn:
        check(Channel(socket.socket(fileno=session)))

    fork_on_request(control, run)


def check(channel: Channel) -> NoReturn:
    """Take on the bounds of the job, write where it may, try to write where it must not."""
    header, _ = channel.receive()
    failed: dict[str, Any] | None = None
    try:
        confinement.apply(header["bounds"])
        file = Path(header["workspace"], FILE)
        if header["overlay"] and file.read_text(encoding="ascii") != BEFORE:
            failed = _fail("overlay", None, "the base is not seen in the workspace")
        file.write_text(AFTER, encoding="ascii")
        outside = _write_outside(header["outside"])
        if header["confined"] and outside is not None:
            failed = _fail("confinement", None, f"{outside} outside of the workspace was written")
    except OSError as error:
        failed = _fail(str(error.filename or "confinement"), error.errno, error.strerror or "")
    channel.send({"failed": failed})
    os._exit(0)


def _fail(step: str, errno: int | None, message: str) -> dict[str, Any]:
    return {"step": step, "errno": errno, "message": message}


def _write_outside(paths: list[str]) -> str | None:
    """The first of these files that can be written."""
    for path in paths:
        try:
            Path(path).write_text(AFTER, encoding="ascii")
        except OSError:
            continue
        return path
    return None
