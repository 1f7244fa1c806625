"""What a submission answers: the batch, and where to find it."""

from typing import Any

from wtb_core.store.records import Receipt


def describe(receipt: Receipt) -> dict[str, Any]:
    """The answer to whoever made the batch."""
    return {
        "batch_id": receipt.batch_id,
        "status": receipt.status,
        "executions": receipt.executions,
        "created": receipt.created,
        "links": _find_links(receipt.batch_id),
    }


def _find_links(batch_id: str) -> dict[str, str]:
    """Where a batch and what belongs to it are found."""
    base = f"/v1/batches/{batch_id}"
    return {
        "self": base,
        "events": f"{base}/events",
        "executions": f"{base}/executions",
        "comparison": f"{base}/comparison",
        "cancel": f"{base}/cancel",
        "retry": f"{base}/retry",
    }
