"""What is asked for twice is done once.

A submission or a retry of a batch without an idempotency key gets one here, so that every call may
be repeated when its answer is lost. `Unavailable` is repeated a few times, after the pause that the
service asks for; a refused connection and `TooManyPending` are not, because a caller knows better
how long they are worth waiting for. A stream of events that is cut is taken up after the last event
seen.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import httpx

from wtb_core import errors
from wtb_core.clients.contract import Json

REPEATS = 2
MAX_PAUSE_S = 5
RECONNECT_PAUSE_S = 0.5
RECONNECTS = 60
PAGE = 500


def new_key() -> str:
    """An idempotency key that nobody has used."""
    return uuid.uuid4().hex


async def repeat[Answer](send: Callable[[], Awaitable[Answer]]) -> Answer:
    """The answer of a call, which is repeated while the service cannot answer for a moment."""
    for left in range(REPEATS, -1, -1):
        try:
            return await send()
        except errors.Unavailable as error:
            refused = isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout)
            if refused or not left or error.retry_after_s > MAX_PAUSE_S:
                raise
            await asyncio.sleep(error.retry_after_s)
    raise AssertionError


async def follow_streams(
    open_stream: Callable[[int], AsyncGenerator[Json | None]], after: int
) -> AsyncGenerator[Json]:
    """The events of streams that may be cut; null in a stream says that the batch has ended.

    A stream that brought something is followed by the next at once, one that did not by a pause.
    """
    failures = 0
    while True:
        start = after
        try:
            async with aclosing(open_stream(after)) as stream:
                async for event in stream:
                    if event is None:
                        return
                    after = event["seq"]
                    failures = 0
                    yield event
        except errors.Unavailable:
            failures += 1
            if failures > RECONNECTS:
                raise
        if after == start:
            await asyncio.sleep(RECONNECT_PAUSE_S)


async def walk_pages(read_page: Callable[[str | None], Awaitable[Json]]) -> AsyncGenerator[Json]:
    """The items of all pages."""
    cursor: str | None = None
    while True:
        page = await read_page(cursor)
        for item in page["items"]:
            yield item
        cursor = page["next_cursor"]
        if cursor is None:
            return
