"""System calls that Python has no function for, or none in older versions."""

import ctypes
import os
import platform
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_RDONLY = 0x1
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2
MNT_EXPIRE = 0x4
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PTRACE_SEIZE = 0x4206
KEYCTL_DESCRIBE = 6
SESSION_KEYRING = -3

# x86_64 and aarch64, from asm/unistd_64.h and asm-generic/unistd.h.
_X86 = platform.machine() == "x86_64"
PIVOT_ROOT = 155 if _X86 else 41
PERF_EVENT_OPEN = 298 if _X86 else 241
FINIT_MODULE = 313 if _X86 else 273
BPF = 321 if _X86 else 280
USERFAULTFD = 323 if _X86 else 282
IO_URING_SETUP = 425
OPEN_TREE = 428
PIDFD_GETFD = 438
KEYCTL = 250 if _X86 else 219
MOUNT_SETATTR = 442

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
libc.ptrace.restype = ctypes.c_long
libc.syscall.restype = ctypes.c_long
libc.process_vm_readv.restype = ctypes.c_ssize_t


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


class Vector(ctypes.Structure):
    """`struct iovec`."""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def check(result: int, what: str) -> int:
    """The result of a system call.

    Raises:
        OSError: with `what` as its file name.
    """
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what)
    return result


def syscall(number: int, what: str, *arguments: object) -> int:
    """Call by number; integers are passed as long.

    Raises:
        OSError: as the kernel says.
    """
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return check(libc.syscall(ctypes.c_long(number), *wide), what)


def unshare(flags: int) -> None:
    """Leave namespaces."""
    check(libc.unshare(flags), "unshare")


def setns(descriptor: int) -> None:
    """Join a namespace of any kind."""
    check(libc.setns(descriptor, 0), "setns")


def mount(source: str, target: str, kind: str | None, flags: int) -> None:
    """Mount, without data."""
    arguments = (source.encode(), target.encode(), kind.encode() if kind else None)
    check(libc.mount(*arguments, ctypes.c_ulong(flags), None), f"mount {target}")


def umount(target: str, flags: int) -> None:
    """Unmount."""
    check(libc.umount2(target.encode(), flags), f"umount {target}")


def make_mount_writable(directory: int, path: str, flags: int) -> None:
    """Clear the read-only flag with mount_setattr(2)."""
    attributes = _MountAttributes(clear=MS_RDONLY)
    pointer, size = ctypes.byref(attributes), ctypes.sizeof(attributes)
    syscall(MOUNT_SETATTR, f"mount_setattr {path}", directory, path.encode(), flags, pointer, size)


def enter_mount_namespace(flags: int = CLONE_NEWNS) -> None:
    """Move to a mount namespace whose changes reach nobody else; with CLONE_NEWUSER, to both."""
    uid, gid = os.getuid(), os.getgid()
    unshare(flags | CLONE_NEWNS)
    if flags & CLONE_NEWUSER:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            Path(f"/proc/self/{name}").write_text(text)
    mount("none", "/", None, MS_REC | MS_PRIVATE)


def prctl(option: int, value: object) -> None:
    """Set something of this process."""
    check(libc.prctl(option, value, 0, 0, 0), "prctl")
