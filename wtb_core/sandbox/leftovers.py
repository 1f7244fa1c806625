"""What user code leaves: logs to be read without secrets, and trees to be removed."""

import os
import secrets
import shutil
import stat
from pathlib import Path
from typing import NamedTuple

from wtb_core.redaction import Redactor


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


def take_away(directory: Path) -> bool:
    """Remove a directory that another process may be removing too; whether it was there.

    It is renamed first, so that only one removes it and its name is free at once.
    """
    aside = directory.with_name(f"{directory.name}.gone-{secrets.token_hex(4)}")
    try:
        directory.rename(aside)
    except FileNotFoundError:
        return False
    remove_tree(aside)
    return True


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
