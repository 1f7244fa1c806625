"""Attacks on files outside of the workspace."""

import mmap
import os
import stat
from pathlib import Path

from wtb_core.sandbox.probes.findings import (
    MARKS,
    Seen,
    Surroundings,
    allowed,
    contained,
    mark,
    names_in,
    new_path,
    place,
    probe,
    read_mark,
    refused,
    write,
    wrote,
)

_SHARED = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # noqa: S108 - what is attacked


@probe("base")
def base_write(s: Surroundings) -> Seen:
    """Write in place to a file of the base, by its absolute path."""
    write(path := mark(s.base, "write"))
    return wrote(path)


@probe("base")
def base_append(s: Surroundings) -> Seen:
    """Append to a file of the base."""
    write(path := mark(s.base, "append"), os.O_WRONLY | os.O_APPEND)
    return wrote(path)


@probe("base")
def base_truncate(s: Surroundings) -> Seen:
    """Truncate a file of the base."""
    os.truncate(path := mark(s.base, "truncate"), 0)
    return wrote(path)


@probe("base")
def base_map(s: Surroundings) -> Seen:
    """Write to a file of the base through shared memory."""
    descriptor = os.open(path := mark(s.base, "map"), os.O_RDWR)
    with mmap.mmap(descriptor, len(b"PROBE")) as pages:
        pages[:] = b"PROBE"
    return wrote(path)


