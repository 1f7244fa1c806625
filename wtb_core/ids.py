"""Ids and times as they appear in contracts."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

import uuid_utils

NewId = Callable[[], str]
Clock = Callable[[], int]
"""Milliseconds since the epoch, UTC."""


def new_event_id() -> str:
    """A UUIDv7 (RFC 9562): ordered by time, unique across producers."""
    return str(uuid_utils.uuid7())


def new_batch_id() -> str:
    """An id for a batch, ordered by time."""
    return f"b-{uuid_utils.uuid7().hex}"


def now_ms() -> int:
    """The wall clock."""
    return time.time_ns() // 1_000_000


def format_time(time_ms: int) -> str:
    """RFC 3339, UTC, with milliseconds and `Z`."""
    moment = datetime.fromtimestamp(time_ms / 1000, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: str) -> int:
    """The milliseconds since the epoch of a time as `format_time` writes it."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def find_time(time_ms: int | None) -> str | None:
    """`format_time`, or null for what has not happened yet."""
    return None if time_ms is None else format_time(time_ms)
