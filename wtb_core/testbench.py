"""One face over a bench, wherever it runs, with an event loop or without.

The logic is in `AsyncTestBench`; `TestBench` runs it on an event loop in a thread.
"""

import asyncio
import inspect
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from wtb_core.clients import Client, HandleClient, HttpClient, LocalClient
from wtb_core.errors import NotFound, Unavailable
from wtb_core.loops import LoopThread
from wtb_core.report import has_succeeded, render_markdown
from wtb_core.sequential import BatchTestRunner
from wtb_core.spec_files import read_spec

logger = logging.getLogger("wtb")

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_PROJECTS = (
    "project.yaml",
    "*/project.yaml",
    "langgraph.json",
    "*/langgraph.json",
    "examples/*/project.yaml",
)
DEFAULT_REASON = "cancelled on request"

Spec = dict[str, Any] | str | Path
ProjectVersion = Literal["same", "latest"]
LogStream = Literal["stdout", "stderr"]


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
        return has_succeeded(self.batch)

    def render(self) -> str:
        """The comparison as a Markdown table."""
        return render_markdown(self.comparison)


class AsyncTestBench:
    """Submit batches, follow their events, read what came out; for notebooks, actors, servers.

    It belongs to the event loop that first uses it.

    Example:
        ```python
        async with await AsyncTestBench.open() as bench:
            batch_id = await bench.submit("batch.yaml")
            async for event in bench.events(batch_id):
                print(event["seq"], event["type"])
            print((await bench.read(batch_id)).render())
        ```
    """

    __test__ = False

    def __init__(self, client: Client, where: str) -> None:
        self._client = client
        self.where = where

    @classmethod
    def connect(cls, url: str = DEFAULT_URL, token: str | None = None) -> Self:
        """A service over HTTP. Nothing is sent yet.

        Args:
            url: where the service is.
            token: a bearer token; by default what `WTB_TOKEN` says.

        Raises:
            InvalidRequest: when the URL or the token cannot be one.
        """
        client = HttpClient(url, token or os.environ.get("WTB_TOKEN"))
        return cls(client, client.url)

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
    async def open(cls) -> Self:
        """What `WTB_URL` names, else a service on this machine, else the sequential runner.

        `where` says which it is, and so does a log record of `wtb`: a warning for the sequential
        runner, because it is the slow one. What merely answers on the port is not taken for a
        service, and is not sent `WTB_TOKEN`.

        Raises:
            Unavailable: when `WTB_URL` is set and no service answers there.
        """
        url = os.environ.get("WTB_URL")
        probe = HttpClient(url or DEFAULT_URL)
        try:
            await probe.identify()
        except Unavailable as error:
            if url:
                raise
            bench = cls.local()
            logger.warning("%s; using %s", error.what, bench.where)
        else:
            bench = cls.connect(probe.url)
            logger.info("using the service at %s", bench.where)
        finally:
            await probe.close()
        return bench

    async def run_batch(
        self,
        spec: Spec,
        on_event: Callable[[dict[str, Any]], Awaitable[None] | None] | None = None,
    ) -> BatchResult:
        """Submit a batch, follow it to its end and read everything.

        Raises:
            InvalidSpec: with all problems of the spec.
        """
        batch_id = await self.submit(spec)
        async with aclosing(self.events(batch_id)) as events:
            async for event in events:
                waiting = None if on_event is None else on_event(event)
                if inspect.isawaitable(waiting):
                    await waiting
        return await self.read(batch_id)

    async def submit(self, spec: Spec, idempotency_key: str | None = None) -> str:
        """Submit a batch; returns its id at once.

        Without a key one is made, so that a submission whose answer is lost is repeated safely.

        Raises:
            InvalidSpec: with all problems of the spec.
            Conflict, TooManyPending, Unavailable: see `errors`.
        """
        document = await asyncio.to_thread(read_spec, spec)
        return str((await self._client.submit(document, idempotency_key))["batch_id"])

    async def expand(self, spec: Spec) -> dict[str, Any]:
        """What submitting would make: variants in full, and how many executions. Nothing is stored.

        Raises:
            InvalidSpec: with all problems of the spec.
        """
        return await self._client.expand(await asyncio.to_thread(read_spec, spec))

    async def retry(
        self,
        batch_id: str,
        project_version: ProjectVersion = "same",
        idempotency_key: str | None = None,
    ) -> str:
        """Run what did not succeed in an ended batch again, as a new batch; returns its id.

        Args:
            batch_id: the batch that ended.
            project_version: `same` code and files as then, or the `latest`.
            idempotency_key: as for `submit`.
        """
        receipt = await self._client.retry(batch_id, project_version, idempotency_key)
        return str(receipt["batch_id"])

    async def fork(
        self,
        execution_id: str,
        checkpoint_id: str,
        state: dict[str, Any] | None = None,
        nodes: dict[str, str] | None = None,
        config: dict[str, Any] | None = None,
        attempt: int | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Go on from a checkpoint, as a new batch of one execution; returns its id.

        Args:
            execution_id: the execution that has the checkpoint.
            checkpoint_id: one of `checkpoints` that is `forkable`.
            state: what to change in the state; it goes through the graph's reducers.
            nodes: implementations by node, over the variant's own.
            config: values of `configurable`, over the variant's own.
            attempt: the attempt that has the checkpoint, by default the latest that ended.
            idempotency_key: as for `submit`.

        Raises:
            NotFound, NotForkable, InvalidSpec: see `errors`.
        """
        asked = {
            "checkpoint_id": checkpoint_id,
            "state": state,
            "nodes": nodes,
            "config": config,
            "attempt": attempt,
        }
        return str((await self._client.fork(execution_id, asked, idempotency_key))["batch_id"])

    def events(self, batch_id: str, after: int = 0) -> AsyncGenerator[dict[str, Any]]:
        """The batch's events above `after`, live, until it has ended.

        A connection that is lost is made again and the stream goes on after the last event.
        """
        return self._client.follow(batch_id, after)

    async def read(self, batch_id: str) -> BatchResult:
        """The batch as it is now, with its comparison and executions."""
        batch = await self._client.get_batch(batch_id)
        comparison = await self.comparison(batch_id)
        return BatchResult(batch, comparison, [item async for item in self.results(batch_id)])

    async def batch(self, batch_id: str) -> dict[str, Any]:
        """The batch as `GET /v1/batches/{id}` answers it."""
        return await self._client.get_batch(batch_id)

    async def batches(
        self,
        status: str | None = None,
        project: str | None = None,
        label: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        """A page of batches, newest first: `{items, next_cursor}`. `label` is `key=value`."""
        return await self._client.list_batches(status, project, label, limit, cursor)

    def results(self, batch_id: str) -> AsyncGenerator[dict[str, Any]]:
        """The batch's executions in order, with outputs."""
        return self._client.executions(batch_id)

    async def comparison(self, batch_id: str) -> dict[str, Any]:
        """The comparison so far."""
        return await self._client.comparison(batch_id)

    async def cancel(self, batch_id: str, reason: str = DEFAULT_REASON) -> bool:
        """Stop a batch; false when it had ended."""
        return bool((await self._client.cancel(batch_id, reason))["changed"])

    async def execution(self, execution_id: str) -> dict[str, Any]:
        """One execution with its output and attempts."""
        return await self._client.get_execution(execution_id)

    async def log(
        self, execution_id: str, stream: LogStream = "stdout", attempt: int | None = None
    ) -> str:
        """What an attempt wrote, by default the latest that ended; bad UTF-8 is replaced."""
        return (await self.log_bytes(execution_id, stream, attempt)).decode(errors="replace")

    async def log_bytes(
        self, execution_id: str, stream: LogStream = "stdout", attempt: int | None = None
    ) -> bytes:
        """What an attempt wrote, as it is."""
        return await self._client.read_log(execution_id, stream, attempt)

    async def checkpoints(
        self, execution_id: str, attempt: int | None = None
    ) -> list[dict[str, Any]]:
        """An attempt's checkpoints, oldest first; none while it runs.

        Of a reused execution they are those of the one that ran; so are its files.
        """
        items: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page = await self._client.list_checkpoints(execution_id, attempt, cursor)
            items += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return items

    async def files(
        self,
        execution_id: str,
        from_: str = "start",
        to: str = "final",
        attempt: int | None = None,
        *,
        diff: bool = False,
    ) -> dict[str, Any]:
        """The paths that differ between two points, all of them.

        A point is a checkpoint's id, `base`, `start` (what user code found) or `final`.

        Returns:
            `{execution_id, attempt, from, to, counts, items}`.
        """
        items: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page = await self._client.list_files(
                execution_id, (from_, to), attempt, cursor, diff=diff
            )
            items += page["items"]
            cursor = page.pop("next_cursor")
            if cursor is None:
                return {**page, "items": items}

    async def read_file(
        self, execution_id: str, path: str, at: str = "final", attempt: int | None = None
    ) -> bytes:
        """The bytes of a file at a point; `path` as `os.fsdecode` gives it.

        Over a Serve handle at most 64 MiB.

        Raises:
            NotFound: when there is no such point or path.
            NotAFile: when a directory or a link is there.
        """
        return await self._client.read_file(execution_id, path, at, attempt)

    async def cancel_execution(self, execution_id: str, reason: str = DEFAULT_REASON) -> bool:
        """Stop one execution; false when it had ended."""
        return bool((await self._client.cancel_execution(execution_id, reason))["changed"])

    async def projects(self) -> list[dict[str, Any]]:
        """The projects with what they offer and their problems."""
        return await self._client.projects()

    async def project(self, name: str) -> dict[str, Any]:
        """One project.

        Raises:
            NotFound: when no project has that name.
        """
        for item in await self.projects():
            if item["name"] == name:
                return item
        raise NotFound("project", name)

    async def close(self) -> None:
        """Close connections; the sequential runner ends what it runs."""
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class TestBench:
    """Submit batches, follow their events, read what came out.

    Each method is that of `AsyncTestBench`, whose docstring says more. It may be used where an
    event loop runs, and blocks that loop like any other call.

    Example:
        ```python
        with TestBench.open() as bench:
            result = bench.run_batch("configs/batches/code_repair.yaml")
            print(result.render())
        ```
    """

    __test__ = False

    def __init__(self, bench: AsyncTestBench, loop: LoopThread | None = None) -> None:
        self._bench = bench
        self._loop = loop or LoopThread("wtb")
        self.where = bench.where

    @classmethod
    def connect(cls, url: str = DEFAULT_URL, token: str | None = None) -> Self:
        """A service over HTTP. Nothing is sent yet."""
        return cls(AsyncTestBench.connect(url, token))

    @classmethod
    def from_handle(cls, handle: Any) -> Self:
        """A service through `serve.get_app_handle(name)`."""
        return cls(AsyncTestBench.from_handle(handle))

    @classmethod
    def local(
        cls,
        data_dir: str | Path = ".wtb/local",
        *,
        root: str | Path = ".",
        projects: Sequence[str] = DEFAULT_PROJECTS,
    ) -> Self:
        """The sequential runner in this process; needs no Ray."""
        return cls(AsyncTestBench.local(data_dir, root=root, projects=projects))

    @classmethod
    def open(cls) -> Self:
        """What `WTB_URL` names, else a service on this machine, else the sequential runner."""
        loop = LoopThread("wtb")
        try:
            return cls(loop.run(AsyncTestBench.open()), loop)
        except BaseException:  # raised again below
            loop.close()
            raise

    def run_batch(
        self, spec: Spec, on_event: Callable[[dict[str, Any]], None] | None = None
    ) -> BatchResult:
        """Submit a batch, follow it to its end and read everything."""
        batch_id = self.submit(spec)
        for event in self.events(batch_id):
            if on_event is not None:  # called here, in the caller's thread, so that it may use us
                on_event(event)
        return self.read(batch_id)

    def submit(self, spec: Spec, idempotency_key: str | None = None) -> str:
        """Submit a batch; returns its id at once."""
        return self._loop.run(self._bench.submit(spec, idempotency_key))

    def expand(self, spec: Spec) -> dict[str, Any]:
        """What submitting would make; nothing is stored."""
        return self._loop.run(self._bench.expand(spec))

    def retry(
        self,
        batch_id: str,
        project_version: ProjectVersion = "same",
        idempotency_key: str | None = None,
    ) -> str:
        """Run what did not succeed in an ended batch again, as a new batch; returns its id."""
        return self._loop.run(self._bench.retry(batch_id, project_version, idempotency_key))

    def fork(
        self,
        execution_id: str,
        checkpoint_id: str,
        state: dict[str, Any] | None = None,
        nodes: dict[str, str] | None = None,
        config: dict[str, Any] | None = None,
        attempt: int | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Go on from a checkpoint, as a new batch of one execution; returns its id."""
        return self._loop.run(
            self._bench.fork(
                execution_id, checkpoint_id, state, nodes, config, attempt, idempotency_key
            )
        )

    def events(self, batch_id: str, after: int = 0) -> Iterator[dict[str, Any]]:
        """The batch's events above `after`, live, until it has ended."""
        return self._loop.iterate(self._bench.events(batch_id, after))

    def read(self, batch_id: str) -> BatchResult:
        """The batch as it is now, with its comparison and executions."""
        return self._loop.run(self._bench.read(batch_id))

    def batch(self, batch_id: str) -> dict[str, Any]:
        """The batch as `GET /v1/batches/{id}` answers it."""
        return self._loop.run(self._bench.batch(batch_id))

    def batches(
        self,
        status: str | None = None,
        project: str | None = None,
        label: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        """A page of batches, newest first: `{items, next_cursor}`. `label` is `key=value`."""
        return self._loop.run(self._bench.batches(status, project, label, limit, cursor))

    def results(self, batch_id: str) -> Iterator[dict[str, Any]]:
        """The batch's executions in order, with outputs."""
        return self._loop.iterate(self._bench.results(batch_id))

    def comparison(self, batch_id: str) -> dict[str, Any]:
        """The comparison so far."""
        return self._loop.run(self._bench.comparison(batch_id))

    def cancel(self, batch_id: str, reason: str = DEFAULT_REASON) -> bool:
        """Stop a batch; false when it had ended."""
        return self._loop.run(self._bench.cancel(batch_id, reason))

    def execution(self, execution_id: str) -> dict[str, Any]:
        """One execution with its output and attempts."""
        return self._loop.run(self._bench.execution(execution_id))

    def log(
        self, execution_id: str, stream: LogStream = "stdout", attempt: int | None = None
    ) -> str:
        """What an attempt wrote, by default the latest that ended; bad UTF-8 is replaced."""
        return self._loop.run(self._bench.log(execution_id, stream, attempt))

    def log_bytes(
        self, execution_id: str, stream: LogStream = "stdout", attempt: int | None = None
    ) -> bytes:
        """What an attempt wrote, as it is."""
        return self._loop.run(self._bench.log_bytes(execution_id, stream, attempt))

    def checkpoints(self, execution_id: str, attempt: int | None = None) -> list[dict[str, Any]]:
        """An attempt's checkpoints, oldest first; none while it runs."""
        return self._loop.run(self._bench.checkpoints(execution_id, attempt))

    def files(
        self,
        execution_id: str,
        from_: str = "start",
        to: str = "final",
        attempt: int | None = None,
        *,
        diff: bool = False,
    ) -> dict[str, Any]:
        """The paths that differ between two points, all of them."""
        return self._loop.run(self._bench.files(execution_id, from_, to, attempt, diff=diff))

    def read_file(
        self, execution_id: str, path: str, at: str = "final", attempt: int | None = None
    ) -> bytes:
        """The bytes of a file at a point."""
        return self._loop.run(self._bench.read_file(execution_id, path, at, attempt))

    def cancel_execution(self, execution_id: str, reason: str = DEFAULT_REASON) -> bool:
        """Stop one execution; false when it had ended."""
        return self._loop.run(self._bench.cancel_execution(execution_id, reason))

    def projects(self) -> list[dict[str, Any]]:
        """The projects with what they offer and their problems."""
        return self._loop.run(self._bench.projects())

    def project(self, name: str) -> dict[str, Any]:
        """One project."""
        return self._loop.run(self._bench.project(name))

    def close(self) -> None:
        """Close connections; the sequential runner ends what it runs. Twice does no harm."""
        if not self._loop.closed:
            self._loop.run(self._bench.close())
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
