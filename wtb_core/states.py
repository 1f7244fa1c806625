"""The life of a batch and of an execution, as tables.

Rules of operation:

- An execution is pending until a claim gives it to a replica. It ends `succeeded`, `failed` or
  `cancelled`, once. A failed attempt that another one may follow puts it back to pending. In a
  batch that tries another one again, what had succeeded there is adopted and never runs.
- A batch runs from its first claim. It completes when no execution is left, whatever their
  results: variants that fail their cases are a completed batch's result. It fails only when the
  system could not carry it out.
- Cancelling is a state of its own, because running executions need time to die. A batch that is
  being cancelled ends `cancelled` even if its last execution succeeds meanwhile.
- Terminal states take nothing. `advance` raises then, and nothing changes.

The store alone applies these tables, inside the transaction that appends the event.
"""

from collections.abc import Mapping
from typing import Final, Literal

from wtb_core.errors import IllegalTransition

BatchStatus = Literal["pending", "running", "cancelling", "completed", "failed", "cancelled"]
ExecutionStatus = Literal["pending", "running", "succeeded", "failed", "cancelled"]

EXECUTION: Final[Mapping[tuple[str, str], ExecutionStatus]] = {
    ("pending", "claim"): "running",
    ("pending", "cancel"): "cancelled",
    ("pending", "adopt"): "succeeded",
    ("running", "succeed"): "succeeded",
    ("running", "fail"): "failed",
    ("running", "retry"): "pending",
    ("running", "cancel"): "cancelled",
}

BATCH: Final[Mapping[tuple[str, str], BatchStatus]] = {
    ("pending", "claim"): "running",
    ("pending", "cancel"): "cancelling",
    ("pending", "fail"): "failed",
    ("running", "claim"): "running",
    ("running", "cancel"): "cancelling",
    ("running", "exhaust"): "completed",
    ("running", "fail"): "failed",
    ("cancelling", "exhaust"): "cancelled",
}

EXECUTION_INPUTS: Final = ("claim", "adopt", "succeed", "fail", "retry", "cancel")
BATCH_INPUTS: Final = ("claim", "cancel", "exhaust", "fail")

TERMINAL_EXECUTION: Final = frozenset({"succeeded", "failed", "cancelled"})
TERMINAL_BATCH: Final = frozenset({"completed", "failed", "cancelled"})

INFRASTRUCTURE_KINDS: Final = frozenset({"lost", "setup"})
"""Failure kinds that are not the variant's own and never count in its rates."""


def advance_execution(state: str, given: str) -> ExecutionStatus:
    """The execution's state after `given`.

    Raises:
        IllegalTransition: when the state does not take it.
    """
    try:
        return EXECUTION[state, given]
    except KeyError:
        raise IllegalTransition("execution", state, given) from None


def advance_batch(state: str, given: str) -> BatchStatus:
    """The batch's state after `given`.

    Raises:
        IllegalTransition: when the state does not take it.
    """
    try:
        return BATCH[state, given]
    except KeyError:
        raise IllegalTransition("batch", state, given) from None
