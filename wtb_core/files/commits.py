"""A workspace's files as a cumulative difference to its project version's tree.

A commit has an entry for each path of the tree that differs from the base in kind, content, mode
bits or target, and a tombstone for each base path that is gone while its parent directory is still
one; nothing is said below a tombstone or below what replaced a directory. The same tree has the
same commit, whatever was done to reach it. The workspace's own directory, times, owners, sockets,
pipes and devices are no part of it.

Paths and targets are text as `os.fsdecode` gives it, relative and with forward slashes.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, cast

from wtb_core.errors import InvalidDocument
from wtb_core.files.manifests import DIRECTORY_MODE, EXECUTABLE_MODE, FILE_MODE, Manifest

Kind = Literal["directory", "file", "link"]

LINK_MODE = 0o777
"""Linux gives every link these bits and never looks at them."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELDS = {
    "directory": {"kind", "mode"},
    "file": {"kind", "mode", "blob", "size"},
    "link": {"kind", "mode", "target"},
}


class FileEntry(NamedTuple):
    """One path, with its permission bits.

    `blob` and `size` (bytes) are for files, `target` for links. The size of a base's file is not
    known without looking at the blob.
    """

    kind: Kind
    mode: int
    blob: str | None = None
    size: int | None = None
    target: str | None = None

    def is_same(self, other: "FileEntry | None") -> bool:
        """Whether nothing but the knowledge of the size differs."""
        return (
            other is not None
            and self.kind == other.kind
            and self.mode == other.mode
            and self.blob == other.blob
            and self.target == other.target
        )


class BaseTree:
    """The tree that commits are differences to; empty, and without a version, when there is none.

    `entries` maps paths to what is there, without sizes.
    """

    def __init__(self, version: str | None, manifest: Manifest | None) -> None:
        self.version = None if manifest is None else version
        self.entries = {path: _base_entry(entry) for path, entry in (manifest or {}).items()}

    def children(self, directory: str) -> frozenset[str]:
        """The names in a directory; of the root with an empty path."""
        return self._children.get(directory, frozenset())

    def below(self, path: str) -> Iterator[str]:
        """Every path below `path`, parents first."""
        for name in self.children(path):
            inner = f"{path}/{name}"
            yield inner
            yield from self.below(inner)

    @cached_property
    def _children(self) -> dict[str, frozenset[str]]:
        names: dict[str, list[str]] = {}
        for path in self.entries:
            parent, _, name = path.rpartition("/")
            names.setdefault(parent, []).append(name)
        return {parent: frozenset(inside) for parent, inside in names.items()}


@dataclass(frozen=True)
class Commit:
    """A difference to the base. Neither `entries` nor `deleted`, which is sorted, ever changes."""

    base: str | None
    entries: Mapping[str, FileEntry] = field(default_factory=dict[str, FileEntry])
    deleted: tuple[str, ...] = ()

    @cached_property
    def id(self) -> str:
        """SHA-256 of the encoded commit: the digest of the blob that it is."""
        return hashlib.sha256(encode(self)).hexdigest()

    @cached_property
    def tombstones(self) -> frozenset[str]:
        """What is deleted, as a set."""
        return frozenset(self.deleted)


class FileTree:
    """The whole tree that a commit and its base make."""

    def __init__(self, commit: Commit, base: BaseTree) -> None:
        self.commit = commit
        self.base = base

    def find(self, path: str) -> FileEntry | None:
        """What is at a path."""
        found = self.commit.entries.get(path)
        if found is not None:
            return found
        found = self.base.entries.get(path)
        return None if found is None or self.is_hidden(path) else found

    def is_hidden(self, path: str) -> bool:
        """Whether what the base has at a path is deleted, or below what no longer is a directory.

        A path with an entry of its own is not asked for.
        """
        if path in self.commit.tombstones:
            return True
        parent = path.rpartition("/")[0]
        while parent:
            entry = self.commit.entries.get(parent)
            if entry is not None and entry.kind != "directory":
                return True
            if parent in self.commit.tombstones:
                return True
            parent = parent.rpartition("/")[0]
        return False

    def gone(self) -> Iterator[str]:
        """Every path of the base that this tree has not."""
        for path in self.commit.deleted:
            yield path
            yield from self.base.below(path)
        for path, entry in self.commit.entries.items():
            if entry.kind != "directory":
                yield from self.base.below(path)

    def __iter__(self) -> Iterator[tuple[str, FileEntry]]:
        """Every path with what is there, sorted by path."""
        gone = set(self.gone())
        kept = {path: entry for path, entry in self.base.entries.items() if path not in gone}
        yield from sorted((kept | dict(self.commit.entries)).items())


