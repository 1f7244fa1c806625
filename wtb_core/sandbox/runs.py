"""One process of an attempt, followed on its session from its job to its end.

The clock of a limit starts when the process says that user code starts, and stands still while the
process waits for an answer of ours.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from wtb_core.attempts import NodeRun
from wtb_core.errors import SetupError, ThreadRefused, WireError
from wtb_core.sandbox.processes import Exit
from wtb_core.sandbox.supervisor import START_TIMEOUT_S, Launched
from wtb_core.sandbox.wire import Frame

MAX_NODE_RUNS = 10_000
MAX_TEXT_CHARS = 1000
"""How much is kept of a node's name and of its error."""

_FRAMES_PER_TURN = 32

Handler = Callable[[dict[str, Any], list[bytes]], Awaitable[Frame | None]]


class Ended(NamedTuple):
    """How one process ended. Without a `result` it timed out, or ended by itself."""

    exit: Exit
    result: dict[str, Any] | None
    output: bytes
    timed_out: bool
    started: bool
    duration_ms: int
    broken: str | None


class Run:
    """Sends a job, answers requests with `handler`, and keeps the time."""

    def __init__(self, launched: Launched, handler: Handler, timeout_s: float) -> None:
        self._process, self._job = launched
        self._handler = handler
        self._timeout_s = timeout_s
        self._started_at: float | None = None
        self._blocked_s = 0.0

    async def follow(self, operation: str) -> Ended:
        """The process's end; nothing of it is alive when this returns or raises."""
        result: tuple[dict[str, Any], bytes] | None = None
        timed_out = False
        broken: str | None = None
        try:
            try:
                async with asyncio.timeout(START_TIMEOUT_S) as deadline:
                    result = await self._converse(operation, deadline)
            except TimeoutError:
                timed_out = True
            except WireError as error:
                broken = str(error)
            duration_ms = round(self._elapsed_s() * 1000)
            ended = await self._process.kill()
            header, output = result or (None, b"")
            started = self._started_at is not None
            return Ended(ended, header, output, timed_out, started, duration_ms, broken)
        finally:
            await self._process.close()

    async def _converse(
        self, operation: str, deadline: asyncio.Timeout
    ) -> tuple[dict[str, Any], bytes] | None:
        try:
            await self._process.session.send({"op": operation}, json.dumps(self._job).encode())
            return await self._serve(deadline)
        except (EOFError, OSError):
            # The process has ended or has closed its session and runs on, on its own time.
            await self._process.wait()
            return None

    def _elapsed_s(self) -> float:
        if self._started_at is None:
            return 0.0
        return max(0.0, time.monotonic() - self._started_at - self._blocked_s)

    async def _serve(self, deadline: asyncio.Timeout) -> tuple[dict[str, Any], bytes]:
        loop = asyncio.get_running_loop()
        for count in itertools.count(1):
            if count % _FRAMES_PER_TURN == 0:
                await asyncio.sleep(0)  # receiving what is there already does not yield
            header, blobs = await self._process.session.receive()
            operation = header.get("op")
            if not isinstance(operation, str):
                raise WireError("a message does not say what it is about")
            if operation == "result":
                return header, blobs[0] if blobs else b""
            if operation == "started" and self._started_at is None:
                self._started_at = time.monotonic()
                deadline.reschedule(loop.time() + self._timeout_s)
                continue
            asked_at = time.monotonic()
            deadline.reschedule(None)
            answer = await self._answer(header, blobs)
            self._blocked_s += time.monotonic() - asked_at
            started = self._started_at is not None
            left_s = self._timeout_s - self._elapsed_s() if started else START_TIMEOUT_S
            deadline.reschedule(loop.time() + left_s)
            if answer is not None:
                await self._process.session.send(answer[0], *answer[1])
        raise AssertionError("the count never ends")

    async def _answer(self, header: dict[str, Any], blobs: list[bytes]) -> Frame | None:
        try:
            return await self._handler(header, blobs)
        except (ThreadRefused, SetupError) as error:
            return {"refused": str(error)}, []


class NodeLog:
    """The node runs that a process has told of."""

    def __init__(self) -> None:
        self.count = 0
        self.runs: list[NodeRun] = []
        self._open: dict[int, str] = {}

    def take(self, header: dict[str, Any]) -> bool:
        """Record a frame about nodes; False when it is about something else.

        Raises:
            WireError: when the frame makes no sense.
        """
        if header.get("op") not in {"node_started", "node_ended"}:
            return False
        try:
            self._record(header)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise WireError(f"a node's record is malformed: {error}") from error
        return True

    def find_running(self) -> str | None:
        """The node that started last of those still running."""
        return next(reversed(self._open.values()), None)

    def _record(self, header: dict[str, Any]) -> None:
        index, at_ms = int(header["index"]), int(header["at_ms"])
        if header["op"] == "node_started":
            name = str(header["name"])[:MAX_TEXT_CHARS]
            run = NodeRun(name=name, superstep=int(header["superstep"]), start_ms=at_ms)
            self.count += 1
            if len(self._open) < MAX_NODE_RUNS:
                self._open[index] = run.name
            if len(self.runs) < MAX_NODE_RUNS:
                self.runs.append(run)
            return
        self._open.pop(index, None)
        if 0 <= index < len(self.runs):
            error = header["error"]
            change = {
                "end_ms": at_ms,
                "error": None if error is None else str(error)[:MAX_TEXT_CHARS],
            }
            self.runs[index] = NodeRun.model_validate(dict(self.runs[index]) | change)
