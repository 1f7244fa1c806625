"""Comparisons of batches, folded from their events as far as they go."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from wtb_core.parameters import MAX_LIMIT
from wtb_core.report import BatchFold

KEPT_FOLDS = 32

ReadPage = Callable[[str, int, int, int], Awaitable[tuple[list[dict[str, Any]], bool]]]
"""Batch, after, limit, wait in milliseconds: the events, and whether none follows."""


class Comparisons:
    """Keeps the folds of the batches that were asked for last, so that only new events are read."""

    def __init__(self, read_page: ReadPage) -> None:
        self._read_page = read_page
        self._folds: OrderedDict[str, BatchFold] = OrderedDict()

    async def get(self, batch_id: str) -> dict[str, Any]:
        """The comparison of a batch's variants with the batch's status.

        Raises:
            NotFound: when there is no such batch.
        """
        fold = self._folds.pop(batch_id, None) or BatchFold()
        while True:
            items, _ = await self._read_page(batch_id, fold.seq, MAX_LIMIT, 0)
            for event in items:
                fold.feed(event)
            if len(items) < MAX_LIMIT:
                break
        self._folds[batch_id] = fold
        while len(self._folds) > KEPT_FOLDS:
            self._folds.popitem(last=False)
        return {"batch_id": batch_id, "status": fold.status, **fold.comparison()}
