"""Clients of a service that is being killed: they submit, cancel, fork, and follow every stream.

A call is repeated until the service answers it; that is what idempotency keys are for. Of each
event a follower writes down what the checker then finds in the store, or does not.
"""

import asyncio
import contextlib
import json
import random
import re
from collections import Counter
from http import HTTPStatus
from typing import Any

import httpx

from benchmarks.chaos_plan import Load, make_spec
from benchmarks.chaos_records import Records, digest
from benchmarks.streams import read_frames

PAUSE_S = 0.5
LOOK_S = 0.1
CALL_TIMEOUT_S = 30.0
FRAME = re.compile(rb"^id: (\d+)\nevent: \S+\ndata: (.*)$", re.DOTALL)
SHARE_OF_FORKS = 2
"""How many executions of a batch that can be forked are."""

Json = dict[str, Any]


class Follower:
    """A client of one batch's stream, which leaves and comes back after `leave_after` events."""

    def __init__(self, name: str, batch_id: str, leave_after: int | None) -> None:
        self.name = name
        self.batch_id = batch_id
        self.leave_after = leave_after
        self.seq = 0
        self.ended = False
        self.streams = 0
        self.endings: Counter[str] = Counter()
        self.types: Counter[str] = Counter()


class Clients:
    """All clients of a run."""

    def __init__(self, url: str, records: Records, witness: int) -> None:
        self._records = records
        self._witness = witness
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(CALL_TIMEOUT_S, connect=5.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=False,
        )
        self.answers: Counter[str] = Counter()
        """Answers by status."""
        self.unfinished = 0
        self._ended = asyncio.Event()
        self._waiting: Counter[str] = Counter()

    async def close(self) -> None:
        await self._http.aclose()

    @property
    def waiting(self) -> list[str]:
        """What is being waited for, for a run that does not end."""
        return sorted(self._waiting.elements())

    async def wait_for_room(self, most: int, timeout_s: float) -> None:
        """Until no more than so many executions are unfinished, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.unfinished > most:
                    self._ended.clear()
                    await self._ended.wait()

    async def carry(self, load: Load) -> None:
        """Submit a batch, do to it what belongs to its kind, and follow it to its end."""
        spec = make_spec(load, self._witness)
        key = f"load-{load.number}"
        receipt = await self.ask("POST", "/v1/batches", json=spec, headers={"Idempotency-Key": key})
        batch_id = self._note(key, load.kind, receipt)
        await self._see_through(load, batch_id)
        if load.kind == "fragile":
            await self._retry(load, batch_id)
        if load.kind == "long":
            await self._fork_some(load, batch_id)

    async def ask(self, method: str, path: str, **options: Any) -> Json:
        """The answer of a call, which is repeated for as long as the service cannot answer it.

        Raises:
            httpx.HTTPStatusError: when it answers that the call is wrong.
        """
        what = f"{method} {path}"
        self._waiting[what] += 1
        try:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    response = await self._http.request(method, path, **options)
                    self.answers[str(response.status_code)] += 1
                    if response.is_success:
                        return response.json()
                    if not _is_passing(response):
                        self._records.add_now(
                            "asks", what=what, status=response.status_code, text=response.text[:500]
                        )
                        response.raise_for_status()
                await asyncio.sleep(PAUSE_S)
        finally:
            self._waiting[what] -= 1

    def _note(self, key: str, kind: str, receipt: Json) -> str:
        self._records.add_now(
            "loads",
            key=key,
            kind=kind,
            batch_id=receipt["batch_id"],
            executions=receipt["executions"],
        )
        return receipt["batch_id"]

    async def _see_through(self, load: Load, batch_id: str) -> None:
        followers = [
            Follower(f"steady-{batch_id}", batch_id, None),
            Follower(f"fickle-{batch_id}", batch_id, 5 + load.seed % 40),
        ]
        self.unfinished += load.executions
        try:
            async with asyncio.TaskGroup() as group:
                for follower in followers:
                    group.create_task(self.follow(follower))
                if load.kind in {"cancelled", "picked"}:
                    group.create_task(self._cancel(load, followers[0]))
        finally:
            self.unfinished -= load.executions
            self._ended.set()

    async def follow(self, follower: Follower) -> None:
        """Read a stream to its end, however often it is cut."""
        name = f"stream {follower.name}"
        self._waiting[name] += 1
        try:
            while not follower.ended:
                follower.streams += 1
                try:
                    await self._read_stream(follower)
                except (httpx.TransportError, httpx.HTTPStatusError) as error:
                    follower.endings[type(error).__name__] += 1
                    await asyncio.sleep(PAUSE_S)
        finally:
            self._waiting[name] -= 1
            self._records.add(
                "clients",
                client=follower.name,
                batch_id=follower.batch_id,
                ended=follower.ended,
                streams=follower.streams,
                endings=follower.endings,
            )

    async def _read_stream(self, follower: Follower) -> None:
        url = f"/v1/batches/{follower.batch_id}/events"
        taken = 0
        async with contextlib.aclosing(read_frames(self._http, url, follower.seq)) as frames:
            async for frame in frames:
                taken += self._take(follower, frame)
                if follower.ended or taken == follower.leave_after:
                    return

    def _take(self, follower: Follower, frame: bytes) -> int:
        """Whether a message was an event."""
        found = FRAME.match(frame)
        if found is None:
            kind = frame.partition(b"\n")[0].decode()
            follower.endings[kind.removeprefix("event: ")] += 1
            follower.ended = kind == "event: end"
            return 0
        event = json.loads(found[2])
        self._records.add(
            "seen",
            client=follower.name,
            batch_id=follower.batch_id,
            seq=event["seq"],
            event_id=event["event_id"],
            digest=digest(event),
        )
        follower.seq = int(found[1])
        follower.types[event["type"]] += 1
        return 1

    async def _cancel(self, load: Load, follower: Follower) -> None:
        """In the middle, cancel the batch or some of its executions."""
        while follower.types["ray_variant_execution_started"] < max(1, load.executions // 3):
            if follower.ended:
                return
            await asyncio.sleep(LOOK_S)
        targets = [f"/v1/batches/{follower.batch_id}"]
        if load.kind == "picked":
            numbers = range(0, load.executions, 3)
            targets = [f"/v1/executions/{follower.batch_id}-{number}" for number in numbers]
        for target in targets:
            answer = await self.ask("POST", f"{target}/cancel", json={"reason": "chaos"})
            self._records.add_now("asks", what="cancel", target=target, answer=answer)

    async def _retry(self, load: Load, batch_id: str) -> None:
        batch = await self.ask("GET", f"/v1/batches/{batch_id}")
        if batch["counts"]["succeeded"] == batch["counts"]["total"]:
            return
        headers = {"Idempotency-Key": f"retry-{load.number}"}
        receipt = await self.ask("POST", f"/v1/batches/{batch_id}/retry", headers=headers)
        await self._see_through(load, self._note(headers["Idempotency-Key"], "retry", receipt))

    async def _fork_some(self, load: Load, batch_id: str) -> None:
        """Fork executions that succeeded, from a checkpoint in the middle."""
        chosen = random.Random(load.seed)
        numbers = chosen.sample(range(load.executions), min(SHARE_OF_FORKS, load.executions))
        for number in numbers:
            source = f"{batch_id}-{number}"
            page = await self.ask("GET", f"/v1/executions/{source}/checkpoints?limit=1000")
            items = [item for item in page["items"] if item["forkable"] and item["state"]]
            if not items:
                continue
            picked = chosen.choice(items[1:-1] or items)
            headers = {"Idempotency-Key": f"fork-{source}"}
            body = {"checkpoint_id": picked["checkpoint_id"], "state": {"answers": ["forked"]}}
            path = f"/v1/executions/{source}/fork"
            receipt = await self.ask("POST", path, json=body, headers=headers)
            fork = self._note(headers["Idempotency-Key"], "fork", receipt)
            self._records.add(
                "forks",
                batch_id=fork,
                source=source,
                checkpoint_id=picked["checkpoint_id"],
                done=len(picked["state"].get("done", [])),
            )
            await self._see_through(load._replace(kind="fork", executions=1), fork)


def _is_passing(response: httpx.Response) -> bool:
    """Whether the same call may be answered later; Serve without the application says 404."""
    status = response.status_code
    if status == HTTPStatus.NOT_FOUND:
        return "/-/routes" in response.text
    return status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR
