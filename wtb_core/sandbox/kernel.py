"""Linux's calls for namespaces, mounts, capabilities and Landlock that Python has not.

Numbers and layouts are those of the kernel's UAPI headers (linux/mount.h, linux/landlock.h,
linux/capability.h, linux/prctl.h, asm-generic/unistd.h: the numbers from 424 on are the same on
every architecture). Each call raises OSError with the name of its step as `filename`.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)

_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_MOUNT_SETATTR: Final = 442
_LANDLOCK_CREATE_RULESET: Final = 444
_LANDLOCK_ADD_RULE: Final = 445
_LANDLOCK_RESTRICT_SELF: Final = 446

_KEYCTL_JOIN_SESSION_KEYRING: Final = 1
_KEYCTL_SETPERM: Final = 5

_PR_SET_PDEATHSIG: Final = 1
_PR_CAPBSET_DROP: Final = 24
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

MOUNT_READ_ONLY: Final = 0x1
MOUNT_NO_SUID: Final = 0x2
MOUNT_NO_DEV: Final = 0x4

_MS_REC_PRIVATE: Final = 0x4000 | 0x40000
_MNT_DETACH: Final = 2
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6

CAP_SYS_CHROOT: Final = 18
CAP_SYS_ADMIN: Final = 21
CAP_SETFCAP: Final = 31
_CAPABILITY_VERSION_3: Final = 0x20080522
_LAST_CAPABILITY: Final = 63


def _check(result: int, step: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), step)
    return result


def _syscall(step: str, number: int, *arguments: object) -> int:
    converted = [
        ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments
    ]
    return _check(_libc.syscall(ctypes.c_long(number), *converted), step)


def _prctl(step: str, option: int, *values: int) -> None:
    padded = [*values, *[0] * (4 - len(values))]
    _check(_libc.prctl(option, *map(ctypes.c_ulong, padded)), step)


def become_subreaper() -> None:
    """Orphans below this process become its children instead of those of pid 1."""
    _prctl("child subreaper", _PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signal_number: int) -> None:
    """Get the signal when the thread that made this process ends; set after credentials change."""
    _prctl("parent death signal", _PR_SET_PDEATHSIG, signal_number)


@contextmanager
def step(name: str) -> Generator[None]:
    """Name the step that an OSError without one came from."""
    try:
        yield
    except OSError as error:
        error.filename = name
        raise


# -- namespaces ----------------------------------------------------------------------------------


def unshare(flags: int, name: str) -> None:
    """Leave the namespaces of `flags` (os.CLONE_NEW...) for new ones."""
    with step(name):
        os.unshare(flags)


def enter_user_namespace(more: int = 0) -> None:
    """Make a user namespace, with others in `more`, in which this user keeps its own ids."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(os.CLONE_NEWUSER | more, "user namespace")
    with step("id maps"):
        for file, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1")):
            _write(f"/proc/self/{file}", text)
        _write("/proc/self/gid_map", f"{gid} {gid} 1")


def forbid_user_namespaces() -> None:
    """Let nobody make another one in this user namespace; needs CAP_SYS_RESOURCE in it."""
    with step("user namespaces"):
        _write("/proc/sys/user/max_user_namespaces", "0")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def raise_loopback() -> None:
    """Bring up the loopback interface of a new network namespace, see netdevice(7)."""
    get_flags, set_flags, up = 0x8913, 0x8914, 1
    with step("loopback"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(sock, get_flags, request), 16)
        fcntl.ioctl(sock, set_flags, struct.pack("16sH14x", b"lo", flags | up))


# -- mounts --------------------------------------------------------------------------------------


def make_mounts_private() -> None:
    """Let no change of this namespace's mounts reach another's, nor the reverse."""
    result = _libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None)
    _check(result, "private mounts")


def mount(kind: str, target: str, options: dict[str, str | None]) -> None:
    """Mount a new filesystem; an option without a value is a flag."""
    _mount(kind, target, list(options.items()))


