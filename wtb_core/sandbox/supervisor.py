"""Keeps the process that a project's executions are forked from, and describes projects.

It is a warm zygote, or a starter of new interpreters where a project cannot be forked safely. It is
started again when it has died.
"""

import asyncio
import json
import logging
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from wtb_core.errors import LaunchLost, SetupError, WireError
from wtb_core.redaction import Redactor
from wtb_core.sandbox.ladder import Sandbox
from wtb_core.sandbox.leftovers import open_log, remove_tree
from wtb_core.sandbox.processes import (
    Layout,
    Mode,
    Nursery,
    Place,
    SandboxProcess,
    describe_status,
    start_nursery,
)
from wtb_core.sandbox.setup import ProjectSetup

START_TIMEOUT_S = 60.0
DESCRIBE_TIMEOUT_S = 60.0

_log = logging.getLogger(__name__)

_LOG_LINES = 20
_LOG_CHARS = 4000


class Launched(NamedTuple):
    """A process that waits on its session, and the job it is to get."""

    process: SandboxProcess
    job: dict[str, Any]


class Supervisor:
    """The processes of one project setup. `directory` is private to it: log, HOME, TMPDIR.

    Executions have their places below `scratch`; `layers` may lie below their workspaces.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        setup: ProjectSetup,
        directory: Path,
        scratch: Path,
        layers: Sequence[Path] = (),
    ) -> None:
        self.sandbox = sandbox
        self.setup = setup
        self.directory = directory
        self.log = directory / "zygote.log"
        bases = [path for path in (setup.code, setup.packages, setup.workspace) if path is not None]
        self._layout = Layout(scratch, bases, layers, sandbox.hidden)
        self._start_lock = asyncio.Lock()
        self._nursery: Nursery | None = None
        self.start_reason: str | None = (
            "the project says `start: fresh`" if setup.start == "fresh" else None
        )

    @property
    def start(self) -> Literal["fork", "fresh"]:
        """`fresh` when the project asks for it or cannot be forked safely."""
        return "fresh" if self.start_reason else "fork"

    async def ready(self) -> Nursery:
        """The zygote, or the starter of new interpreters, started unless it runs.

        Raises:
            SetupError: when it cannot start; says why, with the last lines of its log.
        """
        async with self._start_lock:
            if self._nursery is not None and self._nursery.is_alive():
                return self._nursery
            await self._stop()
            if self.start_reason is None:
                nursery, self.start_reason = await self._start("zygote")
                if self.start_reason is None:
                    self._nursery = nursery
                    return nursery
                await nursery.close()
            self._nursery, _ = await self._start("starter")
            return self._nursery

    async def launch(self, place: Place, job: dict[str, Any]) -> Launched:
        """A new process in its place, with the job that it is to be sent.

        Raises:
            SetupError: when no process can be made.
        """
        nursery = await self.ready()
        process = await nursery.fork(place)
        complete = {
            "setup": self.setup.model_dump(mode="json"),
            "home": str(place.home),
            "tmp": str(place.tmp),
            "bounds": nursery.make_bounds(place),
            **job,
        }
        return Launched(process, complete)

    async def close(self) -> None:
        """Kill the nursery and all that was forked from it; remove the directory."""
        async with self._start_lock:
            await self._stop()
            try:
                await asyncio.to_thread(remove_tree, self.directory)
            except OSError as error:
                _log.warning("%s could not be removed completely: %s", self.directory, error)

    async def _start(self, mode: Mode) -> tuple[Nursery, str | None]:
        """A nursery that is ready, and why it must not be forked with the project, if so."""
        grade = await self.sandbox.find_grade()
        setup = self.setup
        nursery = await start_nursery(
            *(mode, setup.python, setup.environment, self.directory),
            *(self._layout, grade.confinement),
        )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await nursery.session.send({"setup": setup.model_dump(mode="json")})
                answer, _ = await nursery.session.receive()
                return nursery, answer["obstacle"]
        except TimeoutError as error:
            await nursery.close()
            message = f"the project did not load in {START_TIMEOUT_S:.0f} s"
            raise SetupError("start", self._with_log(message)) from error
        except (EOFError, OSError, WireError, KeyError) as error:
            status = await nursery.end()
            await nursery.close()
            message = f"the process that loads the project {describe_status(status)}"
            fault = LaunchLost if status in {None, signal.SIGKILL} else SetupError
            raise fault("start", self._with_log(message)) from error
        except BaseException:  # raised again below
            await nursery.close()
            raise

    async def _stop(self) -> None:
        nursery, self._nursery = self._nursery, None
        if nursery is not None:
            await nursery.close()

    def _with_log(self, message: str) -> str:
        lines = read_tail(self.log)
        return f"{message}; it last said:\n{lines}" if lines else message


def read_tail(path: Path, lines: int = _LOG_LINES) -> str:
    """The last lines of a log, cut to a few kilobytes; empty when there is none."""
    try:
        with open_log(path) as file:
            cut = file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_CHARS)) > 0
            text = file.read(_LOG_CHARS).decode(errors="replace")
    except FileNotFoundError:
        return ""
    if cut:  # a part of a line may be a part of a secret, which redaction would not know
        text = text.partition("\n")[2] or "(one long line)"
    return "\n".join(text.strip().splitlines()[-lines:])


async def describe(
    sandbox: Sandbox, setup: ProjectSetup, timeout_s: float = DESCRIBE_TIMEOUT_S
) -> dict[str, Any]:
    """What `describe_project` says of the setup, in a process of its own.

    Never raises for what is wrong with the project: code that crashes, hangs or cannot be started
    at all is a problem of the description.
    """
    directory = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="wtb-describe-"))
    fresh = setup.model_copy(update={"start": "fresh"})
    supervisor = Supervisor(sandbox, fresh, directory, directory / "room")
    try:
        description = await _describe_again(supervisor, timeout_s)
    except SetupError as error:
        description = _undescribed(error.message)
    finally:
        await supervisor.close()
    description = Redactor(setup.secrets).value(description)
    if setup.start == "fresh":
        return {**description, "start": "fresh", "start_reason": supervisor.start_reason}
    return description


async def _describe_again(supervisor: Supervisor, timeout_s: float) -> dict[str, Any]:
    """Describe once more when the process was killed: that says nothing of the project."""
    for _ in range(2):
        try:
            return await _describe(supervisor, timeout_s)
        except LaunchLost as error:
            _log.warning("a project is described again: %s", error)
    return await _describe(supervisor, timeout_s)


async def _describe(supervisor: Supervisor, timeout_s: float) -> dict[str, Any]:
    output = supervisor.directory / "output"
    place = await asyncio.to_thread(make_place, supervisor.directory / "room", output)
    launched = await supervisor.launch(place, {})
    process = launched.process
    try:
        async with asyncio.timeout(timeout_s):
            await process.session.send({"op": "describe"}, json.dumps(launched.job).encode())
            _, blobs = await process.session.receive()
            return json.loads(blobs[0])
    except TimeoutError:
        return _undescribed(f"importing the project took longer than {timeout_s:.0f} s")
    except (EOFError, OSError, WireError, ValueError, IndexError):
        exit_ = await process.kill()
        ended = describe_status(exit_.status)
        if exit_.over is None and exit_.status in {None, signal.SIGKILL}:
            message = f"the process that imports the project {ended}"
            raise LaunchLost("describe", message) from None
        said = read_tail(output) or read_tail(supervisor.log)
        last = f"; it last said:\n{said}" if said else ""
        return _undescribed(f"the process that imports the project {ended}{last}")
    finally:
        await process.close()


def make_place(directory: Path, output: Path) -> Place:
    """A place with directories of its own, for what is no attempt."""
    place = Place(directory / "home", directory / "tmp", output, output)
    for path in (place.home, place.tmp):
        path.mkdir(parents=True, exist_ok=True)
    return place


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
