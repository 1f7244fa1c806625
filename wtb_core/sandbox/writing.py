"""Writes the files of variants and cases into a workspace.

Their paths never lead out of it: each part is opened without following links.
"""

import contextlib
import errno
import os
from collections.abc import Mapping
from pathlib import Path

from wtb_core.errors import SetupError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def write_files(root: Path, files: Mapping[str, str]) -> None:
    """Write texts to paths below `root`, making directories.

    Raises:
        SetupError: when a path leads out of `root`, through a link, or cannot be written.
    """
    for path, text in files.items():
        parts = path.split("/")
        if any(part in {"", ".", ".."} for part in parts) or "\0" in path:
            raise SetupError("workspace", f"{path!r} is not a path inside the workspace")
        try:
            _write_file(root, parts, text.encode())
        except OSError as error:
            link = error.errno in {errno.ELOOP, errno.ENOTDIR}
            reason = "a link or a file is in the way" if link else error.strerror
            raise SetupError("workspace", f"{path} cannot be written: {reason}") from error


def _write_file(root: Path, parts: list[str], data: bytes) -> None:
    directory = os.open(root, _DIRECTORY)
    try:
        for part in parts[:-1]:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=directory)
            inner = os.open(part, _DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = inner
        with os.fdopen(os.open(parts[-1], _FILE, 0o644, dir_fd=directory), "wb") as file:
            file.write(data)
    finally:
        os.close(directory)
