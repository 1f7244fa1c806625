"""A saver at one end of a socket pair and a store's session at the other, in one process."""

import asyncio
import socket
import threading

from wtb_core.checkpoints import ChannelSession, SessionSaver
from wtb_core.sandbox.wire import AsyncChannel, Channel


class Served:
    """A session on a store, served on an event loop in a thread; frames without an answer are kept."""

    def __init__(self, store, scope=None, track=None, file_commit=None):
        self.server = store.session(scope, track, file_commit)
        self.other = []
        self._ours, theirs = socket.socketpair()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._serving = asyncio.run_coroutine_threadsafe(self._serve(theirs), self._loop)
        self.session = ChannelSession(Channel(self._ours))

    def saver(self, **options):
        return SessionSaver(self.session, **options)

    def call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _serve(self, sock):
        channel = AsyncChannel(sock)
        try:
            while True:
                header, blobs = await channel.receive()
                if header["op"] in {"node_started", "node_ended"}:
                    self.other.append(header)
                elif (answer := await self.server.handle(header, blobs)) is not None:
                    await channel.send(answer[0], *answer[1])
        except EOFError:
            await self.server.settle()
        finally:
            channel.close()

    def close(self):
        """Raises what the session raised."""
        self._ours.close()
        try:
            self._serving.result(60)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
