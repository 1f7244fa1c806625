"""What a bench needs of whatever it reaches.

All methods are coroutines; `testbench` gives them one face for programs with an event loop and
another for programs without.
"""

from collections.abc import AsyncGenerator
from typing import Any, Protocol

Json = dict[str, Any]


class Client(Protocol):
    """What a bench needs. Errors are ours, whatever the way."""

    async def submit(self, spec: Json, idempotency_key: str | None) -> Json:
        """`{batch_id, status, executions}`."""
        ...

    async def expand(self, spec: Json) -> Json:
        """What submitting would make, without making it."""
        ...

    async def retry(self, batch_id: str, project_version: str, idempotency_key: str | None) -> Json:
        """`{batch_id, status, executions, reused, retry_of}` of the new batch."""
        ...

    async def fork(self, execution_id: str, asked: Json, idempotency_key: str | None) -> Json:
        """`{batch_id, status, executions, forked_from}` of the new batch.

        `asked` has the fields of `forks.ForkRequest`.
        """
        ...

    async def get_batch(self, batch_id: str) -> Json:
        """The batch as the HTTP contract says it."""
        ...

    async def list_batches(
        self,
        status: str | None,
        project: str | None,
        label: str | None,
        limit: int,
        cursor: str | None,
    ) -> Json:
        """A page of batches, newest first: `{items, next_cursor}`."""
        ...

    def follow(self, batch_id: str, after: int) -> AsyncGenerator[Json]:
        """Every event above `after` until the batch has ended."""
        ...

    def executions(self, batch_id: str) -> AsyncGenerator[Json]:
        """The executions in order, with outputs."""
        ...

    async def get_execution(self, execution_id: str) -> Json:
        """One execution with its output and attempts."""
        ...

    async def read_log(self, execution_id: str, stream: str, attempt: int | None) -> bytes:
        """What an attempt wrote to `stdout` or `stderr`; null is the latest that ended."""
        ...

    async def list_checkpoints(
        self, execution_id: str, attempt: int | None, cursor: str | None
    ) -> Json:
        """A page of an attempt's checkpoints: `{execution_id, attempt, items, next_cursor}`."""
        ...

    async def list_files(
        self,
        execution_id: str,
        points: tuple[str, str],
        attempt: int | None,
        cursor: str | None,
        *,
        diff: bool,
    ) -> Json:
        """A page of the paths that differ between two points, with the counts of all pages."""
        ...

    async def read_file(self, execution_id: str, path: str, at: str, attempt: int | None) -> bytes:
        """The bytes of a file; `path` as `os.fsdecode` gives it."""
        ...

    async def comparison(self, batch_id: str) -> Json:
        """The comparison so far."""
        ...

    async def cancel(self, batch_id: str, reason: str) -> Json:
        """`{batch_id, status, changed}`."""
        ...

    async def cancel_execution(self, execution_id: str, reason: str) -> Json:
        """`{execution_id, status, changed}`."""
        ...

    async def projects(self) -> list[Json]:
        """The projects with what they offer and their problems."""
        ...

    async def close(self) -> None:
        """Give everything free that was opened."""
        ...
