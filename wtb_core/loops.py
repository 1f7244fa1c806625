"""An event loop in a thread, for callers that have no loop of their own or must not wait in it."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from typing import Any

CANCEL_TIMEOUT_S = 5.0
_END = object()


class LoopThread:
    """Runs coroutines for other threads until it is closed."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether nothing runs here any more."""
        return self._loop.is_closed()

    def run[Result](self, work: Coroutine[Any, Any, Result]) -> Result:
        """Wait for `work`. It is cancelled, and has ended, when the wait is interrupted.

        Raises:
            RuntimeError: when the loop is closed.
        """
        if self.closed:
            work.close()
            raise RuntimeError("this bench is closed")
        ended = threading.Event()
        future = asyncio.run_coroutine_threadsafe(_announce_end(work, ended), self._loop)
        try:
            return future.result()
        finally:
            if future.cancel():
                ended.wait(CANCEL_TIMEOUT_S)

    def iterate[Item](self, items: AsyncGenerator[Item]) -> Iterator[Item]:
        """The items, one at a time, as the caller asks for them."""
        try:
            while (item := self.run(_next(items))) is not _END:
                yield item  # pyright: ignore[reportReturnType] - it is not the mark of the end
        finally:
            if not self.closed:
                self.run(items.aclose())

    def close(self) -> None:
        """End the thread; closing twice does no harm."""
        if self.closed:
            return
        self.run(self._loop.shutdown_asyncgens())
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _announce_end[Result](
    work: Coroutine[Any, Any, Result], ended: threading.Event
) -> Result:
    try:
        return await work
    finally:
        ended.set()


async def _next(items: AsyncGenerator[Any]) -> Any:
    return await anext(items, _END)
