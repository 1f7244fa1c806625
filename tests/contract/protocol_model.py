"""A world for the protocol: a store in a file, its parties, and a network that keeps no promise.

What is sent lies in `mail` until the model delivers it: in any order, late, twice, or never. Time
moves only when the model moves it.
"""

import itertools
import json
import logging
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from protocol_parties import SLOTS, SUPERSTEPS, Checkpoint, Collector, Node, Replica, Run, _Writer
from store_bench import Store, check_store, make_batch

from deployments import event_collector
from deployments.messages import Death, PoolReport
from wtb_core.errors import StaleEpoch, TooManyPending, Unavailable
from wtb_core.states import TERMINAL_BATCH
from wtb_core.store import claims
from wtb_core.store.ledger import Ledger
from wtb_core.store.records import NewBatch

ADMISSION = 16
MIN_REPLICAS = 2
SLICE_MS = 900
"""Less than `event_collector.LATE_S`: a collector that looks so often was not held up."""
TIMES = {"LEASE_S": 4.0, "SILENT_S": 1.5, "DROPPED_S": 12.0}
"""The collector's patience, shorter than it is, in the same order."""


class Message(NamedTuple):
    """On its way; an answer goes back to `sender` with the same `call`."""

    to: str
    kind: str
    arguments: tuple[Any, ...]
    sender: str
    call: int


