"""Streams of events: one tail for all watchers, nothing missed, and memory that no client grows."""

import asyncio
import json
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
from ray.exceptions import TaskCancelledError

from deployments import sse, tails
from deployments.sse import EventStreams
from deployments.tails import Chunk, Tails, to_chunks
from wtb_core.errors import NotFound, Unavailable

SERVER = ("127.0.0.1", 8000)


def make_event(seq: int, size: int = 0) -> dict[str, Any]:
    return {"seq": seq, "type": "t", "text": "é" * (size // 2)}


class Log:
    """A batch's log that grows, and counts who reads it."""

    def __init__(self, event_bytes: int = 0) -> None:
        self.events: list[dict[str, Any]] = []
        self.ended = False
        self.long_polls = 0
        self.reads: list[int] = []
        self.failures: list[Exception] = []
        self._event_bytes = event_bytes
        self._news = asyncio.Condition()

    async def append(self, count: int, *, end: bool = False) -> None:
        async with self._news:
            start = len(self.events) + 1
            self.events += [make_event(start + i, self._event_bytes) for i in range(count)]
            self.ended = end
            self._news.notify_all()

    async def read(self, _batch: str, after: int, limit: int, wait_ms: int):
        if self.failures:
            raise self.failures.pop(0)
        if wait_ms and after >= len(self.events) and not self.ended:
            self.long_polls += 1
            async with self._news:
                await self._news.wait_for(lambda: after < len(self.events) or self.ended)
        elif not wait_ms:
            self.reads.append(after)
            await asyncio.sleep(0)
        items = self.events[after : after + limit]
        return items, self.ended and after + len(items) >= len(self.events)


class Client:
    """An ASGI client over a proxy that takes all and hands on as the client reads.

    The kernel would say of it what `find_acked` says.
    """

    _ports = iter(range(1, 1_000_000))

    def __init__(self, *, reads: bool = True) -> None:
        self.scope = {
            "type": "http",
            "server": SERVER,
            "client": ("127.0.0.1", next(self._ports)),
        }
        self.reads = reads
        self.sent = bytearray()
        self.acked = 0
        self.ended = False
        self.left = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def open(self, streams: EventStreams, after: int = 0) -> "Client":
        response = streams.respond("b", after)
        self.task = asyncio.create_task(response(self.scope, self.receive, self.send))
        return self

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.sent += message.get("body", b"")
        if self.reads:
            self.read()
        if message["type"] == "http.response.body" and not message["more_body"]:
            self.ended = True
            if self.reads:
                self.left.set()

    def read(self, size: int | None = None) -> None:
        """Take what was sent; the answer is out when all of it is taken and it has ended."""
        self.acked = len(self.sent) if size is None else min(len(self.sent), self.acked + size)
        if self.ended and self.acked == len(self.sent):
            self.left.set()

    @property
    def unread(self) -> int:
        return len(self.sent) - self.acked

    def messages(self) -> list[tuple[str, Any]]:
        """The messages without heartbeats: the type and the decoded data."""
        found = []
        for frame in bytes(self.sent).decode().split("\n\n")[:-1]:
            fields = dict(line.split(": ", 1) for line in frame.splitlines() if line[0] != ":")
            if fields:
                found.append((fields["event"], json.loads(fields["data"])))
        return found

    def seqs(self) -> list[int]:
        return [data["seq"] for kind, data in self.messages() if kind == "t"]


def see(clients: list[Client]) -> Callable[..., int | None]:
    def find_acked(server: Any, client: Any) -> int | None:
        assert server == SERVER
        return next((c.acked for c in clients if c.scope["client"] == client), None)

    return find_acked


def unseen(_server: Any, _client: Any) -> None:
    return None


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)


async def collect(streams: Tails, after: int = 0) -> list[int]:
    seen: list[int] = []
    async for chunk in streams.follow("b", after):
        seen += [event["seq"] for event in chunk]
    return seen


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "CHUNKS_PER_S", 100_000)
    monkeypatch.setattr(tails, "GATHER_S", 0.001)
    monkeypatch.setattr(sse, "MIN_LOOK_S", 0.001)
    monkeypatch.setattr(sse, "MAX_LOOK_S", 0.01)


