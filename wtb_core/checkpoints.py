"""The checkpoint saver of an execution: a thin client of whoever holds the checkpoints.

State is serialised here, beside user code, and is opaque bytes everywhere else. `put` returns
after the checkpoint is durable. `put_writes` returns once the writes are on their way: the order
of the session is kept, so every later read or put of this saver sees them stored.
"""

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Protocol, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from wtb_core.sandbox.progress import Progress
from wtb_core.sandbox.rendering import MAX_STATE_BYTES, render_within
from wtb_core.sandbox.wire import Channel, Frame

_ROOT_CHANNEL = "__root__"
_INTERNAL_PREFIXES = ("__", "branch:to:", "join:")


class Session(Protocol):
    """What a saver needs of its connection: calls in order, answered or not."""

    def request(self, header: dict[str, Any], *blobs: bytes) -> Frame:
        """Send, and wait for the answer."""
        ...

    def post(self, header: dict[str, Any], *blobs: bytes) -> None:
        """Send what has no answer."""
        ...


class ChannelSession:
    """A session over a channel; any thread may use it.

    A post never waits for the answer to another thread's request, so an event loop may post.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._sending = threading.Lock()
        self._asking = threading.Lock()

    def request(self, header: dict[str, Any], *blobs: bytes) -> Frame:
        """Send, and wait for the answer; a refusal is raised as RuntimeError in user code."""
        with self._asking:
            self.post(header, *blobs)
            answer, payload = self._channel.receive()
        if "refused" in answer:
            raise RuntimeError(answer["refused"])
        return answer, payload

    def post(self, header: dict[str, Any], *blobs: bytes) -> None:
        """Send without waiting."""
        with self._sending:
            self._channel.send(header, *blobs)


class SessionSaver(BaseCheckpointSaver[str]):
    """Checkpoints over a session, with the semantics of `InMemorySaver`.

    A channel's value is sent once per version: `put` carries the values of `new_versions` only.
    How many answers the graph had been given, as `progress` says, is stored too.
    """

    def __init__(
        self,
        session: Session,
        *,
        serde: SerializerProtocol | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(serde=serde)
        self._session = session
        self._progress = progress or Progress()

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that `config` names, or the thread's latest."""
        configurable = _configurable(config)
        thread_id, namespace = configurable["thread_id"], configurable.get("checkpoint_ns", "")
        checkpoint_id = get_checkpoint_id(config)
        found = self._fetch(thread_id, namespace, checkpoint_id)
        return found._replace(config=config) if found and checkpoint_id else found

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - the base class's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Checkpoints, newest first in each namespace."""
        configurable = _configurable(config) if config else {}
        answer, _ = self._session.request(
            {
                "op": "list",
                "thread_id": configurable.get("thread_id"),
                "ns": configurable.get("checkpoint_ns"),
                "id": get_checkpoint_id(config) if config else None,
                "before": get_checkpoint_id(before) if before else None,
                "limit": None if filter else limit,
            }
        )
        for thread_id, namespace, checkpoint_id in answer["checkpoints"]:
            if limit is not None and limit <= 0:
                return
            found = self._fetch(thread_id, namespace, checkpoint_id)
            if found is None or not _matches(found.metadata, filter):
                continue
            if limit is not None:
                limit -= 1
            yield found

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint; durable when this returns."""
        configurable = _configurable(config)
        thread_id, namespace = configurable["thread_id"], configurable["checkpoint_ns"]
        bare: dict[str, Any] = dict(checkpoint)
        values: dict[str, Any] = bare.pop("channel_values")
        kind, body = self.serde.dumps_typed(bare)
        metadata_kind, metadata_body = self.serde.dumps_typed(
            get_checkpoint_metadata(config, metadata)
        )
        channels: list[list[str]] = []
        blobs = [body, metadata_body]
        for channel, version in new_versions.items():
            if channel in values:
                channel_kind, blob = self.serde.dumps_typed(values[channel])
            else:
                channel_kind, blob = "empty", b""
            channels.append([channel, _version_key(version), channel_kind])
            blobs.append(blob)
        self._session.request(
            {
                "op": "put",
                "thread_id": thread_id,
                "ns": namespace,
                "id": checkpoint["id"],
                "parent": configurable.get("checkpoint_id"),
                "versions": {
                    channel: _version_key(version)
                    for channel, version in checkpoint["channel_versions"].items()
                },
                "type": kind,
                "metadata_type": metadata_kind,
                "source": metadata.get("source"),
                "step": metadata.get("step"),
                "channels": channels,
                "shown": None if namespace else _render_state(values),
                "answered": self._progress.answered,
            },
            *blobs,
        )
        return _config(thread_id, namespace, checkpoint["id"])

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Send the writes of a task."""
        configurable = _configurable(config)
        rows: list[list[Any]] = []
        blobs: list[bytes] = []
        for position, (channel, value) in enumerate(writes):
            kind, blob = self.serde.dumps_typed(value)
            rows.append([WRITES_IDX_MAP.get(channel, position), channel, kind])
            blobs.append(blob)
        self._session.post(
            {
                "op": "put_writes",
                "thread_id": configurable["thread_id"],
                "ns": configurable.get("checkpoint_ns", ""),
                "id": configurable["checkpoint_id"],
                "task_id": task_id,
                "task_path": task_path,
                "writes": rows,
            },
            *blobs,
        )

    def delete_thread(self, thread_id: str) -> None:
        """Delete a thread; a session of an execution is refused."""
        self._session.request({"op": "delete_thread", "thread_id": thread_id})

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """As `get_tuple`."""
        return await asyncio.to_thread(self.get_tuple, config)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - the base class's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """As `list`."""
        found = self.list(config, filter=filter, before=before, limit=limit)
        while (item := await asyncio.to_thread(next, found, None)) is not None:
            yield item

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """As `put`; other tasks of the graph go on meanwhile."""
        return await asyncio.to_thread(self.put, config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """As `put_writes`."""
        self.put_writes(config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        """As `delete_thread`."""
        await asyncio.to_thread(self.delete_thread, thread_id)

    def get_next_version(self, current: str | None, channel: None) -> str:  # noqa: ARG002
        """As `InMemorySaver`: a growing integer and a random fraction, so that forks differ."""
        if current is None:
            number = 0
        elif isinstance(current, int):
            number = current
        else:
            number = int(current.split(".")[0])
        return f"{number + 1:032}.{random.random():016}"  # noqa: S311 - no secret

    def _fetch(
        self, thread_id: str, namespace: str, checkpoint_id: str | None
    ) -> CheckpointTuple | None:
        answer, blobs = self._session.request(
            {"op": "get", "thread_id": thread_id, "ns": namespace, "id": checkpoint_id}
        )
        if not answer["found"]:
            return None
        remaining = iter(blobs)
        bare = self.serde.loads_typed((answer["type"], next(remaining)))
        metadata = self.serde.loads_typed((answer["metadata_type"], next(remaining)))
        values = {
            channel: self.serde.loads_typed((kind, next(remaining)))
            for channel, kind in answer["channels"]
        }
        writes = [
            (task_id, channel, self.serde.loads_typed((kind, next(remaining))))
            for task_id, channel, kind in answer["writes"]
        ]
        parent = answer["parent"]
        return CheckpointTuple(
            config=_config(thread_id, namespace, answer["id"]),
            checkpoint=cast("Checkpoint", {**bare, "channel_values": values}),
            metadata=metadata,
            parent_config=_config(thread_id, namespace, parent) if parent else None,
            pending_writes=writes,
        )


def _configurable(config: RunnableConfig) -> dict[str, Any]:
    return cast("dict[str, Any]", config)["configurable"]


def _config(thread_id: str, namespace: str, checkpoint_id: str) -> RunnableConfig:
    return {
        "configurable": {
            "thread_id": thread_id,
            "checkpoint_ns": namespace,
            "checkpoint_id": checkpoint_id,
        }
    }


def _render_state(values: dict[str, Any]) -> str | None:
    """JSON text of what a user knows as the graph's state, None when there is none to show."""
    if _ROOT_CHANNEL in values:
        return render_within(values[_ROOT_CHANNEL], MAX_STATE_BYTES)
    own = {
        channel: value
        for channel, value in values.items()
        if not channel.startswith(_INTERNAL_PREFIXES)
    }
    return render_within(own, MAX_STATE_BYTES)


def _version_key(version: str | float) -> str:
    """Versions are texts, integers or floats; JSON keeps `1` and `"1"` apart."""
    return json.dumps(version)


def _matches(metadata: CheckpointMetadata, wanted: dict[str, Any] | None) -> bool:
    return not wanted or all(metadata.get(key) == value for key, value in wanted.items())
