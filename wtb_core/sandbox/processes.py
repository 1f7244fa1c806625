"""Starts and ends the processes that run a project's code; the only code that does.

Works on any asyncio loop, in any thread. A nursery is the process that executions are forked from.
Where the kernel allows it, the nursery and each execution have namespaces of their own, and an
execution ends with its slot's init; elsewhere each execution lies below an init that kills its
descendants. The replica itself never forks and never sees project code. Every process dies with
its socket.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from wtb_core.errors import LaunchLost, SetupError, WireError
from wtb_core.loops import finish
from wtb_core.sandbox import boot
from wtb_core.sandbox.confinement import Bounds
from wtb_core.sandbox.root import Plan
from wtb_core.sandbox.slots import Mount, Overlay, Request, can_limit_root
from wtb_core.sandbox.wire import AsyncChannel, wait_readable

# Numeric libraries start a pool of threads at import, and a process with threads cannot be forked.
THREAD_CAPS = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
ENTER_TIMEOUT_S = 30.0
SLOT_TIMEOUT_S = 30.0
_END_TIMEOUT_S = 5.0

_BOOT = str(Path(boot.__file__).resolve())
_MAX_DESCRIPTORS = 8

_STREAM_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW

Mode = Literal["zygote", "starter", "prober"]


class Confinement(NamedTuple):
    """How processes are confined: the kind of their namespaces, and whether by Landlock too."""

    namespaces: Literal["user", "root", "none"]
    landlock: bool


class Layout(NamedTuple):
    """Where a nursery's executions have their places.

    Each lies below `scratch`. `bases` are shown and used as lower layers, `layers` only used;
    `hidden` is never seen by user code, except for what of it is shown on purpose.
    """

    scratch: Path
    bases: Sequence[Path] = ()
    layers: Sequence[Path] = ()
    hidden: Sequence[Path] = ()


class Place(NamedTuple):
    """Where one process works, as host paths, and what it may use.

    `workspace` is where user code sees its files; `overlay` says what it is made of, null when it
    is a directory as it stands. `base` is where the workspace is seen too: the path of the tree
    that it is a copy of. `files` are written into it before user code runs, in an overlay only.
    """

    home: Path
    tmp: Path
    stdout: Path
    stderr: Path
    workspace: Path | None = None
    overlay: Overlay | None = None
    base: Path | None = None
    files: Mapping[str, str] = {}
    network: bool = True
    memory: int | None = None
    disk: int | None = None
    processes: int | None = None
    file_size: int = 1024**3
    cpu_seconds: int | None = None


class Exit(NamedTuple):
    """How a process and everything below it ended; `status` as of waitpid(2), None if unknown.

    `over` names the bound that it was killed for.
    """

    status: int | None
    cpu_ms: int | None
    peak_rss_bytes: int | None
    over: Literal["memory", "disk"] | None = None


class SandboxProcess:
    """One process of user code: its session, its end, its kill.

    `pidfd` is the init of its slot; null when the process lies below an init of the older kind,
    which is asked to kill and reports on the same socket, the leash.
    """

    def __init__(
        self, session: AsyncChannel, leash: AsyncChannel, report: AsyncChannel, pidfd: int | None
    ) -> None:
        self.session = session
        self._leash = leash
        self._report = report
        self._pidfd = pidfd
        self._exit: asyncio.Task[Exit] = asyncio.create_task(self._await_exit())

    def is_alive(self) -> bool:
        """Whether its end has not been reported yet."""
        return not self._exit.done()

    async def wait(self) -> Exit:
        """The end of the process; when this returns, nothing it started is alive."""
        return await asyncio.shield(self._exit)

    async def kill(self) -> Exit:
        """Kill it and all it started; also fine when it has ended."""
        if not self._exit.done():
            self._kill()
        return await self.wait()

    async def close(self) -> None:
        """Kill what is left and free the sockets; not interrupted by cancellation."""
        try:
            await finish(self.kill())
        finally:
            for channel in {self.session, self._leash, self._report}:
                channel.close()
            if self._pidfd is not None:
                os.close(self._pidfd)
                self._pidfd = None

    def _kill(self) -> None:
        if self._pidfd is None:
            with contextlib.suppress(OSError):
                self._leash.sock.send(b"K")
        else:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def _await_exit(self) -> Exit:
        found = await self._read_report()
        if self._pidfd is not None:
            self._kill()
            await wait_readable(self._pidfd)  # once all processes of the namespace are gone
            return found._replace(over=await _find_over(self._leash))
        return found

    async def _read_report(self) -> Exit:
        try:
            report, _ = await self._report.receive()
            return Exit(report["status"], report["cpu_ms"], report["peak_rss_bytes"])
        except (EOFError, OSError, WireError, KeyError):
            return Exit(None, None, None)


async def _find_over(leash: AsyncChannel) -> Literal["memory", "disk"] | None:
    try:
        note, _ = await leash.receive()
    except (EOFError, OSError, WireError):
        return None
    return note.get("over")


class Nursery:
    """The process that executions are forked from, in its namespaces, with its interpreter."""

    def __init__(
        self,
        confinement: Confinement,
        layout: Layout,
        session: AsyncChannel,
        control: AsyncChannel | None,
        leash: AsyncChannel,
        interpreter: asyncio.subprocess.Process,
    ) -> None:
        self.confinement = confinement
        self.session = session
        self._layout = layout
        self._control = control
        self._leash = leash
        self._interpreter = interpreter
        self._exit: asyncio.Task[Exit] = asyncio.create_task(self._await_exit())

    def is_alive(self) -> bool:
        """Whether its interpreter has not ended."""
        return not self._exit.done()

    async def end(self) -> int | None:
        """Its wait status after it has closed its session; it is killed if it does not end."""
        if self._control is not None:
            try:
                async with asyncio.timeout(_END_TIMEOUT_S):
                    answer, _ = await self._control.receive()
                    return answer.get("ended")
            except (EOFError, OSError, WireError, TimeoutError):
                return (await self.kill()).status
        return (await self.kill()).status

    async def kill(self) -> Exit:
        """Kill it and all that was forked from it; also fine when it has ended."""
        with contextlib.suppress(OSError):
            self._leash.sock.send(b"K")
        return await asyncio.shield(self._exit)

    async def close(self) -> None:
        """Kill what is left and free the sockets; not interrupted by cancellation."""
        try:
            await finish(self.kill())
        finally:
            for channel in (self.session, self._control, self._leash):
                if channel is not None:
                    channel.close()

    async def fork(self, place: Place) -> SandboxProcess:
        """A new process that waits for its job on its session.

        Raises:
            SetupError: when it cannot be given what `place` says.
            LaunchLost: when this nursery has died, or the slot has; a dead nursery has ended whole
                by then, so that the next one can be started.
        """
        try:
            return await self._fork_process(place)
        except LaunchLost as error:
            if error.step == "start":
                await finish(self.kill())
            raise

    async def _fork_process(self, place: Place) -> SandboxProcess:
        if self._control is None:
            session, report = self._fork(place, [])
            leash = AsyncChannel(report)
            return SandboxProcess(AsyncChannel(session), leash, leash, None)
        sock, mine = socket.socketpair()
        leash = AsyncChannel(sock)
        try:
            with mine:
                _ask(self._control, b"s", [mine.fileno()])
            handles = await self._make_slot(leash, place)
            try:
                session, report = self._fork(place, handles[1:])
            except BaseException:  # raised again below
                os.close(handles[0])
                raise
            finally:
                for handle in handles[1:]:
                    os.close(handle)
        except BaseException:  # raised again below
            leash.close()
            raise
        return SandboxProcess(AsyncChannel(session), leash, AsyncChannel(report), handles[0])

    async def _make_slot(self, leash: AsyncChannel, place: Place) -> list[int]:
        """The slot's init as a pidfd, and its namespaces."""
        request = make_request(place, self._layout.scratch)
        try:
            async with asyncio.timeout(SLOT_TIMEOUT_S):
                await leash.send({"slot": request})
                answer, handles = await leash.receive_with_descriptors(_MAX_DESCRIPTORS)
        except (EOFError, OSError, WireError, TimeoutError) as error:
            raise LaunchLost("slot", f"its init did not answer: {error!r}") from error
        if "failed" in answer:
            raise make_error(answer)
        return handles

    def _fork(self, place: Place, namespaces: Sequence[int]) -> tuple[socket.socket, socket.socket]:
        session, child_session = socket.socketpair()
        report, child_report = socket.socketpair()
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            ours.enter_context(session)
            ours.enter_context(report)
            numbers = [
                theirs.enter_context(sock).fileno() for sock in (child_session, child_report)
            ]
            for path in (place.stdout, place.stderr):
                numbers.append(os.open(path, _STREAM_FLAGS, 0o600))
                theirs.callback(os.close, numbers[-1])
            _ask(self.session, b"f", [*numbers, *namespaces])
            ours.pop_all()
        return session, report

    def make_bounds(self, place: Place) -> Bounds:
        """The bounds that a job of this place carries."""
        in_slot = self._control is not None
        base = place.base if in_slot else None  # elsewhere it is the one that all share
        writable = [place.home, place.tmp, *filter(None, (place.workspace, base))]
        return Bounds(
            landlock=self.confinement.landlock,
            in_slot=in_slot,
            readable=[str(path) for path in self._layout.bases],
            hidden=[str(path) for path in self._layout.hidden],
            writable=[str(path) for path in writable],
            file_size=place.file_size,
            processes=place.processes if in_slot else None,
            cpu_seconds=place.cpu_seconds,
        )

    async def _await_exit(self) -> Exit:
        try:
            report, _ = await self._leash.receive()
            found = Exit(report["status"], report["cpu_ms"], report["peak_rss_bytes"])
        except (EOFError, OSError, WireError, KeyError):
            found = Exit(None, None, None)
        code = await self._interpreter.wait()
        if found.status is None:  # not even an init of ours has run in it
            return found._replace(status=-code if code < 0 else code << 8)
        return found