# -- tails -----------------------------------------------------------------------------------------


def test_many_watchers_share_one_tail_and_see_everything() -> None:
    async def main() -> None:
        log = Log()
        await log.append(450)
        streams = Tails(log.read)
        starts = [0, 0, 200, 450, 137, 449] * 10
        watchers = [asyncio.create_task(collect(streams, after)) for after in starts]
        for _ in range(20):
            await asyncio.sleep(0)
            await log.append(3)
        await asyncio.sleep(0.01)
        await log.append(1, end=True)
        seen = await asyncio.gather(*watchers)
        everything = list(range(1, 450 + 60 + 2))
        assert seen == [everything[after:] for after in starts]
        assert log.long_polls <= 22
        assert not streams._tails

    asyncio.run(main())


def test_an_event_is_encoded_once_for_all_watchers(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    encode_event = tails.encode_event

    def count(event: dict[str, Any]) -> bytes:
        encoded.append(event["seq"])
        return encode_event(event)

    monkeypatch.setattr(tails, "encode_event", count)

    async def main() -> None:
        log = Log()
        await log.append(1_000)
        streams = Tails(log.read)
        watchers = [asyncio.create_task(collect(streams)) for _ in range(50)]
        await until(lambda: bool(streams._tails))
        for _ in range(10):
            await log.append(10)
            await asyncio.sleep(0.002)
        await log.append(1, end=True)
        seen = await asyncio.gather(*watchers)
        assert all(seqs == list(range(1, 1_102)) for seqs in seen)
        assert sorted(encoded) == list(range(1, 1_102))

    asyncio.run(main())


def test_watchers_that_all_begin_far_behind_read_each_page_once() -> None:
    async def main() -> None:
        log = Log()
        await log.append(5_000, end=True)
        streams = Tails(log.read)
        seen = await asyncio.gather(*(collect(streams) for _ in range(200)))
        assert all(seqs == list(range(1, 5_001)) for seqs in seen)
        assert log.reads == list(range(0, 5_000, tails.PAGE_EVENTS))

    asyncio.run(main())


def test_what_is_kept_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the batch's size nor the number of its watchers shows in it."""
    monkeypatch.setattr(tails, "PAGES_BYTES", 500_000)
    monkeypatch.setattr(tails, "TAIL_BYTES", 50_000)
    monkeypatch.setattr(tails, "CHUNK_BYTES", 8_000)

    async def main() -> None:
        log = Log(event_bytes=1_000)
        await log.append(3_000)
        streams = Tails(log.read)
        watchers = [asyncio.create_task(collect(streams)) for _ in range(20)]
        kept = []

        def look() -> None:
            pages = streams._pages
            assert pages.size == sum(page.size for page in pages._kept.values())
            (tail,) = streams._tails.values()
            assert tail.size == sum(len(chunk.body) for chunk in tail._chunks)
            kept.append((pages.size, tail.size))

        await until(lambda: bool(streams._tails))
        for _ in range(50):
            await log.append(20)
            await asyncio.sleep(0.002)
            look()
        await log.append(1, end=True)
        seen = await asyncio.gather(*watchers)
        assert all(seqs == list(range(1, 4_002)) for seqs in seen)
        assert 200_000 < max(size for size, _ in kept) <= 500_000
        assert 30_000 < max(size for _, size in kept) <= 50_000

    asyncio.run(main())


def test_a_chunk_holds_whole_events_and_no_more_bytes_than_it_may() -> None:
    chunks = to_chunks([make_event(seq, 10_000) for seq in range(1, 31)])
    assert [chunk.after for chunk in chunks[1:]] == [chunk.last for chunk in chunks[:-1]]
    assert (chunks[0].after, chunks[-1].last) == (0, 30)
    assert max(len(chunk.body) for chunk in chunks) <= tails.CHUNK_BYTES
    assert [e for chunk in chunks for e in chunk] == [make_event(s, 10_000) for s in range(1, 31)]
    large, small = to_chunks([make_event(1, 100_000), make_event(2)])
    assert len(large.body) > tails.CHUNK_BYTES
    assert [event["seq"] for event in small] == [2]


def test_a_part_of_a_chunk_is_the_events_above() -> None:
    events = [make_event(seq) | {"text": "a\n\nb: c"} for seq in range(4, 9)]
    (chunk,) = to_chunks(events)
    assert chunk.above(3) is chunk
    assert list(chunk.above(6)) == events[3:]
    assert chunk.above(6) == to_chunks(events[3:])[0]


def test_a_watcher_behind_the_tail_reads_pages_until_it_has_caught_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tails, "TAIL_BYTES", 500)

    async def main() -> None:
        log = Log()
        streams = Tails(log.read)
        slow = streams.follow("b", 0)
        quick = asyncio.create_task(collect(streams))
        first = asyncio.create_task(anext(slow))
        await asyncio.sleep(0.01)
        await log.append(1)
        seen = [event["seq"] for event in await first]
        for _ in range(50):
            await log.append(10)
            await asyncio.sleep(0.002)
        (tail,) = streams._tails.values()
        assert tail.first > seen[-1]
        await log.append(1, end=True)
        await quick
        async for chunk in slow:
            seen += [event["seq"] for event in chunk]
        assert seen == list(range(1, 503))

    asyncio.run(main())


