"""An attempt's directories: copied, and removed again. A link in a workspace stays a link."""

import os
import shutil
import stat
from pathlib import Path
from typing import NamedTuple

from wtb_core.errors import SetupError
from wtb_core.redaction import Redactor


def copy_tree(source: Path | None, target: Path) -> None:
    """A copy of `source`, modes kept and links kept as links; empty without a source.

    Sockets, pipes and devices are left out: they are not files to work on.

    Raises:
        SetupError: when something cannot be copied; says what.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if source is None:
            target.mkdir()
        else:
            shutil.copytree(source, target, symlinks=True, ignore=_special_files)
    except shutil.Error as error:
        failed = error.args[0]
        path, _, reason = failed[0]
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise SetupError("workspace", f"{path} cannot be copied: {reason}{more}") from error
    except OSError as error:
        raise SetupError("workspace", f"{error.filename or source}: {error.strerror}") from error


def _special_files(directory: str, _names: list[str]) -> list[str]:
    with os.scandir(directory) as entries:
        return [
            entry.name
            for entry in entries
            if not (entry.is_symlink() or entry.is_dir() or entry.is_file())
        ]


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
