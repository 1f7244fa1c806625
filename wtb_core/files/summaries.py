"""What an attempt's commits come to: which files it changed, and where that could not be found."""

from typing import Final

from wtb_core.attempts import TrackedFiles, TrackingFailure
from wtb_core.errors import TrackingError
from wtb_core.files.blobs import BlobStore
from wtb_core.files.commits import BaseTree, Commit
from wtb_core.files.diffs import FileChange, compare
from wtb_core.files.paths import show_path

MAX_SHOWN_PATHS: Final = 200
MAX_FAILURES: Final = 100


class AttemptCommits:
    """The commits of one attempt in their order, the first being what user code found.

    What another attempt's user code found may be given instead, as `start`.
    """

    def __init__(self, start: Commit | None = None) -> None:
        self.failures: list[TrackingFailure] = []
        self._is_end_missing = False
        self._start = start
        self._last: Commit | None = None
        self._checkpoint_id: str | None = None

    @property
    def start_id(self) -> str | None:
        """The commit that user code found."""
        return None if self._start is None else self._start.id

    def add(self, checkpoint_id: str | None, commit: Commit) -> None:
        """A commit was made, at a checkpoint, or at the beginning or the end."""
        if self._start is None and self._last is None and not self.failures:
            self._start = commit
        if self._last is None or commit.id != self._last.id:
            self._checkpoint_id = None
        self._checkpoint_id = checkpoint_id or self._checkpoint_id
        self._last = commit
        self._is_end_missing = False

    def fail(self, checkpoint_id: str | None, error: TrackingError) -> None:
        """A commit could not be made, or not be stored; see `add`."""
        self._is_end_missing = checkpoint_id is None
        if len(self.failures) < MAX_FAILURES:
            self.failures.append(
                TrackingFailure(
                    checkpoint_id=checkpoint_id,
                    failed_files=[show_path(path) for path in error.failed_files],
                    error_message=error.message,
                )
            )

    def summarise(self, blobs: BlobStore, base: BaseTree) -> TrackedFiles | None:
        """The last commit against the first; None when there is none, or the last one failed."""
        if self._start is None or self._last is None or self._is_end_missing:
            return None
        changes = compare(self._start, self._last, base, blobs)
        changes = [change for change in changes if not _is_directory(change)]
        kinds = [change.change for change in changes]
        return TrackedFiles(
            file_commit_id=self._last.id,
            checkpoint_id=self._checkpoint_id,
            created=kinds.count("created"),
            modified=kinds.count("modified"),
            deleted=kinds.count("deleted"),
            size_bytes=sum(change.size_after or 0 for change in changes),
            paths=[show_path(change.path) for change in changes[:MAX_SHOWN_PATHS]],
        )


def _is_directory(change: FileChange) -> bool:
    return {change.kind_before, change.kind_after} <= {"directory", None}
