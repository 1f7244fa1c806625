"""What the end of an attempt is told as, in events, and kept as, in its record."""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Row

from wtb_core import events as ev
from wtb_core.attempts import Outcome, TrackedFiles, TrackingFailure
from wtb_core.files.paths import show_path

MAX_PATHS = 200
MAX_TRACKING_FAILURES = 20
MAX_FAILED_FILES = 20
MAX_MESSAGE_CHARS = 2_000


def make_file_events(
    outcome: Outcome, ids: dict[str, Any]
) -> Iterator[ev.FilesTrackingFailed | ev.FilesTracked]:
    """The events about the attempt's files, which come before that of its end."""
    for failure in _bound_failures(outcome.tracking_failures):
        yield ev.FilesTrackingFailed(**ids, **failure)
    files = outcome.files
    if files is not None:
        paths = [show_path(path) for path in files.paths[:MAX_PATHS]]
        yield ev.FilesTracked(**ids, **files.model_dump(exclude={"paths"}), paths=paths)


def _bound_failures(failures: Sequence[TrackingFailure]) -> list[dict[str, Any]]:
    """What is told of file commits that failed: the first, then how many more there were."""
    told: list[dict[str, Any]] = [
        {
            "checkpoint_id": failure.checkpoint_id,
            "failed_files": [show_path(path) for path in failure.failed_files[:MAX_FAILED_FILES]],
            "error_message": show_path(failure.error_message[:MAX_MESSAGE_CHARS]),
        }
        for failure in failures[:MAX_TRACKING_FAILURES]
    ]
    if more := len(failures) - len(told):
        message = f"{more} more file commit{'s' if more > 1 else ''} of this attempt failed"
        told.append({"checkpoint_id": None, "failed_files": [], "error_message": message})
    return told


def _count_files(files: TrackedFiles | None) -> int | None:
    return None if files is None else files.created + files.modified + files.deleted


def make_event(
    outcome: Outcome,
    ids: dict[str, Any],
    cancel_reason: str,
    overall: float | None,
    *,
    will_retry: bool,
) -> ev.VariantCompleted | ev.VariantFailed | ev.VariantCancelled:
    """The event of the end; `ids` name the attempt."""
    failure = outcome.failure
    if outcome.status == "succeeded":
        return ev.VariantCompleted(
            **ids,
            duration_ms=outcome.duration_ms,
            node_count=outcome.node_count,
            checkpoint_count=outcome.checkpoint_count,
            scores=outcome.evaluation.scores,
            overall_score=overall,
            files_tracked=_count_files(outcome.files) or 0,
            file_commit_id=outcome.files.file_commit_id if outcome.files else None,
            cpu_ms=outcome.cpu_ms,
            peak_rss_bytes=outcome.peak_rss_bytes,
            usage=outcome.usage,
            reused_from=None,
        )
    if failure is None:
        return ev.VariantCancelled(**ids, reason=cancel_reason, duration_ms=outcome.duration_ms)
    return ev.VariantFailed(
        **ids,
        kind=failure.kind,
        reason=failure.reason,
        error_type=failure.error_type,
        error_message=failure.message,
        failed_at_node=failure.node,
        will_retry=will_retry,
        duration_ms=outcome.duration_ms,
        node_count=outcome.node_count,
        checkpoint_count=outcome.checkpoint_count,
    )


def make_result(
    attempt: Row[Any],
    outcome: Outcome,
    output_bytes: int | None,
    overall: float | None,
    now: int,
) -> dict[str, Any]:
    """What the store keeps of the end, of the attempt and as the execution's latest result."""
    evaluation = outcome.evaluation
    return {
        "failure": outcome.failure.model_dump() if outcome.failure else None,
        "output_bytes": output_bytes,
        "scores": evaluation.scores,
        "score_comments": evaluation.comments,
        "score_errors": evaluation.errors,
        "overall_score": overall,
        "duration_ms": outcome.duration_ms,
        "queue_ms": attempt.queue_ms,
        "node_count": outcome.node_count,
        "checkpoint_count": outcome.checkpoint_count,
        "history": outcome.history,
        "start_commit_id": outcome.start_commit_id,
        "file_commit_id": outcome.files.file_commit_id if outcome.files else None,
        "files_tracked": _count_files(outcome.files),
        "tracking_failures": _bound_failures(outcome.tracking_failures),
        "isolation": outcome.isolation,
        "start": outcome.start,
        "start_reason": outcome.start_reason,
        "cpu_ms": outcome.cpu_ms,
        "peak_rss_bytes": outcome.peak_rss_bytes,
        "usage": outcome.usage,
        "nodes": [node.model_dump() for node in outcome.nodes],
        "stdout": outcome.stdout,
        "stderr": outcome.stderr,
        "cut_logs": outcome.cut_logs,
        "recorded_ms": now,
    }
