"""Attacks on what is mounted.

Whatever would change the mounts of others is done in a mount namespace of the probe's own, where
one may be made, or is asked for in a way that changes nothing.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from wtb_core.sandbox.probes import kernel
from wtb_core.sandbox.probes.findings import (
    Seen,
    Surroundings,
    allowed,
    attempt,
    contained,
    describe,
    mark,
    new_path,
    place,
    probe,
    read_mark,
    refused,
    write,
    wrote,
)

_SHARED = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # noqa: S108 - what is attacked


@probe()
def mount_tmpfs(s: Surroundings) -> Seen:
    """Mount a file system."""
    Path(target := new_path(s.workspace)).mkdir()
    try:
        kernel.mount("none", target, "tmpfs", 0)
        kernel.umount(target, kernel.MNT_DETACH)
    finally:
        Path(target).rmdir()
    return allowed("mounted a tmpfs")


@probe("code")
def mount_bind(s: Surroundings) -> Seen:
    """Mount the project's code at another place and write to it there."""
    Path(target := new_path(s.workspace)).mkdir()
    try:
        kernel.mount(place(s, "code"), target, None, kernel.MS_BIND)
        try:
            write(mark(target, "bind"))
        finally:
            kernel.umount(target, kernel.MNT_DETACH)
    finally:
        Path(target).rmdir()
    return wrote(mark(s.code, "bind"))


@probe("code")
def remount(s: Surroundings) -> Seen:
    """Make mounts writable again with mount, then write to the project's code."""
    _enter_own_namespace()
    return _write_after(s, "remount", _remount)


@probe("code")
def remount_attributes(s: Surroundings) -> Seen:
    """Make mounts writable again with mount_setattr, then write to the project's code."""
    _enter_own_namespace()
    return _write_after(s, "remount_attributes", _clear_read_only)


@probe("code")
def tree_clone(s: Surroundings) -> Seen:
    """Take a detached copy of the code's mount, make it writable, and write to it."""
    flags = kernel.OPEN_TREE_CLONE | os.O_CLOEXEC
    code = place(s, "code").encode()
    tree = kernel.syscall(kernel.OPEN_TREE, "open_tree", kernel.AT_FDCWD, code, flags)
    kernel.make_mount_writable(tree, "", kernel.AT_EMPTY_PATH)
    descriptor = os.open("marks/tree_clone", os.O_WRONLY, dir_fd=tree)
    os.write(descriptor, b"PROBE")
    return wrote(mark(s.code, "tree_clone"))


@probe()
def unmount(s: Surroundings) -> Seen:
    """Ask whether mounts may be taken away; MNT_EXPIRE takes none away when asked once."""
    may: list[str] = []
    errors: list[str] = []
    for path in {s.workspace, *_masked(s), "/proc", "/dev"}:
        try:
            kernel.umount(path, kernel.MNT_EXPIRE)
        except OSError as error:
            if error.errno in {errno.EAGAIN, errno.EBUSY}:
                may.append(path)
            else:
                errors.append(describe(error).partition(" ")[0])
    if may:
        return allowed(f"may unmount {', '.join(sorted(may))}")
    return refused(", ".join(sorted(set(errors))))


@probe("code")
def nested_namespace(s: Surroundings) -> Seen:
    """Make mounts writable, or take them away, in a user namespace of its own; then write."""
    kernel.enter_mount_namespace(kernel.CLONE_NEWUSER)
    took, errors = attempt(
        *(lambda p=path: _remount(p) for path in ("/", *_masked(s))),
        *(lambda p=path: _clear_read_only(p) for path in ("/", *_masked(s))),
        *(lambda p=path: kernel.umount(p, kernel.MNT_DETACH) for path in _masked(s)),
    )
    touched: list[str] = []
    for directory in (s.base, s.code, s.store, s.sibling, s.home):
        try:
            write(path := mark(directory, "nested_namespace"))
        except OSError as error:
            errors.append(describe(error))
        else:
            touched.append(path)
    said = sorted({error.partition(" ")[0] for error in errors})
    return contained(
        f"made the namespace; {took} changes of mounts and {len(touched)} writes went through; "
        f"otherwise {', '.join(said)}",
        *touched,
    )


@probe("sibling")
def nested_namespace_read(s: Surroundings) -> Seen:
    """Take masks away in a user namespace of its own, then read another execution's file."""
    kernel.enter_mount_namespace(kernel.CLONE_NEWUSER)
    directories = Path(place(s, "sibling")).parents
    attempt(*(lambda p=path: kernel.umount(str(p), kernel.MNT_DETACH) for path in directories))
    return read_mark(mark(s.sibling, "read"))


@probe()
def root_change(s: Surroundings) -> Seen:
    """Change the root directory, and climb out of it again."""
    Path(target := new_path(s.workspace)).mkdir()
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chroot(target)
        os.fchdir(root)
        os.chroot(".")
    finally:
        Path(target).rmdir()
    return allowed("changed the root directory and came back")


@probe()
def root_pivot(s: Surroundings) -> Seen:
    """Exchange the root of a mount namespace."""
    kernel.enter_mount_namespace()
    kernel.mount(s.workspace, s.workspace, None, kernel.MS_BIND)
    os.chdir(s.workspace)
    kernel.syscall(kernel.PIVOT_ROOT, "pivot_root", b".", b".")
    return allowed("made a mount namespace and exchanged its root")


def _masked(s: Surroundings) -> list[str]:
    places = (s.base, s.code, s.store, s.sibling, s.home)
    return [path for path in (*places, *_SHARED) if path is not None]


def _enter_own_namespace() -> None:
    """Without the right to make one, mounts cannot be changed either; try all the same."""
    attempt(kernel.enter_mount_namespace)


def _remount(path: str) -> None:
    kernel.mount("none", path, None, kernel.MS_REMOUNT | kernel.MS_BIND)


def _clear_read_only(path: str) -> None:
    kernel.make_mount_writable(kernel.AT_FDCWD, path, kernel.AT_RECURSIVE)


def _write_after(s: Surroundings, name: str, change: Callable[[str], None]) -> Seen:
    changed, errors = attempt(*(lambda p=path: change(p) for path in ("/", *_masked(s))))
    if not changed:
        return refused(", ".join(sorted({error.partition(" ")[0] for error in errors})))
    write(path := mark(s.code, name))
    return contained(f"{changed} mounts changed; wrote {path}", path)
