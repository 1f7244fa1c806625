"""An attempt's directories: written into, and removed again.

Paths of variants and cases never lead out of the workspace: each part is opened without following
links. A link in a workspace stays a link.
"""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from wtb_core.errors import SetupError
from wtb_core.redaction import Redactor

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


def remove_tree(path: Path) -> None:
    """Remove what user code left, also directories that it made unreadable."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path)
    except PermissionError:
        path.chmod(stat.S_IRWXU)
        for directory, names, _ in os.walk(path):
            for name in names:
                inner = Path(directory, name)
                if not inner.is_symlink():
                    inner.chmod(stat.S_IRWXU)
        shutil.rmtree(path)


class Head(NamedTuple):
    """The beginning of a log, and whether there was more."""

    data: bytes
    is_cut: bool


def read_head(path: Path, limit: int, redactor: Redactor) -> Head | None:
    """The first `limit` bytes of a log without secrets; a last line says so when it is cut."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = redactor.log(file.read(limit + redactor.longest_bytes), limit)
    except FileNotFoundError:
        return None
    if size > limit:
        data += f"\n[cut: the first {limit} of {size} bytes are kept]\n".encode()
    return Head(data, size > limit) if data else None
