"""Runs one attempt from assignment to outcome: workspace, process, checkpoints, evaluators, logs.

Whatever happens to the attempt becomes its outcome; only cancellation of the caller raises. When
`execute` returns or raises, no process of the attempt is alive.
"""

import asyncio
import json
import logging
import math
import os
import secrets
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from wtb_core import history
from wtb_core.attempts import MAX_LOG_BYTES, Assignment, Evaluation, Failure, Outcome
from wtb_core.checkpoint_store import CheckpointSession, CheckpointStore, Scope
from wtb_core.errors import (
    FenceError,
    LaunchLost,
    NotFound,
    TrackingError,
    Unavailable,
    WtbError,
)
from wtb_core.files import commits
from wtb_core.files.blobs import BlobStore
from wtb_core.files.commits import BaseTree, Commit
from wtb_core.files.layers import LayerCache
from wtb_core.files.summaries import AttemptCommits
from wtb_core.loops import finish
from wtb_core.parameters import LOG_STREAMS
from wtb_core.redaction import Redactor
from wtb_core.sandbox import audit, leftovers
from wtb_core.sandbox.audit import BaseGuard
from wtb_core.sandbox.evaluating import evaluate
from wtb_core.sandbox.ladder import Grade, Sandbox
from wtb_core.sandbox.ownership import MARK, Owner
from wtb_core.sandbox.processes import Place, SandboxProcess, describe_status
from wtb_core.sandbox.runs import Ended, NodeLog, Run
from wtb_core.sandbox.setup import ProjectSetup
from wtb_core.sandbox.supervisor import Supervisor, read_tail
from wtb_core.sandbox.wire import Frame
from wtb_core.sandbox.workspaces import Materials, Workspace

MAX_ZYGOTES = 8
ZYGOTE_IDLE_S = 600.0
MAX_DISK_BYTES = 16 * 1024**3
"""How much an attempt may have on disk: files it changed, its home and its temporary files."""

_UPKEEP_S = 30.0
_DISK_LOOK_S = 1.0
_DISK_LOOK_SHARE = 0.02
_MIN_FREE_BYTES = 256 * 1024**2
_MEMORY_RESERVE_BYTES = 256 * 1024**2
"""What the interpreter with the project takes, which limits.memory does not count."""

_TOLD_KINDS = {"error", "interrupted", "invalid_output", "out_of_memory", "setup"}
"""What a process may say of itself; the other kinds are found from outside."""

_log = logging.getLogger(__name__)


