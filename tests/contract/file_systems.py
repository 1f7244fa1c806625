"""File systems of a test's own, mounted from a file where root may do so."""

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

SIZE_BYTES = 512 * 1024**2
BLOCK_BYTES = 4096
MAKE = {
    "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1", "-n", "ftype=1"],
    "btrfs": ["mkfs.btrfs", "-q"],
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "tmpfs": [],
}

_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP_FLAG_SYNC = 1
_HEADER = struct.Struct("=QQLLLL")
_EXTENT = struct.Struct("=QQQ2QL3L")
_MAX_EXTENTS = 1024


class Impossible(Exception):
    """This machine has no such file system for a test; says why."""


@contextlib.contextmanager
def mounted(kind: str, place: Path, size_bytes: int = SIZE_BYTES) -> Generator[Path]:
    """A new file system of this kind below `place`; gone afterwards.

    Raises:
        Impossible: when none can be made or mounted here.
    """
    image, target = place / f"{kind}.image", place / kind
    target.mkdir(parents=True)
    if os.geteuid() != 0:
        raise Impossible("only root may mount a file system")
    command = ["mount", "-t", kind, "-o", f"size={size_bytes}", kind, str(target)]
    if kind != "tmpfs":
        if shutil.which(MAKE[kind][0]) is None:
            raise Impossible(f"{MAKE[kind][0]} is not installed")
        with image.open("wb") as file:
            file.truncate(size_bytes)
        _run([*MAKE[kind], str(image)])
        command = ["mount", "-t", kind, "-o", "loop", str(image), str(target)]
    _run(command)
    try:
        yield target
    finally:
        _unmount(target)
        image.unlink(missing_ok=True)


def find_blocks(path: Path) -> set[int]:
    """The physical blocks of a file, as the file system tells them (FIEMAP)."""
    found: set[int] = set()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header = _HEADER.pack(0, size, _FIEMAP_FLAG_SYNC, 0, _MAX_EXTENTS, 0)
        request = bytearray(header.ljust(_HEADER.size + _MAX_EXTENTS * _EXTENT.size, b"\0"))
        fcntl.ioctl(file, _FS_IOC_FIEMAP, request)
    count = _HEADER.unpack_from(request)[3]
    assert count < _MAX_EXTENTS
    for index in range(count):
        _, physical, length, *_ = _EXTENT.unpack_from(request, _HEADER.size + index * _EXTENT.size)
        first = physical // BLOCK_BYTES
        found.update(range(first, first + -(-length // BLOCK_BYTES)))
    return found


def _unmount(target: Path) -> None:
    """Processes that have just been killed may hold it for a moment."""
    for _ in range(100):
        done = subprocess.run(["umount", str(target)], capture_output=True, check=False)
        if done.returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "--lazy", str(target)], check=False)
    raise AssertionError(f"something still used {target}: {done.stderr!r}")


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise Impossible(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise Impossible(f"{' '.join(command)}: {error.stderr.strip()}") from error
