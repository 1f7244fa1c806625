"""Runs probes, each in a child process with a time limit, so that none ends the others."""

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from wtb_core.sandbox.probes import kernel
from wtb_core.sandbox.probes.findings import (
    PROBES,
    Finding,
    Probe,
    Seen,
    Surroundings,
    allowed,
    contained,
    describe,
    new_path,
    refused,
)

_READ_BYTES = 65536


def select_probes(s: Surroundings, names: Iterable[str] | None = None) -> list[Probe]:
    """The probes of these names, or all, whose targets are known; deadly ones last.

    Raises:
        KeyError: for a name that no probe has.
    """
    chosen = [PROBES[name] for name in (PROBES if names is None else names)]
    known = [probe for probe in chosen if all(getattr(s, need) for need in probe.needs)]
    return sorted(known, key=lambda probe: probe.deadly)


def run(
    s: Surroundings,
    names: Iterable[str] | None = None,
    report: Callable[[Finding], None] | None = None,
) -> list[Finding]:
    """Run the probes from this process; `report` gets each finding as it is made.

    An execution may be ended for a deadly probe: what was reported until then is all there is.

    Raises:
        KeyError: for a name that no probe has.
    """
    findings: list[Finding] = []
    for probe in select_probes(s, names):
        finding = Finding(probe.name, *_run_one(probe, s))
        findings.append(finding)
        if report is not None:
            report(finding)
    return findings


def _run_one(probe: Probe, s: Surroundings) -> Seen:
    reader, writer = os.pipe()
    try:
        pid = os.fork()
    except OSError as error:
        os.close(writer)
        os.close(reader)
        return allowed(f"not tried: no process could be started, {describe(error)}")
    if pid == 0:
        os.close(reader)
        _attack(probe, s, writer)
    os.close(writer)
    try:
        said = _read(reader, time.monotonic() + probe.time_limit_s)
    finally:
        os.close(reader)
        status = _end(pid)
    if said is None:
        return allowed(f"did not end in {probe.time_limit_s:g} s")
    if said:
        verdict, detail, touched = json.loads(said)
        return Seen(verdict, detail, tuple(touched))
    return _explain_silence(probe, os.waitstatus_to_exitcode(status))


def _attack(probe: Probe, s: Surroundings, writer: int) -> None:
    """The whole life of a probe's process."""
    try:
        with contextlib.suppress(OSError):
            os.setsid()
        with contextlib.suppress(OSError):  # after a change of user its /proc is not its own
            kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        try:
            seen = _try_workspace(s) or probe.attack(s)
        except OSError as error:
            seen = refused(describe(error))
        except MemoryError:
            seen = refused("there is no more memory")
        except BaseException as error:  # noqa: BLE001 - never back into the parent's stack
            seen = allowed(f"the probe broke: {error!r}")
        os.write(writer, json.dumps(seen).encode())
    finally:
        os._exit(0)


def _try_workspace(s: Surroundings) -> Seen | None:
    """Where nothing can be prepared, an attack that fails would look like one that is refused."""
    try:
        Path(path := new_path(s.workspace)).mkdir()
        Path(path).rmdir()
    except OSError as error:
        return allowed(f"not tried: the workspace cannot be written, {describe(error)}")
    return None


def _read(reader: int, deadline: float) -> bytes | None:
    """What the probe wrote until it ended; None when it has not by the deadline.

    A process that it left behind may hold the pipe: a complete message ends the reading.
    """
    said = b""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while (left_s := deadline - time.monotonic()) > 0:
        if not poll.poll(left_s * 1000):
            break
        data = os.read(reader, _READ_BYTES)
        said += data
        if not data or said.endswith(b"]]"):
            return said
    return None


def _end(pid: int) -> int:
    """Kill what is left of a probe, its group first; the wait status of its process."""
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        time.sleep(0.001)
    else:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1]
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    return status


def _explain_silence(probe: Probe, code: int) -> Seen:
    name = signal.Signals(-code).name if code < 0 else f"status {code}"
    if code == -signal.SIGSYS:
        return refused("ended by SIGSYS")
    if probe.deadly and code in {-signal.SIGKILL, -signal.SIGXFSZ, -signal.SIGBUS}:
        return contained(f"ended by {name}")
    return allowed(f"the probe broke: it ended by {name}")
