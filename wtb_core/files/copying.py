"""Trees and files copied: as data, or by sharing blocks until one side is written to."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from wtb_core.errors import SetupError
from wtb_core.files.blobs import clone

_THREADS = 4
_CHUNK_FILES = 128
_MAX_COPY_BYTES = 2**30
_SOURCE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TARGET = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_CANNOT_COPY_INSIDE = {errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM}


class _File(NamedTuple):
    source: str
    target: str
    info: os.stat_result


class _Plan(NamedTuple):
    """What is left to do once the directories and links are made."""

    files: list[_File]
    directories: list[tuple[Path, int]]
    failed: list[OSError]


def copy_tree(source: Path | None, target: Path, *, reflink: bool) -> None:
    """A copy of `source`, modes and files' times kept, links as links; empty without a source.

    Sockets, pipes and devices are left out: they are not files to work on. With `reflink`, files
    share their blocks until they are written to.

    Raises:
        SetupError: when something cannot be copied; says what.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.mkdir()
        if source is None:
            return
        plan = _Plan([], [], [])
        _copy_directories(source, target, plan)

        def copy(file: _File) -> None:
            copy_file(file.source, file.target, stat.S_IMODE(file.info.st_mode), reflink=reflink)
            os.utime(file.target, ns=(file.info.st_atime_ns, file.info.st_mtime_ns))

        failed = plan.failed + for_each(copy, plan.files)
        for path, mode in reversed(plan.directories):
            path.chmod(mode)
    except OSError as error:
        raise SetupError("workspace", f"{error.filename or source}: {error.strerror}") from error
    if failed:
        first = failed[0]
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise SetupError(
            "workspace", f"{first.filename} cannot be copied: {first.strerror}{more}"
        ) from first


def copy_file(source: str | Path, target: str | Path, mode: int, *, reflink: bool) -> None:
    """Make the new file `target` with what the regular file `source` has.

    Raises:
        OSError: when that fails, with the name of `source`.
    """
    try:
        with (
            _closing(os.open(source, _SOURCE)) as reader,
            _closing(os.open(target, _TARGET, 0o600)) as writer,
        ):
            if reflink:
                clone(reader, writer)
            else:
                _copy_content(reader, writer)
            os.fchmod(writer, mode)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(source)) from error


def for_each[T](work: Callable[[T], None], items: Sequence[T]) -> list[OSError]:
    """Do `work` for each item, with a few threads when there are many; the errors, in order."""
    chunks = [items[i : i + _CHUNK_FILES] for i in range(0, len(items), _CHUNK_FILES)]

    def do(chunk: Iterable[T]) -> list[OSError]:
        errors: list[OSError] = []
        for item in chunk:
            try:
                work(item)
            except OSError as error:
                errors.append(error)
        return errors

    if len(chunks) < 2:
        return do(items)
    with ThreadPoolExecutor(_THREADS) as threads:
        return [error for errors in threads.map(do, chunks) for error in errors]


def can_reflink(directory: Path) -> OSError | None:
    """Why files in a directory cannot share blocks; null when they can. Tries it."""
    name = secrets.token_hex(8)
    source, target = directory / f"{name}.a", directory / f"{name}.b"
    try:
        source.write_bytes(b"shared")
        copy_file(source, target, 0o600, reflink=True)
    except OSError as error:
        return error
    finally:
        source.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
    return None


def _copy_directories(source: Path, target: Path, plan: _Plan) -> None:
    pending = [(source, target)]
    while pending:
        here, there = pending.pop()
        try:
            with os.scandir(here) as entries:
                children = list(entries)
            plan.directories.append((there, stat.S_IMODE(here.stat().st_mode)))
        except OSError as error:
            plan.failed.append(error)
            continue
        for child in children:
            try:
                info = child.stat(follow_symlinks=False)
                if stat.S_ISREG(info.st_mode):
                    plan.files.append(_File(child.path, f"{there}/{child.name}", info))
                elif stat.S_ISLNK(info.st_mode):
                    (there / child.name).symlink_to(Path(child.path).readlink())
                elif stat.S_ISDIR(info.st_mode):
                    (there / child.name).mkdir(stat.S_IRWXU)
                    pending.append((here / child.name, there / child.name))
            except OSError as error:
                plan.failed.append(error)


def _copy_content(reader: int, writer: int) -> None:
    try:
        while os.copy_file_range(reader, writer, _MAX_COPY_BYTES):
            pass
    except OSError as error:
        if error.errno not in _CANNOT_COPY_INSIDE:
            raise
        with open(reader, "rb", closefd=False) as one, open(writer, "wb", closefd=False) as other:
            shutil.copyfileobj(one, other)


@contextlib.contextmanager
def _closing(descriptor: int) -> Generator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
