"""Why the end of a graph's process is no success."""

import signal
from collections.abc import Callable

from pydantic import ValidationError

from wtb_core.attempts import Failure
from wtb_core.sandbox.processes import describe_status
from wtb_core.sandbox.runs import Ended
from wtb_core.specs import Limits

_TOLD_KINDS = {"error", "interrupted", "invalid_output", "out_of_memory", "setup"}
"""What a process may say of itself; the other kinds are found from outside."""


def find_failure(
    ended: Ended,
    limits: Limits,
    node: str | None,
    read_stderr: Callable[[], str],
    *,
    is_over_disk: bool,
) -> Failure | None:
    """The failure, None when the graph has a result; `node` is the one that ran last."""
    if ended.exit.over == "memory":
        reason = f"its processes together use more than limits.memory of {limits.memory} bytes"
        return Failure(kind="out_of_memory", reason=reason, node=node)
    if is_over_disk or ended.exit.over == "disk":
        reason = "it fills the disk and was killed; what it wrote is being removed"
        return Failure(kind="crash", reason=reason, node=node)
    if ended.result is not None:
        return _read_told(ended.result)
    if ended.timed_out and ended.started:
        reason = f"it ran longer than limits.timeout of {limits.timeout:g} s and was killed"
        return Failure(kind="timeout", reason=reason, node=node)
    stderr = read_stderr()
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


def was_killed_early(ended: Ended) -> bool:
    """Whether somebody else killed a process before user code began."""
    if ended.started or ended.timed_out or ended.result is not None:
        return False
    return ended.exit.over is None and ended.exit.status in {None, signal.SIGKILL}


def _read_told(result: dict[str, object]) -> Failure | None:
    try:
        found = result["failure"]
        failure = None if found is None else Failure.model_validate(found)
    except (KeyError, ValidationError):
        return Failure(kind="crash", reason="the process sent a result that is none")
    if failure is not None and failure.kind not in _TOLD_KINDS:
        return Failure(kind="crash", reason="the process sent a result that is none")
    return failure
