"""Runs an attempt's evaluators after its graph has ended, in processes of their own.

One process runs them all. When one of them ends the process or the time, those before it keep
their scores, it gets null and a message, and the rest run in another process.
"""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from wtb_core.attempts import Evaluation
from wtb_core.errors import SetupError, WireError
from wtb_core.sandbox.processes import SandboxProcess, describe_status
from wtb_core.sandbox.runs import Ended, Run
from wtb_core.sandbox.supervisor import Supervisor, read_tail
from wtb_core.sandbox.wire import Frame
from wtb_core.sandbox.workspaces import View


async def evaluate(
    supervisor: Supervisor,
    job: dict[str, Any],
    names: list[str],
    timeout_s: float,
    views: Callable[[str], View],
    watch: Callable[[SandboxProcess], Coroutine[Any, Any, None]],
) -> Evaluation:
    """The scores of the evaluators `names`, each process with a view of the workspace of its own.

    `views` makes one by its name, `watch` ends the process when it does what it must not.
    """
    scores = _Scores(names)
    rest = list(names)
    for turn in range(len(names)):
        if not rest:
            break
        scores.begin()
        try:
            view = await asyncio.to_thread(views, f"evaluation-{turn}")
            launched = await supervisor.launch(view.place, {**job, "evaluators": rest})
            handler = _Handler(scores, view)
            watching = asyncio.create_task(watch(launched.process))
            try:
                ended = await Run(launched, handler.handle, timeout_s).follow("evaluate")
            finally:
                watching.cancel()
        except (SetupError, OSError) as error:
            for name in rest:
                scores.fail(name, str(error))
            break
        rest = [name for name in rest if name not in scores.done]
        if rest:
            failed = next((name for name in rest if name == scores.current), rest[0])
            scores.fail(failed, _explain(ended, timeout_s, read_tail(view.place.stderr)))
            rest.remove(failed)
    return Evaluation(scores=scores.scores, comments=scores.comments, errors=scores.errors)


def _explain(ended: Ended, timeout_s: float, stderr: str) -> str:
    if ended.exit.over == "disk":
        return "it fills the disk and was killed"
    if ended.exit.over is not None:
        return "the memory of limits.memory is used up by its processes together"
    if ended.timed_out:
        return f"it did not end within limits.evaluator_timeout of {timeout_s:g} s"
    if ended.broken is not None:
        return f"its process sent something that is no message: {ended.broken}"
    said = f"; it last said:\n{stderr}" if stderr else ""
    return f"its process {describe_status(ended.exit.status)}{said}"


class _Scores:
    """What has come in so far."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self.current: str | None = None
        self.done: set[str] = set()
        self.scores: dict[str, float | None] = {}
        self.comments: dict[str, str] = {}
        self.errors: dict[str, str] = {}

    def begin(self) -> None:
        """Another process starts; none of its evaluators runs yet."""
        self.current = None

    def fail(self, name: str, message: str) -> None:
        self.done.add(name)
        self.scores[name] = None
        self.errors[name] = message

    def take(self, header: dict[str, Any]) -> None:
        try:
            name = header["name"]
            if name not in self._names or name in self.done:
                raise WireError(f"{name!r} is no evaluator that is waited for")
            found = Evaluation(
                scores=header["scores"], comments=header["comments"], errors=header["errors"]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise WireError(f"a score is malformed: {error}") from error
        self.done.add(name)
        self.scores |= found.scores
        self.comments |= found.comments
        self.errors |= found.errors


class _Handler:
    """Answers one process of evaluators; makes the view when the first one asks for it."""

    def __init__(self, scores: _Scores, view: View) -> None:
        self._scores = scores
        self._view = view
        self._path: Path | None = None

    async def handle(self, header: dict[str, Any], _blobs: list[bytes]) -> Frame | None:
        match header.get("op"):
            case "evaluating":
                self._scores.current = header.get("name")
            case "score":
                self._scores.take(header)
            case "workspace":
                if self._path is None:
                    self._path = await asyncio.to_thread(self._view.fill)
                return {"path": str(self._path)}, []
            case operation:
                raise WireError(f"{operation!r} is no request of an evaluator")
        return None
