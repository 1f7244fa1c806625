"""What user code leaves: logs to be read without secrets, and trees to be measured and removed."""

import contextlib
import os
import secrets
import shutil
import stat
from pathlib import Path
from typing import BinaryIO, NamedTuple

from wtb_core.redaction import Redactor

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: Path) -> None:
    """Remove what user code left, also what it made unreadable or nested without bound.

    Raises:
        OSError: when something cannot be removed.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path)
    except (OSError, RecursionError):
        _remove_flat(path)


def _remove_flat(path: Path) -> None:
    """Move each directory up to `path` before it is emptied: neither paths nor stacks grow."""
    path.chmod(stat.S_IRWXU)
    top = os.open(path, _DIRECTORY)
    try:
        pending = _empty(top, top)
        while pending:
            name = pending.pop()
            directory = os.open(name, _DIRECTORY, dir_fd=top)
            try:
                pending += _empty(directory, top)
            finally:
                os.close(directory)
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    path.rmdir()


def _empty(directory: int, top: int) -> list[str]:
    """Remove the files in a directory and move its directories to `top`; their names there."""
    with os.scandir(directory) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    moved: list[str] = []
    for name, is_directory in found:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
            continue
        os.chmod(name, stat.S_IRWXU, dir_fd=directory)
        moved.append(secrets.token_hex(16))
        os.rename(name, moved[-1], src_dir_fd=directory, dst_dir_fd=top)
    return moved


def count_blocks(directory: str) -> int:
    """What is on disk below a directory, in bytes; of what cannot be read, nothing."""
    total = 0
    pending = [directory]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # it has gone meanwhile
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(entry.path)
        except OSError:  # it has gone, is not to be read, or lies too deep for a path
            continue
    return total


class Head(NamedTuple):
    """The beginning of a log, and whether there was more."""

    data: bytes
    is_cut: bool


def open_log(path: Path) -> BinaryIO:
    """A log, also when user code has made it unreadable: its stream lets it change the mode."""
    try:
        return path.open("rb")
    except PermissionError:
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        return path.open("rb")


def read_head(path: Path, limit: int, redactor: Redactor) -> Head | None:
    """The first `limit` bytes of a log without secrets; a last line says so when it is cut."""
    try:
        with open_log(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = redactor.log(file.read(limit + redactor.longest_bytes), limit)
    except FileNotFoundError:
        return None
    if size > limit:
        data += f"\n[cut: the first {limit} of {size} bytes are kept]\n".encode()
    return Head(data, size > limit) if data else None
