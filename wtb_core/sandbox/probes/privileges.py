"""What the process may ask of the kernel."""

import ctypes
import errno
import os
import resource
from pathlib import Path

from wtb_core.sandbox.probes import kernel
from wtb_core.sandbox.probes.findings import (
    Seen,
    Surroundings,
    allowed,
    attempt,
    contained,
    describe,
    place,
    probe,
    refused,
)

_NOBODY = 65534
_KERNEL_LOG_SIZE = 10


@probe()
def capabilities(s: Surroundings) -> Seen:
    """Hold capabilities."""
    del s
    status = _status()
    held = {name: status[name] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd")}
    text = ", ".join(f"{name} {value}" for name, value in held.items())
    if not any(int(value, 16) for value in held.values()):
        return refused(text)
    only_bounding = not any(int(held[name], 16) for name in held if name != "CapBnd")
    if only_bounding and status.get("NoNewPrivs") == "1":
        return contained(text)
    return allowed(text)


@probe()
def new_privileges(s: Surroundings) -> Seen:
    """Gain privileges by executing a program."""
    del s
    value = _status().get("NoNewPrivs")
    return refused("NoNewPrivs 1") if value == "1" else allowed(f"NoNewPrivs {value}")


@probe()
def system_calls(s: Surroundings) -> Seen:
    """Call whatever the kernel has; a report of the filter."""
    del s
    value = _status().get("Seccomp")
    return refused("a filter is set") if value == "2" else contained(f"Seccomp {value}")


@probe()
def user_change(s: Surroundings) -> Seen:
    """Become another user."""
    del s
    uid = _NOBODY if os.geteuid() == 0 else 0
    os.setresuid(uid, uid, uid)
    return allowed(f"became user {uid}")


@probe()
def group_change(s: Surroundings) -> Seen:
    """Become a member of another group."""
    del s
    gid = _NOBODY if os.getegid() == 0 else 0
    changed, errors = attempt(lambda: os.setgroups([gid]), lambda: os.setresgid(gid, gid, gid))
    return allowed(f"joined group {gid}") if changed else refused(", ".join(errors))


@probe()
def priority_raise(s: Surroundings) -> Seen:
    """Run at a higher priority than others, also in real time."""
    del s
    changed, errors = attempt(
        lambda: os.nice(-5),
        lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    )
    return allowed("raised the priority") if changed else refused(", ".join(errors))


@probe()
def limits_raise(s: Surroundings) -> Seen:
    """Raise limits of its own above the hard ones."""
    del s
    raised = [_raise(kind) for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)]
    errors = [error for error in raised if error is not None]
    return refused(", ".join(errors)) if len(errors) == len(raised) else allowed("raised a limit")


@probe()
def memory_pressure_immunity(s: Surroundings) -> Seen:
    """Be the last to be killed when memory runs out."""
    del s
    Path("/proc/self/oom_score_adj").write_text("-1000")
    return allowed("oom_score_adj is -1000")


@probe()
def host_name(s: Surroundings) -> Seen:
    """Set the machine's name, to what it is."""
    del s
    name = os.uname().nodename.encode()
    kernel.check(kernel.libc.sethostname(name, ctypes.c_size_t(len(name))), "sethostname")
    return allowed("set the host name")


@probe()
def kernel_module(s: Surroundings) -> Seen:
    """Load a kernel module; what is loaded is an empty file."""
    path = Path(s.workspace, f"probe-{os.urandom(6).hex()}")
    path.touch()
    descriptor = os.open(path, os.O_RDONLY)
    path.unlink()
    try:
        kernel.syscall(kernel.FINIT_MODULE, "finit_module", descriptor, b"", 0)
    except OSError as error:
        if error.errno in {errno.EPERM, errno.EACCES, errno.ENOSYS}:
            return refused(describe(error))
        return allowed(f"may load modules; this one gave {error.strerror}")
    return allowed("loaded a module")


@probe("code")
def file_handle(s: Surroundings) -> Seen:
    """Open a file by its number, past all directories."""

    class Handle(ctypes.Structure):
        _fields_ = [("size", ctypes.c_uint), ("kind", ctypes.c_int), ("data", ctypes.c_char * 128)]

    handle, mount_id = Handle(size=128), ctypes.c_int()
    path = f"{place(s, 'code')}/marks/write".encode()
    named = kernel.libc.name_to_handle_at(
        kernel.AT_FDCWD, path, ctypes.byref(handle), ctypes.byref(mount_id), 0
    )
    kernel.check(named, "name_to_handle_at")
    directory = os.open(place(s, "code"), os.O_RDONLY | os.O_DIRECTORY)
    opened = kernel.libc.open_by_handle_at(directory, ctypes.byref(handle), os.O_RDONLY)
    os.close(kernel.check(opened, "open_by_handle_at"))
    return allowed("opened a file by its handle")


@probe()
def kernel_log(s: Surroundings) -> Seen:
    """Read the kernel's log."""
    del s
    kernel.check(kernel.libc.klogctl(_KERNEL_LOG_SIZE, None, 0), "syslog")
    return allowed("may read the kernel's log")


@probe()
def session_keyring(s: Surroundings) -> Seen:
    """Look at the keys of the session that the service was started in."""
    del s
    kernel.syscall(kernel.KEYCTL, "keyctl", kernel.KEYCTL_DESCRIBE, kernel.SESSION_KEYRING, None, 0)
    return allowed("may look at the session keyring")


@probe()
def terminal(s: Surroundings) -> Seen:
    """Type into the terminal that the service was started from."""
    del s
    tty = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[4]
    if tty != "0":
        return allowed(f"has the controlling terminal {tty}")
    return refused("there is no controlling terminal")


@probe()
def kernel_surface(s: Surroundings) -> Seen:
    """Use bpf, perf_event_open, userfaultfd and io_uring; a report."""
    del s
    zeros = ctypes.create_string_buffer(256)
    array = (ctypes.c_uint32 * 16)(2, 4, 4, 1)  # BPF_MAP_TYPE_ARRAY, key, value, entries
    event = (ctypes.c_uint32 * 32)(1, 128)  # PERF_TYPE_SOFTWARE, size
    calls = {
        "bpf": (kernel.BPF, 0, array, ctypes.sizeof(array)),
        "perf_event_open": (kernel.PERF_EVENT_OPEN, event, 0, -1, -1, 0),
        "userfaultfd": (kernel.USERFAULTFD, os.O_CLOEXEC),
        "io_uring_setup": (kernel.IO_URING_SETUP, 1, zeros),
    }
    there: list[str] = []
    for name, (number, *arguments) in calls.items():
        try:
            os.close(kernel.syscall(number, name, *arguments))
        except OSError:
            continue
        there.append(name)
    return contained(f"there: {', '.join(there)}") if there else refused("none is there")


def _status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _raise(kind: int) -> str | None:
    """Lower a hard limit by one and raise it again."""
    soft, hard = resource.getrlimit(kind)
    lower = hard - 1 if hard > 0 else 4096
    try:
        if hard == 0:
            resource.setrlimit(kind, (0, 1))
            return None
        resource.setrlimit(kind, (min(soft, lower) if soft >= 0 else lower, lower))
        resource.setrlimit(kind, (lower, lower + 1))
    except (OSError, ValueError) as error:
        return str(error)
    return None