class Engine:
    """Executes attempts below `runs`; one per replica, used from one event loop."""

    def __init__(
        self,
        runs: Path,
        blobs: BlobStore,
        checkpoints: CheckpointStore,
        find_setup: Callable[[str, str], Awaitable[ProjectSetup]],
        sandbox: Sandbox,
        discard_base: Callable[[str], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runs = runs.absolute()
        self.sandbox = sandbox
        self.owner = Owner(self.runs.parent / "owners")
        self._zygotes = self.runs.parent / "zygotes"
        self._layers_path = self.runs.parent / "layers"
        self.layers = LayerCache(self._layers_path, blobs)
        self.blobs = blobs
        self.checkpoints = checkpoints
        self._find_setup = find_setup
        self._discard_base = discard_base
        self.clock = clock
        self._supervisors: dict[tuple[str, str], Shared] = {}
        self._dropped: set[Shared] = set()
        self._attempts: dict[tuple[str, int], asyncio.Task[Outcome]] = {}
        self._reasons: dict[tuple[str, int], str] = {}
        self._unended: set[asyncio.Future[None]] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._upkeep: asyncio.Task[None] | None = None

    async def execute(self, assignment: Assignment) -> Outcome:
        """The outcome of one attempt.

        Cancelling the caller kills the attempt's processes and raises.
        """
        key = (assignment.execution_id, assignment.attempt)
        started_at = self.clock()
        attempt = _Attempt(self, assignment)
        ended = asyncio.get_running_loop().create_future()
        self._unended.add(ended)
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
            outcome = await attempt.stop(duration_ms)
            return outcome
        finally:
            del self._attempts[key]
            self._reasons.pop(key, None)
            self._tidy(assignment, outcome)
            self._unended.remove(ended)
            ended.set_result(None)

    async def cancel(self, execution_id: str, reason: str) -> bool:
        """Kill the execution's processes, if it runs here; its `execute` returns `cancelled`."""
        found = [key for key in self._attempts if key[0] == execution_id]
        for key in found:
            if key not in self._reasons:  # heartbeats ask until the end has been recorded
                self._reasons[key] = reason
                self._attempts[key].cancel()
        return bool(found)

    async def close(self) -> None:
        """Cancel what runs, end all processes, finish what was begun in the background."""
        if self._upkeep is not None:
            self._upkeep.cancel()
            await asyncio.wait([self._upkeep])
        running = list(self._attempts.values())
        for task in running:
            task.cancel()
        if self._unended:
            await asyncio.wait(self._unended)
        supervisors = [shared.supervisor for shared in self._supervisors.values()]
        self._supervisors.clear()
        await asyncio.gather(*(supervisor.close() for supervisor in supervisors))
        while background := list(self._background):
            await asyncio.wait(background)  # which lets nothing else run when all are done
            self._background.difference_update(background)
        self.owner.close()

    async def forget(self, assignment: Assignment) -> None:
        """Delete the live checkpoints of attempts up to this one, whose end has been recorded.

        Their history is a blob by then.
        """
        await self.checkpoints.forget(assignment.execution_id, assignment.attempt)

    async def find_supervisor(self, project: str, version: str) -> "Shared":
        """The supervisor of a project's version; idle ones of others make room for it."""
        key = (project, version)
        if key not in self._supervisors:
            setup = await self._find_setup(project, version)
            guard = await asyncio.to_thread(
                BaseGuard, (setup.code, setup.packages, setup.workspace)
            )
            if key not in self._supervisors:
                self._supervisors[key] = self._share(setup, guard)
        shared = self._supervisors.pop(key)
        self._supervisors[key] = shared  # the most recently used is last
        shared.users += 1
        idle = [k for k, other in self._supervisors.items() if not other.users]
        for old in idle[: max(0, len(self._supervisors) - MAX_ZYGOTES)]:
            self._retire(old)
        if self._upkeep is None:
            self._upkeep = asyncio.create_task(self._keep_up())
        return shared

    async def drop(self, shared: "Shared") -> None:
        """Use this supervisor and its base for no more attempts: what they share has changed.

        Those that run go on: ending them would let one attempt end the others.
        """
        if shared in self._dropped:
            return
        self._dropped.add(shared)
        version = shared.supervisor.setup.version
        try:
            await self._discard_base(version)  # first, or the next supervisor begins with it
        except OSError as error:
            _log.exception("the base of %s cannot be made again: %s", version, error)
        finally:
            for key in [key for key, other in self._supervisors.items() if other is shared]:
                del self._supervisors[key]

    def release(self, shared: "Shared") -> None:
        """An attempt that `find_supervisor` gave it to has ended."""
        shared.users -= 1
        shared.used_at = self.clock()
        if shared in self._dropped and not shared.users:
            self._dropped.remove(shared)
            self.start_background(shared.supervisor.close())

    def _share(self, setup: ProjectSetup, guard: BaseGuard) -> "Shared":
        name = f"{os.getpid()}-{setup.project}-{setup.version[:16]}-{secrets.token_hex(4)}"
        directory = self._zygotes / name
        self.owner.make(directory)
        places = (directory, self.runs, [self._layers_path])
        supervisor = Supervisor(self.sandbox, setup, *places)
        base = BaseTree(setup.version, setup.files)
        materials = Materials(self.blobs, self.layers, base, setup.workspace)
        return Shared(supervisor, materials, guard)

    def _retire(self, key: tuple[str, str]) -> None:
        self.start_background(self._supervisors.pop(key).supervisor.close())

    async def _keep_up(self) -> None:
        """Remove what processes that were killed left, and what has long been idle."""
        while True:
            try:
                await finish_in_thread(self._sweep)
            except OSError:
                _log.exception("what is no longer used cannot be removed")
            await asyncio.sleep(_UPKEEP_S)
            for key, shared in list(self._supervisors.items()):
                if not shared.users and self.clock() - shared.used_at > ZYGOTE_IDLE_S:
                    self._retire(key)

    def _sweep(self) -> None:
        self.layers.trim()
        swept = self.owner.sweep([*self.runs.glob("*/*"), *self._zygotes.glob("*")])
        if swept:
            _log.info("%d directories of processes that were killed are removed", swept)

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


class Shared:
    """A supervisor, what its executions share, and how many use it."""

    def __init__(self, supervisor: Supervisor, materials: Materials, guard: BaseGuard) -> None:
        self.supervisor = supervisor
        self.materials = materials
        self.guard = guard
        self.users = 0
        self.used_at = 0.0


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
        self.workspace: Workspace | None = None
        self._workspaces: list[Workspace] = []  # of all launches
        self.commits = AttemptCommits()
        self.isolation: dict[str, Any] = {}
        self.is_over_disk = False

    async def run(self) -> Outcome:
        started_at = self.engine.clock()
        try:
            outcome = await self._run()
            return self.redactor.outcome(outcome).model_copy(update={"output": self.output})
        except FenceError as error:
            failure = Failure(kind="lost", reason=str(error))
        except (WtbError, OSError) as error:
            failure = Failure(kind="setup", reason=str(error))
        duration_ms = round((self.engine.clock() - started_at) * 1000)
        outcome = self._outcome("failed", failure=failure, duration_ms=duration_ms)
        return self.redactor.outcome(outcome)

    async def stop(self, duration_ms: int) -> Outcome:
        """The outcome of an attempt that was cancelled; what it did until then is kept."""
        kept: dict[str, Any] = {}
        try:
            await self._settle()
            kept = await self._keep()
        except WtbError as error:
            _log.warning("%s: nothing is kept: %s", self.assignment.execution_id, error)
        outcome = self._outcome("cancelled", duration_ms=duration_ms, **kept)
        return self.redactor.outcome(outcome)

    async def _run(self) -> Outcome:
        assignment = self.assignment
        shared = await self.engine.find_supervisor(assignment.project, assignment.project_version)
        try:
            supervisor = shared.supervisor
            self.redactor = Redactor(supervisor.setup.secrets)
            grade = await self.engine.sandbox.find_grade()
            network = assignment.workspace.network
            self.isolation = audit.report(grade, shared.guard, None, network=network)
            scope = Scope(assignment.execution_id, assignment.attempt)
            await self.engine.checkpoints.raise_fence(*scope)
            below = await self._import_origin(scope)
            ended = await self._run_graph(supervisor, scope, below, shared.materials, grade)
            outcome = await self._conclude(ended)
            if outcome.status == "succeeded" and assignment.evaluators:
                evaluation = await self._evaluate(supervisor, outcome)
                outcome = outcome.model_copy(update={"evaluation": evaluation})
            await self._look_at_base(shared, grade)
            return outcome.model_copy(update={"isolation": self.isolation})
        finally:
            for workspace in self._workspaces:
                workspace.close()
            self.engine.release(shared)

    async def _import_origin(self, scope: Scope) -> Commit | None:
        """The files of a fork's checkpoint, after its history has become this attempt's."""
        origin = self.assignment.origin
        if origin is None:
            return None
        blobs = self.engine.blobs
        past = await asyncio.to_thread(lambda: history.decode(blobs.get(origin.history)))
        await self.engine.checkpoints.import_history(scope, past, origin.checkpoint_id)
        return await asyncio.to_thread(lambda: commits.decode(blobs.get(origin.file_commit_id)))

    async def _look_at_base(self, shared: Shared, grade: Grade) -> None:
        look = partial(shared.guard.look, is_protected=grade.has_overlay or grade.in_slots)
        try:
            after = await asyncio.to_thread(look)
        except OSError as error:
            after = f"unreadable: {error}"
        network = self.assignment.workspace.network
        self.isolation = audit.report(grade, shared.guard, after, network=network)
        if self.isolation["base"]["changed"]:
            _log.error("%s: the base has changed", self.assignment.execution_id)
            await self.engine.drop(shared)

    def _make_directories(self, workspace: Workspace, below: Commit | None) -> None:
        self.engine.owner.remove(self.directory)  # of the same attempt, whose process died
        self.engine.owner.make(self.directory)
        for name in ("home", "tmp"):
            (self.directory / name).mkdir()
        files = {**self.assignment.variant.files, **self.assignment.case.get("files", {})}
        workspace.make(files, below)

    async def _run_graph(
        self,
        supervisor: Supervisor,
        scope: Scope,
        below: Commit | None,
        materials: Materials,
        grade: Grade,
    ) -> Ended:
        """The end of the graph's process.

        One that was killed before user code began, or whose nursery was, is launched again: nothing
        has happened yet.
        """
        for last in (False, False, True):
            workspace = Workspace(materials, grade, self.directory)
            self._workspaces.append(workspace)
            await finish_in_thread(self._make_directories, workspace, below)
            self.workspace, self.commits = workspace, AttemptCommits()
            try:
                ended = await self._launch(supervisor, scope, workspace)
            except LaunchLost:
                if last:
                    raise
                continue
            if last or not _was_killed_early(ended):
                return ended
        raise AssertionError("the last turn returns or raises")

    async def _launch(self, supervisor: Supervisor, scope: Scope, workspace: Workspace) -> Ended:
        assignment = self.assignment
        origin = assignment.origin
        job = {
            "execution_id": assignment.execution_id,
            "variant": assignment.variant.model_dump(mode="json"),
            "case": assignment.case,
            "workspace": str(self.directory / "workspace"),
            "output": assignment.limits.output,
            "memory": assignment.limits.memory,
            "origin": None if origin is None else {"state": origin.state},
        }
        place = workspace.put_into(self._place())
        launched = await supervisor.launch(place, job)
        self.start, self.start_reason = supervisor.start, supervisor.start_reason
        watching: asyncio.Task[None] | None = None
        try:
            await self._begin_history()
            self.checkpoints = self.engine.checkpoints.session(
                scope, self._track, self.commits.start_id
            )
            run = Run(launched, self._handle, assignment.limits.timeout)
            watching = asyncio.create_task(self._watch_disk(workspace, launched.process))
            return await run.follow("run")
        finally:
            if watching is not None:
                watching.cancel()
            await launched.process.close()

    def _place(self, prefix: str = "") -> Place:
        limits = self.assignment.limits
        return Place(
            home=self.directory / "home",
            tmp=self.directory / "tmp",
            stdout=self.directory / f"{prefix}stdout",
            stderr=self.directory / f"{prefix}stderr",
            network=self.assignment.workspace.network,
            memory=limits.memory + _MEMORY_RESERVE_BYTES,
            disk=MAX_DISK_BYTES,
            processes=limits.processes,
            file_size=limits.file_size,
            cpu_seconds=math.ceil(limits.timeout) * (os.cpu_count() or 1) + 60,
        )

    async def _begin_history(self) -> None:
        """Commit the files that user code finds."""
        await self._track(None)

    async def _track(self, checkpoint_id: str | None) -> str | None:
        """Commit the files; None when that fails, which the history says."""
        assert self.workspace is not None
        try:
            commit = await finish_in_thread(self.workspace.track)
        except TrackingError as error:
            self.commits.fail(checkpoint_id, error)
            return None
        self.commits.add(checkpoint_id, commit)
        return commit.id

    async def _watch_disk(self, workspace: Workspace, process: SandboxProcess) -> None:
        """Kill the attempt when it fills the disk."""
        pause_s = _DISK_LOOK_S
        while True:
            await asyncio.sleep(pause_s)
            started_at = self.engine.clock()
            used = await asyncio.to_thread(workspace.count_bytes)
            room = os.statvfs(self.directory)
            free = room.f_bavail * room.f_frsize
            if used > MAX_DISK_BYTES or (free < _MIN_FREE_BYTES < used):
                self.is_over_disk = True
                await process.kill()
                return
            pause_s = max(_DISK_LOOK_S, (self.engine.clock() - started_at) / _DISK_LOOK_SHARE)

    async def _handle(self, header: dict[str, Any], blobs: list[bytes]) -> Frame | None:
        if self.nodes.take(header) or self.checkpoints is None:
            return None
        return await self.checkpoints.handle(header, blobs)

    async def _conclude(self, ended: Ended) -> Outcome:
        await self._settle()
        failure = self._find_failure(ended)
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
            **await self._keep(),
            usage=_read_usage(ended.result),
        )

    async def _settle(self) -> None:
        """Wait for what the saver has posted.

        Raises:
            FenceError: when a newer attempt has taken over.
        """
        try:
            if self.checkpoints is not None:
                await self.checkpoints.settle()
        except Unavailable as error:
            self._fail_to_keep("the last writes", error)

    async def _keep(self) -> dict[str, Any]:
        """What is stored of an attempt whose processes are dead: logs, files, history.

        What cannot be stored is missing, and the result stands.
        """
        kept: dict[str, Any] = {}
        try:
            kept |= await finish_in_thread(self._store_logs)
        except OSError as error:
            _log.error("%s: its logs cannot be stored: %s", self.assignment.execution_id, error)
        if self.workspace is None or self.checkpoints is None:
            return kept
        await self._track(None)
        try:
            kept |= await finish_in_thread(self._store_files, self.workspace)
            kept |= await self._store_history()
        except (OSError, NotFound, Unavailable) as error:
            what = "the history" if "files" in kept else "the commits"
            self._fail_to_keep(what, error)
        return {**kept, "tracking_failures": self.commits.failures}

    def _fail_to_keep(self, what: str, error: Exception) -> None:
        reason = error.what if isinstance(error, Unavailable) else str(error)
        if isinstance(error, OSError):
            reason = error.strerror  # the path is the service's own
        self.commits.fail(None, TrackingError([], f"{what} cannot be stored: {reason}"))

    def _store_files(self, workspace: Workspace) -> dict[str, Any]:
        workspace.sync()
        files = self.commits.summarise(self.engine.blobs, workspace.base)
        return {"start_commit_id": self.commits.start_id, "files": files}

    async def _store_history(self) -> dict[str, Any]:
        """Store the checkpoints; their commits are durable by then."""
        scope = Scope(self.assignment.execution_id, self.assignment.attempt)
        past = await self.engine.checkpoints.export(scope)
        blobs = self.engine.blobs
        return {"history": await finish_in_thread(lambda: blobs.put(history.encode(past)))}

    def _find_failure(self, ended: Ended) -> Failure | None:
        node = self.nodes.find_running()
        if ended.exit.over == "memory":
            limit = self.assignment.limits.memory
            reason = f"its processes together use more than limits.memory of {limit} bytes"
            return Failure(kind="out_of_memory", reason=reason, node=node)
        if self.is_over_disk or ended.exit.over == "disk":
            reason = "it fills the disk and was killed; what it wrote is being removed"
            return Failure(kind="crash", reason=reason, node=node)
        if ended.result is not None:
            try:
                found = ended.result["failure"]
                failure = None if found is None else Failure(**found)
            except (KeyError, TypeError, ValidationError):
                return Failure(kind="crash", reason="the process sent a result that is none")
            if failure is not None and failure.kind not in _TOLD_KINDS:
                return Failure(kind="crash", reason="the process sent a result that is none")
            return failure
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
            head = leftovers.read_head(self.directory / name, MAX_LOG_BYTES, self.redactor)
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
        job = {"arguments": json.dumps(arguments), "memory": assignment.limits.memory}
        workspace = self.workspace
        assert workspace is not None
        place = self._place("evaluators.")
        limit_s = assignment.limits.evaluator_timeout
        place = place._replace(cpu_seconds=math.ceil(limit_s) * (os.cpu_count() or 1) + 60)
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
            node_count=self.nodes.count,
            checkpoint_count=self.checkpoints.checkpoint_count if self.checkpoints else 0,
            nodes=self.nodes.runs,
            start=self.start,
            start_reason=self.start_reason,
            isolation=self.isolation,
            **fields,
        )


