"""What a chaos run writes down beside the service's own store: one file of JSON lines a topic.

| topic | a line |
|---|---|
| `kills` | at, kind, pids, took_s |
| `services` | at, what (ready, killed, stopped, died), number |
| `loads` | key, kind, executions, batch_id, at |
| `forks` | batch_id, source, checkpoint_id, done |
| `asks` | at, what, target, answer |
| `marks` | at, execution_id, attempt, process, what, mark |
| `seen` | client, batch_id, seq, event_id, digest |
| `clients` | client, batch_id, ended, streams, endings |
| `left` | what |

`at` is seconds since the epoch.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

FOLDER = "records"


class Records:
    """Writes lines as things happen; a run that dies leaves what it knew."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, IO[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _tb: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()

    def add(self, topic: str, **facts: Any) -> None:
        """Write one line."""
        if topic not in self._files:
            self._files[topic] = (self._folder / f"{topic}.jsonl").open("a", buffering=1)
        self._files[topic].write(json.dumps(facts) + "\n")

    def add_now(self, topic: str, **facts: Any) -> None:
        """Write one line with the time."""
        self.add(topic, at=time.time(), **facts)


def read(folder: Path, topic: str) -> Iterator[dict[str, Any]]:
    """The lines of a topic in the order in which they were written."""
    path = folder / FOLDER / f"{topic}.jsonl"
    if path.exists():
        with path.open() as lines:
            for line in lines:
                yield json.loads(line)


class Mark(NamedTuple):
    """A node's start, as the witness heard of it; see `tests/projects/journal/graph.py`."""

    at: float
    execution_id: str
    attempt: int
    process: str
    superstep: int
    name: str


def parse_mark(line: dict[str, Any]) -> Mark:
    """The mark in a line of the topic `marks`."""
    superstep, _, name = line["mark"].partition(".")
    return Mark(
        line["at"], line["execution_id"], line["attempt"], line["process"], int(superstep), name
    )


def digest(envelope: dict[str, Any]) -> str:
    """What two readers of an event compare: all of it, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(envelope, sort_keys=True).encode()).hexdigest()[:16]
