"""Content-addressed blobs in a directory: written once, never changed, synced before named.

A blob's digest is the lower-case hex SHA-256 of its bytes. Two writers of the same blob are no
conflict: each renames a complete file into place.
"""

import hashlib
import os
import re
import secrets
from pathlib import Path

from wtb_core.errors import NotFound

_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """The blobs below `root`; any number of processes may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: str) -> Path:
        """Where a blob lies.

        Raises:
            NotFound: when `digest` is not the name of a blob.
        """
        if not _DIGEST.fullmatch(digest):
            raise NotFound("blob", digest)
        return self.root / digest[:2] / digest

    def put(self, data: bytes) -> str:
        """Store `data` durably and return its digest."""
        digest = hashlib.sha256(data).hexdigest()
        target = self.path(digest)
        if target.exists():
            return digest
        if not target.parent.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            _sync_directory(self.root)
        temporary = target.with_name(f"{digest}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(target.parent)
        return digest

    def put_file(self, source: Path) -> str:
        """Store the content of a regular file durably and return its digest."""
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if self.path(digest).exists():
            return digest
        return self.put(source.read_bytes())

    def get(self, digest: str) -> bytes:
        """The bytes of a blob.

        Raises:
            NotFound: when there is no such blob.
        """
        try:
            return self.path(digest).read_bytes()
        except FileNotFoundError as error:
            raise NotFound("blob", digest) from error

    def size(self, digest: str) -> int:
        """The length of a blob in bytes.

        Raises:
            NotFound: when there is no such blob.
        """
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError as error:
            raise NotFound("blob", digest) from error


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