def _was_killed_early(ended: Ended) -> bool:
    """Whether somebody else killed a process before user code began."""
    if ended.started or ended.timed_out or ended.result is not None:
        return False
    return ended.exit.over is None and ended.exit.status in {None, signal.SIGKILL}


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


def _remove_attempt(directory: Path, *, keep_workspace: bool) -> None:
    """Of an overlay, `workspace` keeps what was changed.

    A rest that cannot be removed costs space and harms nothing else.
    """
    changed, workspace = directory / "upper", directory / "workspace"
    try:
        if keep_workspace and changed.is_dir():
            workspace.rmdir()
            changed.rename(workspace)
        entries = directory.iterdir() if directory.is_dir() else ()
        for entry in sorted(entries, key=lambda entry: entry.name == MARK):  # the mark last
            if not (keep_workspace and entry == workspace):
                leftovers.remove_tree(entry)
        for emptied in (directory, directory.parent):
            if emptied.is_dir() and not any(emptied.iterdir()):
                emptied.rmdir()
    except OSError as error:
        _log.warning("%s could not be removed completely: %s", directory, error)


async def finish_in_thread[T](work: Callable[..., T], *arguments: Any) -> T:
    """`work` in a thread, to its end even when the caller is cancelled: it cannot be stopped."""
    return await finish(asyncio.to_thread(work, *arguments))
