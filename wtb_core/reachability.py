"""Which blobs are still named: by batches, by what those name in turn, and by work to come."""

from pathlib import Path

from wtb_core.errors import NotFound
from wtb_core.files.blobs import BlobStore
from wtb_core.files.commits import read_blobs
from wtb_core.files.manifests import Manifest
from wtb_core.history import read_commits
from wtb_core.projects.versions import Ingested
from wtb_core.store.pruning import References


class Reachable:
    """The digests found so far; 32 bytes each, since there may be millions."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._digests: set[bytes] = set()

    def __contains__(self, digest: str) -> bool:
        return bytes.fromhex(digest) in self._digests

    def add_version(self, version: str) -> None:
        """A project's version: its definition, and the files of its trees.

        Raises:
            NotFound: when it is not there.
            ValueError: when it cannot be read.
        """
        if not self._add(version):
            return
        ingested = Ingested.model_validate_json(self._blobs.get(version))
        for tree in (ingested.code, ingested.packages, ingested.workspace or {}):
            self._add_tree(tree)

    def add(self, found: References) -> None:
        """What rows name, and what that names. Of what is gone nothing more can be found.

        Raises:
            InvalidHistory: when a history cannot be read.
            InvalidDocument: when a commit cannot be read.
            OSError: when a blob cannot be read.
        """
        for digest in found.plain:
            self._add(digest)
        for digest in found.histories:
            self._add_history(digest)
        for digest in found.commits:
            self.add_commit(digest)

    def add_commit(self, digest: str) -> None:
        """A file commit and its files; see `add` for what it raises."""
        if not self._add(digest):
            return
        try:
            data = self._blobs.get(digest)
        except NotFound:
            return
        for blob in read_blobs(data):
            self._add(blob)

    def _add_history(self, digest: str) -> None:
        if not self._add(digest):
            return
        try:
            self._blobs.look(digest)
        except NotFound:
            return
        for commit in read_commits(Path(self._blobs.path(digest))):
            self.add_commit(commit)

    def _add_tree(self, tree: Manifest) -> None:
        for entry in tree.values():
            if entry.blob is not None:
                self._add(entry.blob)

    def _add(self, digest: str) -> bool:
        """Note a digest; whether it is new, and the name of a blob at all."""
        try:
            key = bytes.fromhex(digest)
        except ValueError:
            return False
        if key in self._digests:
            return False
        self._digests.add(key)
        return True