async def start_nursery(
    mode: Mode,
    python: str,
    environment: Mapping[str, str],
    directory: Path,
    layout: Layout,
    confinement: Confinement,
) -> Nursery:
    """Start `mode` in a new interpreter, in namespaces of its own where `confinement` says so.

    `directory` is private to it: its log, HOME and TMPDIR.

    Raises:
        SetupError: when it cannot be started; `step` names what the kernel refused.
        LaunchLost: when it was killed meanwhile.
    """
    home, tmp = directory / "home", directory / "tmp"
    await asyncio.to_thread(_make_directories, home, tmp)
    kind = confinement.namespaces
    pairs = [socket.socketpair() for _ in range(2 if kind == "none" else 3)]
    numbers = [theirs.fileno() for _, theirs in pairs]
    variables = {**dict.fromkeys(THREAD_CAPS, "1"), **environment}
    try:
        with (directory / "zygote.log").open("wb") as log:
            interpreter = await asyncio.create_subprocess_exec(
                *(python, "-I", "-B", _BOOT, mode, kind, *map(str, numbers)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**variables, "HOME": str(home), "TMPDIR": str(tmp)},
                cwd=directory,
                pass_fds=numbers,
                start_new_session=True,
            )
    except OSError as error:
        for ours, _ in pairs:
            ours.close()
        message = f"the interpreter {python} cannot be started: {error.strerror}"
        raise SetupError("start", message) from error
    finally:
        for _, theirs in pairs:
            theirs.close()
    session, *control, leash = [AsyncChannel(ours) for ours, _ in pairs]
    nursery = Nursery(
        confinement, layout, session, control[0] if control else None, leash, interpreter
    )
    if control:
        try:
            await _enter(control[0], directory, layout, confinement)
        except (EOFError, OSError, WireError, TimeoutError) as error:
            status = (await nursery.kill()).status
            await nursery.close()
            was_killed = isinstance(error, EOFError) and status in {None, signal.SIGKILL}
            fault = LaunchLost if was_killed else SetupError
            message = f"the interpreter {python} {describe_status(status)}"
            raise fault("start", message) from error
        except BaseException:  # raised again below
            await nursery.close()
            raise
    return nursery


