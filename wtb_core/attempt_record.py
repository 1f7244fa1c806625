"""What is stored of one attempt: commits while it runs; logs, files and history when it has ended.

What cannot be stored is missing, and the attempt's result stands.
"""

import logging
from pathlib import Path
from typing import Any

from wtb_core import history
from wtb_core.attempts import MAX_LOG_BYTES, Assignment
from wtb_core.beginnings import Beginning
from wtb_core.checkpoint_store import CheckpointSession, CheckpointStore, Scope
from wtb_core.errors import NotFound, TrackingError, Unavailable
from wtb_core.files.blobs import DURABLE_MODE, BlobStore
from wtb_core.files.summaries import AttemptCommits
from wtb_core.history import History
from wtb_core.loops import finish_in_thread
from wtb_core.parameters import LOG_STREAMS
from wtb_core.redaction import Redactor
from wtb_core.resumption import UNUSABLE, secure_commit
from wtb_core.sandbox import leftovers
from wtb_core.sandbox.workspaces import Workspace

_log = logging.getLogger(__name__)


class AttemptRecord:
    """Stores an attempt's checkpoints and what its processes leave in `directory`."""

    def __init__(
        self,
        blobs: BlobStore,
        checkpoints: CheckpointStore,
        assignment: Assignment,
        directory: Path,
    ) -> None:
        self.redactor = Redactor({})
        self.session: CheckpointSession | None = None
        self._blobs = blobs
        self._checkpoints = checkpoints
        self._scope = Scope(assignment.execution_id, assignment.attempt)
        self._names = assignment.names
        self._directory = directory
        self._workspace: Workspace | None = None
        self._commits = AttemptCommits()

    @property
    def checkpoint_count(self) -> int:
        """How many root checkpoints have been stored."""
        return self.session.checkpoint_count if self.session else 0

    async def begin(self, workspace: Workspace, beginning: Beginning) -> None:
        """Commit the files that user code finds; from now on there is a session for its saver."""
        self._workspace, self._commits = workspace, AttemptCommits(beginning.start)
        commit_id = await self._track(beginning.checkpoint_id)
        self.session = self._checkpoints.session(self._scope, self._track, commit_id)

    async def settle(self) -> None:
        """Wait for what the saver has posted.

        Raises:
            FenceError: when a newer attempt has taken over.
        """
        try:
            if self.session is not None:
                await self.session.settle()
        except Unavailable as error:
            self._fail("the last writes", error)

    async def keep(self) -> dict[str, Any]:
        """The fields of the outcome that say what is kept, once no process of it is alive."""
        kept: dict[str, Any] = {}
        try:
            kept |= await finish_in_thread(self._store_logs)
        except OSError as error:
            message = "%s/%d: its logs cannot be stored: %s"
            _log.error(message, *self._scope, error, extra=self._names)
        if self._workspace is None or self.session is None:
            return kept
        await self._track(None)
        try:
            kept |= await finish_in_thread(self._store_files, self._workspace)
            kept |= await self._store_history()
        except (OSError, NotFound, Unavailable) as error:
            what = "the history" if "files" in kept else "the commits"
            self._fail(what, error)
        return {**kept, "tracking_failures": self._commits.failures}

    async def _track(self, checkpoint_id: str | None) -> str | None:
        """Commit the files; None when that fails, which the outcome says."""
        assert self._workspace is not None
        try:
            commit = await finish_in_thread(self._workspace.track)
        except TrackingError as error:
            self._commits.fail(checkpoint_id, error)
            return None
        self._commits.add(checkpoint_id, commit)
        return commit.id

    def _fail(self, what: str, error: Exception) -> None:
        reason = error.what if isinstance(error, Unavailable) else str(error)
        if isinstance(error, OSError):
            reason = error.strerror  # the path is the service's own
        self._commits.fail(None, TrackingError([], f"{what} cannot be stored: {reason}"))

    def _store_files(self, workspace: Workspace) -> dict[str, Any]:
        workspace.sync()
        files = self._commits.summarise(self._blobs, workspace.base)
        return {"start_commit_id": self._commits.start_id, "files": files}

    async def _store_history(self) -> dict[str, Any]:
        """Store the checkpoints; their commits are durable by then."""
        past = await self._checkpoints.export(self._scope)
        return {"history": await finish_in_thread(self._put_history, past)}

    def _put_history(self, past: History) -> str:
        """A checkpoint of a lost attempt has no files where they cannot be made durable."""
        gone: set[str] = set()
        for commit_id in {row.file_commit for row in past.checkpoints if row.file_commit}:
            try:
                if self._blobs.look(commit_id).st_mode & 0o777 != DURABLE_MODE:
                    secure_commit(self._blobs, commit_id)
            except UNUSABLE as error:
                message = "%s/%d: file commit %s is lost: %s"
                _log.warning(message, *self._scope, commit_id, error, extra=self._names)
                gone.add(commit_id)
        checkpoints = [
            row.model_copy(update={"file_commit": None}) if row.file_commit in gone else row
            for row in past.checkpoints
        ]
        return self._blobs.put(history.encode(past.model_copy(update={"checkpoints": checkpoints})))

    def _store_logs(self) -> dict[str, Any]:
        digests: dict[str, str | None] = {}
        cut: list[str] = []
        for name in LOG_STREAMS:
            head = leftovers.read_head(self._directory / name, MAX_LOG_BYTES, self.redactor)
            digests[name] = None if head is None else self._blobs.put(head.data)
            if head is not None and head.is_cut:
                cut.append(name)
        return {**digests, "cut_logs": cut}