def test_the_chunks_of_all_watchers_together_keep_a_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty watchers of a busy batch get few large chunks instead of many small ones."""
    monkeypatch.setattr(tails, "CHUNKS_PER_S", 200)

    async def main() -> None:
        log = Log()
        streams = Tails(log.read)
        counts = [0] * 30

        async def watch(number: int) -> list[int]:
            seqs = []
            async for chunk in streams.follow("b", 0):
                counts[number] += 1
                seqs += [event["seq"] for event in chunk]
            return seqs

        watchers = [asyncio.create_task(watch(number)) for number in range(30)]
        clock = asyncio.get_running_loop().time
        started = clock()
        for _ in range(100):
            await log.append(5)
            await asyncio.sleep(0.005)
        await log.append(1, end=True)
        seen = await asyncio.gather(*watchers)
        assert all(seqs == list(range(1, 502)) for seqs in seen)
        assert sum(counts) <= 200 * (clock() - started) + 2
        assert max(counts) - min(counts) <= 2

    asyncio.run(main())


def test_a_watcher_that_begins_beyond_the_end_makes_nobody_else_read_again() -> None:
    async def main() -> None:
        log = Log()
        await log.append(3)
        streams = Tails(log.read)
        beyond = asyncio.create_task(collect(streams, 999_999_999))
        await until(lambda: bool(streams._tails))
        reader = asyncio.create_task(collect(streams))
        await until(lambda: streams._tails["b"].first == 3)
        reads = len(log.reads)
        await log.append(1)
        await asyncio.sleep(0.05)
        await log.append(1, end=True)
        assert await asyncio.wait_for(reader, 10) == [1, 2, 3, 4, 5]
        assert len(log.reads) == reads
        beyond.cancel()
        await asyncio.gather(beyond, return_exceptions=True)

    asyncio.run(main())


def test_a_watcher_that_leaves_releases_the_tail() -> None:
    async def main() -> None:
        log = Log()
        await log.append(3)
        streams = Tails(log.read)
        stays = asyncio.create_task(collect(streams))
        leaves = asyncio.create_task(collect(streams))
        await until(lambda: bool(streams._tails) and streams._tails["b"].watchers == 2)
        tail = streams._tails["b"]
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        assert streams._tails["b"] is tail
        assert not tail.task.done()
        stays.cancel()
        await asyncio.gather(stays, tail.task, return_exceptions=True)
        assert not streams._tails
        assert tail.task.cancelled()

    asyncio.run(main())


def test_what_is_read_for_all_is_not_part_of_one_watchers_request() -> None:
    """When a client leaves, Serve cancels the calls that its request has made, which it knows by
    the context; the other watchers would wait for them for ever."""
    request: ContextVar[str] = ContextVar("request", default="nobody's")
    asked: list[str] = []
    log = Log()

    async def read(*arguments: Any):
        asked.append(request.get())
        return await log.read(*arguments)

    async def run() -> None:
        streams = Tails(read)
        await log.append(3)
        request.set("the first watcher's")
        seen = asyncio.create_task(collect(streams))
        await until(lambda: log.long_polls == 1)
        await log.append(2, end=True)
        assert await seen == [1, 2, 3, 4, 5]

    asyncio.run(run())
    assert set(asked) == {"nobody's"}
    assert len(asked) == 2  # a page, then the tail


def test_a_log_that_cannot_be_read_for_a_while_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tails, "RETRY_PAUSE_S", 0.001)

    async def main() -> None:
        log = Log()
        log.failures = [Unavailable("no collector")] * 3
        await log.append(2)
        streams = Tails(log.read)
        watcher = asyncio.create_task(collect(streams))
        await until(lambda: bool(streams._tails))
        log.failures = [Unavailable("no collector")] * 3
        await log.append(2)
        await until(lambda: not log.failures)
        await log.append(1, end=True)
        assert await watcher == [1, 2, 3, 4, 5]

    asyncio.run(main())


def test_a_log_that_stays_away_ends_the_streams_with_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tails, "RETRY_PAUSE_S", 0.001)
    monkeypatch.setattr(tails, "RETRY_S", 0.01)

    async def main() -> None:
        async def read(_batch: str, _after: int, _limit: int, wait_ms: int):
            if wait_ms:
                raise Unavailable("no collector")
            return [], False

        with pytest.raises(Unavailable, match="no collector"):
            await collect(Tails(read))

    asyncio.run(main())


@pytest.mark.parametrize("error", [NotFound("batch", "b"), RuntimeError("a bug")])
def test_another_error_ends_all_streams_at_once(error: Exception) -> None:
    async def main() -> None:
        async def read(_batch: str, _after: int, _limit: int, wait_ms: int):
            if wait_ms:
                raise error
            return [], False

        streams = Tails(read)
        found = await asyncio.gather(*(collect(streams) for _ in range(3)), return_exceptions=True)
        assert found == [error] * 3
        assert not streams._tails

    asyncio.run(main())


# -- answers ---------------------------------------------------------------------------------------


def test_a_stream_is_its_events_and_a_last_end() -> None:
    async def main() -> None:
        log = Log()
        await log.append(1, end=True)
        client = Client().open(EventStreams(log.read, unseen))
        await client.task
        assert bytes(client.sent) == (
            b'id: 1\nevent: t\ndata: {"seq":1,"type":"t","text":""}\n\nevent: end\ndata: {}\n\n'
        )

    asyncio.run(main())


def test_a_silent_batch_gets_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "HEARTBEAT_S", 0.01)

    async def main() -> None:
        log = Log()
        client = Client().open(EventStreams(log.read, unseen))
        await until(lambda: client.sent.count(b": heartbeat\n\n") >= 2)
        await log.append(1, end=True)
        await client.task
        assert client.messages() == [("t", make_event(1)), ("end", {})]

    asyncio.run(main())


def test_a_log_that_is_waited_for_does_not_silence_a_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tails, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(tails, "RETRY_PAUSE_S", 0.05)

    async def main() -> None:
        log = Log()
        log.failures = [Unavailable("no collector")]
        await log.append(1, end=True)
        client = Client().open(EventStreams(log.read, unseen))
        await client.task
        assert client.sent.startswith(b": heartbeat\n\n")
        assert client.messages() == [("t", make_event(1)), ("end", {})]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [(NotFound("batch", "b"), 404, "not-found"), (RuntimeError("a secret"), 500, "internal")],
)
def test_an_error_of_the_log_ends_the_stream_with_a_problem(
    error: Exception, status: int, kind: str
) -> None:
    async def main() -> None:
        log = Log()
        await log.append(2)
        streams = EventStreams(log.read, unseen)
        client = Client().open(streams)
        await until(lambda: bool(streams._tails._tails))
        log.failures = [error]
        await log.append(1)
        await client.task
        *events, (last, problem) = client.messages()
        assert [data["seq"] for _, data in events] in ([1, 2], [1, 2, 3])
        assert last == "error"
        assert (problem["status"], problem["type"]) == (status, f"about:blank#{kind}")
        assert "secret" not in json.dumps(problem)
        assert streams.open == 0

    asyncio.run(main())


def test_an_error_before_the_first_event_ends_the_stream_with_a_problem() -> None:
    async def main() -> None:
        log = Log()
        log.failures = [NotFound("batch", "b")]
        client = Client().open(EventStreams(log.read, unseen))
        await client.task
        ((last, problem),) = client.messages()
        assert (last, problem["status"]) == ("error", 404)

    asyncio.run(main())


def test_serve_ending_its_own_receive_is_a_client_that_has_left() -> None:
    async def main() -> None:
        log = Log()
        client = Client()

        async def receive() -> dict[str, Any]:
            await client.left.wait()
            raise TaskCancelledError

        client.receive = receive
        streams = EventStreams(log.read, unseen)
        client.open(streams)
        await until(lambda: bool(streams._tails._tails))
        client.left.set()
        await client.task
        assert streams.open == 0

    asyncio.run(main())


def test_a_client_that_reads_slowly_is_sent_no_more_than_its_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It gets everything, at its own pace, while the others are not held up."""
    monkeypatch.setattr(sse, "WINDOW_BYTES", 20_000)
    monkeypatch.setattr(tails, "CHUNK_BYTES", 4_000)

    async def main() -> None:
        log = Log(event_bytes=500)
        await log.append(400, end=True)
        slow, quick = Client(reads=False), Client()
        streams = EventStreams(log.read, see([slow, quick]))
        slow.open(streams)
        quick.open(streams)
        await quick.task
        most = 0
        while not slow.left.is_set():
            await asyncio.sleep(0.002)
            most = max(most, slow.unread)
            slow.read(3_000)
        await slow.task
        assert 15_000 < most <= 20_000 + len(sse.END)
        assert slow.seqs() == quick.seqs() == list(range(1, 401))
        assert slow.messages()[-1] == ("end", {})

    asyncio.run(main())


