"""Group commit: one thread writes, and many changes share one durable transaction.

While a transaction is being synced, the changes that arrive wait and form the next one. A change is
answered only after its transaction is durable. A change that fails is undone by its savepoint and
hinders no other, also when the database refuses what it wrote; when the transaction itself fails,
all its changes are answered with that.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError

from wtb_core.errors import DiskFull, Unavailable
from wtb_core.events import Draft
from wtb_core.space import is_full
from wtb_core.store import log
from wtb_core.store.database import find_path
from wtb_core.store.ledger import Ledger
from wtb_core.turns import WriteTurn

MAX_CHANGES = 256


class Commit(NamedTuple):
    """A transaction that is durable: the events it appended, and how long it took."""

    appended: Sequence[Draft]
    duration_s: float


class _Waiting(NamedTuple):
    change: Callable[[Connection], Any]
    answer: asyncio.Future[Any]


class Writer:
    """The only writer of the store, from the moment it takes over until another one does."""

    def __init__(
        self,
        engine: Engine,
        ledger: Ledger,
        on_commit: Callable[[Commit], None] = lambda _: None,
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._on_commit = on_commit
        self._waiting: list[_Waiting] = []
        self._thread = ThreadPoolExecutor(1, "store-writer")
        self._flushing: asyncio.Task[None] | None = None
        self._closed = False
        self._turn = WriteTurn(find_path(engine))
        try:
            with self._turn.take(), engine.begin() as connection:
                self.epoch = ledger.take_over(connection)
        except (DBAPIError, OSError) as error:
            raise self._explain(error) from error

    async def write[Result](self, change: Callable[[Connection], Result]) -> Result:
        """Apply a change durably and return what it returned.

        Cancelling the caller does not cancel the change.

        Raises:
            WtbError: what the change raised.
            StaleEpoch: when another writer has taken over.
            Unavailable: when the database refused the transaction, or this writer was closed.
        DiskFull: when there is no space for the transaction.
        """
        if self._closed:
            raise Unavailable("the store is closed")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(change, answer))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        return cast("Result", await asyncio.shield(answer))

    async def close(self) -> None:
        """Finish what waits, then stop the thread."""
        self._closed = True
        if self._flushing is not None:
            await self._flushing
        self._thread.shutdown()

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_CHANGES], self._waiting[MAX_CHANGES:]
            results, commit = await loop.run_in_executor(self._thread, self._commit, batch)
            for waiting, result in zip(batch, results, strict=True):
                if waiting.answer.cancelled():
                    continue
                if isinstance(result, BaseException):
                    waiting.answer.set_exception(result)
                else:
                    waiting.answer.set_result(result)
            if commit is not None:
                self._on_commit(commit)

    def _commit(self, batch: list[_Waiting]) -> tuple[list[Any], Commit | None]:
        started = time.monotonic()
        try:
            with self._turn.take(), self._engine.begin() as connection:
                appended = log.get_appended(connection)
                appended.clear()
                self._ledger.check_epoch(connection, self.epoch)
                results = [self._apply(connection, waiting) for waiting in batch]
        except Exception as error:  # noqa: BLE001 - whatever it is, it is every change's answer
            self._ledger.forget()
            return [self._explain(error)] * len(batch), None
        return results, Commit(tuple(appended), time.monotonic() - started)

    def _apply(self, connection: Connection, waiting: _Waiting) -> Any:
        try:
            return self._ledger.apply(connection, waiting.change)
        except (DataError, IntegrityError, ProgrammingError) as error:
            return error
        except DBAPIError:  # a full disk or a lost lock ends the transaction for all
            raise
        except Exception as error:  # noqa: BLE001 - it is the answer to this change alone
            return error

    def _explain(self, error: Exception) -> Exception:
        """What callers are told of a transaction that could not be committed."""
        if is_full(error):
            where = find_path(self._engine)
            return DiskFull(str(where and where.parent), "the store can take nothing more")
        if isinstance(error, DBAPIError):
            return Unavailable(f"the store refused a transaction: {error.orig}")
        return error