def _mount(kind: str, target: str, options: list[tuple[str, str | None]]) -> None:
    """By fsopen(2), because the options of mount(2) are cut at 4 KiB without a word."""
    context = _syscall(kind, _FSOPEN, kind.encode(), 1)
    try:
        for key, value in options:
            command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            text = None if value is None else os.fsencode(value)
            _syscall(f"{kind}: {key}", _FSCONFIG, context, command, key.encode(), text, 0)
        _syscall(kind, _FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        mounted = _syscall(kind, _FSMOUNT, context, 1, 0)
    finally:
        os.close(context)
    _move(mounted, target, kind)


def mount_overlay(target: str, lower: list[str], upper: str, work: str) -> None:
    """Mount an overlay, the topmost lower directory first; each path has at most 255 bytes.

    `lowerdir+` came with Linux 6.5. `userxattr` is what an unprivileged user may use; `volatile`
    leaves out syncing, because nobody mounts the upper directory again.
    """
    options: list[tuple[str, str | None]] = [("lowerdir+", path) for path in lower]
    options.append(("upperdir", upper))
    _mount(
        "overlay", target, [*options, ("workdir", work), ("userxattr", None), ("volatile", None)]
    )


def bind(source: str, target: str, attributes: int = 0) -> None:
    """Show `source` with everything mounted below it at `target`, with these attributes added."""
    tree = clone_tree(source)
    try:
        if attributes:
            _set_attributes(tree, b"", attributes, 0, _AT_RECURSIVE | _AT_EMPTY_PATH)
    except OSError:
        os.close(tree)
        raise
    attach(tree, target)


def clone_tree(source: str) -> int:
    """A descriptor of `source` and everything mounted below it, to be attached elsewhere."""
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    return _syscall("bind", _OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags)


def attach(tree: int, target: str) -> None:
    """Mount what `clone_tree` gave, and close it."""
    _move(tree, target, "bind")


def make_read_only(target: str) -> None:
    """Make all mounts from `target` down read-only and without set-user-ID."""
    attributes = MOUNT_READ_ONLY | MOUNT_NO_SUID
    _set_attributes(_AT_FDCWD, os.fsencode(target), attributes, 0, _AT_RECURSIVE)


def _set_attributes(directory: int, path: bytes, set_: int, clear: int, flags: int) -> None:
    request = struct.pack("QQQQ", set_, clear, 0, 0)
    _syscall("mount attributes", _MOUNT_SETATTR, directory, path, flags, request, len(request))


def _move(mounted: int, target: str, name: str) -> None:
    try:
        flags = _MOVE_MOUNT_F_EMPTY_PATH
        _syscall(name, _MOVE_MOUNT, mounted, b"", _AT_FDCWD, os.fsencode(target), flags)
    finally:
        os.close(mounted)


def pivot_root(new_root: str) -> None:
    """Make the mount `new_root` this namespace's root; nothing of the old one stays reachable."""
    os.chdir(new_root)
    _check(_libc.syscall(ctypes.c_long(_pivot_root_number()), b".", b"."), "pivot root")
    detach(".")
    os.chdir("/")


def _pivot_root_number() -> int:
    return {"x86_64": 155, "aarch64": 41}.get(os.uname().machine, 155)


def detach(target: str) -> None:
    """Unmount `target` and all below it from this namespace, now."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH), "detach")


# -- privileges ----------------------------------------------------------------------------------


def limit_capabilities(keep: frozenset[int] = frozenset()) -> None:
    """Give up every capability but `keep`, also for programs run later."""
    for number in range(_LAST_CAPABILITY + 1):
        if number not in keep:
            try:
                _prctl("capabilities", _PR_CAPBSET_DROP, number)
            except OSError:  # EINVAL past the kernel's last one; EPERM: there were none to drop
                break
    with contextlib.suppress(OSError):  # EINVAL before Linux 4.3
        _prctl("capabilities", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    mask = sum(1 << number for number in keep)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    data = struct.pack("IIIIII", low, low, 0, high, high, 0)
    _check(_libc.capset(header, data), "capabilities")


def has_capability(number: int) -> bool:
    """Whether the capability is effective in this process."""
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    _check(_libc.capget(header, data), "capabilities")
    words = struct.unpack("IIIIII", data.raw)
    return bool(words[3 * (number // 32)] >> (number % 32) & 1)


def forbid_new_privileges() -> None:
    """No program run later gets more privileges than this process has."""
    _prctl("no new privileges", _PR_SET_NO_NEW_PRIVS, 1)


def leave_session_keyring() -> None:
    """Exchange the session keyring for one that nobody may use, see session-keyring(7).

    It would hold the keys of the login or service that the replica was started in, and be shared by
    all executions. Where keyctl(2) is not to be had, user code cannot use keys either.
    """
    number = {"x86_64": 250, "aarch64": 219}.get(os.uname().machine, 250)
    try:
        keyring = _syscall("session keyring", number, _KEYCTL_JOIN_SESSION_KEYRING, None)
        _syscall("session keyring", number, _KEYCTL_SETPERM, keyring, 0)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EPERM}:
            raise


_ARCHITECTURES: Final = {  # AUDIT_ARCH_... of linux/audit.h, and the number of socket(2)
    "x86_64": (0xC000003E, 41),
    "aarch64": (0xC00000B7, 198),
}
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF, see linux/filter.h
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_X32: Final = 0x40000000
_IO_URING_SETUP: Final = 425


def forbid_sockets(family: int) -> None:
    """Let no socket of this family be made any more, by a seccomp(2) filter.

    Nor an io_uring, whose operations pass no such filter and make sockets too.
    System calls of another architecture than the machine's fail: the filter does not know them.
    Does nothing on a machine whose numbers are not known here, or without seccomp.
    """
    known = _ARCHITECTURES.get(os.uname().machine)
    if known is None:
        return
    architecture, socket_call = known
    rules = [  # what to do, where to go when it holds and when not, with what
        (_LOAD, 0, 0, 4),  # the architecture
        (_IF_EQUAL, 0, 7, architecture),
        (_LOAD, 0, 0, 0),  # the call
        (_IF_AT_LEAST, 5, 0, _X32),
        (_IF_EQUAL, 4, 0, _IO_URING_SETUP),
        (_IF_EQUAL, 0, 2, socket_call),
        (_LOAD, 0, 0, 16),  # its first argument
        (_IF_EQUAL, 1, 0, family),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _FAIL | errno.EPERM),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
    program = struct.pack("HxxxxxxP", len(rules), ctypes.addressof(code))
    held = ctypes.create_string_buffer(program)
    with contextlib.suppress(OSError):
        _prctl("seccomp", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(held))


# -- Landlock ------------------------------------------------------------------------------------

_READ: Final = 0x1 | 0x4 | 0x8  # execute, read a file, read a directory
_WRITE_FILE: Final = 0x2
_REFER: Final = 0x2000
_TRUNCATE: Final = 0x4000
_IOCTL_DEVICE: Final = 0x8000
_ACCESS_BY_ABI: Final = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}
_ALL_ACCESS: Final = 0xFFFF
_SCOPES: Final = 0x3  # abstract Unix sockets and signals stay within the domain
_MIN_ABI: Final = 3
_RULE_PATH_BENEATH: Final = 1


def landlock_abi() -> int:
    """The version of Landlock that the kernel has.

    Raises:
        OSError: when it has none, or one (before 3) that lets files be truncated all the same.
    """
    abi = _syscall("landlock", _LANDLOCK_CREATE_RULESET, None, 0, 1)
    if abi < _MIN_ABI:
        raise OSError(95, f"version {abi}, below {_MIN_ABI}", "landlock")
    return abi


def restrict_self(readable: list[str], writable: list[str], devices: list[str]) -> None:
    """Let this process and all it starts reach only what lies below these paths.

    Paths that do not exist are left out. `devices` may be read and written, not made. Also confines
    ptrace(2), mounting, and from version 6 on signals and abstract Unix sockets to the processes
    that are restricted with it.
    """
    abi = landlock_abi()
    handled = _ACCESS_BY_ABI.get(abi, _ALL_ACCESS)
    ruleset = _make_ruleset(abi, handled)
    device = _READ | _WRITE_FILE | _TRUNCATE | _IOCTL_DEVICE
    file_only = _WRITE_FILE | _TRUNCATE | _IOCTL_DEVICE | 0x1 | 0x4
    try:
        for paths, access in ((readable, _READ), (writable, _ALL_ACCESS), (devices, device)):
            for path in paths:
                _allow(ruleset, path, access & handled, file_only)
        _enter_ruleset(ruleset)
    finally:
        os.close(ruleset)


def restrict_self_to_files() -> None:
    """Let this process and all it starts use files as they may, and nothing else of the above.

    A domain that handles any access keeps its processes from mounting, see landlock(7). It handles
    only moves between directories, and allows them: files that were opened in another mount
    namespace lie below no path that could be allowed here, and could not be opened again.
    """
    ruleset = _make_ruleset(landlock_abi(), _REFER)
    try:
        _allow(ruleset, "/", _REFER, 0)
        _enter_ruleset(ruleset)
    finally:
        os.close(ruleset)


def _make_ruleset(abi: int, handled: int) -> int:
    attributes = struct.pack("QQQ", handled, 0, _SCOPES if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    return _syscall("landlock", _LANDLOCK_CREATE_RULESET, attributes, size, 0)


def _enter_ruleset(ruleset: int) -> None:
    forbid_new_privileges()
    _syscall("landlock", _LANDLOCK_RESTRICT_SELF, ruleset, 0)


def _allow(ruleset: int, path: str, access: int, file_only: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # not there, or not for this user
        return
    try:
        if not Path(path).is_dir():
            access &= file_only
        rule = struct.pack("=Qi", access, place)
        _syscall("landlock", _LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(place)