def test_a_client_that_reads_nothing_is_ended_with_a_hint_and_can_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "WINDOW_BYTES", 20_000)
    monkeypatch.setattr(sse, "STALL_S", 0.02)
    monkeypatch.setattr(tails, "CHUNK_BYTES", 4_000)

    async def main() -> None:
        log = Log(event_bytes=500)
        await log.append(400, end=True)
        dead = Client(reads=False)
        streams = EventStreams(log.read, see([dead]))
        dead.open(streams)
        await until(lambda: dead.ended)
        assert dead.unread <= 20_000 + 100
        *_, (last, hint) = dead.messages()
        assert last == "resume"
        assert hint == {"after": dead.seqs()[-1]}
        assert streams.open == 1, "what it has not read still counts"
        dead.read()
        await dead.task
        assert streams.open == 0
        again = Client().open(streams, hint["after"])
        await again.task
        assert dead.seqs() + again.seqs() == list(range(1, 401))

    asyncio.run(main())


def test_an_event_larger_than_the_window_is_sent_when_all_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "WINDOW_BYTES", 1_000)

    async def main() -> None:
        log = Log(event_bytes=100_000)
        await log.append(3, end=True)
        client = Client()
        client.open(EventStreams(log.read, see([client])))
        await client.task
        assert client.seqs() == [1, 2, 3]

    asyncio.run(main())


