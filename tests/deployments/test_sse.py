"""Streams of events: one tail for all watchers, nothing missed, a last `end`."""

import asyncio
from typing import Any

import pytest

from deployments import sse
from deployments.sse import EventStreams, encode
from wtb_core.errors import NotFound


class Log:
    """A batch's log that grows, and counts who reads it."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.ended = False
        self.long_polls = 0
        self._news = asyncio.Condition()

    async def append(self, count: int, *, end: bool = False) -> None:
        async with self._news:
            start = len(self.events) + 1
            self.events += [{"seq": start + i, "type": "t"} for i in range(count)]
            self.ended = end
            self._news.notify_all()

    async def read(self, _batch: str, after: int, limit: int, wait_ms: int):
        if wait_ms and after >= len(self.events) and not self.ended:
            self.long_polls += 1
            async with self._news:
                await self._news.wait_for(lambda: after < len(self.events) or self.ended)
        items = self.events[after : after + limit]
        return items, self.ended and after + len(items) >= len(self.events)


async def collect(streams: EventStreams, after: int = 0) -> list[int]:
    seen: list[int] = []
    async for page in streams.follow("b", after):
        seen += [event["seq"] for event in page]
    return seen


def test_many_watchers_share_one_tail_and_see_everything() -> None:
    async def main() -> None:
        log = Log()
        await log.append(450)
        streams = EventStreams(log.read)
        watchers = [asyncio.create_task(collect(streams, after)) for after in (0, 0, 200, 450)]
        for _ in range(20):
            await asyncio.sleep(0)
            await log.append(3)
        await asyncio.sleep(0.01)
        await log.append(1, end=True)
        seen = await asyncio.gather(*watchers)
        everything = list(range(1, 450 + 60 + 2))
        assert seen == [everything, everything, everything[200:], everything[450:]]
        assert log.long_polls <= 22
        assert not streams._tails

    asyncio.run(main())


def test_a_watcher_behind_the_tail_reads_pages_until_it_has_caught_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "KEPT_EVENTS", 10)

    async def main() -> None:
        log = Log()
        streams = EventStreams(log.read)
        slow = streams.follow("b", 0)
        quick = asyncio.create_task(collect(streams))
        first = asyncio.create_task(anext(slow))
        await asyncio.sleep(0.01)
        await log.append(1)
        seen = [event["seq"] for event in await first]
        await log.append(100)
        await asyncio.sleep(0.01)
        await log.append(1, end=True)
        await quick
        async for page in slow:
            seen += [event["seq"] for event in page]
        assert seen == list(range(1, 103))

    asyncio.run(main())


def test_a_silent_batch_gets_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.01)

    async def main() -> None:
        streams = EventStreams(Log().read)
        lines = encode(streams.follow("b", 0))
        assert await anext(lines) == b": heartbeat\n\n"
        await lines.aclose()

    asyncio.run(main())


def test_an_event_is_encoded_with_its_seq_type_and_data() -> None:
    async def main() -> None:
        log = Log()
        await log.append(1, end=True)
        chunks = [chunk async for chunk in encode(EventStreams(log.read).follow("b", 0))]
        assert chunks == [
            b'id: 1\nevent: t\ndata: {"seq":1,"type":"t"}\n\n',
            b"event: end\ndata: {}\n\n",
        ]

    asyncio.run(main())


def test_an_error_of_the_log_ends_the_stream_with_it() -> None:
    async def main() -> None:
        async def read(_batch: str, _after: int, _limit: int, wait_ms: int):
            if wait_ms:
                raise NotFound("batch", "b")
            return [], False

        with pytest.raises(NotFound):
            await collect(EventStreams(read))

    asyncio.run(main())
