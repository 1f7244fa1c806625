"""The steps of one attempt: workspace, process, checkpoints, evaluators."""

import asyncio
import json
import logging
import math
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from wtb_core.attempt_record import AttemptRecord
from wtb_core.attempts import Assignment, Evaluation, Failure, Outcome
from wtb_core.beginnings import Beginning, begin
from wtb_core.checkpoint_store import CheckpointStore, Scope
from wtb_core.errors import FenceError, LaunchLost, NotResumable, WtbError
from wtb_core.failures import find_failure, was_killed_early
from wtb_core.files.blobs import BlobStore
from wtb_core.loops import finish_in_thread
from wtb_core.redaction import Redactor
from wtb_core.sandbox import audit
from wtb_core.sandbox.evaluating import evaluate
from wtb_core.sandbox.ladder import Grade, Sandbox
from wtb_core.sandbox.processes import Place, SandboxProcess
from wtb_core.sandbox.runs import Ended, NodeLog, Run
from wtb_core.sandbox.supervisor import Supervisor, read_tail
from wtb_core.sandbox.wire import Frame
from wtb_core.sandbox.workspaces import Materials, Workspace
from wtb_core.space import is_full
from wtb_core.supervisors import Shared, Supervisors

MAX_DISK_BYTES = 16 * 1024**3
"""How much an attempt may have on disk: files it changed, its home and its temporary files."""

MEMORY_RESERVE_BYTES = 256 * 1024**2
"""What the interpreter with the project takes, which limits.memory does not count."""

DISK_LOOK_S = 1.0
DISK_LOOK_SHARE = 0.02
MIN_FREE_BYTES = 256 * 1024**2

_log = logging.getLogger(__name__)

_DRAINED = Failure(kind="lost", reason="drained")


class Means(NamedTuple):
    """What the attempts of an engine share."""

    sandbox: Sandbox
    supervisors: Supervisors
    blobs: BlobStore
    checkpoints: CheckpointStore
    clock: Callable[[], float]


