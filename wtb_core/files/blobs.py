"""Content-addressed blobs in a directory: written once, never changed.

A blob's digest is the lower-case hex SHA-256 of its bytes. Two writers of the same blob are no
conflict: each renames a complete file into place.

A blob whose file everybody may read (0644) is durable. One that only its owner may read was stored
without being synced: after a power loss its content may not be what its name says, so nobody takes
it for stored but the process that wrote it. The bits change only after the content and the name
are on disk.

A blob's time says when it was last stored, give or take `REFRESH_S`: storing content that is there
already sets the time of an old blob anew. So a blob that is older than everything that may still
come to be named can be collected (`sweeping.py`) while others store and read. One that is being
collected lies aside for a moment; who looks for it then puts it back.
"""

# Every superstep stores what it changed: pathlib would take a third of that time.
# ruff: noqa: PTH101, PTH104, PTH108, PTH116, PTH120

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from wtb_core.errors import NotFound

DURABLE_MODE = 0o644

REFRESH_S = 3600.0
"""How old a blob may be before who stores the same content sets its time."""

FICLONE = 0x40049409
"""The ioctl that makes a file share another one's blocks until one of them is written to."""

ASIDE = ".old"
"""How the name of a blob ends that is being collected, in the store's own directory."""

TEMPORARY = ".tmp"

_PENDING_MODE = 0o600
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1024**2
_MAX_KNOWN = 100_000


class SourceError(OSError):
    """A file that is to be stored cannot be read; other errors are the store's own."""


class Stored(NamedTuple):
    """A blob, and how long it is."""

    digest: str
    size_bytes: int


