"""Starts and ends the processes that run a project's code; the only code that does.

Works on any asyncio loop, in any thread. Each execution is a process below an init of its own
(`init.py`); forked from a warm zygote, or from a new interpreter where that is not safe. The
replica itself never forks and never sees project code. Every process dies with its socket.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

from wtb_core.errors import SetupError, WireError
from wtb_core.redaction import Redactor
from wtb_core.sandbox import boot
from wtb_core.sandbox.setup import ProjectSetup
from wtb_core.sandbox.wire import AsyncChannel

START_TIMEOUT_S = 60.0
DESCRIBE_TIMEOUT_S = 60.0

# Numeric libraries start a pool of threads at import, and a process with threads cannot be forked.
THREAD_CAPS = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

_BOOT = str(Path(boot.__file__).resolve())
_LOG_LINES = 20
_LOG_CHARS = 4000


class Exit(NamedTuple):
    """How a process and everything below it ended; `status` as of waitpid(2), None if unknown."""

    status: int | None
    cpu_ms: int | None
    peak_rss_bytes: int | None


class SandboxProcess:
    """One process of user code below its init: its session, its end, its kill."""

    def __init__(
        self,
        session: AsyncChannel,
        leash: AsyncChannel,
        interpreter: asyncio.subprocess.Process | None,
    ) -> None:
        self.session = session
        self._leash = leash
        self._interpreter = interpreter
        self._exit: asyncio.Task[Exit] = asyncio.create_task(self._await_exit())

    def is_alive(self) -> bool:
        """Whether its init has not reported the end yet."""
        return not self._exit.done()

    async def wait(self) -> Exit:
        """The end of the process; when this returns, nothing it started is alive."""
        return await asyncio.shield(self._exit)

    async def kill(self) -> Exit:
        """Kill it and all its descendants; also fine when it has ended."""
        with contextlib.suppress(OSError):
            self._leash.sock.send(b"K")
        return await self.wait()

    async def close(self) -> None:
        """Kill what is left and free the sockets; not interrupted by cancellation."""
        closing = asyncio.ensure_future(self.kill())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await closing
            raise
        finally:
            self.session.close()
            self._leash.close()

    async def _await_exit(self) -> Exit:
        try:
            report, _ = await self._leash.receive()
            found = Exit(report["status"], report["cpu_ms"], report["peak_rss_bytes"])
        except (EOFError, OSError, WireError):
            found = Exit(None, None, None)
        if self._interpreter is not None:
            await self._interpreter.wait()
        return found


class Supervisor:
    """The processes of one project setup. `directory` is private to it: log, HOME, TMPDIR.

    The zygote lies below an init as well, as does the launcher that takes its place where a project
    cannot be forked: whatever is left behind dies with it, and so do the executions.
    """

    def __init__(self, setup: ProjectSetup, directory: Path) -> None:
        self.setup = setup
        self.directory = directory
        self.log = directory / "zygote.log"
        self._start_lock = asyncio.Lock()
        self._source: SandboxProcess | None = None  # what executions are forked from
        self.start_reason: str | None = (
            "the project says `start: fresh`" if setup.start == "fresh" else None
        )

    @property
    def start(self) -> Literal["fork", "fresh"]:
        """`fresh` when the project asks for it or cannot be forked safely."""
        return "fresh" if self.start_reason else "fork"

    async def ready(self) -> None:
        """Start the zygote, or the launcher of new interpreters, unless it runs.

        Raises:
            SetupError: when it cannot start; says why, with the last lines of its log.
        """
        async with self._start_lock:
            if self._source is not None and self._source.is_alive():
                return
            await self._stop()
            try:
                if self.start_reason is None:
                    self._source = await self._spawn("zygote")
                    self.start_reason = await self._load(self._source)
                    if self.start_reason is None:
                        return
                    await self._stop()
                self._source = await self._spawn("launcher")
                await self._load(self._source)
            except BaseException:  # raised again below
                await self._stop()
                raise

    async def launch(self) -> SandboxProcess:
        """A new process that waits for its job on its session.

        Raises:
            SetupError: when no process can be made.
        """
        await self.ready()
        session, child_session = socket.socketpair()
        leash, child_leash = socket.socketpair()
        try:
            if self._source is None:
                raise BrokenPipeError("it has just been closed")
            # One byte each; the socket holds hundreds of them.
            numbers = [child_session.fileno(), child_leash.fileno()]
            socket.send_fds(self._source.session.sock, [b"f"], numbers)
        except OSError as error:
            session.close()
            leash.close()
            raise SetupError("start", f"the process to fork from is gone: {error}") from error
        finally:
            child_session.close()
            child_leash.close()
        return SandboxProcess(AsyncChannel(session), AsyncChannel(leash), None)

    async def close(self) -> None:
        """Kill the zygote or launcher and all that was forked from it; remove the directory."""
        async with self._start_lock:
            await self._stop()
            await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    async def _load(self, source: SandboxProcess) -> str | None:
        """Wait until it is ready; why it must not be forked with the project, None when it may."""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await source.session.send({"setup": self.setup.model_dump(mode="json")})
                answer, _ = await source.session.receive()
                return answer["obstacle"]
        except TimeoutError as error:
            message = f"the project did not load in {START_TIMEOUT_S:.0f} s"
            raise SetupError("start", self._with_log(message)) from error
        except (EOFError, OSError, WireError, KeyError) as error:
            ended = describe_status((await source.kill()).status)
            message = f"the process that loads the project {ended}"
            raise SetupError("start", self._with_log(message)) from error

    async def _stop(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            await source.close()

    async def _spawn(self, mode: Literal["zygote", "launcher"]) -> SandboxProcess:
        session, child_session = socket.socketpair()
        leash, child_leash = socket.socketpair()
        try:
            interpreter = await self._start_interpreter(mode, child_session, child_leash)
        except BaseException:  # raised again below
            session.close()
            leash.close()
            raise
        finally:
            child_session.close()
            child_leash.close()
        return SandboxProcess(AsyncChannel(session), AsyncChannel(leash), interpreter)

    async def _start_interpreter(
        self, mode: str, *sockets: socket.socket
    ) -> asyncio.subprocess.Process:
        numbers = [sock.fileno() for sock in sockets]
        home, tmp = self.directory / "home", self.directory / "tmp"
        await asyncio.to_thread(_make_directories, home, tmp)
        environment = {
            **dict.fromkeys(THREAD_CAPS, "1"),
            **self.setup.environment,
            "HOME": str(home),
            "TMPDIR": str(tmp),
        }
        with self.log.open("wb") as log:
            try:
                return await asyncio.create_subprocess_exec(
                    *(self.setup.python, "-I", "-B", _BOOT, mode),
                    *map(str, numbers),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    cwd=self.setup.code,
                    pass_fds=numbers,
                    start_new_session=True,
                )
            except OSError as error:
                raise SetupError(
                    "start",
                    f"the interpreter {self.setup.python} cannot be started: {error.strerror}",
                ) from error

    def _with_log(self, message: str) -> str:
        lines = read_tail(self.log)
        return f"{message}; it last said:\n{lines}" if lines else message


def _make_directories(*directories: Path) -> None:
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)


def read_tail(path: Path, lines: int = _LOG_LINES) -> str:
    """The last lines of a log, cut to a few kilobytes; empty when there is none."""
    try:
        with path.open("rb") as file:
            cut = file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_CHARS)) > 0
            text = file.read(_LOG_CHARS).decode(errors="replace")
    except FileNotFoundError:
        return ""
    if cut:  # a part of a line may be a part of a secret, which redaction would not know
        text = text.partition("\n")[2] or "(one long line)"
    return "\n".join(text.strip().splitlines()[-lines:])


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


async def describe(setup: ProjectSetup, timeout_s: float = DESCRIBE_TIMEOUT_S) -> dict[str, Any]:
    """What `describe_project` says of the setup, in a process of its own.

    Never raises for what is wrong with the project: code that crashes, hangs or cannot be started
    at all is a problem of the description.
    """
    directory = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="wtb-describe-"))
    supervisor = Supervisor(setup.model_copy(update={"start": "fresh"}), directory)
    try:
        description = await _describe(supervisor, timeout_s)
    except SetupError as error:
        description = _undescribed(error.message)
    finally:
        await supervisor.close()
    description = Redactor(setup.secrets).value(description)
    if setup.start == "fresh":
        return {**description, "start": "fresh", "start_reason": supervisor.start_reason}
    return description


async def _describe(supervisor: Supervisor, timeout_s: float) -> dict[str, Any]:
    process = await supervisor.launch()
    output = supervisor.directory / "output"
    job = {
        "setup": supervisor.setup.model_dump(mode="json"),
        "home": str(supervisor.directory / "home"),
        "tmp": str(supervisor.directory / "tmp"),
        "stdout": str(output),
        "stderr": str(output),
        "file_size": 1024**3,
    }
    try:
        async with asyncio.timeout(timeout_s):
            await process.session.send({"op": "describe"}, json.dumps(job).encode())
            _, blobs = await process.session.receive()
            return json.loads(blobs[0])
    except TimeoutError:
        return _undescribed(f"importing the project took longer than {timeout_s:.0f} s")
    except (EOFError, OSError, WireError, ValueError, IndexError):
        ended = describe_status((await process.kill()).status)
        said = read_tail(output) or read_tail(supervisor.log)
        last = f"; it last said:\n{said}" if said else ""
        return _undescribed(f"the process that imports the project {ended}{last}")
    finally:
        await process.close()


def _undescribed(problem: str) -> dict[str, Any]:
    return {
        "graphs": {},
        "nodes": {},
        "evaluators": {},
        "problems": [problem],
        "start": "fork",
        "start_reason": None,
        "python": None,
        "langgraph": None,
    }