class AttemptRun:
    """Runs an attempt in `directory`, once."""

    def __init__(self, means: Means, assignment: Assignment, directory: Path) -> None:
        self._means = means
        self._assignment = assignment
        self._directory = directory
        self._started_at = means.clock()
        self._names = assignment.names
        self._scope = Scope(assignment.execution_id, assignment.attempt)
        self._record = AttemptRecord(means.blobs, means.checkpoints, assignment, directory)
        self._nodes = NodeLog()
        self._start: Literal["fork", "fresh"] = "fork"
        self._start_reason: str | None = None
        self._output: str | None = None  # without secrets; the evaluators get it as it was
        self._workspaces: list[Workspace] = []  # of all launches
        self._isolation: dict[str, Any] = {}
        self._is_over_disk = False
        self._is_draining = False
        self._is_handed_back = False
        self._process: SandboxProcess | None = None

    async def run(self) -> Outcome:
        """The outcome, whatever happens. When this returns or raises, no process is alive."""
        try:
            outcome = await self._run()
            return self._redactor.outcome(outcome).model_copy(update={"output": self._output})
        except (FenceError, NotResumable) as error:
            failure = Failure(kind="lost", reason=str(error))
        except (WtbError, OSError) as error:
            # A full disk is this node's trouble and passes: the execution is tried again.
            failure = Failure(kind="lost" if is_full(error) else "setup", reason=str(error))
        return self._end("failed", failure=failure)

    def drain(self) -> None:
        """End at the next root checkpoint whose files are committed, to be handed back."""
        self._is_draining = True

    async def stop(self, *, hand_back: bool = False) -> Outcome:
        """The outcome of an attempt whose `run` was cancelled; what it did until then is kept."""
        kept: dict[str, Any] = {}
        try:
            await self._record.settle()
            kept = await self._record.keep()
        except WtbError as error:
            _log.warning("%s/%d: nothing is kept: %s", *self._scope, error, extra=self._names)
        if hand_back:
            return self._end("failed", failure=_DRAINED, drained=True, **kept)
        return self._end("cancelled", **kept)

    @property
    def _redactor(self) -> Redactor:
        return self._record.redactor

    def _end(self, status: Literal["failed", "cancelled"], **fields: Any) -> Outcome:
        duration_ms = round((self._means.clock() - self._started_at) * 1000)
        return self._redactor.outcome(self._outcome(status, duration_ms=duration_ms, **fields))

    async def _run(self) -> Outcome:
        assignment = self._assignment
        borrowed = self._means.supervisors.borrow(assignment.project, assignment.project_version)
        async with borrowed as shared:
            try:
                return await self._run_with(shared)
            finally:
                for workspace in self._workspaces:
                    workspace.close()

    async def _run_with(self, shared: Shared) -> Outcome:
        assignment, supervisor = self._assignment, shared.supervisor
        self._record.redactor = Redactor(supervisor.setup.secrets)
        grade = await self._means.sandbox.find_grade()
        network = assignment.workspace.network
        self._isolation = audit.report(grade, shared.guard, None, network=network)
        checkpoints, blobs = self._means.checkpoints, self._means.blobs
        await checkpoints.raise_fence(*self._scope)
        beginning = await begin(assignment, checkpoints, blobs)
        ended = await self._run_graph(supervisor, beginning, shared.materials, grade)
        outcome = await self._conclude(ended)
        if outcome.status == "succeeded" and assignment.evaluators:
            evaluation = await self._evaluate(supervisor, outcome)
            outcome = outcome.model_copy(update={"evaluation": evaluation})
        await self._look_at_base(shared, grade)
        return outcome.model_copy(update={"isolation": self._isolation})

    async def _look_at_base(self, shared: Shared, grade: Grade) -> None:
        look = partial(shared.guard.look, is_protected=grade.has_overlay or grade.in_slots)
        try:
            after = await asyncio.to_thread(look)
        except OSError as error:
            after = f"unreadable: {error}"
        network = self._assignment.workspace.network
        self._isolation = audit.report(grade, shared.guard, after, network=network)
        if self._isolation["base"]["changed"]:
            _log.error("%s/%d: the base has changed", *self._scope, extra=self._names)
            await self._means.supervisors.drop(shared)

    def _make_directories(self, workspace: Workspace, beginning: Beginning) -> None:
        owner = self._means.supervisors.owner
        owner.remove(self._directory)  # of the same attempt, whose process died
        owner.make(self._directory)
        for name in ("home", "tmp"):
            (self._directory / name).mkdir()
        workspace.make(beginning.files, beginning.below)

    async def _run_graph(
        self, supervisor: Supervisor, beginning: Beginning, materials: Materials, grade: Grade
    ) -> Ended:
        """The end of the graph's process.

        One that was killed before user code began, or whose nursery was, is launched again: nothing
        has happened yet.
        """
        for last in (False, False, True):
            workspace = Workspace(materials, grade, self._directory)
            self._workspaces.append(workspace)
            await finish_in_thread(self._make_directories, workspace, beginning)
            try:
                ended = await self._launch(supervisor, beginning, workspace)
            except LaunchLost:
                if last:
                    raise
                continue
            if last or not was_killed_early(ended):
                return ended
        raise AssertionError("the last turn returns or raises")

    async def _launch(
        self, supervisor: Supervisor, beginning: Beginning, workspace: Workspace
    ) -> Ended:
        assignment = self._assignment
        job = {
            "execution_id": assignment.execution_id,
            "variant": assignment.variant.model_dump(mode="json"),
            "case": assignment.case,
            "workspace": str(self._directory / "workspace"),
            "output": assignment.limits.output,
            "memory": assignment.limits.memory,
            "origin": beginning.origin,
        }
        place = workspace.put_into(self._place())
        launched = await supervisor.launch(place, job)
        self._start, self._start_reason = supervisor.start, supervisor.start_reason
        self._process = launched.process
        watching: asyncio.Task[None] | None = None
        try:
            await self._record.begin(workspace, beginning)
            run = Run(launched, self._handle, assignment.limits.timeout)
            watching = asyncio.create_task(self._watch_disk(workspace, launched.process))
            return await run.follow("run")
        finally:
            if watching is not None:
                watching.cancel()
            await launched.process.close()

    def _place(self, prefix: str = "") -> Place:
        limits = self._assignment.limits
        return Place(
            home=self._directory / "home",
            tmp=self._directory / "tmp",
            stdout=self._directory / f"{prefix}stdout",
            stderr=self._directory / f"{prefix}stderr",
            network=self._assignment.workspace.network,
            memory=limits.memory + MEMORY_RESERVE_BYTES,
            disk=MAX_DISK_BYTES,
            processes=limits.processes,
            file_size=limits.file_size,
            cpu_seconds=_cpu_seconds(limits.timeout),
        )

    async def _watch_disk(self, workspace: Workspace, process: SandboxProcess) -> None:
        """Kill the attempt when it fills the disk."""
        clock = self._means.clock
        pause_s = DISK_LOOK_S
        while True:
            await asyncio.sleep(pause_s)
            started_at = clock()
            used = await asyncio.to_thread(workspace.count_bytes)
            room = os.statvfs(self._directory)
            free = room.f_bavail * room.f_frsize
            if used > MAX_DISK_BYTES or (free < MIN_FREE_BYTES < used):
                self._is_over_disk = True
                await process.kill()
                return
            pause_s = max(DISK_LOOK_S, (clock() - started_at) / DISK_LOOK_SHARE)

    async def _handle(self, header: dict[str, Any], blobs: list[bytes]) -> Frame | None:
        session = self._record.session
        if self._nodes.take(header) or session is None:
            return None
        answer = await session.handle(header, blobs)
        if self._is_draining and self._process is not None and session.is_resumable(header):
            self._is_handed_back = True
            await self._process.kill()  # unanswered, so that the next superstep never begins
            return None
        return answer

    async def _conclude(self, ended: Ended) -> Outcome:
        await self._record.settle()
        if self._is_handed_back:
            return self._outcome(
                "failed",
                failure=_DRAINED,
                drained=True,
                duration_ms=ended.duration_ms,
                cpu_ms=ended.exit.cpu_ms,
                peak_rss_bytes=ended.exit.peak_rss_bytes,
                **await self._record.keep(),
            )
        failure = find_failure(
            ended,
            self._assignment.limits,
            self._nodes.find_running(),
            partial(read_tail, self._directory / "stderr"),
            is_over_disk=self._is_over_disk,
        )
        output = None
        if failure is None:
            output, failure = await self._check_output(ended.output)
        return self._outcome(
            "failed" if failure else "succeeded",
            failure=failure,
            output=output,
            duration_ms=ended.duration_ms,
            cpu_ms=ended.exit.cpu_ms,
            peak_rss_bytes=ended.exit.peak_rss_bytes,
            **await self._record.keep(),
            usage=_read_usage(ended.result),
        )

    async def _check_output(self, output: bytes) -> tuple[str | None, Failure | None]:
        """Our renderer made it, but in a process of user code."""
        limit = self._assignment.limits.output
        if len(output) > limit:
            reason = f"output: it has {len(output)} bytes, over limits.output of {limit}"
            return None, Failure(kind="invalid_output", reason=reason)
        try:
            text = output.decode()
            await asyncio.to_thread(json.loads, text)
            self._output = await asyncio.to_thread(self._redactor.json_text, text)
        except (ValueError, RecursionError) as error:
            return None, Failure(kind="invalid_output", reason=f"output: not JSON: {error}")
        return text, None

    async def _evaluate(self, supervisor: Supervisor, outcome: Outcome) -> Evaluation:
        assignment = self._assignment
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
        job = {"arguments": json.dumps(arguments), "memory": assignment.limits.memory}
        workspace = self._workspaces[-1]
        limit_s = assignment.limits.evaluator_timeout
        place = self._place("evaluators.")._replace(cpu_seconds=_cpu_seconds(limit_s))
        return await evaluate(
            supervisor,
            job,
            assignment.evaluators,
            limit_s,
            lambda name: workspace.view(name, place),
            lambda process: self._watch_disk(workspace, process),
        )

    def _outcome(
        self, status: Literal["succeeded", "failed", "cancelled"], **fields: Any
    ) -> Outcome:
        return Outcome(
            status=status,
            node_count=self._nodes.count,
            checkpoint_count=self._record.checkpoint_count,
            nodes=self._nodes.runs,
            start=self._start,
            start_reason=self._start_reason,
            isolation=self._isolation,
            **fields,
        )


def _cpu_seconds(timeout_s: float) -> int:
    return math.ceil(timeout_s) * (os.cpu_count() or 1) + 60


def _read_usage(result: dict[str, Any] | None) -> dict[str, dict[str, float]]:
    """Tokens by model as the child counted them; what is no count is left out."""
    said: Any = result.get("usage") if result else None
    if not isinstance(said, dict):
        return {}
    return {
        str(model): {
            str(name): float(count)
            for name, count in counted.items()
            if isinstance(count, int | float) and abs(count) <= sys.float_info.max
        }
        for model, counted in said.items()
        if isinstance(counted, dict)
    }
