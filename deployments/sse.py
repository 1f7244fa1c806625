"""Server-sent events of a batch: one tail per batch, however many clients watch.

A tail long-polls the collector once and keeps the newest events. A client that is further behind
than the tail reaches reads pages from the collector until it has caught up.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from wtb_core.errors import WtbError

KEPT_EVENTS = 1_000
PAGE_EVENTS = 200
POLL_MS = 5_000
HEARTBEAT_S = 10.0
GATHER_S = 0.02
"""How long a tail lets events gather before it asks for the next ones."""

Page = tuple[list[dict[str, Any]], bool]
ReadEvents = Callable[[str, int, int, int], Awaitable[Page]]
"""`(batch_id, after, limit, wait_ms)` to a page: events, and whether the batch ended with them."""


class _Tail:
    """The newest events of one batch, while somebody watches."""

    def __init__(self, read: ReadEvents, batch_id: str, after: int) -> None:
        self._read = read
        self._batch_id = batch_id
        self.first = after
        self.last = after
        self.ended = False
        self.error: WtbError | None = None
        self.watchers = 0
        self._events: deque[dict[str, Any]] = deque()
        self._news = asyncio.Event()
        self.task = asyncio.ensure_future(self._follow())

    async def wait(self, after: int, timeout_s: float) -> None:
        """Until there is an event above `after`, or the end, or the time is over."""
        if self.last > after or self.ended or self.error is not None:
            return
        try:
            await asyncio.wait_for(self._news.wait(), timeout_s)
        except TimeoutError:
            return

    def page(self, after: int) -> list[dict[str, Any]]:
        """The kept events above `after`."""
        skip = after - self.first
        return [e for i, e in enumerate(self._events) if i >= skip][:PAGE_EVENTS]

    async def _follow(self) -> None:
        while not self.ended and self.error is None:
            try:
                items, self.ended = await self._read(
                    self._batch_id, self.last, PAGE_EVENTS, POLL_MS
                )
            except WtbError as error:
                self.error = error
                items = []
            self._events.extend(items)
            self.last += len(items)
            while len(self._events) > KEPT_EVENTS:
                self._events.popleft()
                self.first += 1
            if items or self.ended or self.error is not None:
                self._news.set()
                self._news = asyncio.Event()
                await asyncio.sleep(GATHER_S)


class EventStreams:
    """The tails of all watched batches."""

    def __init__(self, read: ReadEvents) -> None:
        self._read = read
        self._tails: dict[str, _Tail] = {}

    async def follow(self, batch_id: str, after: int) -> AsyncIterator[list[dict[str, Any]]]:
        """Pages of events above `after` until the batch has ended; an empty page is a heartbeat.

        Raises:
            WtbError: when the events cannot be read any more.
        """
        while True:
            items, ended = await self._read(batch_id, after, PAGE_EVENTS, 0)
            if items:
                yield items
                after = items[-1]["seq"]
            if ended:
                return
            if len(items) < PAGE_EVENTS:
                break
        tail = self._tails.get(batch_id)
        if tail is None or tail.error is not None:
            tail = self._tails[batch_id] = _Tail(self._read, batch_id, after)
        tail.watchers += 1
        try:
            async for page in self._watch(tail, batch_id, after):
                yield page
        finally:
            tail.watchers -= 1
            if not tail.watchers:
                tail.task.cancel()
                if self._tails.get(batch_id) is tail:
                    del self._tails[batch_id]

    async def _watch(
        self, tail: _Tail, batch_id: str, after: int
    ) -> AsyncIterator[list[dict[str, Any]]]:
        while True:
            await tail.wait(after, HEARTBEAT_S)
            if after < tail.first:
                items, _ = await self._read(batch_id, after, PAGE_EVENTS, 0)
            else:
                items = tail.page(after)
            if items:
                after = items[-1]["seq"]
                yield items
            elif tail.error is not None:
                raise tail.error
            elif tail.ended:
                return
            else:
                yield []


async def encode(pages: AsyncIterator[list[dict[str, Any]]]) -> AsyncIterator[bytes]:
    """Pages as `text/event-stream`, with a last `event: end` when they end."""
    async for page in pages:
        if not page:
            yield b": heartbeat\n\n"
            continue
        yield b"".join(_encode_event(event) for event in page)
    yield b"event: end\ndata: {}\n\n"


def _encode_event(event: dict[str, Any]) -> bytes:
    data = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return f"id: {event['seq']}\nevent: {event['type']}\ndata: {data}\n\n".encode()
