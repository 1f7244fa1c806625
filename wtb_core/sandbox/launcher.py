"""The first process in a project's namespaces: pid 1 there, lean, and the maker of slots.

It makes the root that all of them see, forks the process that executions are forked from (the
zygote, or the starter of new interpreters), and forks an init per slot. User code never runs in it.
When it ends, the kernel kills everything in its pid namespace.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from wtb_core.sandbox import init, kernel, root, slots
from wtb_core.sandbox.wire import Channel

_REAP_MS = 1000
_SHM_BYTES = 64 * 1024**2


def enter_namespaces(kind: str) -> None:
    """Leave the host's users and pids; the latter takes effect for children.

    The process itself keeps the host's mounts: it has to see its child in /proc.

    Raises:
        OSError: `filename` is the step that failed.
    """
    if kind == "user":
        kernel.enter_user_namespace(os.CLONE_NEWPID)
    else:
        kernel.unshare(os.CLONE_NEWPID, "pid namespace")


def serve(
    control: socket.socket,
    source: socket.socket,
    readable: list[str],
    run: Callable[[], NoReturn],
) -> NoReturn:
    """Make the root, fork the process that calls `run`, then an init per byte with a leash."""
    channel = Channel(control)
    header, _ = channel.receive()
    plan: root.Plan = header["plan"]
    try:
        kernel.unshare(os.CLONE_NEWNS, "mount namespace")
        root.build(header["root"], readable, plan)
    except OSError as error:
        channel.send(explain(error))
        os._exit(1)
    sources = root.Sources(plan["areas"])
    zygote = _fork_source(control, sources, header["home"], header["landlock"], run)
    source.close()
    channel.send({"ready": True})
    gc.collect()
    gc.freeze()
    pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(os.pidfd_open(zygote), select.POLLIN)
    while True:
        ready = [number for number, _ in poll.poll(_REAP_MS)]
        if control.fileno() in ready:
            data, descriptors, _, _ = socket.recv_fds(control, 1, 1)
            if not data:
                os._exit(0)
            _fork_init(control, descriptors[0], pids, sources)
        for pid, status in init.reap():
            if pid == zygote:
                with contextlib.suppress(OSError):
                    channel.send({"ended": status})
                os._exit(1)


def explain(error: OSError) -> dict[str, Any]:
    """What failed, for whoever asked for it."""
    step = str(error.filename or "namespaces")
    return {"failed": {"step": step, "errno": error.errno, "message": error.strerror or str(error)}}


def _fork_init(control: socket.socket, number: int, pids: int, sources: root.Sources) -> None:
    leash = socket.socket(fileno=number)
    leash.set_inheritable(False)
    try:
        os.unshare(os.CLONE_NEWPID)
        pid = os.fork()
    except OSError as error:  # no process or no namespace more
        os.setns(pids, os.CLONE_NEWPID)  # a namespace without an init lets no other be made
        Channel(leash).send(explain(error))
        leash.close()
        return
    if pid == 0:
        try:
            control.close()
            os.close(pids)
            slots.become_init(leash, sources)
        finally:
            os._exit(1)
    os.setns(pids, os.CLONE_NEWPID)
    leash.close()


def _fork_source(
    control: socket.socket,
    sources: root.Sources,
    home: str,
    landlock: bool,  # noqa: FBT001 - one of three facts about the source
    run: Callable[[], NoReturn],
) -> int:
    pid = os.fork()
    if pid != 0:
        return pid
    try:
        control.close()
        kernel.unshare(os.CLONE_NEWNS, "mount namespace")
        slots.cover_shared(sources.find(f"{home}/tmp"), _SHM_BYTES)  # noqa: S108 - not the host's
        kernel.mount("tmpfs", home, {"mode": "755", "size": "1m"})
        for name in ("home", "tmp"):
            slots.show({"source": f"{home}/{name}", "targets": [f"{home}/{name}"]}, sources)
        sources.let_go()
        # What it needs to put its children into slots and into user namespaces of their own.
        keep = {kernel.CAP_SYS_ADMIN, kernel.CAP_SYS_CHROOT, kernel.CAP_SETFCAP}
        kernel.limit_capabilities(frozenset(keep))
        if landlock:
            # Its own files are bounded by the mounts; the domain keeps it from mounting again, and
            # its signals and ptrace from the launcher and the inits.
            kernel.restrict_self_to_files()
        kernel.die_with_parent(signal.SIGKILL)
        run()
    except BaseException as error:  # noqa: BLE001 - never back into the launcher's stack
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(1)
