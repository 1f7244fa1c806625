"""The tails of watched batches: events are read and encoded once, however many clients watch.

A tail long-polls the collector and keeps the newest events as the bytes that clients get. Whoever
is further behind than it reaches reads whole pages, which all who need them share. What is kept is
bounded in bytes, whatever a batch's size and the number of its watchers. So is the number of chunks
per second: the more clients wait for their turn, the more events a chunk holds.
"""

import asyncio
import json
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from contextvars import Context
from dataclasses import dataclass
from typing import Any, NamedTuple

from wtb_core.errors import Unavailable

CHUNK_BYTES = 64 * 1024
"""A chunk is larger only if one event is. Ray sends up to 100 KiB without its object store."""
CHUNKS_PER_S = 250
"""For all watchers together: each costs the replica and the proxy some tenths of a millisecond."""
TAIL_BYTES = 512 * 1024
PAGES_BYTES = 32 * 1024**2
PAGE_EVENTS = 200
POLL_MS = 5_000
HEARTBEAT_S = 10.0
GATHER_S = 0.02
"""How long a tail lets events gather before it asks for the next ones."""
RETRY_S = 60.0
"""How long a collector that does not answer is waited for: longer than its replacement takes."""
RETRY_PAUSE_S = 0.5

ReadEvents = Callable[[str, int, int, int], Awaitable[tuple[list[dict[str, Any]], bool]]]
"""`(batch_id, after, limit, wait_ms)` to events, and whether the batch ended with them."""


