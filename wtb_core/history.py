"""The checkpoints of one attempt as one blob: enough to list them, and to fork from any of them.

A blob is a magic number with the format's version, the length of a JSON index, the index, and then
every body in the index's order. State stays the opaque bytes that the attempt's process made;
nothing here unpickles them. The rows came from beside user code, so whatever is read is checked
against the same bounds as when it was stored.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from wtb_core.errors import InvalidHistory, NotForkable, NotFound
from wtb_core.sandbox.rendering import MAX_DEPTH, MAX_STATE_BYTES

CheckpointId = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Namespace = Annotated[str, StringConstraints(max_length=8192)]
Text = Annotated[str, StringConstraints(max_length=65_536)]
Word = Annotated[str, StringConstraints(max_length=128)]
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Size = Annotated[int, Field(ge=0, lt=2**63)]

_MAGIC = b"WTBHIST\x01"
_LENGTH = struct.Struct("!Q")
_START_BYTES = len(_MAGIC) + _LENGTH.size


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True)


class _CheckpointFacts(_Row):
    ns: Namespace
    checkpoint_id: CheckpointId
    parent_id: CheckpointId | None
    source: Word | None
    step: Integer | None
    type: Word
    metadata_type: Word
    versions: dict[Text, Text]
    stored_at: Annotated[
        str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
    ]
    file_commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None
    shown: str | None
    answered: Size = 0


class _ValueFacts(_Row):
    ns: Namespace
    channel: Text
    version: Text
    type: Word


class _WriteFacts(_Row):
    ns: Namespace
    checkpoint_id: CheckpointId
    task_path: Text
    task_id: Text
    idx: Integer
    channel: Text
    type: Word
    after: Size


class CheckpointRow(_CheckpointFacts):
    """One checkpoint. `shown` is JSON text of its state, null when there is none to show.

    `answered` counts the case's answers that the graph had been given by then.
    """

    body: bytes
    metadata: bytes


class ValueRow(_ValueFacts):
    """A channel's value at one of its versions."""

    body: bytes


class WriteRow(_WriteFacts):
    """One write of a task. `after` counts the attempt's checkpoints that were stored before it."""

    body: bytes


class History(_Row):
    """All rows of one attempt, the checkpoints in the order in which they were stored."""

    checkpoints: list[CheckpointRow]
    values: list[ValueRow]
    writes: list[WriteRow]


class CheckpointSummary(BaseModel):
    """One checkpoint as a list shows it.

    `size_bytes` counts the whole state, with the channels that did not change. `state` is null for
    subgraphs, and where `state_truncated` says that it is too large or has no JSON form.
    """

    model_config = ConfigDict(frozen=True)

    checkpoint_id: str
    parent_id: str | None
    ns: str
    step: int | None
    source: str | None
    created_at: str
    file_commit_id: str | None
    forkable: bool
    size_bytes: int
    state: Any
    state_truncated: bool


class _CheckpointIndex(_CheckpointFacts):
    body_bytes: Size
    metadata_bytes: Size


class _ValueIndex(_ValueFacts):
    body_bytes: Size


class _WriteIndex(_WriteFacts):
    body_bytes: Size


class _Index(_Row):
    checkpoints: list[_CheckpointIndex]
    values: list[_ValueIndex]
    writes: list[_WriteIndex]

    @classmethod
    def of(cls, history: History) -> Self:
        return cls(
            checkpoints=[
                _CheckpointIndex(
                    **_facts(row, "metadata"),
                    body_bytes=len(row.body),
                    metadata_bytes=len(row.metadata),
                )
                for row in history.checkpoints
            ],
            values=[_ValueIndex(**_facts(r), body_bytes=len(r.body)) for r in history.values],
            writes=[_WriteIndex(**_facts(r), body_bytes=len(r.body)) for r in history.writes],
        )

    def sizes(self) -> Iterator[int]:
        for row in self.checkpoints:
            yield row.body_bytes
            yield row.metadata_bytes
        for part in (self.values, self.writes):
            yield from (row.body_bytes for row in part)


def encode(history: History) -> bytes:
    """`history` as the bytes of a blob."""
    index = _Index.of(history).model_dump_json().encode()
    parts = [_MAGIC, _LENGTH.pack(len(index)), index]
    for row in history.checkpoints:
        parts += (row.body, row.metadata)
    parts += (row.body for row in history.values)
    parts += (row.body for row in history.writes)
    return b"".join(parts)


def decode(data: bytes) -> History:
    """The history in a blob.

    Raises:
        InvalidHistory: when the bytes are none.
    """
    index, start = _split(data)
    view = memoryview(data)
    bodies: list[bytes] = []
    for size in index.sizes():
        bodies.append(bytes(view[start : start + size]))
        start += size
    taken = iter(bodies)
    return History(
        checkpoints=[
            CheckpointRow(
                **_facts(row, "body_bytes", "metadata_bytes"),
                body=next(taken),
                metadata=next(taken),
            )
            for row in index.checkpoints
        ],
        values=[ValueRow(**_facts(row, "body_bytes"), body=next(taken)) for row in index.values],
        writes=[WriteRow(**_facts(row, "body_bytes"), body=next(taken)) for row in index.writes],
    )


