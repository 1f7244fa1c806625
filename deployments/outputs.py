"""Outputs of executions, which are in the store when small and in a blob when large."""

import asyncio
from typing import Any

from deployments.calls import Handle, call
from wtb_core.files.blobs import BlobStore
from wtb_core.store.rows import parse_execution_id
from wtb_core.store.views import load_output

MAX_PAGE_OUTPUT_BYTES = 16 * 1024**2


class Outputs:
    """Adds outputs to executions that were read without them."""

    def __init__(self, collector: Handle, blobs: BlobStore) -> None:
        self._collector = collector
        self._blobs = blobs

    async def include(
        self, batch_id: str, items: list[dict[str, Any]], more: int | None
    ) -> tuple[list[dict[str, Any]], int | None]:
        """A page with its outputs; it ends early, with a new cursor, when they grow large."""
        taken: list[dict[str, Any]] = []
        size = 0
        for item in items:
            size += item["output_bytes"] or 0
            if taken and size > MAX_PAGE_OUTPUT_BYTES:
                more = parse_execution_id(taken[-1]["execution_id"])[1]
                break
            taken.append(item)
        numbers = [parse_execution_id(item["execution_id"])[1] for item in taken]
        outputs = await call(self._collector, "get_outputs", batch_id, numbers)
        return await asyncio.to_thread(self._load, taken, numbers, outputs), more

    def _load(
        self,
        items: list[dict[str, Any]],
        numbers: list[int],
        outputs: dict[int, tuple[str | None, str | None]],
    ) -> list[dict[str, Any]]:
        return [
            {**item, "output": load_output(outputs[number], self._blobs)}
            for item, number in zip(items, numbers, strict=True)
        ]
