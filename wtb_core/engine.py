"""Runs one attempt from assignment to outcome: workspace, process, checkpoints, evaluators, logs.

Whatever happens to the attempt becomes its outcome; only cancellation of the caller raises. When
`execute` returns or raises, no process of the attempt is alive.
"""

import asyncio
import json
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from wtb_core.attempts import MAX_LOG_BYTES, Assignment, Evaluation, Failure, Outcome
from wtb_core.checkpoint_store import CheckpointSession, CheckpointStore, Scope
from wtb_core.errors import FenceError, WtbError
from wtb_core.files.blobs import BlobStore
from wtb_core.files.copying import copy_tree
from wtb_core.parameters import LOG_STREAMS
from wtb_core.redaction import Redactor
from wtb_core.sandbox import workspaces
from wtb_core.sandbox.evaluating import evaluate
from wtb_core.sandbox.runs import Ended, NodeLog, Run
from wtb_core.sandbox.setup import ProjectSetup
from wtb_core.sandbox.supervisor import Supervisor, describe_status, read_tail
from wtb_core.sandbox.wire import Frame

MAX_ZYGOTES = 8

ISOLATION: dict[str, Any] = {
    "workspace": "C",
    "confinement": "none",
    "missed": [
        {
            "level": "A",
            "step": "overlay",
            "errno": None,
            "meaning": "this version copies the workspace; no mount isolation",
        },
        {
            "level": "B",
            "step": "reflink",
            "errno": None,
            "meaning": "this version copies the workspace file by file",
        },
        {
            "level": "A",
            "step": "processes",
            "errno": None,
            "meaning": "limits.processes is not enforced without a namespace of its own",
        },
        {
            "level": "A",
            "step": "network",
            "errno": None,
            "meaning": "workspace.network: false is not enforced without a network namespace",
        },
    ],
}

_log = logging.getLogger(__name__)