def read_summary(source: bytes | Path) -> list[CheckpointSummary]:
    """The checkpoints in a blob or a blob's file, in the order in which they were stored.

    Of a file only the index is read.

    Raises:
        InvalidHistory: when the bytes are no history.
        OSError: when the file cannot be read.
    """
    if isinstance(source, bytes):
        index, _ = _split(source)
    else:
        with source.open("rb") as file:
            index = _read_index(file, source.stat().st_size)
    sizes = {(row.ns, row.channel, row.version): row.body_bytes for row in index.values}
    return [_summarise(row, sizes) for row in index.checkpoints]


def read_commits(source: Path) -> set[str]:
    """The file commits that a blob's file names; its index is read, and not all of it checked.

    Raises:
        InvalidHistory: when it is none.
        OSError: when the file cannot be read.
    """
    with source.open("rb") as file:
        length = _index_bytes(file.read(_START_BYTES), source.stat().st_size)
        text = file.read(length)
    try:
        rows: list[dict[str, Any]] = json.loads(text)["checkpoints"]
        return {row["file_commit"] for row in rows} - {None}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidHistory(str(error)) from error


def find(summaries: Sequence[CheckpointSummary], checkpoint_id: str) -> CheckpointSummary:
    """The checkpoint that a fork may start from.

    Raises:
        NotFound: when there is no such checkpoint.
        NotForkable: when it is a subgraph's, or its files are not known.
    """
    last: str | None = None
    refused: NotForkable | None = None
    for summary in summaries:
        named = summary.checkpoint_id == checkpoint_id
        if named and summary.forkable:
            return summary
        if named and refused is None:
            what = (
                "a checkpoint of a subgraph is no fork point"
                if summary.ns
                else "the files at this checkpoint could not be committed"
            )
            way_out = (
                f"take the root checkpoint before it: {last}"
                if last
                else "there is no root checkpoint before it that could be taken"
            )
            refused = NotForkable(checkpoint_id, f"{what}; {way_out}")
        if summary.forkable:
            last = summary.checkpoint_id
    raise refused or NotFound("checkpoint", checkpoint_id)


def parse_shown(text: str) -> Any:
    """The JSON value of a checkpoint's `shown`.

    Raises:
        ValueError: when it is not JSON within the bounds of ours: size, depth, finite numbers.
    """
    if len(text.encode()) > MAX_STATE_BYTES:
        raise ValueError(f"a shown state is over {MAX_STATE_BYTES} bytes")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError as error:
        raise ValueError("a shown state is nested too deeply") from error
    if not _is_within(value, MAX_DEPTH):
        raise ValueError("a shown state is nested too deeply")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _is_within(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    items = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_within(item, levels - 1) for item in items)


def _facts(row: BaseModel, *left_out: str) -> dict[str, Any]:
    return {name: value for name, value in row if name not in {"body", *left_out}}


def _split(data: bytes) -> tuple[_Index, int]:
    """A blob's index and where its bodies start."""
    length = _index_bytes(data[:_START_BYTES], len(data))
    start = _START_BYTES + length
    return _parse_index(data[_START_BYTES:start], len(data) - start), start


def _read_index(file: BinaryIO, size: int) -> _Index:
    length = _index_bytes(file.read(_START_BYTES), size)
    return _parse_index(file.read(length), size - _START_BYTES - length)


def _index_bytes(start: bytes, size: int) -> int:
    if len(start) < _START_BYTES or not start.startswith(_MAGIC):
        raise InvalidHistory("it does not start as one of this version")
    (length,) = _LENGTH.unpack(start[len(_MAGIC) :])
    if length > size - _START_BYTES:
        raise InvalidHistory("it ends within its index")
    return length


def _parse_index(text: bytes, rest_bytes: int) -> _Index:
    try:
        index = _Index.model_validate_json(text)
        for row in index.checkpoints:
            if row.shown is not None:
                parse_shown(row.shown)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "its index"
        raise InvalidHistory(f"{where}: {first['msg']}") from error
    except ValueError as error:
        raise InvalidHistory(str(error)) from error
    if sum(index.sizes()) != rest_bytes:
        raise InvalidHistory(f"its bodies have {rest_bytes} bytes, not what its index says")
    return index


def _summarise(
    row: _CheckpointIndex, sizes: Mapping[tuple[str, str, str], int]
) -> CheckpointSummary:
    is_root = not row.ns
    values = sum(sizes.get((row.ns, *pair), 0) for pair in row.versions.items())
    return CheckpointSummary(
        checkpoint_id=row.checkpoint_id,
        parent_id=row.parent_id,
        ns=row.ns,
        step=row.step,
        source=row.source,
        created_at=row.stored_at,
        file_commit_id=row.file_commit,
        forkable=is_root and row.file_commit is not None,
        size_bytes=row.body_bytes + row.metadata_bytes + values,
        state=None if row.shown is None else parse_shown(row.shown),
        state_truncated=is_root and row.shown is None,
    )