class BlobStore:
    """The blobs below `root`; any number of processes and threads may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._root = os.fspath(root)
        self._written: set[str] = set()

    def path(self, digest: str) -> Path:
        """Where a blob lies.

        Raises:
            NotFound: when `digest` is not the name of a blob.
        """
        return Path(self._locate(digest))

    def put(self, data: bytes, *, sync: bool = True) -> str:
        """Store `data` and return its digest; durably, unless `sync` leaves that for later."""
        digest = hashlib.sha256(data).hexdigest()
        if not self._is_stored(digest, sync=sync):
            temporary, descriptor = self._create()
            try:
                try:
                    _write(descriptor, data)
                    if sync:
                        os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                self._name(temporary, digest, sync=sync)
            except OSError:
                _discard(temporary)
                raise
        return digest

    def put_file(self, source: Path, *, sync: bool = True) -> str:
        """Store the content of a regular file and return its digest, see `put`.

        Raises:
            SourceError: when the file cannot be read.
        """
        try:
            descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(error.errno, error.strerror, error.filename) from error
        try:
            return self.put_descriptor(descriptor, sync=sync).digest
        finally:
            os.close(descriptor)

    def put_descriptor(self, source: int, *, sync: bool = True) -> Stored:
        """Store what an open regular file has from its position to its present end, see `put`.

        The digest is that of the bytes stored, also when the file changes meanwhile.

        Raises:
            SourceError: when the file cannot be read.
        """
        size = os.fstat(source).st_size
        if size <= _CHUNK_BYTES:
            data = _read(source, size)
            return Stored(self.put(data, sync=sync), len(data))
        temporary, descriptor = self._create()
        try:
            try:
                stored = _copy_and_hash(source, descriptor, size)
                if self._is_stored(stored.digest, sync=sync):
                    _discard(temporary)
                    return stored
                if sync:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._name(temporary, stored.digest, sync=sync)
        except OSError:
            _discard(temporary)
            raise
        return stored

    def sync(self, digests: Iterable[str]) -> None:
        """Make blobs durable that were stored without; those that are cost one look each.

        Raises:
            NotFound: when one of them is not there.
            OSError: when one cannot be synced, or is not what its name says.
        """
        pending = [digest for digest in set(digests) if not self._is_durable(digest)]
        for digest in pending:
            self._sync_content(digest)
        for directory in {os.path.dirname(self._locate(digest)) for digest in pending}:
            _sync_directory(directory)
        for digest in pending:
            self._mark_durable(digest)

    def get(self, digest: str) -> bytes:
        """The bytes of a blob.

        Raises:
            NotFound: when there is no such blob.
        """
        self.look(digest)
        try:
            return self.path(digest).read_bytes()
        except FileNotFoundError as error:
            raise NotFound("blob", digest) from error

    def size(self, digest: str) -> int:
        """The length of a blob in bytes.

        Raises:
            NotFound: when there is no such blob.
        """
        return self.look(digest).st_size

    def look(self, digest: str) -> os.stat_result:
        """What the file system says of a blob: its size and, by its mode, its durability.

        Raises:
            NotFound: when there is no such blob.
        """
        path = self._locate(digest)
        try:
            return os.stat(path)
        except FileNotFoundError as error:
            if not self._put_back(digest):
                raise NotFound("blob", digest) from error
        try:
            return os.stat(path)
        except FileNotFoundError as error:
            raise NotFound("blob", digest) from error

    def use(self, digest: str) -> None:
        """Keep a blob that is about to be named somewhere, as if it were stored now.

        Raises:
            NotFound: when there is no such blob.
        """
        if _is_old(self.look(digest)):
            self._renew(digest)

    def aside(self, digest: str) -> Path:
        """Where a blob lies while it is being collected."""
        return self.root / f"{digest}{ASIDE}"

    def _locate(self, digest: str) -> str:
        if not _DIGEST.fullmatch(digest):
            raise NotFound("blob", digest)
        return f"{self._root}/{digest[:2]}/{digest}"

    def _is_durable(self, digest: str) -> bool:
        return stat.S_IMODE(self.look(digest).st_mode) == DURABLE_MODE

    def _is_stored(self, digest: str, *, sync: bool) -> bool:
        try:
            info = self.look(digest)
            is_durable = stat.S_IMODE(info.st_mode) == DURABLE_MODE
            if not is_durable and digest not in self._written:
                return False
            if _is_old(info):
                self._renew(digest)
        except NotFound:
            return False
        if sync and not is_durable:
            self.sync([digest])
        return True

    def _renew(self, digest: str) -> None:
        path = self._locate(digest)
        try:
            os.utime(path)
        except FileNotFoundError:
            self.look(digest)
            try:
                os.utime(path)
            except FileNotFoundError as error:
                raise NotFound("blob", digest) from error

    def _put_back(self, digest: str) -> bool:
        """Take a blob that is being collected back from where it lies aside; whether it did.

        One that is not durable may be no good and must not replace one that is.
        """
        aside = self.aside(digest)
        try:
            if stat.S_IMODE(os.stat(aside).st_mode) != DURABLE_MODE:
                return False
            os.rename(aside, self._locate(digest))
        except FileNotFoundError:
            return False
        return True

    def _create(self) -> tuple[str, int]:
        """A new file in the store, and its descriptor."""
        path = f"{self._root}/{secrets.token_hex(8)}{TEMPORARY}"
        try:
            return path, os.open(path, _NEW, _PENDING_MODE)
        except FileNotFoundError:
            self.root.mkdir(parents=True, exist_ok=True)
            return path, os.open(path, _NEW, _PENDING_MODE)

    def _name(self, temporary: str, digest: str, *, sync: bool) -> None:
        target = self._locate(digest)
        try:
            os.rename(temporary, target)
        except FileNotFoundError:
            for number in range(256):
                (self.root / f"{number:02x}").mkdir(exist_ok=True)
            _sync_directory(self._root)
            os.rename(temporary, target)
        if sync:
            _sync_directory(os.path.dirname(target))
            self._mark_durable(digest)
            return
        if len(self._written) >= _MAX_KNOWN:
            self._written.clear()
        self._written.add(digest)

    def _mark_durable(self, digest: str) -> None:
        os.chmod(self._locate(digest), DURABLE_MODE)
        self._written.discard(digest)

    def _sync_content(self, digest: str) -> None:
        with self.path(digest).open("rb") as file:
            if digest not in self._written:
                found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != digest:
                    raise OSError(errno.EIO, "a blob is not what its name says", file.name)
            os.fsync(file.fileno())


def _is_old(info: os.stat_result) -> bool:
    return time.time() - info.st_mtime > REFRESH_S


def clone(source: int, target: int) -> None:
    """Make one open file share another one's blocks.

    Raises:
        OSError: when the file system cannot.
    """
    fcntl.ioctl(target, FICLONE, source)


def _discard(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _copy_and_hash(source: int, target: int, size: int) -> Stored:
    """Copy at most `size` bytes; the digest is of what `target` has."""
    try:
        clone(source, target)
    except OSError:
        return _stream(source, target, size)
    digest, length = hashlib.sha256(), 0
    while data := os.read(target, _CHUNK_BYTES):
        digest.update(data)
        length += len(data)
    return Stored(digest.hexdigest(), length)


def _stream(source: int, target: int, size: int) -> Stored:
    digest, left = hashlib.sha256(), size
    while left and (data := _read(source, min(left, _CHUNK_BYTES))):
        digest.update(data)
        _write(target, data)
        left -= len(data)
    return Stored(digest.hexdigest(), size - left)


def _read(source: int, size: int) -> bytes:
    """`size` bytes, fewer only at the end of the file."""
    try:
        data = os.read(source, size)
        while len(data) < size and (more := os.read(source, size - len(data))):
            data += more
    except OSError as error:
        raise SourceError(error.errno, error.strerror) from error
    return data


def _write(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


def _sync_directory(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