class Engine:
    """Executes attempts below `runs`; one per replica, used from one event loop."""

    def __init__(
        self,
        runs: Path,
        blobs: BlobStore,
        checkpoints: CheckpointStore,
        find_setup: Callable[[str, str], Awaitable[ProjectSetup]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runs = runs.absolute()
        self.blobs = blobs
        self.checkpoints = checkpoints
        self._find_setup = find_setup
        self.clock = clock
        self._supervisors: dict[tuple[str, str], _Shared] = {}
        self._attempts: dict[tuple[str, int], asyncio.Task[Outcome]] = {}
        self._reasons: dict[tuple[str, int], str] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def execute(self, assignment: Assignment) -> Outcome:
        """The outcome of one attempt.

        Cancelling the caller kills the attempt's processes and raises.
        """
        key = (assignment.execution_id, assignment.attempt)
        started_at = self.clock()
        attempt = _Attempt(self, assignment)
        task = asyncio.create_task(attempt.run())
        self._attempts[key] = task
        outcome: Outcome | None = None
        try:
            outcome = await task
            return outcome
        except asyncio.CancelledError:
            reason = self._reasons.get(key)
            caller = asyncio.current_task()
            if reason is None or (caller is not None and caller.cancelling()):
                raise
            duration_ms = round((self.clock() - started_at) * 1000)
            outcome = Outcome(status="cancelled", duration_ms=duration_ms, isolation=ISOLATION)
            return outcome
        finally:
            del self._attempts[key]
            self._reasons.pop(key, None)
            self._tidy(assignment, outcome)

    async def cancel(self, execution_id: str, reason: str) -> bool:
        """Kill the execution's processes, if it runs here; its `execute` returns `cancelled`."""
        found = [key for key in self._attempts if key[0] == execution_id]
        for key in found:
            self._reasons[key] = reason
            self._attempts[key].cancel()
        return bool(found)

    async def close(self) -> None:
        """Cancel what runs, end all processes, finish what was begun in the background."""
        running = list(self._attempts.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        supervisors = [shared.supervisor for shared in self._supervisors.values()]
        self._supervisors.clear()
        await asyncio.gather(*(supervisor.close() for supervisor in supervisors))
        while self._background:
            await asyncio.gather(*self._background)

    async def find_supervisor(self, project: str, version: str) -> "_Shared":
        """The supervisor of a project's version; idle ones of others make room for it."""
        key = (project, version)
        if key not in self._supervisors:
            setup = await self._find_setup(project, version)
            directory = self.runs.parent / "zygotes" / f"{os.getpid()}-{project}-{version[:16]}"
            if key not in self._supervisors:
                self._supervisors[key] = _Shared(Supervisor(setup, directory))
        shared = self._supervisors.pop(key)
        self._supervisors[key] = shared  # the most recently used is last
        shared.users += 1
        idle = [k for k, other in self._supervisors.items() if not other.users]
        for old in idle[: max(0, len(self._supervisors) - MAX_ZYGOTES)]:
            self.start_background(self._supervisors.pop(old).supervisor.close())
        return shared

    def start_background(self, work: Awaitable[None]) -> None:
        """Do `work` beside the attempts; `close` waits for it."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _tidy(self, assignment: Assignment, outcome: Outcome | None) -> None:
        directory = self.attempt_directory(assignment)
        failed = outcome is not None and outcome.status == "failed"
        keep = assignment.workspace.keep
        kept = keep == "always" or (keep == "failed" and failed)

        self.start_background(asyncio.to_thread(_remove_attempt, directory, keep_workspace=kept))

    def attempt_directory(self, assignment: Assignment) -> Path:
        """Where an attempt's workspace and private directories lie."""
        return self.runs / assignment.execution_id / str(assignment.attempt)


class _Shared:
    """A supervisor and how many attempts use it."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.users = 0


class _Attempt:
    """The steps of one attempt."""

    def __init__(self, engine: Engine, assignment: Assignment) -> None:
        self.engine = engine
        self.assignment = assignment
        self.directory = engine.attempt_directory(assignment).absolute()
        self.nodes = NodeLog()
        self.start: Literal["fork", "fresh"] = "fork"
        self.start_reason: str | None = None
        self.checkpoints: CheckpointSession | None = None
        self.redactor = Redactor({})
        self.output: str | None = None  # without secrets; the evaluators get it as it was

    async def run(self) -> Outcome:
        started_at = self.engine.clock()
        try:
            outcome = await self._run()
            return self.redactor.outcome(outcome).model_copy(update={"output": self.output})
        except FenceError as error:
            failure = Failure(kind="lost", reason=str(error))
        except WtbError as error:
            failure = Failure(kind="setup", reason=str(error))
        duration_ms = round((self.engine.clock() - started_at) * 1000)
        outcome = self._outcome("failed", failure=failure, duration_ms=duration_ms)
        return self.redactor.outcome(outcome)

    async def _run(self) -> Outcome:
        assignment = self.assignment
        shared = await self.engine.find_supervisor(assignment.project, assignment.project_version)
        try:
            supervisor = shared.supervisor
            setup = supervisor.setup
            self.redactor = Redactor(setup.secrets)
            await finish_in_thread(self._make_directories, setup)
            scope = Scope(assignment.execution_id, assignment.attempt)
            await self.engine.checkpoints.raise_fence(*scope)
            self.checkpoints = self.engine.checkpoints.session(scope)
            ended = await self._run_graph(supervisor)
            outcome = await self._conclude(ended)
            if outcome.status == "succeeded" and assignment.evaluators:
                evaluation = await self._evaluate(supervisor, outcome)
                outcome = outcome.model_copy(update={"evaluation": evaluation})
            return outcome
        finally:
            shared.users -= 1

    def _make_directories(self, setup: ProjectSetup) -> None:
        workspace = self.directory / "workspace"
        if self.directory.exists():  # the same attempt, begun by a process that died
            workspaces.remove_tree(self.directory)
        copy_tree(setup.workspace, workspace, reflink=False)
        for name in ("home", "tmp"):
            (self.directory / name).mkdir()
        workspaces.write_files(workspace, self.assignment.variant.files)
        workspaces.write_files(workspace, self.assignment.case.get("files", {}))

    async def _run_graph(self, supervisor: Supervisor) -> Ended:
        process = await supervisor.launch()
        self.start, self.start_reason = supervisor.start, supervisor.start_reason
        assignment = self.assignment
        job = {
            **self._job(supervisor.setup),
            "execution_id": assignment.execution_id,
            "variant": assignment.variant.model_dump(mode="json"),
            "case": assignment.case,
            "workspace": str(self.directory / "workspace"),
            "output": assignment.limits.output,
        }
        run = Run(process, self._handle, assignment.limits.timeout)
        return await run.follow("run", job)

    def _job(self, setup: ProjectSetup, prefix: str = "") -> dict[str, Any]:
        return {
            "setup": setup.model_dump(mode="json"),
            "home": str(self.directory / "home"),
            "tmp": str(self.directory / "tmp"),
            "stdout": str(self.directory / f"{prefix}stdout"),
            "stderr": str(self.directory / f"{prefix}stderr"),
            "file_size": self.assignment.limits.file_size,
            "memory": self.assignment.limits.memory,
        }

    async def _handle(self, header: dict[str, Any], blobs: list[bytes]) -> Frame | None:
        if self.nodes.take(header) or self.checkpoints is None:
            return None
        return await self.checkpoints.handle(header, blobs)

    async def _conclude(self, ended: Ended) -> Outcome:
        if self.checkpoints is not None:
            await self.checkpoints.settle()
        failure = self._find_failure(ended)
        output = None
        if failure is None:
            output, failure = await self._check_output(ended.output)
        logs = await finish_in_thread(self._store_logs)
        return self._outcome(
            "failed" if failure else "succeeded",
            failure=failure,
            output=output,
            duration_ms=ended.duration_ms,
            cpu_ms=ended.exit.cpu_ms,
            peak_rss_bytes=ended.exit.peak_rss_bytes,
            **logs,
            usage=_read_usage(ended.result),
        )

    def _find_failure(self, ended: Ended) -> Failure | None:
        node = self.nodes.find_running()
        if ended.result is not None:
            try:
                found = ended.result["failure"]
                return None if found is None else Failure(**found)
            except (KeyError, TypeError, ValidationError):
                return Failure(kind="crash", reason="the process sent a result that is none")
        if ended.timed_out and ended.started:
            limit_s = self.assignment.limits.timeout
            reason = f"it ran longer than limits.timeout of {limit_s:g} s and was killed"
            return Failure(kind="timeout", reason=reason, node=node)
        stderr = read_tail(self.directory / "stderr")
        said = f"; it last said:\n{stderr}" if stderr else ""
        if ended.timed_out:
            return Failure(kind="setup", reason=f"the process did not start in time{said}")
        if ended.broken is not None:
            reason = f"the process sent something that is no message: {ended.broken}"
            return Failure(kind="crash", reason=reason, node=node)
        how = describe_status(ended.exit.status)
        if not ended.started:
            return Failure(kind="setup", reason=f"the process {how} before user code began{said}")
        reason = f"the process {how} before the graph ended{said}"
        return Failure(kind="crash", reason=reason, node=node)

    async def _check_output(self, output: bytes) -> tuple[str | None, Failure | None]:
        """Our renderer made it, but in a process of user code."""
        limit = self.assignment.limits.output
        if len(output) > limit:
            reason = f"output: it has {len(output)} bytes, over limits.output of {limit}"
            return None, Failure(kind="invalid_output", reason=reason)
        try:
            text = output.decode()
            await asyncio.to_thread(json.loads, text)
            self.output = await asyncio.to_thread(self.redactor.json_text, text)
        except (ValueError, RecursionError) as error:
            return None, Failure(kind="invalid_output", reason=f"output: not JSON: {error}")
        return text, None

    def _store_logs(self) -> dict[str, Any]:
        digests: dict[str, str | None] = {}
        cut: list[str] = []
        for name in LOG_STREAMS:
            head = workspaces.read_head(self.directory / name, MAX_LOG_BYTES, self.redactor)
            digests[name] = None if head is None else self.engine.blobs.put(head.data)
            if head is not None and head.is_cut:
                cut.append(name)
        return {**digests, "cut_logs": cut}

    async def _evaluate(self, supervisor: Supervisor, outcome: Outcome) -> Evaluation:
        assignment = self.assignment
        case = assignment.case
        arguments = {
            "input": case["input"],
            "output": json.loads(outcome.output or "null"),
            "reference": case.get("reference"),
            "execution": {
                "execution_id": assignment.execution_id,
                "variant": assignment.variant.name,
                "case_id": str(case.get("id", "")),
                "repetition": assignment.repetition,
                "status": outcome.status,
                "duration_ms": outcome.duration_ms,
                "node_count": outcome.node_count,
                "config": assignment.variant.config,
            },
        }
        job = {
            **self._job(supervisor.setup, prefix="evaluators."),
            "arguments": json.dumps(arguments),
        }
        return await evaluate(
            supervisor,
            job,
            assignment.evaluators,
            assignment.limits.evaluator_timeout,
            self.directory,
        )

    def _outcome(
        self, status: Literal["succeeded", "failed", "cancelled"], **fields: Any
    ) -> Outcome:
        return Outcome(
            status=status,
            node_count=self.nodes.count,
            checkpoint_count=self.checkpoints.checkpoint_count if self.checkpoints else 0,
            nodes=self.nodes.runs,
            start=self.start,
            start_reason=self.start_reason,
            isolation=ISOLATION,
            **fields,
        )


def _read_usage(result: dict[str, Any] | None) -> dict[str, dict[str, float]]:
    """Tokens by model as the child counted them; what is no count is left out."""
    said: Any = result.get("usage") if result else None
    if not isinstance(said, dict):
        return {}
    return {
        str(model): {
            str(name): float(count)
            for name, count in counted.items()
            if isinstance(count, int | float) and math.isfinite(count)
        }
        for model, counted in said.items()
        if isinstance(counted, dict)
    }


def _remove_attempt(directory: Path, *, keep_workspace: bool) -> None:
    """A rest that cannot be removed costs space and harms nothing else."""
    try:
        for entry in directory.iterdir() if directory.is_dir() else ():
            if not (keep_workspace and entry.name == "workspace"):
                workspaces.remove_tree(entry)
        for emptied in (directory, directory.parent):
            if emptied.is_dir() and not any(emptied.iterdir()):
                emptied.rmdir()
    except OSError as error:
        _log.warning("%s could not be removed completely: %s", directory, error)


async def finish_in_thread[T](work: Callable[..., T], *arguments: Any) -> T:
    """`work` in a thread, to its end even when the caller is cancelled: it cannot be stopped."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