def encode(commit: Commit) -> bytes:
    """ASCII JSON with sorted keys: equal commits have equal bytes."""
    document = {
        "base": commit.base,
        "deleted": commit.deleted,
        "entries": {path: _entry_document(entry) for path, entry in commit.entries.items()},
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


def decode(data: bytes) -> Commit:
    """The commit that `encode` wrote.

    Raises:
        InvalidDocument: when it is none, or has a path that leads out of the workspace or through
            something that is not a directory.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidDocument("a file commit", str(error)) from None
    try:
        return _read_commit(document)
    except ValueError as error:
        raise InvalidDocument("a file commit", str(error)) from None


def read_blobs(data: bytes) -> set[str]:
    """The blobs that an encoded commit names, without a look at its paths.

    Raises:
        InvalidDocument: when it is none.
    """
    try:
        entries = cast("dict[str, dict[str, Any]]", json.loads(data)["entries"])
        return {entry["blob"] for entry in entries.values() if "blob" in entry}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidDocument("a file commit", str(error)) from None


def commit_id(commit: Commit) -> str:
    """The digest of a commit's encoding, by which it is stored and named."""
    return commit.id


def _base_entry(entry: Any) -> FileEntry:
    if entry.kind == "directory":
        return FileEntry("directory", DIRECTORY_MODE)
    if entry.kind == "link":
        return FileEntry("link", LINK_MODE, target=entry.target)
    return FileEntry("file", EXECUTABLE_MODE if entry.executable else FILE_MODE, entry.blob)


def _entry_document(entry: FileEntry) -> dict[str, Any]:
    if entry.kind == "file":
        return {"blob": entry.blob, "kind": "file", "mode": entry.mode, "size": entry.size}
    if entry.kind == "link":
        return {"kind": "link", "mode": entry.mode, "target": entry.target}
    return {"kind": "directory", "mode": entry.mode}


def _read_commit(document: Any) -> Commit:
    fields = _read_object(document, {"base", "deleted", "entries"}, "the commit")
    base, deleted = fields["base"], fields["deleted"]
    if base is not None and not _is_digest(base):
        raise ValueError("base is no digest")
    if not isinstance(deleted, list) or not isinstance(fields["entries"], dict):
        raise ValueError("deleted is no list or entries no object")
    entries = {
        path: _read_entry(path, entry)
        for path, entry in cast("dict[str, Any]", fields["entries"]).items()
    }
    tombstones = [path for path in cast("list[Any]", deleted) if isinstance(path, str)]
    if len(tombstones) != len(deleted) or tombstones != sorted(set(tombstones)):
        raise ValueError("deleted is no sorted list of paths")
    commit = Commit(base, entries, tuple(tombstones))
    _check_paths(commit)
    return commit


def _read_entry(path: str, value: Any) -> FileEntry:
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in _FIELDS:
        raise ValueError(f"{path!a} is no entry")
    fields = _read_object(value, _FIELDS[kind], ascii(path))
    mode = fields["mode"]
    if not _is_count(mode) or mode > 0o7777:
        raise ValueError(f"{path!a} has no permission bits")
    if kind == "file" and not (_is_digest(fields["blob"]) and _is_count(fields["size"])):
        raise ValueError(f"{path!a} has no blob and size")
    target = fields.get("target")
    if kind == "link" and not (isinstance(target, str) and target and "\0" not in target):
        raise ValueError(f"{path!a} leads nowhere")
    os.fsencode(target or "")
    return FileEntry(kind, mode, fields.get("blob"), fields.get("size"), target)


def _read_object(value: Any, names: set[str], what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != names:
        raise ValueError(f"{what} has not exactly the fields {', '.join(sorted(names))}")
    return cast("dict[str, Any]", value)


def _check_paths(commit: Commit) -> None:
    for path in (*commit.entries, *commit.deleted):
        os.fsencode(path)
        parts = path.split("/")
        if any(part in {"", ".", ".."} for part in parts) or "\0" in path:
            raise ValueError(f"{path!a} is not a path inside the workspace")
        parent = path.rpartition("/")[0]
        entry = commit.entries.get(parent)
        if FileTree(commit, _NOTHING).is_hidden(parent) or (entry and entry.kind != "directory"):
            raise ValueError(f"{path!a} is below what is not a directory")
        if path in commit.entries and path in commit.tombstones:
            raise ValueError(f"{path!a} is both there and deleted")


_NOTHING = BaseTree(None, None)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