def test_an_unseen_client_is_ended_with_a_hint_after_its_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "UNSEEN_STREAM_BYTES", 50_000)
    monkeypatch.setattr(tails, "CHUNK_BYTES", 4_000)

    async def main() -> None:
        log = Log(event_bytes=500)
        await log.append(400, end=True)
        streams = EventStreams(log.read, unseen)
        seqs: list[int] = []
        rounds = 0
        while True:
            rounds += 1
            client = Client().open(streams, seqs[-1] if seqs else 0)
            await client.task
            assert len(client.sent) <= 50_000 + 100
            seqs += client.seqs()
            if client.messages()[-1] == ("end", {}):
                break
            assert client.messages()[-1] == ("resume", {"after": seqs[-1]})
        assert rounds > 2
        assert seqs == list(range(1, 401))
        assert streams.unseen_bytes == 0

    asyncio.run(main())


def test_all_unseen_clients_together_hold_no_more_than_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ended answers count until the client has read them or has left."""
    monkeypatch.setattr(sse, "UNSEEN_BYTES", 120_000)
    monkeypatch.setattr(tails, "CHUNK_BYTES", 4_000)

    async def main() -> None:
        log = Log(event_bytes=500)
        await log.append(150, end=True)
        streams = EventStreams(log.read, unseen)
        dead = [Client(reads=False).open(streams) for _ in range(10)]
        await until(lambda: all(client.ended for client in dead))
        assert 100_000 < sum(client.unread for client in dead) <= 120_000 + 10 * 100
        late = Client().open(streams)
        await late.task
        assert late.messages() == [("resume", {"after": 0})]
        for client in dead:
            client.left.set()
        await asyncio.gather(*(client.task for client in dead))
        assert streams.unseen_bytes == 0
        late = Client().open(streams)
        await late.task
        assert late.seqs() == list(range(1, 151))

    asyncio.run(main())


def test_a_client_that_leaves_releases_its_stream_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One waits for events, one for its window, one is cancelled by Serve."""
    monkeypatch.setattr(sse, "WINDOW_BYTES", 5_000)

    async def main() -> None:
        log = Log(event_bytes=2_000)
        await log.append(3)
        waits, stuck, cancelled = Client(), Client(reads=False), Client()
        streams = EventStreams(log.read, see([waits, stuck, cancelled]))
        for client in (waits, stuck, cancelled):
            client.open(streams)
        await until(lambda: waits.seqs() == cancelled.seqs() == [1, 2, 3])
        await log.append(3)
        await until(lambda: waits.seqs() == cancelled.seqs() == list(range(1, 7)))
        assert len(stuck.seqs()) < 6
        (tail,) = streams._tails._tails.values()
        waits.left.set()
        stuck.left.set()
        cancelled.task.cancel()
        await asyncio.gather(
            waits.task, stuck.task, cancelled.task, tail.task, return_exceptions=True
        )
        assert cancelled.task.cancelled()
        assert not streams._tails._tails
        assert tail.watchers == 0
        assert streams.open == 0

    asyncio.run(main())


def test_a_stream_more_than_there_may_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_STREAMS", 2)

    async def main() -> None:
        log = Log()
        streams = EventStreams(log.read, unseen)
        clients = [Client().open(streams) for _ in range(2)]
        await until(lambda: streams.open == 2)
        with pytest.raises(Unavailable, match="2 event streams are open"):
            streams.respond("b", 0)
        clients[0].left.set()
        await clients[0].task
        Client().open(streams)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    asyncio.run(main())


def test_a_chunk_of_nothing_is_a_heartbeat() -> None:
    assert list(Chunk(3, 3, b"")) == []
