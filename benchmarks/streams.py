"""Do many clients of one batch all see the same events, and what does that cost in memory?

Starts the service in a folder of its own and submits one batch of a trivial graph. Clients stream
its events from the first one on; others open a stream and do not read it until all have ended, or
leave and come back again and again, or come when the batch has ended. Each must see 1..n without a
gap, the same bytes as all others. Memory of the ingress, the proxy and the collector is that of the
process without what it shares with others (USS).

Run: python -m benchmarks.streams [--executions 5000] [--clients 200] [--dead 5] [--fickle 5]
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.services import find_role, write_config
from wtb_core.demo import find_free_port, serving, wait_until_ready

PROJECT = Path(__file__).parents[1] / "tests" / "projects" / "trivial"
PROCESSES = ("ingress", "proxy", "collector")
FRAME_SEQ = re.compile(rb"^id: (\d+)\n")
SAMPLE_S = 0.5


@dataclass
class Reader:
    """What one client has seen."""

    seq: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    ended: bool = False
    streams: int = 0
    endings: Counter[str] = field(default_factory=Counter)

    def take(self, frame: bytes) -> None:
        """Check a message against those before it."""
        found = FRAME_SEQ.match(frame)
        if found is None:
            kind = frame.partition(b"\n")[0].decode()
            if kind.startswith("event: "):
                self.endings[kind.removeprefix("event: ")] += 1
                self.ended = kind == "event: end"
            return
        seq = int(found[1])
        if seq != self.seq + 1:
            raise AssertionError(f"event {seq} came after {self.seq}")
        self.seq = seq
        self.digest.update(frame)


async def read_frames(http: httpx.AsyncClient, url: str, after: int) -> AsyncGenerator[bytes]:
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
    async with http.stream("GET", url, headers=headers) as response:
        response.raise_for_status()
        rest = b""
        async for data in response.aiter_raw():
            *frames, rest = (rest + data).split(b"\n\n")
            for frame in frames:
                yield frame


async def read_all(
    http: httpx.AsyncClient,
    url: str,
    leave_after: int | None = None,
    hold: asyncio.Event | None = None,
) -> Reader:
    """Read to the end, taking up a stream that ends early.

    With `leave_after` each stream is left after so many events; with `hold` the first one is opened
    and not read until the event is set.
    """
    reader = Reader()
    while not reader.ended:
        reader.streams += 1
        taken = 0
        try:
            async with contextlib.aclosing(read_frames(http, url, reader.seq)) as frames:
                async for frame in frames:
                    reader.take(frame)
                    taken += 1
                    if hold is not None:
                        await hold.wait()
                    if taken == leave_after and not reader.ended:
                        break
        except httpx.TransportError as error:  # a kernel resets what is closed and never read
            reader.endings[type(error).__name__] += 1
    return reader


class Memory:
    """USS of each process over a run."""

    def __init__(self, service: subprocess.Popen[bytes]) -> None:
        self.processes = {role: find_role(service.pid, role)[0] for role in PROCESSES}
        self.start = self.read()
        self.peak = dict(self.start)

    def read(self) -> dict[str, int]:
        return {n: p.memory_full_info().uss for n, p in self.processes.items()}

    async def sample_forever(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            now = await asyncio.to_thread(self.read)
            self.peak = {name: max(self.peak[name], size) for name, size in now.items()}

    def summarise(self) -> dict[str, str]:
        end = self.read()
        return {
            name: " -> ".join(f"{s / 1024**2:.0f}" for s in (self.start[name], size, end[name]))
            + f" MiB, peak / start {size / self.start[name]:.2f}"
            for name, size in self.peak.items()
        }


async def run(url: str, memory: Memory, options: argparse.Namespace) -> dict[str, Any]:
    spec = {
        "project": "trivial",
        "variants": [{"name": "one"}, {"name": "two"}],
        "cases": [{"input": {"value": n}} for n in range(options.executions // 2)],
        "evaluators": [],
        "workspace": {"keep": "never"},
    }
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    ended = asyncio.Event()
    async with (
        httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http,
        asyncio.TaskGroup() as group,
    ):
        sampling = group.create_task(memory.sample_forever())
        started = time.monotonic()
        batch = (await http.post("/v1/batches", json=spec)).raise_for_status().json()
        events = batch["links"]["events"]
        dead = [group.create_task(read_all(http, events, None, ended)) for _ in range(options.dead)]
        readers = [group.create_task(read_all(http, events)) for _ in range(options.clients)]
        fickle = [group.create_task(read_all(http, events, 50 + n)) for n in range(options.fickle)]
        seen = [await reader for reader in readers + fickle]
        took_s = time.monotonic() - started
        started = time.monotonic()
        late = [group.create_task(read_all(http, events)) for _ in range(options.clients)]
        seen_late = [await reader for reader in late]
        late_s = time.monotonic() - started
        ended.set()
        seen_dead = [await reader for reader in dead]
        status = (await http.get(batch["links"]["self"])).json()["status"]
        sampling.cancel()
    readers_seen = seen + seen_late
    everyone = readers_seen + seen_dead
    assert len({(reader.seq, reader.digest.digest()) for reader in everyone}) == 1
    assert status == "completed", status
    return {
        "events": everyone[0].seq,
        "readers": len(readers_seen),
        "dead": len(seen_dead),
        "streams": sum(reader.streams for reader in everyone),
        "endings": sum((reader.endings for reader in readers_seen), Counter()),
        "endings_of_dead": sum((reader.endings for reader in seen_dead), Counter()),
        "executions_per_s": round(options.executions / took_s, 1),
        "late_readers_s": round(late_s, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executions", type=int, default=5_000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--dead", type=int, default=5, help="clients that read only in the end")
    parser.add_argument("--fickle", type=int, default=5, help="clients that leave and come back")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="wtb-streams-"))
    port = find_free_port()
    config = write_config(root, port, [str(PROJECT / "project.yaml")])
    log = root / "serve.log"
    url = f"http://127.0.0.1:{port}"
    with serving(config, log) as service:
        wait_until_ready(url, service, log)
        memory = Memory(service)
        figures = asyncio.run(run(url, memory, options))
        print("all readers saw the same events", json.dumps(figures))
        print("memory, start -> peak -> end", json.dumps(memory.summarise(), indent=1))


if __name__ == "__main__":
    main()
