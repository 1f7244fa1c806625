"""One face over a bench, wherever it runs."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from wtb_core.clients import Client, HandleClient, HttpClient, LocalClient
from wtb_core.errors import Unavailable
from wtb_core.report import render_markdown
from wtb_core.sequential import BatchTestRunner
from wtb_core.spec_files import read_spec

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_PROJECTS = ("project.yaml", "*/project.yaml", "examples/*/project.yaml")


class BatchResult(NamedTuple):
    """A batch that has ended: the batch, its comparison, its executions with outputs."""

    batch: dict[str, Any]
    comparison: dict[str, Any]
    executions: list[dict[str, Any]]

    @property
    def batch_id(self) -> str:
        """The batch's id."""
        return str(self.batch["batch_id"])

    @property
    def succeeded(self) -> bool:
        """Whether the batch completed and every execution succeeded; scores do not matter."""
        counts = self.batch["counts"]
        return self.batch["status"] == "completed" and counts["succeeded"] == counts["total"]

    def render(self) -> str:
        """The comparison as a Markdown table."""
        return render_markdown(self.comparison)


class TestBench:
    """Submit batches, follow their events, read what came out.

    Example:
        ```python
        with TestBench.open() as bench:
            result = bench.run_batch("configs/batches/code_repair.yaml")
            print(result.render())
        ```
    """

    __test__ = False

    def __init__(self, client: Client, where: str) -> None:
        self._client = client
        self.where = where

    @classmethod
    def connect(cls, url: str = DEFAULT_URL, token: str | None = None) -> Self:
        """A service over HTTP. Nothing is sent yet."""
        return cls(HttpClient(url, token), url)

    @classmethod
    def from_handle(cls, handle: Any) -> Self:
        """A service through `serve.get_app_handle(name)`."""
        return cls(HandleClient(handle), "a Serve handle")

    @classmethod
    def local(
        cls,
        data_dir: str | Path = ".wtb/local",
        *,
        root: str | Path = ".",
        projects: Sequence[str] = DEFAULT_PROJECTS,
    ) -> Self:
        """The sequential runner in this process; needs no Ray.

        Args:
            data_dir: where batches, events and files are kept.
            root: what the globs in `projects` are relative to.
            projects: project files.

        Raises:
            Unavailable: when another runner uses `data_dir`.
        """
        runner = BatchTestRunner(Path(data_dir), Path(root).resolve(), projects)
        return cls(LocalClient(runner), f"the sequential runner in {data_dir}")

    @classmethod
    def open(cls) -> Self:
        """What `WTB_URL` names, else a service on this machine, else the sequential runner.

        `where` says which it is.

        Raises:
            Unavailable: when `WTB_URL` is set and nothing answers there.
        """
        url = os.environ.get("WTB_URL")
        client = HttpClient(url or DEFAULT_URL, os.environ.get("WTB_TOKEN"))
        try:
            client.request("GET", "/healthz")
        except Unavailable:
            client.close()
            if url:
                raise
            return cls.local()
        return cls(client, client.url)

    def run_batch(
        self,
        spec: dict[str, Any] | str | Path,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> BatchResult:
        """Submit a batch, follow it to its end and read everything.

        Raises:
            InvalidSpec: with all problems of the spec.
        """
        batch_id = self.submit(spec)
        for event in self.events(batch_id):
            if on_event is not None:
                on_event(event)
        return self.read(batch_id)

    def submit(self, spec: dict[str, Any] | str | Path, idempotency_key: str | None = None) -> str:
        """Submit a batch; returns its id at once.

        Raises:
            InvalidSpec: with all problems of the spec.
            Conflict, TooManyPending, Unavailable: see `errors`.
        """
        return str(self._client.submit(read_spec(spec), idempotency_key)["batch_id"])

    def events(self, batch_id: str, after: int = 0) -> Iterator[dict[str, Any]]:
        """The batch's events above `after`, live, until it has ended."""
        return self._client.follow(batch_id, after)

    def read(self, batch_id: str) -> BatchResult:
        """The batch as it is now."""
        batch = self._client.get_batch(batch_id)
        return BatchResult(batch, self.comparison(batch_id), list(self.results(batch_id)))

    def batch(self, batch_id: str) -> dict[str, Any]:
        """The batch as `GET /v1/batches/{id}` answers it."""
        return self._client.get_batch(batch_id)

    def results(self, batch_id: str) -> Iterator[dict[str, Any]]:
        """The batch's executions in order, with outputs."""
        return self._client.executions(batch_id)

    def comparison(self, batch_id: str) -> dict[str, Any]:
        """The comparison so far."""
        return self._client.comparison(batch_id)

    def cancel(self, batch_id: str, reason: str = "cancelled on request") -> bool:
        """Stop a batch; false when it had ended."""
        return bool(self._client.cancel(batch_id, reason)["changed"])

    def close(self) -> None:
        """Close connections; the sequential runner ends what it runs."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
