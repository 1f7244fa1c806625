"""How many unfinished executions there may be, and the backpressure of those that must wait."""

import math

from sqlalchemy import Connection, func, select

from wtb_core import events as ev
from wtb_core.errors import TooManyPending
from wtb_core.ids import parse_time
from wtb_core.store import pool
from wtb_core.store.ledger import Ledger
from wtb_core.store.tables import batches

TOPIC = "admission"
CALM_MS = 60_000
"""How long nobody is refused until the pressure is over, even if the last one would not fit."""


class Pressure:
    """The admission backpressure of one collector: applied at the first refusal.

    It is released when the batch that was refused last would be let in, or when none has been
    refused for a while.
    """

    def __init__(self) -> None:
        self.is_applied = False
        self._held = 0
        self._refused_ms = 0

    def load(self, ledger: Ledger, connection: Connection) -> None:
        """Take over what another collector has applied."""
        known = pool.find_standing(connection, TOPIC)
        if known is not None:
            self.is_applied, self._held = True, known["held"]
            self._refused_ms = ledger.clock()

    def apply(self, ledger: Ledger, connection: Connection, refusal: TooManyPending) -> None:
        """Note that a batch was refused."""
        self._held, self._refused_ms = refusal.wanted, ledger.clock()
        if self.is_applied:
            return
        self.is_applied = True
        payload = ev.BackpressureApplied(
            level=TOPIC, queued=refusal.pending, limit=refusal.limit, held=refusal.wanted
        )
        pool.announce(ledger, connection, payload, standing_as=TOPIC, to_batches=False)

    def is_over(self, ledger: Ledger, connection: Connection) -> bool:
        """Whether it can be released."""
        fits = count_unfinished(connection) + self._held <= ledger.admission
        return fits or ledger.clock() - self._refused_ms >= CALM_MS

    def release(self, ledger: Ledger, connection: Connection) -> None:
        """End it, with its event."""
        applied = pool.find_standing(connection, TOPIC)
        self.is_applied = False
        if applied is None:
            return
        pool.stand_down(connection, TOPIC)
        duration_ms = max(ledger.clock() - parse_time(applied["occurred_at"]), 0)
        payload = ev.BackpressureReleased(level=TOPIC, duration_ms=duration_ms)
        pool.announce(ledger, connection, payload, standing_as=None, to_batches=False)


def admit(ledger: Ledger, connection: Connection, more: int) -> None:
    """Let `more` executions in.

    Raises:
        TooManyPending: when there would be more unfinished ones than the limit.
    """
    unfinished = count_unfinished(connection)
    if unfinished + more > ledger.admission:
        excess = unfinished + more - ledger.admission
        wait_s = _retry_after_s(ledger, connection, excess)
        raise TooManyPending(unfinished, ledger.admission, wait_s, more)


def count_unfinished(connection: Connection) -> int:
    """Executions of all batches that have not ended."""
    b = batches.c
    ended = b.succeeded + b.failed + b.cancelled
    query = select(func.coalesce(func.sum(b.total - ended), 0)).where(
        b.status.in_(("pending", "running", "cancelling"))
    )
    return int(connection.execute(query).scalar_one())


def _retry_after_s(ledger: Ledger, connection: Connection, excess: int) -> int:
    """When `excess` executions should have ended, at the pace of the running batches."""
    now = ledger.clock()
    b = batches.c
    rows = connection.execute(
        select(b.succeeded, b.failed, b.adopted, b.started_ms).where(b.status == "running")
    )
    rates = [
        (row.succeeded + row.failed - row.adopted) / max(now - row.started_ms, 1)
        for row in rows.all()
    ]
    per_ms = sum(rates)
    if per_ms <= 0:
        return 30
    wait_ms = excess / per_ms
    return math.ceil(min(max(wait_ms / 1000, 1), 3600))
