"""Checks of call parameters, the same for handle methods and the sequential runner."""

import re
from typing import Any, NamedTuple, TypeGuard, get_args

from wtb_core.errors import InvalidRequest
from wtb_core.states import BatchStatus, ExecutionStatus

MAX_LIMIT = 1_000
MAX_WAIT_MS = 5_000
BATCH_STATES: tuple[str, ...] = get_args(BatchStatus)
EXECUTION_STATES: tuple[str, ...] = get_args(ExecutionStatus)
PROJECT_VERSIONS = ("same", "latest")
LOG_STREAMS = ("stdout", "stderr")


class BatchFilter(NamedTuple):
    """Which batches are wanted; null does not restrict. `label` is a key and its value."""

    status: str | None = None
    project: str | None = None
    label: tuple[str, str] | None = None


def make_batch_filter(
    status: str | None = None, project: str | None = None, label: str | None = None
) -> BatchFilter:
    """The filter of a list of batches, with `label` as `key=value`.

    Raises:
        InvalidRequest: when the status is none, or the label has no `=`.
    """
    check_choice("status", status, BATCH_STATES)
    if label is None:
        return BatchFilter(status, project)
    key, separator, value = label.partition("=")
    if not separator:
        raise InvalidRequest("label", "give `key=value`")
    return BatchFilter(status, project, (key, value))


def check_after(after: object) -> None:
    """Refuse a `seq` that is none.

    Raises:
        InvalidRequest: says what it may be.
    """
    if not _is_count(after):
        raise InvalidRequest("after", "give a `seq` of at least 0")


def check_wait(wait_ms: object) -> None:
    """Refuse a wait that is too long or no number.

    Raises:
        InvalidRequest: says what it may be.
    """
    if not _is_count(wait_ms) or wait_ms > MAX_WAIT_MS:
        raise InvalidRequest("wait_ms", f"give 0 to {MAX_WAIT_MS} milliseconds")


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_limit(limit: object) -> None:
    """Refuse a page size that is none.

    Raises:
        InvalidRequest: says what a page size is.
    """
    if not _is_count(limit) or not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequest("limit", f"give 1 to {MAX_LIMIT}")


def check_choice(parameter: str, value: str | None, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices; null is no choice and fine.

    Raises:
        InvalidRequest: lists the choices.
    """
    if value is not None and value not in choices:
        raise InvalidRequest(parameter, f"give one of {', '.join(choices)}")


def parse_cursor(cursor: object) -> int | None:
    """The position that `next_cursor` of an earlier page stands for.

    Raises:
        InvalidRequest: when it is no cursor of ours.
    """
    if cursor is None:
        return None
    if not isinstance(cursor, str) or not re.fullmatch(r"[0-9]{1,15}", cursor):
        raise InvalidRequest("cursor", "give a `next_cursor` of an earlier page")
    return int(cursor)


def make_page(items: list[Any], more: int | None) -> dict[str, Any]:
    """`{items, next_cursor}`, null at the end."""
    return {"items": items, "next_cursor": None if more is None else str(more)}


def cut_page(items: list[Any], limit: int, cursor: str | None) -> dict[str, Any]:
    """A page of a list that is at hand; its cursor is a position.

    Raises:
        InvalidRequest: when the limit or the cursor cannot be one.
    """
    check_limit(limit)
    start = parse_cursor(cursor) or 0
    more = start + limit if start + limit < len(items) else None
    return make_page(items[start : start + limit], more)
