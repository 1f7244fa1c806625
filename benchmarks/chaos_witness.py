"""Hears of every start and end of a node of the project `journal`, outside of what is killed."""

import asyncio
import json
import time
from collections import Counter
from types import TracebackType
from typing import Self

from benchmarks.chaos_records import Mark, Records, parse_mark


class Witness:
    """A port of the loopback; see `tests/projects/journal/graph.py`.

    `latest` is the last start of a node by execution, `first_of` the first one by attempt.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._starts: Counter[tuple[str, str]] = Counter()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.heard_at = time.monotonic()
        self.latest: dict[str, Mark] = {}
        self.first_of: dict[tuple[str, int], Mark] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._hear, "127.0.0.1", 0, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _tb: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()

    def _keep(self, mark: Mark) -> None:
        self.latest[mark.execution_id] = mark
        self.first_of.setdefault((mark.execution_id, mark.attempt), mark)

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            if line.endswith(b"\n"):  # else it was killed while it spoke
                said = json.loads(line)
                key = said["execution_id"], said["mark"]
                at = time.time()
                self._records.add("marks", at=at, **said)
                self.heard_at = time.monotonic()
                if said["what"] == "started":
                    self._keep(parse_mark({"at": at, **said}))
                writer.write(b"%d\n" % self._starts[key])
                self._starts[key] += said["what"] == "started"
                await writer.drain()
        except ConnectionError:  # it was killed before it heard the answer
            return
        finally:
            writer.close()