@probe("base")
def base_reopen(s: Surroundings) -> Seen:
    """Open a file of the base for reading and the descriptor again for writing."""
    descriptor = os.open(path := mark(s.base, "reopen"), os.O_RDONLY)
    write(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    return wrote(path)


@probe("base")
def base_chmod(s: Surroundings) -> Seen:
    """Change the mode of a file of the base."""
    Path(path := mark(s.base, "chmod")).chmod(0o777)
    return wrote(path)


@probe("base")
def base_utime(s: Surroundings) -> Seen:
    """Change the times of a file of the base."""
    os.utime(path := mark(s.base, "utime"), (1, 1))
    return wrote(path)


@probe("base")
def base_setxattr(s: Surroundings) -> Seen:
    """Set an extended attribute of a file of the base."""
    os.setxattr(path := mark(s.base, "setxattr"), "user.probe", b"PROBE")
    return wrote(path)


@probe("base")
def base_rename(s: Surroundings) -> Seen:
    """Rename a file of the base."""
    path = mark(s.base, "rename")
    Path(path).rename(new := new_path(place(s, "base")))
    return contained(f"renamed {path}", path, new)


@probe("base")
def base_replace(s: Surroundings) -> Seen:
    """Replace a file of the base by another."""
    path = mark(s.base, "replace")
    Path(new := new_path(f"{s.base}/{MARKS}")).write_bytes(b"PROBE")
    Path(new).replace(path)
    return wrote(path)


@probe("base")
def base_delete(s: Surroundings) -> Seen:
    """Delete a file of the base."""
    Path(path := mark(s.base, "delete")).unlink()
    return contained(f"deleted {path}", path)


@probe("base")
def base_create(s: Surroundings) -> Seen:
    """Create a file in the base."""
    return _create_in(place(s, "base"))


@probe("base")
def base_hard_link(s: Surroundings) -> Seen:
    """Hard link a file of the base into the workspace and write to it."""
    path = mark(s.base, "hard_link")
    os.link(path, new := new_path(s.workspace))
    write(new)
    return wrote(path)


@probe("base")
def base_symbolic_link(s: Surroundings) -> Seen:
    """Write through a symbolic link that leads from the workspace to the base."""
    return _write_through_link(s, mark(s.base, "symbolic_link"))


@probe("base")
def workspace_write(s: Surroundings) -> Seen:
    """Write in place to the workspace's own copy of a file of the base."""
    write(mark(s.workspace, "workspace"))
    return wrote(mark(s.base, "workspace"))


@probe("code")
def code_write(s: Surroundings) -> Seen:
    """Write to a file of the project's code."""
    write(path := mark(s.code, "write"))
    return wrote(path)


@probe("code")
def code_create(s: Surroundings) -> Seen:
    """Create a file in the project's code."""
    return _create_in(place(s, "code"))


@probe("sibling")
def sibling_list(s: Surroundings) -> Seen:
    """List another execution's directory, and the directory around it."""
    names = names_in(place(s, "sibling"))
    if MARKS in names:
        return allowed(f"{len(names)} entries in {s.sibling}")
    return contained(f"{s.sibling} is empty here")


@probe("sibling")
def sibling_read(s: Surroundings) -> Seen:
    """Read another execution's file."""
    return read_mark(mark(s.sibling, "read"))


@probe("sibling")
def sibling_write(s: Surroundings) -> Seen:
    """Write to another execution's file."""
    write(path := mark(s.sibling, "write"))
    return wrote(path)


@probe("sibling")
def sibling_create(s: Surroundings) -> Seen:
    """Create a file in another execution's directory."""
    return _create_in(place(s, "sibling"))


@probe("sibling")
def sibling_symbolic_link(s: Surroundings) -> Seen:
    """Write to another execution's file through a symbolic link."""
    return _write_through_link(s, mark(s.sibling, "symbolic_link"))


@probe("sibling")
def sibling_relative(s: Surroundings) -> Seen:
    """Read another execution's file by a relative path that climbs out of the workspace."""
    os.chdir(s.workspace)
    return read_mark(os.path.relpath(mark(s.sibling, "read"), s.workspace))


@probe("store")
def store_list(s: Surroundings) -> Seen:
    """List the data directory."""
    names = names_in(place(s, "store"))
    if MARKS in names:
        return allowed(f"{len(names)} entries in {s.store}")
    return contained(f"{len(names)} entries of another directory")


@probe("store")
def store_read(s: Surroundings) -> Seen:
    """Read a file of the data directory."""
    return read_mark(mark(s.store, "read"))


@probe("store")
def store_write(s: Surroundings) -> Seen:
    """Write to a file of the data directory."""
    write(path := mark(s.store, "write"))
    return wrote(path)


@probe("store")
def store_create(s: Surroundings) -> Seen:
    """Create a file in the data directory."""
    return _create_in(place(s, "store"))


@probe("store")
def store_database_read(s: Surroundings) -> Seen:
    """Read the store's database."""
    with Path(f"{s.store}/wtb.db").open("rb") as file:
        return allowed(f"read {len(file.read(16))} bytes of wtb.db")


@probe("store")
def store_database_write(s: Surroundings) -> Seen:
    """Open the store's database for writing; nothing is written."""
    os.close(os.open(f"{s.store}/wtb.db", os.O_RDWR))
    return allowed("opened wtb.db for writing")


@probe("blob")
def blob_read(s: Surroundings) -> Seen:
    """Read another execution's blob by its digest."""
    with Path(place(s, "blob")).open("rb") as file:
        return allowed(f"read {len(file.read(16))} bytes of a blob")


@probe("blob")
def blob_write(s: Surroundings) -> Seen:
    """Open another execution's blob for writing, made writable first; nothing is written."""
    path = Path(place(s, "blob"))
    mode = stat.S_IMODE(path.stat().st_mode)
    path.chmod(mode | stat.S_IWUSR)
    try:
        os.close(os.open(path, os.O_RDWR))
    finally:
        path.chmod(mode)
    return allowed("opened a blob for writing")


@probe("home")
def home_read(s: Surroundings) -> Seen:
    """Read a file of the user's home directory."""
    return read_mark(mark(s.home, "read"))


@probe("home")
def home_list(s: Surroundings) -> Seen:
    """List the user's home directory."""
    names = names_in(place(s, "home"))
    if MARKS in names:
        return allowed(f"{len(names)} entries in {s.home}")
    return contained(f"{len(names)} entries of another directory")


@probe("home")
def home_ssh_key(s: Surroundings) -> Seen:
    """Read ~/.ssh/id_mark."""
    return read_mark(f"{s.home}/.ssh/id_mark")


@probe("home")
def home_write(s: Surroundings) -> Seen:
    """Write to a file of the user's home directory."""
    write(path := mark(s.home, "write"))
    return wrote(path)


@probe("home")
def home_create(s: Surroundings) -> Seen:
    """Create a file in the user's home directory."""
    return _create_in(place(s, "home"))


@probe("marks")
def shared_read(s: Surroundings) -> Seen:
    """Read what others put into /tmp, /var/tmp, /dev/shm and /run."""
    found: list[str] = []
    errors: list[str] = []
    for path in s.marks:
        try:
            if read_mark(path).verdict == "allowed":
                found.append(path)
        except OSError:
            errors.append(path)
    if found:
        return allowed(f"read {', '.join(found)}")
    return refused(f"none of {', '.join(errors or s.marks)} is there")


@probe()
def shared_write(s: Surroundings) -> Seen:
    """Put files into /tmp, /var/tmp, /dev/shm and /run for others to see."""
    del s
    made: list[str] = []
    for directory in _SHARED:
        try:
            Path(path := new_path(directory)).write_bytes(b"PROBE")
        except OSError:
            continue
        made.append(path)
    if not made:
        return refused(f"{', '.join(_SHARED)} cannot be written")
    return contained(f"wrote {', '.join(made)}", *made)


@probe()
def etc_passwd_write(s: Surroundings) -> Seen:
    """Open /etc/passwd for writing; nothing is written."""
    del s
    os.close(os.open("/etc/passwd", os.O_WRONLY | os.O_APPEND))
    return allowed("opened /etc/passwd for writing")


@probe()
def etc_shadow_read(s: Surroundings) -> Seen:
    """Read /etc/shadow."""
    del s
    with Path("/etc/shadow").open("rb") as file:
        file.read(1)
    return allowed("read /etc/shadow")


@probe()
def disk_read(s: Surroundings) -> Seen:
    """Open the machine's disks for reading."""
    del s
    return _open_any("/dev", ("sd*", "vd*", "nvme*", "xvd*", "dm-*", "mmcblk*"), os.O_RDONLY)


@probe()
def memory_device(s: Surroundings) -> Seen:
    """Open the machine's memory."""
    del s
    return _open_any("/dev", ("mem", "kmem", "port"), os.O_RDONLY)


@probe()
def disk_node(s: Surroundings) -> Seen:
    """Make a device node of the disk under / in the workspace, and open it."""
    path = new_path(s.workspace)
    os.mknod(path, stat.S_IFBLK | 0o600, Path("/").stat().st_dev)
    try:
        os.close(os.open(path, os.O_RDONLY))
    finally:
        Path(path).unlink()
    return allowed("made and opened a node of the disk")


@probe()
def kernel_settings(s: Surroundings) -> Seen:
    """Open settings of the kernel for writing; nothing is written."""
    del s
    names = ("sys/kernel/core_pattern", "sys/vm/drop_caches", "sys/kernel/hostname")
    return _open_any("/proc", (*names, "sysrq-trigger"), os.O_WRONLY)


@probe()
def sysfs_write(s: Surroundings) -> Seen:
    """Open files of /sys for writing; nothing is written."""
    del s
    names = ("power/state", "kernel/mm/transparent_hugepage/enabled", "kernel/uevent_helper")
    return _open_any("/sys", names, os.O_WRONLY)


@probe()
def cgroup_leave(s: Surroundings) -> Seen:
    """Open the lists of processes of control groups for writing; nothing is written."""
    del s
    names = ("cgroup.procs", "*/cgroup.procs", "*/*/cgroup.procs")
    return _open_any("/sys/fs/cgroup", names, os.O_WRONLY)


def _open_any(directory: str, patterns: tuple[str, ...], flags: int) -> Seen:
    opened: list[str] = []
    present = 0
    for pattern in patterns:
        for path in sorted(Path(directory).glob(pattern)):
            present += 1
            try:
                os.close(os.open(path, flags | os.O_NONBLOCK))
            except OSError:
                continue
            opened.append(str(path))
    if opened:
        return allowed(f"opened {', '.join(opened[:5])}")
    return refused(f"{present} of them are there, none opens" if present else "none is there")


def _create_in(directory: str) -> Seen:
    Path(path := new_path(directory)).write_bytes(b"PROBE")
    return wrote(path)


def _write_through_link(s: Surroundings, target: str) -> Seen:
    Path(link := new_path(s.workspace)).symlink_to(target)
    write(link)
    return wrote(target)