async def _enter(
    control: AsyncChannel, directory: Path, layout: Layout, confinement: Confinement
) -> None:
    scratch, own = str(layout.scratch), str(directory)
    bases = [str(path) for path in layout.bases]
    plan: Plan = {
        "visible": bases,
        "hidden": [str(path) for path in layout.hidden],
        "areas": [own, scratch, *bases, *map(str, layout.layers)],
        "rooms": [own, scratch],
    }
    header = {
        "plan": plan,
        "root": str(directory / "root"),
        "home": own,
        "landlock": confinement.landlock,
    }
    await asyncio.to_thread(_make_directories, directory / "root", layout.scratch, *layout.layers)
    async with asyncio.timeout(ENTER_TIMEOUT_S):
        await control.send(header)
        answer, _ = await control.receive()
    if "failed" in answer:
        raise make_error(answer)


def make_error(answer: Mapping[str, Any]) -> SetupError:
    """The error that a launcher or a slot told of."""
    failed: dict[str, Any] = answer["failed"]
    return SetupError(str(failed["step"]), str(failed["message"]), failed["errno"])


def _ask(channel: AsyncChannel, byte: bytes, numbers: list[int]) -> None:
    """Send one byte with descriptors; the socket holds hundreds of them."""
    try:
        socket.send_fds(channel.sock, [byte], numbers)
    except OSError as error:
        raise LaunchLost("start", f"the process to fork from is gone: {error}") from error


def make_request(place: Place, scratch: Path) -> Request:
    """What the slot of `place` is made of."""
    mounts: list[Mount] = []
    if place.workspace is not None:
        targets = [place.workspace, *([place.base] if place.base is not None else [])]
        source = str(place.workspace) if place.overlay is None else place.overlay
        mounts.append({"source": source, "targets": [str(path) for path in targets]})
    own = [str(place.home), str(place.tmp)]
    mounts += [Mount(source=path, targets=[path]) for path in own]
    is_root = os.geteuid() == 0
    return {
        "tmp": str(place.tmp),
        "rooms": [str(scratch)],
        "mounts": mounts,
        "files": dict(place.files),
        "network": place.network,
        "memory": place.memory,
        "disk": place.disk,
        "processes": place.processes if is_root and can_limit_root() else None,
    }


def _make_directories(*directories: Path) -> None:
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)


def describe_status(status: int | None) -> str:
    """A status of waitpid(2) in words; None is the status of a process whose init was killed."""
    if status is None:
        return "was killed, or its parent was"
    code = os.waitstatus_to_exitcode(status)
    return f"ended with exit code {code}" if code >= 0 else f"was killed by {_signal_name(-code)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
