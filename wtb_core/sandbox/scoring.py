"""Evaluators, one after the other, each result sent as soon as it is there.

An evaluator is a function, sync or async, that names what it takes. It returns a bool, a number,
`{score, comment}`, or a mapping of several of these; a mapping's metrics are named
`evaluator.metric`.
"""

import inspect
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wtb_core.checkpoints import Session
from wtb_core.sandbox import faults
from wtb_core.sandbox.project import Loaded, LoadedProject

ARGUMENTS = ("input", "output", "reference", "workspace", "execution")

_MAX_COMMENT_CHARS = 8 * 1024
_EXPECTED = "return a bool, a number, {score, comment} or a mapping of these"


def find_arguments(evaluator: Callable[..., Any]) -> tuple[list[str], list[str]]:
    """The names that an evaluator takes, and what is wrong with its other parameters."""
    takes: list[str] = []
    problems: list[str] = []
    for parameter in inspect.signature(evaluator).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in ARGUMENTS and parameter.kind != parameter.POSITIONAL_ONLY:
            takes.append(parameter.name)
        elif parameter.default is parameter.empty:
            problems.append(
                f"it takes {parameter.name!r}, an evaluator takes any of {', '.join(ARGUMENTS)}"
            )
    return takes, problems


def evaluate(job: dict[str, Any], project: LoadedProject, session: Session) -> None:
    """Run the job's evaluators; one that raises does not keep the others from running."""
    for name in job["evaluators"]:
        session.post({"op": "evaluating", "name": name})
        loaded = project.evaluators.get(name)
        result = _Result(name)
        if loaded is None:
            result.fail(name, "the project has no such evaluator")
        elif loaded.fault is not None:
            result.fail(name, loaded.fault["reason"])
        else:
            _score(result, loaded, job, session)
        session.post({"op": "score", "name": name, **vars(result)})


def _score(result: "_Result", loaded: Loaded, job: dict[str, Any], session: Session) -> None:
    try:
        takes, problems = find_arguments(loaded.value)
        if problems:
            result.fail(result.name, "; ".join(problems))
            return
        # Read again for each evaluator: one that changes its arguments changes no other's.
        known = json.loads(job["arguments"])
        arguments = {name: known[name] for name in takes if name != "workspace"}
        if "workspace" in takes:
            answer, _ = session.request({"op": "workspace"})
            arguments["workspace"] = Path(answer["path"])
        value = loaded.value(**arguments)
        if inspect.isawaitable(value):
            value = _wait(value)
        result.take(value)
    except BaseException as error:  # noqa: BLE001 - user code; its sys.exit must not end the others
        result.fail(result.name, f"{faults.type_name(error)}: {faults.error_text(error)}")


def _wait(awaitable: Any) -> Any:
    import asyncio  # most evaluators are plain functions

    async def wait() -> Any:
        return await awaitable

    return asyncio.run(wait())


class _Result:
    """The metrics of one evaluator, in the shape that is sent."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.scores: dict[str, float | None] = {}
        self.comments: dict[str, str] = {}
        self.errors: dict[str, str] = {}

    def fail(self, metric: str, message: str) -> None:
        self.scores[metric] = None
        self.errors[metric] = faults.clean(message[:_MAX_COMMENT_CHARS])

    def take(self, value: Any) -> None:
        if not isinstance(value, Mapping) or _is_score(value):
            self.metric(self.name, value)
        elif not value:
            self.fail(self.name, f"it returned an empty mapping; {_EXPECTED}")
        else:
            for key, item in value.items():
                if isinstance(key, str):
                    self.metric(f"{self.name}.{faults.clean(key[:128])}", item)
                else:
                    self.fail(
                        self.name, f"it returned the key {key!r:.80}; metrics' names are text"
                    )

    def metric(self, name: str, value: Any) -> None:
        comment = None
        if isinstance(value, Mapping) and _is_score(value):
            comment, value = value.get("comment"), value["score"]
        if type(value).__module__ == "numpy":
            value = getattr(value, "tolist", lambda: value)()  # a scalar as Python's own
        if not isinstance(value, bool | int | float):
            self.fail(name, f"it returned a {faults.type_name(value)}; {_EXPECTED}")
            return
        try:
            score = float(value)
        except OverflowError:
            score = math.inf
        if not math.isfinite(score):
            self.fail(name, f"it returned {score}; a score is a finite number")
            return
        self.scores[name] = score
        if comment is not None:
            self.comments[name] = faults.clean(str(comment)[:_MAX_COMMENT_CHARS])


def _is_score(value: Mapping[Any, Any]) -> bool:
    return "score" in value and set(value) <= {"score", "comment"}
