"""Directory trees by content: scanned into blobs, named by one digest, made again anywhere.

A manifest maps each path, relative and with forward slashes, to what is there: a directory, a file
(blob and executable bit) or a symbolic link (its text, never followed). Times and owners are no
part of it, so the same content always has the same digest.
"""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from wtb_core.files.blobs import BlobStore
from wtb_core.files.copying import copy_file, for_each

DIRECTORY_MODE = 0o755
EXECUTABLE_MODE = 0o755
FILE_MODE = 0o644


class Entry(BaseModel):
    """One path. `blob` and `executable` are for files, `target` for links."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["directory", "file", "link"]
    blob: str | None = None
    executable: bool = False
    target: str | None = None


Manifest = dict[str, Entry]
Skip = Callable[[Path], bool]


class Stamp(NamedTuple):
    """What changes when a file's content may have changed."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def scan(root: Path, blobs: BlobStore, skip: Skip) -> Manifest:
    """Store every file below `root` as a blob and return the tree's manifest.

    Raises:
        OSError: when something cannot be read, is neither file, directory nor link, or has a name
            that is not UTF-8.
    """
    manifest: Manifest = {}
    for path, name, info in _walk(root, skip):
        _check_text(name, name)
        if stat.S_ISDIR(info.st_mode):
            manifest[name] = Entry(kind="directory")
        elif stat.S_ISLNK(info.st_mode):
            link = str(path.readlink())
            _check_text(name, link)
            manifest[name] = Entry(kind="link", target=link)
        elif stat.S_ISREG(info.st_mode):
            executable = bool(info.st_mode & stat.S_IXUSR)
            manifest[name] = Entry(kind="file", blob=blobs.put_file(path), executable=executable)
        else:
            raise OSError(f"{name} is neither a file, a directory nor a link")
    return manifest


def iterate_stamps(root: Path, skip: Skip) -> Iterator[Stamp]:
    """Cheap evidence of a tree's content: equal stamps mean nothing was written in between."""
    for _, name, info in _walk(root, skip):
        yield Stamp(name, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)


def materialise(manifest: Manifest, blobs: BlobStore, target: Path) -> None:
    """Make the tree of `manifest` in the new directory `target`, whatever the umask."""
    target.mkdir(parents=True)
    target.chmod(DIRECTORY_MODE)
    files: list[tuple[str, Entry]] = []
    for name, entry in manifest.items():
        if entry.kind == "file":
            files.append((f"{target}/{name}", entry))
        elif entry.kind == "link":
            (target / name).symlink_to(entry.target or "")
        else:
            (target / name).mkdir()
            (target / name).chmod(DIRECTORY_MODE)

    def copy(file: tuple[str, Entry]) -> None:
        path, entry = file
        mode = EXECUTABLE_MODE if entry.executable else FILE_MODE
        copy_file(blobs.path(entry.blob or ""), path, mode, reflink=False)

    errors = for_each(copy, files)
    if errors:
        raise errors[0]


def _check_text(name: str, text: str) -> None:
    """A manifest is JSON, which has no form for other bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise OSError(f"{name!a} has, or leads to, a name that is not UTF-8") from None


def _walk(root: Path, skip: Skip) -> Iterator[tuple[Path, str, os.stat_result]]:
    """Everything below `root`, parents first, in the order of names."""
    pending = [root]
    while pending:
        directory = pending.pop()
        with os.scandir(directory) as entries:
            children = sorted(entries, key=lambda entry: entry.name, reverse=True)
        below: list[Path] = []
        for child in reversed(children):
            path = Path(child.path)
            info = child.stat(follow_symlinks=False)
            is_directory = stat.S_ISDIR(info.st_mode)
            if is_directory and skip(path):
                continue
            yield path, path.relative_to(root).as_posix(), info
            if is_directory:
                below.append(path)
        pending.extend(reversed(below))