class World:
    """Everything there is; `check` raises when something is wrong."""

    def __init__(self, template: Path, path: Path, patch: pytest.MonkeyPatch) -> None:
        self.store = Store(template, path)
        self._ids = itertools.count(1)
        self._calls = itertools.count(1)
        ledger = partial(Ledger, clock=lambda: self.now, new_id=lambda: self.new_id("e"))
        clock = SimpleNamespace(monotonic=lambda: self.now / 1000)
        for name, value in {
            "migrate": lambda _: None,
            "open_engine": lambda _: self.store.engine,
            "Writer": _Writer,
            "Ledger": ledger,
            "now_ms": lambda: self.now,
            "time": clock,
            **TIMES,
        }.items():
            patch.setattr(event_collector, name, value)
        patch.setattr(logging.getLogger("ray.serve"), "disabled", True)
        self.mail: list[Message] = []
        self.blobs: dict[str, list[Checkpoint]] = {}
        self.nodes = [Node(), Node()]
        self.replicas: dict[str, Replica] = {}
        self.serve: dict[str, str] = {}
        self.collector = Collector(ADMISSION)
        self.retired: Collector | None = None
        self.batches: dict[str, NewBatch] = {}
        self._requests: dict[int, tuple[str, tuple[Any, ...]]] = {}
        self.accepted: set[str] = set()
        self.cancelled: set[str] = set()
        self._acknowledged: dict[str, Run] = {}
        self._given: dict[tuple[str, int], str] = {}
        self._begun: set[tuple[str, int]] = set()
        self._ended: set[str] = set()
        self._seen: dict[str, tuple[Any, ...]] = {}

    @property
    def now(self) -> int:
        return self.store.now

    def close(self) -> None:
        self.collector.die()
        if self.retired is not None:
            self.retired.die()
        self.store.close()

    def new_id(self, prefix: str) -> str:
        return f"{prefix}{next(self._ids)}"

    def new_call(self) -> int:
        return next(self._calls)

    def store_blob(self, chain: list[Checkpoint]) -> str:
        digest = self.new_id("h")
        self.blobs[digest] = list(chain)
        return digest

    # -- the network -------------------------------------------------------------------------------

    def send(self, to: str, kind: str, arguments: tuple[Any, ...], sender: str, call: int) -> None:
        self.mail.append(Message(to, kind, arguments, sender, call))

    def send_again(self, kind: str, arguments: tuple[Any, ...], sender: str, call: int) -> None:
        """Repeat a call to the collector, unless it is still under way."""
        message = Message("collector", kind, arguments, sender, call)
        if message not in self.mail:
            self.mail.append(message)

    def deliver(self, message: Message, *, at_once: bool = True, stale: bool = False) -> None:
        """Hand a message over; with `stale` to the collector that was replaced."""
        if self._is_cut_off(message):
            return
        if message.to == "collector":
            collector = self.retired if stale and self.retired is not None else self.collector
            collector.begin(message.kind, message.arguments, partial(self._answer, message))
            if at_once:
                collector.settle()
        elif message.to in self.replicas:
            self._deliver_to_replica(self.replicas[message.to], message)
        elif message.kind == "answer":
            self._take_answer(message.call, message.arguments[0])

    def _is_cut_off(self, message: Message) -> bool:
        ends = (self.replicas.get(message.to), self.replicas.get(message.sender))
        return any(replica is not None and replica.is_cut_off for replica in ends)

    def _answer(self, message: Message, result: Any) -> None:
        self.send(message.sender, "answer", (result,), "collector", message.call)

    def _deliver_to_replica(self, replica: Replica, message: Message) -> None:
        if not replica.is_alive:
            if message.kind == "permit":  # its caller learns of the death
                self.report_death(replica)
        elif message.kind == "permit":
            replica.take_permit(*message.arguments)
        else:
            replica.take_answer(message.call, *message.arguments)

    def flush(self) -> None:
        """Deliver all that is under way, and what follows from it."""
        for _ in range(1_000):
            if not self.mail:
                self.collector.settle()
                if not self.mail:
                    return
            self.deliver(self.mail.pop(0))
        raise AssertionError("messages without end")

    # -- clients -----------------------------------------------------------------------------------

    def submit(self, **fields: Any) -> None:
        batch_id = self.new_id("b-")
        batch = make_batch(batch_id, key=f"key-{batch_id}", **fields)
        self.batches[batch_id] = batch
        self._request("accept", batch)

    def cancel_batch(self, batch_id: str) -> None:
        self.cancelled.add(batch_id)
        self._request("cancel_batch", batch_id, "enough", "user")

    def cancel_execution(self, execution_id: str) -> None:
        self.cancelled.add(execution_id)
        self._request("cancel_execution", execution_id, "not this one")

    def _request(self, kind: str, *arguments: Any) -> None:
        call_id = self.new_call()
        self._requests[call_id] = (kind, arguments)
        self.send("collector", kind, arguments, "client", call_id)

    def ask_again(self) -> None:
        """Clients repeat what was not answered."""
        for call_id, (kind, arguments) in self._requests.items():
            self.send_again(kind, arguments, "client", call_id)

    def _take_answer(self, call_id: int, answer: Any) -> None:
        asked = self._requests.get(call_id)
        if asked is None or isinstance(answer, (StaleEpoch, Unavailable)):
            return
        del self._requests[call_id]
        kind, arguments = asked
        if kind == "accept" and not isinstance(answer, TooManyPending):
            assert answer.batch_id == arguments[0].batch_id, answer
            self.accepted.add(answer.batch_id)

    # -- the ingress and Serve ---------------------------------------------------------------------

    def keep_going(self) -> None:
        """What Serve and the dispatcher do by themselves: their calls are under way."""
        if sum(state == "RUNNING" for state in self.serve.values()) < MIN_REPLICAS:
            self.start_replica(len(self.replicas) // 2 % 2)
        self.send_permits()

    def start_replica(self, node: int) -> None:
        name = self.new_id("r")
        self.serve[name] = "RUNNING"
        self.replicas[name] = Replica(self, name, self.nodes[node])

    def send_permits(self) -> None:
        """The dispatcher: a permit for each slot that is free, as long as there is demand."""
        claimable = self.store.read(lambda c: claims.count_claimable(self.store.ledger, c))
        under_way = Counter(message.to for message in self.mail if message.kind == "permit")
        for name, state in self.serve.items():
            free = SLOTS - self.replicas[name].busy_slots - under_way[name]
            for _ in range(min(free, claimable) if state == "RUNNING" else 0):
                self.send(name, "permit", (self.new_id("k"),), "dispatcher", 0)
                claimable -= 1

    def kill(self, replica: Replica, *, is_noticed: bool) -> None:
        replica.die()
        if is_noticed:
            self.report_death(replica)

    def report_death(self, replica: Replica) -> None:
        death = Death(replica.actor_id, "ActorDiedError", "killed")
        self.send("collector", "report_death", (death,), "dispatcher", 0)

    def stop(self, replica: Replica) -> None:
        self.serve[replica.name] = "STOPPING"

    def delist(self, replica: Replica) -> None:
        """Serve has seen the end of a replica, or has made it."""
        if replica.is_alive:
            replica.die()
        self.serve.pop(replica.name, None)

    def report_pool(self) -> None:
        report = PoolReport(
            listed=list(self.serve),
            running=[name for name, state in self.serve.items() if state == "RUNNING"],
            stopping=[name for name, state in self.serve.items() if state == "STOPPING"],
            slots=SLOTS,
            max_replicas=4,
            max_queued=16,
        )
        self.send("collector", "report_pool", (report,), "watcher", 0)

    # -- time and failures -------------------------------------------------------------------------

    def replace_collector(self, *, keep_old: bool) -> None:
        """Another collector takes over; the old one dies, or does not know it yet."""
        if self.retired is not None:
            self.retired.die()
        old, self.collector = self.collector, Collector(ADMISSION)
        old.is_retired = True
        self.retired = old if keep_old else None
        if not keep_old:
            old.die()

    def pass_time(self, ms: int) -> None:
        """Time goes on, with heartbeats of all that can be heard, and the collector's ticks."""
        while ms > 0:
            step = min(ms, SLICE_MS)
            ms -= step
            self.store.now += step
            self.tick()

    def tick(self) -> None:
        for replica in self.replicas.values():
            if replica.is_alive and not replica.is_cut_off:
                replica.send_again(only_late=True)
        self.beat()
        self.collector.begin_tick()
        self.collector.settle()

    def beat(self) -> None:
        """A heartbeat of each replica that can be heard, and its answer."""
        self.collector.settle()
        for replica in self.replicas.values():
            if replica.is_alive and not replica.is_cut_off:
                self._beat_at_once(replica)

    def _beat_at_once(self, replica: Replica) -> None:
        call_id = replica.beat()
        message = self.mail.pop()
        answers: list[Any] = []
        self.collector.begin(message.kind, message.arguments, answers.append)
        self.collector.settle()
        replica.take_answer(call_id, answers[0])
        self._check_obedience(replica)

    def _check_obedience(self, replica: Replica) -> None:
        """A replica that was heard and answered runs only what it should."""
        status = self.store.select("SELECT status FROM replicas WHERE replica_id = ?", replica.name)
        assert not status or status[0].status != "draining" or replica.is_draining
        for run in replica.runs.values():
            if run.finish is None:
                row = self._find_attempt(run.key)
                execution = self.store.executions(row.batch_id)[row.number]
                batch = self.store.batch(row.batch_id)
                assert row.status == "running", f"{run.key} has ended and still runs"
                assert execution.cancel_reason is None, f"{run.key} is cancelled and still runs"
                assert batch.status != "cancelling", f"{run.key} is cancelled and still runs"

    # -- what is noted -----------------------------------------------------------------------------

    def note_given(self, replica: Replica, run: Run) -> None:
        """A replica may begin an attempt only once, and only when it was given to it."""
        holder = self._given.setdefault(run.key, replica.name)
        assert holder == replica.name, f"{run.key} is given to {holder} and {replica.name}"
        row = self._find_attempt(run.key)
        assert row.replica_id == replica.name
        assert row.resumed_from == (
            run.assignment.resume.checkpoint_id if run.assignment.resume else None
        )

    def note_begun(self, replica: Replica, run: Run) -> None:
        assert run.key not in self._begun, f"the user code of {run.key} begins again"
        self._begun.add(run.key)
        best = self._find_best(replica.node, *run.key)
        resume = run.assignment.resume
        chosen = (resume.attempt, resume.checkpoint_id) if resume else None
        assert chosen == best, f"{run.key} begins from {chosen} and could from {best}"

    def note_answered(self, run: Run, answer: str) -> None:
        row = self._find_attempt(run.key)
        assert (row.end_event_id == run.finish.event_id) is (answer != "refused")
        if answer == "refused":
            return
        assert not run.is_fenced, "the end of a fenced attempt counts"
        self._acknowledged[run.finish.event_id] = run

    def _find_best(self, node: Node, execution_id: str, attempt: int) -> tuple[int, str] | None:
        """The checkpoint that an attempt should go on from, whatever was deleted since."""
        batch_id, _, number = execution_id.rpartition("-")
        rows = self.store.select(
            "SELECT attempt, result FROM attempts WHERE batch_id = ? AND number = ?"
            " AND attempt < ? ORDER BY attempt DESC",
            *(batch_id, int(number), attempt),
        )
        for row in rows:
            result = json.loads(row.result)
            if (result["failure"] or {}).get("kind") != "lost":
                return None
            chain = (
                self.blobs[result["history"]]
                if result["history"]
                else node.stored.get((execution_id, row.attempt))
            )
            if chain:
                return row.attempt, chain[-1].checkpoint_id
        return None

    def _find_attempt(self, key: tuple[str, int]) -> Any:
        batch_id, _, number = key[0].rpartition("-")
        return self.store.select(
            "SELECT * FROM attempts WHERE batch_id = ? AND number = ? AND attempt = ?",
            *(batch_id, int(number), key[1]),
        )[0]

    # -- what must hold ----------------------------------------------------------------------------

    def check(self) -> None:
        """The contract's invariants, at any time; looks at what has changed since the last look."""
        known = self.store.batch_ids()
        assert self.accepted <= set(known), "an accepted batch is lost"
        looks = {batch_id: self._look(batch_id) for batch_id in known}
        same = {batch_id for batch_id in known if looks[batch_id] == self._seen.get(batch_id)}
        check_store(self.store, but=same)
        self._check_attempts()
        for batch_id in known:
            if batch_id not in same:
                assert batch_id not in self._ended, "a terminal batch has changed"
                self._check_executions(batch_id)
            if looks[batch_id][0].status in TERMINAL_BATCH:
                self._ended.add(batch_id)
        self._seen = looks

    def check_all(self) -> None:
        """As `check`, whether it has changed or not."""
        self._seen.clear()
        self._ended.clear()
        self.check()

    def _look(self, batch_id: str) -> tuple[Any, ...]:
        """What there is of a batch, in short."""
        seq = self.store.select("SELECT last_seq FROM streams WHERE stream = ?", batch_id)
        return (
            self.store.batch(batch_id),
            self.store.executions(batch_id),
            self.store.attempts(batch_id),
            seq,
        )

    def _check_attempts(self) -> None:
        twice = self.store.select(
            "SELECT batch_id, number FROM attempts WHERE status = 'running'"
            " GROUP BY batch_id, number HAVING count(*) > 1"
        )
        assert not twice, "two attempts of an execution run"
        for event_id, run in self._acknowledged.items():
            row = self._find_attempt(run.key)
            assert row.end_event_id == event_id, f"the accepted end of {run.key} is lost"

    def _check_executions(self, batch_id: str) -> None:
        batch = self.store.batch(batch_id)
        retry = json.loads(batch.spec)["retry"]
        attempts = self.store.attempts(batch_id)
        for row in self.store.executions(batch_id):
            mine = [a for a in attempts if a.number == row.number]
            ends = [json.loads(a.result) for a in mine if a.result is not None]
            handed_back = sum((e["failure"] or {}).get("reason") == "drained" for e in ends)
            assert len(mine) - handed_back <= max(retry["max_attempts"], 1)
            asked = {batch_id, f"{batch_id}-{row.number}"} & self.cancelled
            if row.status == "cancelled":
                assert asked or batch.cancelled_by in {"deadline", "max_failures"}
            elif row.status == "failed" and not asked and batch.cancelled_by is None:
                kind = ends[-1]["failure"]["kind"]
                spent = len(mine) - handed_back == retry["max_attempts"]
                assert spent or kind not in retry["on"], f"{kind} is not tried again"
            elif row.status == "failed" and row.cancel_reason is not None:
                assert ends[-1]["failure"]["kind"] != "lost", "it was lost while it was cancelled"
            elif row.status == "succeeded":
                check_effects(json.loads(row.output), row.attempt)

    def is_quiet(self) -> bool:
        """Whether everything that was asked for has ended."""
        open_ = self.store.select(
            "SELECT batch_id FROM batches WHERE status NOT IN ('completed', 'failed', 'cancelled')"
        )
        return not open_ and not self._requests

    def heal(self) -> None:
        """From now on nothing fails: who was cut off is heard, Serve has ended what it stops."""
        for replica in list(self.replicas.values()):
            replica.is_cut_off = False
            if not replica.is_alive or self.serve.get(replica.name) != "RUNNING":
                self.delist(replica)
        self.start_replica(0)

    def go_on(self, *, is_watched: bool) -> None:
        """A second of a world in which everything works, but perhaps nobody who watches Serve."""
        self.ask_again()
        if is_watched:
            self.report_pool()
        self.send_permits()
        self.flush()
        for replica in list(self.replicas.values()):
            for run in list(replica.runs.values()):
                if run.finish is None:
                    replica.work(run, "success")
        self.flush()
        self.pass_time(SLICE_MS)


def check_effects(effects: list[tuple[int, int]], attempt: int) -> None:
    """Each superstep has counted once, in its order, and none after a later attempt's."""
    assert [step for step, _ in effects] == list(range(SUPERSTEPS)), f"the effects are {effects}"
    ran = [by for _, by in effects]
    assert ran == sorted(ran)
    assert ran[-1] <= attempt
