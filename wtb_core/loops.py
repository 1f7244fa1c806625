"""Work that goes on to its end, and an event loop in a thread for callers that have none."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from typing import Any

CANCEL_TIMEOUT_S = 5.0
LAST_STEPS_S = 1.0
_END = object()


async def finish[Result](work: Awaitable[Result]) -> Result:
    """What `work` gives; it goes on to its end however often the caller is cancelled.

    Raises:
        asyncio.CancelledError: after that, when the caller was cancelled.
    """
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        raise


async def finish_in_thread[Result](work: Callable[..., Result], *arguments: Any) -> Result:
    """`work` in a thread, to its end even when the caller is cancelled: it cannot be stopped."""
    return await finish(asyncio.to_thread(work, *arguments))


class Background:
    """Work beside what is waited for; used from one event loop."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Awaitable[None]) -> None:
        """Do `work`; `settle` waits for it."""
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def settle(self) -> None:
        """Wait until all has ended, also what was begun meanwhile."""
        while running := list(self._running):
            await asyncio.wait(running)  # which lets nothing else run when all are done
            self._running.difference_update(running)


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
        self.run(_await_others(LAST_STEPS_S))
        self.run(self._loop.shutdown_asyncgens())
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _await_others(timeout_s: float) -> None:
    """Let steps that are being taken end: a generator in the middle of one cannot be closed."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=timeout_s)


async def _announce_end[Result](
    work: Coroutine[Any, Any, Result], ended: threading.Event
) -> Result:
    try:
        return await work
    finally:
        ended.set()


async def _next(items: AsyncGenerator[Any]) -> Any:
    return await anext(items, _END)
