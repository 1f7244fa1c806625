"""Server-sent events of a batch, with memory that no client can make grow.

Nothing in Serve's response path waits for a client: what a replica sends is at once an object that
the proxy owns and keeps until the client reads it or leaves, even when the answer has ended (chunks
up to 100 KiB in the proxy's heap, larger ones in the object store). So a stream sends only what its
window holds. The client's TCP stack acknowledges what it got, and a replica on the proxy's node can
ask the kernel about it (`tcp_acks`): of such a stream at most `WINDOW_BYTES` are unread, however
slowly the client reads, and one of which nothing is read for `STALL_S` is ended. Of a stream whose
connection cannot be seen everything counts as unread until it ends; it is ended when that comes to
`UNSEEN_STREAM_BYTES`, or that of all such streams together to `UNSEEN_BYTES`.

A stream that is ended early says `event: resume` with the `seq` to go on after. An answer that has
ended counts, and keeps its request, until the proxy has handed over its last byte or the client has
left: then ASGI's `receive` says `http.disconnect`. So the bytes that wait for clients are at most
`MAX_STREAMS * WINDOW_BYTES + UNSEEN_BYTES`.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from ray.exceptions import TaskCancelledError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.http_errors import describe
from deployments.tails import Chunk, ReadEvents, Tails
from deployments.tcp_acks import Address, find_acked_bytes
from wtb_core.errors import Unavailable

logger = logging.getLogger("ray.serve")

MAX_STREAMS = 512
WINDOW_BYTES = 512 * 1024
UNSEEN_STREAM_BYTES = 16 * 1024**2
UNSEEN_BYTES = 256 * 1024**2
STALL_S = 30.0
"""How long a client with a full window may read nothing at all."""
MIN_LOOK_S = 0.02
MAX_LOOK_S = 1.0
RESUME_MS = 200
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

HEARTBEAT = b": heartbeat\n\n"
END = b"event: end\ndata: {}\n\n"

FindAckedBytes = Callable[[Address, Address], int | None]


class EventStreams:
    """The open streams of all batches."""

    def __init__(self, read: ReadEvents, find_acked: FindAckedBytes = find_acked_bytes) -> None:
        self._tails = Tails(read)
        self._find_acked = find_acked
        self.open = 0
        self.unseen_bytes = 0

    def follow(self, batch_id: str, after: int) -> AsyncGenerator[Chunk]:
        """Chunks of events above `after` until the batch has ended; see `Tails.follow`."""
        return self._tails.follow(batch_id, after)

    def respond(self, batch_id: str, after: int) -> Response:
        """The answer that streams the events above `after`.

        Raises:
            Unavailable: when `MAX_STREAMS` are open.
        """
        if self.open >= MAX_STREAMS:
            raise Unavailable(f"{MAX_STREAMS} event streams are open, which is the limit", 5)
        return _EventStream(self, batch_id, after)

    def open_window(self, scope: Scope) -> "_Window":
        """The window of a connection."""
        local, remote = scope.get("server"), scope.get("client")
        if local is None or remote is None:
            return _Window(self, lambda: None)
        return _Window(self, lambda: self._find_acked(tuple(local), tuple(remote)))


class _Window:
    """What a stream has sent and its client, as far as is known, has not read."""

    def __init__(self, streams: EventStreams, find_acked: Callable[[], int | None]) -> None:
        self._streams = streams
        self._find_acked = find_acked
        self._acked = find_acked()
        self._is_seen = self._acked is not None
        self.unread = 0

    async def admit(self, size: int) -> bool:
        """Wait until `size` more bytes may be sent; false when the stream has to end instead."""
        if not self._is_seen:
            return self._admit_unseen(size)
        clock = asyncio.get_running_loop().time
        give_up_at, pause_s = clock() + STALL_S, MIN_LOOK_S
        while self.unread and self.unread + size > WINDOW_BYTES:
            if self._look():
                give_up_at, pause_s = clock() + STALL_S, MIN_LOOK_S
                continue
            if clock() > give_up_at:
                return False
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_LOOK_S)
        self.unread += size
        return True

    def close(self) -> None:
        """Give back what an unseen stream has taken."""
        if not self._is_seen:
            self._streams.unseen_bytes -= self.unread

    def _admit_unseen(self, size: int) -> bool:
        if self.unread + size > UNSEEN_STREAM_BYTES:
            return False
        if self._streams.unseen_bytes + size > UNSEEN_BYTES:
            return False
        self.unread += size
        self._streams.unseen_bytes += size
        return True

    def _look(self) -> bool:
        """Whether the client has read something since the last look.

        Acknowledged are headers and framing too; what they add is dropped when all is read.
        """
        acked = self._find_acked()
        if acked is None or self._acked is None or acked == self._acked:
            return False
        self.unread = max(0, self.unread - (acked - self._acked))
        self._acked = acked
        return True


class _EventStream(Response):
    media_type = "text/event-stream"

    def __init__(self, streams: EventStreams, batch_id: str, after: int) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._streams = streams
        self._batch_id = batch_id
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, and stay until the client has everything or has left."""
        window = self._streams.open_window(scope)
        self._streams.open += 1
        tasks = [
            asyncio.ensure_future(self._send_all(window, send)),
            asyncio.ensure_future(_wait_for_disconnect(receive)),
        ]
        sending, disconnected = tasks
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
                await disconnected
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            window.close()
            self._streams.open -= 1

    async def _send_all(self, window: _Window, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            last = await self._send_events(window, send)
        except Exception as error:  # the answer has begun: its end is the only place left to say it
            logger.exception("the event stream of batch %s broke off", self._batch_id)
            last = b"event: error\ndata: " + describe(error).body + b"\n\n"
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _send_events(self, window: _Window, send: Send) -> bytes:
        """Send events as the window allows, and return the message to end with."""
        after = self._after
        async with aclosing(self._streams.follow(self._batch_id, after)) as chunks:
            async for chunk in chunks:
                body = chunk.body or HEARTBEAT
                if not await window.admit(len(body)):
                    return _encode_resume(after)
                await send({"type": "http.response.body", "body": body, "more_body": True})
                after = chunk.last
        return END


async def _wait_for_disconnect(receive: Receive) -> None:
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except (
        TaskCancelledError
    ):  # Serve's call to the proxy, which a client that leaves can end first
        return


def _encode_resume(after: int) -> bytes:
    return f"event: resume\nretry: {RESUME_MS}\ndata: {json.dumps({'after': after})}\n\n".encode()
