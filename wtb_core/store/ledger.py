"""The context of every change to the store: clock, ids, and what is derived from what it holds.

The modules beside this one are the changes: acceptance, claims, endings, pool. Each takes a ledger
and a connection inside a transaction. They alone apply the state tables, and append the events that
a change causes in the same transaction.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, insert, select, update

from wtb_core import events as ev
from wtb_core.attempts import Origin
from wtb_core.errors import StaleEpoch
from wtb_core.ids import Clock, NewId, format_time, new_event_id, now_ms
from wtb_core.report import BatchFold
from wtb_core.specs import Limits, Retry, Variant, Workspace
from wtb_core.store import log
from wtb_core.store.tables import POOL_STREAM, writers

FOLD_PAGE = 500


class BatchFacts(NamedTuple):
    """What never changes about a batch, kept so that a claim need not parse it again."""

    variants: list[Variant]
    evaluators: list[str]
    scores: dict[str, dict[str, Any]]
    limits: Limits
    retry: Retry
    workspace: Workspace
    origin: Origin | None


class Ledger:
    """What all changes of one writer share. `admission` limits the unfinished executions."""

    def __init__(
        self,
        *,
        producer: str,
        admission: int,
        clock: Clock = now_ms,
        new_id: NewId = new_event_id,
    ) -> None:
        self._producer = producer
        self.admission = admission
        self.clock = clock
        self.new_id = new_id
        self._facts: dict[str, BatchFacts] = {}
        self._folds: dict[str, BatchFold] = {}

    def apply[Result](
        self, connection: Connection, change: Callable[[Connection], Result]
    ) -> Result:
        """Run one change so that its failure undoes it alone."""
        appended = log.get_appended(connection)
        before = len(appended)
        try:
            with connection.begin_nested():
                return change(connection)
        except BaseException:  # raised again below
            del appended[before:]
            self.forget()
            raise

    def forget(self) -> None:
        """Drop what was derived from events that a rollback may have undone."""
        self._folds.clear()

    def close(self, batch_id: str) -> None:
        """Drop what was kept of a batch that has ended."""
        self._facts.pop(batch_id, None)
        self._folds.pop(batch_id, None)

    def take_over(self, connection: Connection) -> int:
        """Raise the store's epoch and return it; every older writer is refused from now on."""
        current = connection.execute(select(writers.c.epoch)).scalar_one_or_none()
        if current is None:
            connection.execute(insert(writers).values(id=1, epoch=1))
            log.open_stream(connection, POOL_STREAM)
            return 1
        connection.execute(update(writers).values(epoch=current + 1))
        return int(current) + 1

    def check_epoch(self, connection: Connection, mine: int) -> None:
        """Refuse to write for a collector that was replaced.

        Raises:
            StaleEpoch: when the store's epoch is not `mine`.
        """
        current = connection.execute(select(writers.c.epoch)).scalar_one()
        if current != mine:
            raise StaleEpoch(mine, int(current))

    def draft(self, payload: ev.Payload, now: int) -> ev.Draft:
        """The event that says `payload`, with an id of its own."""
        return ev.draft(
            payload,
            event_id=self.new_id(),
            occurred_at=format_time(now),
            producer=self._producer,
        )

    def get_facts(self, batch: Row[Any]) -> BatchFacts:
        """The parsed form of a batch's constant columns."""
        facts = self._facts.get(batch.batch_id)
        if facts is None:
            spec = json.loads(batch.spec)
            facts = BatchFacts(
                variants=[Variant.model_validate(raw) for raw in json.loads(batch.variants)],
                evaluators=json.loads(batch.evaluators),
                scores=json.loads(batch.scores),
                limits=Limits.model_validate(spec["limits"]),
                retry=Retry.model_validate(spec["retry"]),
                workspace=Workspace.model_validate(spec["workspace"]),
                origin=None if batch.origin is None else Origin.model_validate_json(batch.origin),
            )
            self._facts[batch.batch_id] = facts
        return facts

    def fold(self, connection: Connection, batch_id: str) -> BatchFold:
        """The fold of a batch's events so far; it is kept, so only new events are read."""
        fold = self._folds.setdefault(batch_id, BatchFold())
        while page := log.read(connection, batch_id, fold.seq, FOLD_PAGE).items:
            for event in page:
                fold.feed(event)
        return fold
