"""Runs attempts from assignment to outcome, and stops them.

Whatever happens to an attempt becomes its outcome; only cancellation of the caller raises. When
`execute` returns or raises, no process of the attempt is alive.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from wtb_core.attempt_run import AttemptRun, Means
from wtb_core.attempts import Assignment, Outcome
from wtb_core.checkpoint_store import CheckpointStore
from wtb_core.files.blobs import BlobStore
from wtb_core.loops import Background
from wtb_core.resumption import find_offer
from wtb_core.sandbox import leftovers
from wtb_core.sandbox.ladder import Sandbox
from wtb_core.sandbox.ownership import MARK
from wtb_core.sandbox.setup import ProjectSetup
from wtb_core.store.records import Lookup, Offer
from wtb_core.supervisors import Supervisors

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
        self._background = Background()
        self._supervisors = Supervisors(
            *(self.runs, blobs, find_setup, sandbox, discard_base, self._background, clock)
        )
        self._checkpoints = checkpoints
        self._means = Means(sandbox, self._supervisors, blobs, checkpoints, clock)
        self._attempts: dict[tuple[str, int], asyncio.Task[Outcome]] = {}
        self._runs: dict[tuple[str, int], AttemptRun] = {}
        self._reasons: dict[tuple[str, int], str] = {}
        self._handed_back: set[tuple[str, int]] = set()
        self._draining: asyncio.TimerHandle | None = None
        self._is_grace_over = False
        self._unended: set[asyncio.Future[None]] = set()

    async def execute(self, assignment: Assignment) -> Outcome:
        """The outcome of one attempt.

        Cancelling the caller kills the attempt's processes and raises.
        """
        key = (assignment.execution_id, assignment.attempt)
        attempt = AttemptRun(self._means, assignment, self.attempt_directory(assignment))
        ended = asyncio.get_running_loop().create_future()
        self._unended.add(ended)
        task = asyncio.create_task(attempt.run())
        self._attempts[key], self._runs[key] = task, attempt
        if self._draining is not None:
            attempt.drain()
        if self._is_grace_over:
            self._hand_back(key)
        outcome: Outcome | None = None
        try:
            outcome = await task
            return outcome
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            is_ours = key in self._reasons or key in self._handed_back
            if not is_ours or (caller is not None and caller.cancelling()):
                raise
            outcome = await attempt.stop(hand_back=key not in self._reasons)
            return outcome
        finally:
            del self._attempts[key], self._runs[key]
            self._reasons.pop(key, None)
            self._handed_back.discard(key)
            self._tidy(assignment, outcome)
            self._unended.remove(ended)
            ended.set_result(None)

    async def cancel(self, execution_id: str, attempt: int, reason: str) -> bool:
        """Kill the attempt's processes, if it runs here; its `execute` returns `cancelled`.

        Another attempt at the execution, which may run here too, goes on.
        """
        key = (execution_id, attempt)
        if key not in self._attempts:
            return False
        if key not in self._reasons:  # heartbeats ask until the end has been recorded
            self._reasons[key] = reason
            self._attempts[key].cancel()
        return True

    def drain(self, grace_s: float) -> None:
        """Hand back what runs: at the next checkpoint, or when `grace_s` is over without one.

        Each `execute` returns `failed` with the kind `lost` and `drained` set, unless the attempt
        ends by itself before. Asking again changes nothing.
        """
        if self._draining is None:
            for attempt in self._runs.values():
                attempt.drain()
            self._draining = asyncio.get_running_loop().call_later(grace_s, self._end_grace)

    def _end_grace(self) -> None:
        self._is_grace_over = True
        for key in self._attempts:
            self._hand_back(key)

    def _hand_back(self, key: tuple[str, int]) -> None:
        if key not in self._reasons:
            self._handed_back.add(key)
            self._attempts[key].cancel()

    async def close(self) -> None:
        """Cancel what runs, end all processes, finish what was begun in the background."""
        if self._draining is not None:
            self._draining.cancel()
        await self._supervisors.rest()
        running = list(self._attempts.values())
        for task in running:
            task.cancel()
        if self._unended:
            await asyncio.wait(self._unended)
        await self._supervisors.close()
        await self._background.settle()
        self._supervisors.owner.close()

    async def find_offer(self, lookup: Lookup) -> Offer:
        """What an attempt that follows lost ones can go on from; see `resumption.find_offer`."""
        return await find_offer(lookup, self._checkpoints, self._means.blobs)

    async def forget(self, assignment: Assignment) -> None:
        """Delete the live checkpoints of attempts up to this one, whose end has been recorded.

        Their history is a blob by then.
        """
        await self._checkpoints.forget(assignment.execution_id, assignment.attempt)

    def attempt_directory(self, assignment: Assignment) -> Path:
        """Where an attempt's workspace and private directories lie."""
        return self.runs / assignment.execution_id / str(assignment.attempt)

    def _tidy(self, assignment: Assignment, outcome: Outcome | None) -> None:
        directory = self.attempt_directory(assignment)
        failed = outcome is not None and outcome.status == "failed"
        keep = assignment.workspace.keep
        kept = keep == "always" or (keep == "failed" and failed)
        removal = asyncio.to_thread(_remove_attempt, directory, keep_workspace=kept)
        self._background.start(removal)


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