def _start_for_all[Result](work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
    """A task outside of the request that starts it: Serve cancels what belongs to one that ends."""
    return asyncio.get_running_loop().create_task(work, context=Context())


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive events as `text/event-stream`; iterating decodes them. An empty one says "alive".

    `after` is the seq before the first event, `last` that of the last one.
    """

    after: int
    last: int
    body: bytes

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for frame in self.body.split(b"\n\n")[:-1]:
            yield json.loads(frame.partition(b"\ndata: ")[2])

    def above(self, after: int) -> "Chunk":
        """The part of the chunk with a seq above `after`."""
        if after <= self.after:
            return self
        frames = self.body.split(b"\n\n")[after - self.after :]
        return Chunk(after, self.last, b"\n\n".join(frames))


def encode_event(event: dict[str, Any]) -> bytes:
    """One event as a server-sent event."""
    data = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return f"id: {event['seq']}\nevent: {event['type']}\ndata: {data}\n\n".encode()


def to_chunks(events: list[dict[str, Any]]) -> list[Chunk]:
    """Encode consecutive events."""
    chunks: list[Chunk] = []
    frames: list[bytes] = []
    size = 0
    for event in events:
        frame = encode_event(event)
        if frames and size + len(frame) > CHUNK_BYTES:
            chunks.append(_join(event["seq"] - 1, frames))
            frames, size = [], 0
        frames.append(frame)
        size += len(frame)
    if frames:
        chunks.append(_join(events[-1]["seq"], frames))
    return chunks


def _join(last: int, frames: list[bytes]) -> Chunk:
    return Chunk(last - len(frames), last, b"".join(frames))


class _Page(NamedTuple):
    """What one read gave. `is_full` says that no event can ever be added to it."""

    chunks: list[Chunk]
    ended: bool
    is_full: bool

    @property
    def size(self) -> int:
        return sum(len(chunk.body) for chunk in self.chunks)


class _Log:
    """Reads events as pages and waits out a collector that is being replaced."""

    def __init__(self, read: ReadEvents) -> None:
        self._read = read

    async def read(self, batch_id: str, after: int, wait_ms: int) -> _Page:
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + RETRY_S
        while True:
            try:
                events, ended = await self._read(batch_id, after, PAGE_EVENTS, wait_ms)
            except Unavailable:
                if clock() > give_up_at:
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)
            else:
                return _Page(to_chunks(events), ended, len(events) == PAGE_EVENTS)


class _Pages:
    """Pages that begin at multiples of `PAGE_EVENTS`; full ones are kept while they are used."""

    def __init__(self, log: _Log) -> None:
        self._log = log
        self._kept: OrderedDict[tuple[str, int], _Page] = OrderedDict()
        self._reads: dict[tuple[str, int], asyncio.Task[_Page]] = {}
        self.size = 0

    def find(self, batch_id: str, number: int) -> _Page | None:
        """A kept page."""
        page = self._kept.get((batch_id, number))
        if page is not None:
            self._kept.move_to_end((batch_id, number))
        return page

    def read(self, batch_id: str, number: int) -> "asyncio.Task[_Page]":
        """The read of a page, begun now or by somebody else who waits for it."""
        key = batch_id, number
        task = self._reads.get(key)
        if task is None:
            task = self._reads[key] = _start_for_all(
                self._log.read(batch_id, number * PAGE_EVENTS, 0)
            )
            task.add_done_callback(lambda done: self._keep(key, done))
        return task

    def _keep(self, key: tuple[str, int], done: "asyncio.Task[_Page]") -> None:
        del self._reads[key]
        if done.cancelled() or done.exception() is not None or not done.result().is_full:
            return
        self._kept[key] = done.result()
        self.size += done.result().size
        while self.size > PAGES_BYTES:
            self.size -= self._kept.popitem(last=False)[1].size


class _Tail:
    """The newest events of one batch, while somebody watches."""

    def __init__(self, log: _Log, batch_id: str, after: int) -> None:
        self._log = log
        self._batch_id = batch_id
        self.first = after
        self.last = after
        self.size = 0
        self.ended = False
        self.error: Exception | None = None
        self.watchers = 0
        self._chunks: deque[Chunk] = deque()
        self._news = asyncio.Event()
        self.task = _start_for_all(self._follow())

    async def wait(self, after: int, timeout_s: float) -> None:
        """Until there is an event above `after`, or the end, or the time is over."""
        if self.last > after or self.ended or self.error is not None:
            return
        try:
            await asyncio.wait_for(self._news.wait(), timeout_s)
        except TimeoutError:
            return

    def take(self, after: int) -> Chunk:
        """The kept events above `after`, as many as a chunk holds."""
        newer: list[Chunk] = []
        for chunk in reversed(self._chunks):
            if chunk.last <= after:
                break
            newer.append(chunk.above(after))
        taken: list[bytes] = []
        last, size = after, 0
        for chunk in reversed(newer):
            size += len(chunk.body)
            if taken and size > CHUNK_BYTES:
                break
            taken.append(chunk.body)
            last = chunk.last
        return Chunk(after, last, taken[0] if len(taken) == 1 else b"".join(taken))

    async def _follow(self) -> None:
        while not self.ended and self.error is None:
            try:
                page = await self._log.read(self._batch_id, self.last, POLL_MS)
            except Exception as error:  # noqa: BLE001 - whatever it is, each watcher raises it
                self.error = error
            else:
                self._add(page)
                if not page.chunks and not page.ended:
                    continue
            self._news.set()
            self._news = asyncio.Event()
            await asyncio.sleep(GATHER_S)

    def _add(self, page: _Page) -> None:
        self.ended = page.ended
        for chunk in page.chunks:
            self._chunks.append(chunk)
            self.size += len(chunk.body)
            self.last = chunk.last
        while self.size > TAIL_BYTES:
            oldest = self._chunks.popleft()
            self.size -= len(oldest.body)
            self.first = oldest.last


class _Pace:
    """Gives out the turns to send a chunk, in the order in which they are asked for."""

    def __init__(self) -> None:
        self._next_at = 0.0

    async def turn(self) -> None:
        now = asyncio.get_running_loop().time()
        at = max(now, self._next_at)
        self._next_at = at + 1 / CHUNKS_PER_S
        if at > now:
            await asyncio.sleep(at - now)


class Tails:
    """The tails of all watched batches."""

    def __init__(self, read: ReadEvents) -> None:
        self._log = _Log(read)
        self._pages = _Pages(self._log)
        self._pace = _Pace()
        self._tails: dict[str, _Tail] = {}

    async def follow(self, batch_id: str, after: int) -> AsyncGenerator[Chunk]:
        """Chunks of the events above `after` until the batch has ended; empty is a heartbeat.

        Raises:
            WtbError: when the events cannot be read any more.
        """
        tail: _Tail | None = None
        try:
            while True:
                if tail is not None and after >= tail.first:
                    await tail.wait(after, HEARTBEAT_S)
                    await self._pace.turn()
                    if after < tail.first:
                        continue
                    chunk = tail.take(after)
                    if chunk.body or not (tail.ended or tail.error):
                        yield chunk
                        after = chunk.last
                    elif tail.error is not None:
                        raise tail.error
                    else:
                        return
                    continue
                number = after // PAGE_EVENTS
                page = self._pages.find(batch_id, number)
                if page is None:
                    read = self._pages.read(batch_id, number)
                    await asyncio.wait({read}, timeout=HEARTBEAT_S)
                    if not read.done():
                        yield Chunk(after, after, b"")
                        continue
                    page = read.result()
                for chunk in page.chunks:
                    if chunk.last > after:
                        await self._pace.turn()
                        yield chunk.above(after)
                        after = chunk.last
                if page.ended:
                    return
                if tail is None and not page.is_full:
                    tail = self._join(batch_id, after)
        finally:
            if tail is not None:
                self._leave(tail, batch_id)

    def _join(self, batch_id: str, after: int) -> _Tail:
        tail = self._tails.get(batch_id)
        if tail is None or tail.error is not None or after < tail.first:
            tail = self._tails[batch_id] = _Tail(self._log, batch_id, after)
        tail.watchers += 1
        return tail

    def _leave(self, tail: _Tail, batch_id: str) -> None:
        tail.watchers -= 1
        if not tail.watchers:
            tail.task.cancel()
            if self._tails.get(batch_id) is tail:
                del self._tails[batch_id]
