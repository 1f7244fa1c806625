"""The parties of the protocol in simulated time: the real collector, and replicas made up for it.

The collector's own methods run: the writer's transactions and its reads are steps that the model
takes one at a time, so that others come between, and the process may die between any two. Replicas
do what `deployments/variant_executor.py` and the engine do, with programs of a few supersteps and
a checkpoint store that keeps the rule of the fence.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

import pytest

from deployments.event_collector import EventCollector
from deployments.messages import Directives, Heartbeat
from wtb_core import events as ev
from wtb_core.attempts import Assignment, Failure, Outcome
from wtb_core.errors import FenceError, StaleEpoch, WtbError
from wtb_core.store.records import Claimant, Finish, Lookup, Offer
from wtb_core.store.writer import Writer, _Waiting

SUPERSTEPS = 4
SLOTS = 2
RESEND_MS = 2_000
GIVE_UP_MS = 8_000

Key = tuple[str, int]


# -- the collector ---------------------------------------------------------------------------------


class Op:
    """A read or a change that a task of the collector waits for."""

    def __init__(self, kind: str, work: Callable[[Any], Any]) -> None:
        self.kind = kind
        self.work = work
        self.result: Any = None
        self.is_done = False

    def __await__(self):
        yield self
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


class Task:
    """A call that the collector is at; `answer` gets what it returns or raises."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], answer: Callable[[Any], None]) -> None:
        self._coroutine = coroutine
        self._answer = answer
        self.op: Op | None = None

    def __repr__(self) -> str:
        return f"{self._coroutine.__name__}"

    def go_on(self) -> None:
        """Run to the next read or change, or to the end."""
        try:
            self.op = self._coroutine.send(None)
            while self.op is None:  # a sleep of no time
                self.op = self._coroutine.send(None)
        except StopIteration as stop:
            self.op = None
            self._answer(stop.value)
        except Exception as error:
            self.op = None
            self._answer(error)

    def die(self) -> None:
        self._coroutine.close()


class _Writer(Writer):
    """Transactions are made when the model says so."""

    async def write(self, change):
        return await Op("write", change)


class Collector(EventCollector):
    """The collector itself, with its threads and its clock replaced."""

    def __init__(self, admission: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "create_task", lambda work: work.close())
            super().__init__("", admission)
        self._tasks: list[Task] = []
        self._is_ticking = False
        self.is_retired = False

    def __repr__(self) -> str:
        return f"collector {self.epoch}"

    @property
    def epoch(self) -> int:
        return self._writer.epoch

    @property
    def refused(self) -> int:
        return self._refused

    @property
    def tasks(self) -> list[Task]:
        return self._tasks

    async def _read(self, query):
        return await Op("read", query)

    def begin(self, method: str, arguments: tuple[Any, ...], answer: Callable[[Any], None]) -> None:
        """Take a call, up to its first read or change."""
        task = Task(getattr(self, method)(*arguments), answer)
        task.go_on()
        if task.op is not None:
            self._tasks.append(task)

    def begin_tick(self) -> None:
        if self._is_ticking:
            return

        def end(result: Any) -> None:
            self._is_ticking = False
            if isinstance(result, Exception) and not (
                self.is_retired and isinstance(result, StaleEpoch)
            ):
                raise result

        self._is_ticking = True
        self.begin("_tick", (), end)

    def step(self, task: Task) -> None:
        """One step of one task: its read, its transaction with all that wait, or what follows."""
        op = task.op
        if op.is_done:
            self._go_on(task)
        elif op.kind == "read":
            try:
                op.result = self._read_in_thread(op.work)
            except WtbError as error:
                op.result = error
            op.is_done = True
        else:
            self.commit()

    def commit(self) -> None:
        """One transaction for all changes that wait; what follows them comes later."""
        waiting = [t.op for t in self._tasks if t.op.kind == "write" and not t.op.is_done]
        if not waiting:
            return
        results, _ = self._writer._commit([_Waiting(op.work, None) for op in waiting])
        for op, result in zip(waiting, results, strict=True):
            assert not self.is_retired or isinstance(result, StaleEpoch), "two collectors write"
            op.result, op.is_done = result, True

    def settle(self) -> None:
        """Go on with everything until nothing is left to do."""
        while self._tasks:
            self.commit()
            for task in list(self._tasks):
                if task.op.is_done:
                    self._go_on(task)
                elif task.op.kind == "read":
                    self.step(task)

    def die(self) -> None:
        """All that it was at is gone, answered or not."""
        for task in self._tasks:
            task.die()
        self._tasks.clear()

    def _go_on(self, task: Task) -> None:
        """Changes of one transaction are answered in their order."""
        if task.op.kind == "write":
            done = [t for t in self._tasks if t.op.kind == "write" and t.op.is_done]
            task = done[0]
        self._tasks.remove(task)
        task.go_on()
        if task.op is not None:
            self._tasks.append(task)


# -- a node's checkpoints --------------------------------------------------------------------------


class Checkpoint(NamedTuple):
    """A root checkpoint with its files: which attempt ran each superstep up to it."""

    checkpoint_id: str
    effects: tuple[tuple[int, int], ...]


class Node:
    """The checkpoints of one node; `stored` remembers what was deleted, too."""

    def __init__(self) -> None:
        self._fences: dict[str, int] = {}
        self.rows: dict[Key, list[Checkpoint]] = {}
        self.stored: dict[Key, list[Checkpoint]] = {}
        self.raised: dict[str, int] = {}

    def raise_fence(self, execution_id: str, attempt: int) -> None:
        self.raised[execution_id] = max(self.raised.get(execution_id, 0), attempt)
        self._fences[execution_id] = max(self._fences.get(execution_id, 0), attempt)
        self._check_fence((execution_id, attempt))

    def fill(self, key: Key, chain: list[Checkpoint]) -> None:
        """What an attempt goes on from, as its own."""
        self._check_fence(key)
        self.rows[key] = list(chain)
        self.stored[key] = list(chain)

    def put(self, key: Key, checkpoint: Checkpoint) -> None:
        self._check_fence(key)
        assert key[1] >= self.raised[key[0]], "a fenced attempt stored a checkpoint"
        self.rows[key].append(checkpoint)
        self.stored[key].append(checkpoint)

    def forget(self, key: Key) -> None:
        execution_id, last = key
        for attempt in range(1, last + 1):
            self.rows.pop((execution_id, attempt), None)

    def _check_fence(self, key: Key) -> None:
        if self._fences[key[0]] != key[1]:
            raise FenceError(key[0], key[1], self._fences[key[0]])


# -- replicas --------------------------------------------------------------------------------------


class Call(NamedTuple):
    """A call to the collector that is repeated until it is answered."""

    kind: str
    arguments: tuple[Any, ...]
    permit: str | None
    sent_ms: int
    give_up_ms: int | None


class Run:
    """An attempt that a replica holds: not begun, in user code, or ended and not acknowledged."""

    def __init__(self, assignment: Assignment, permit: str) -> None:
        self.assignment = assignment
        self.permit = permit
        self.key: Key = (assignment.execution_id, assignment.attempt)
        self.effects: tuple[tuple[int, int], ...] | None = None
        self.finish: Finish | None = None
        self.is_fenced = False

    def __repr__(self) -> str:
        return f"{self.key}"


class Replica:
    """An executor replica. What is done at once here takes no message."""

    def __init__(self, world: Any, name: str, node: Node) -> None:
        self._world = world
        self.name = name
        self.node = node
        self.is_alive = True
        self.is_cut_off = False
        self.is_registered = False
        self.is_draining = False
        self._calls: dict[int, Call] = {}
        self._permits: dict[str, tuple[Offer, ...]] = {}
        self.runs: dict[Key, Run] = {}
        self._register()

    def __repr__(self) -> str:
        return self.name

    @property
    def actor_id(self) -> str:
        return f"actor-{self.name}"

    @property
    def busy_slots(self) -> int:
        return len(self._permits)

    def die(self) -> None:
        self.is_alive = False
        self._calls.clear()
        self._permits.clear()
        self.runs.clear()

    # -- what arrives ------------------------------------------------------------------------------

    def take_permit(self, permit: str) -> None:
        """A slot is filled by a claim; the same permit fills one at a time."""
        if permit in self._permits or self.is_draining:
            return
        self._permits[permit] = ()
        if self.is_registered:
            self._claim(permit)

    def take_answer(self, call_id: int, answer: Any) -> None:
        """What is an error is asked again, also what was answered already is no news."""
        if call_id not in self._calls or isinstance(answer, Exception):
            return
        call = self._calls.pop(call_id)
        getattr(self, f"_after_{call.kind}")(call, answer)

    def beat(self) -> int:
        """Say what is held; the id of the call."""
        heartbeat = Heartbeat(self.name, list(self.runs))
        return self._call("heartbeat", heartbeat)

    def send_again(self, *, only_late: bool) -> None:
        """Repeat what was not answered; give up what has waited for too long."""
        now = self._world.now
        for call_id, call in list(self._calls.items()):
            if call.kind == "heartbeat":
                del self._calls[call_id]
            elif call.give_up_ms is not None and now > call.give_up_ms:
                del self._calls[call_id]
                del self._permits[call.permit]
            elif not only_late or now - call.sent_ms >= RESEND_MS:
                self._calls[call_id] = call._replace(sent_ms=now)
                self._world.send_again(call.kind, call.arguments, self.name, call_id)

    # -- what follows ------------------------------------------------------------------------------

    def _register(self) -> None:
        payload = ev.ActorInitialized(
            actor_id=self.actor_id,
            replica_id=self.name,
            node_id="n",
            initialization_ms=1,
            isolation={},
        )
        self._call("register", payload)

    def _after_register(self, _call: Call, _answer: None) -> None:
        if not self.is_registered:
            self.is_registered = True
            for permit in self._permits:
                self._claim(permit)

    def _claim(self, permit: str) -> None:
        claimant = Claimant(permit, self.name, self.actor_id, self._permits[permit])
        self._call("claim", claimant, permit=permit, give_up_ms=self._world.now + GIVE_UP_MS)

    def _after_claim(self, call: Call, answer: Assignment | Lookup | None) -> None:
        if answer is None:
            del self._permits[call.permit]
        elif isinstance(answer, Lookup):
            self._permits[call.permit] += self._look_up(answer)
            self._claim(call.permit)
        else:
            run = Run(answer, call.permit)
            self._world.note_given(self, run)
            self.runs[run.key] = run

    def _look_up(self, lookup: Lookup) -> tuple[Offer, ...]:
        try:
            self.node.raise_fence(lookup.execution_id, lookup.attempt)
        except FenceError:
            return ()
        for attempt, history in lookup.predecessors:
            key = (lookup.execution_id, attempt)
            chain = self._world.blobs[history] if history else self.node.rows.get(key)
            if chain:
                found = (attempt, chain[-1].checkpoint_id, history)
                return (Offer(lookup.execution_id, lookup.attempt, *found),)
        return (Offer(lookup.execution_id, lookup.attempt),)

    def work(self, run: Run, end: str) -> None:
        """The attempt's next step: its beginning, a superstep, or after the last one its end."""
        try:
            if run.effects is None:
                self._begin(run)
            elif len(run.effects) < SUPERSTEPS:
                self._run_superstep(run)
            else:
                self._end(run, self._make_outcome(run, end))
        except FenceError:
            run.is_fenced = True
            self._end(run, _fail("lost", "fenced"))

    def crash(self, run: Run, kind: str) -> None:
        """User code ends before its time."""
        self._end(run, _fail(kind))

    def hand_back(self, run: Run) -> None:
        """The replica is being stopped: what is durable goes to the next one."""
        chain = self.node.rows.get(run.key)
        history = self._world.store_blob(chain) if chain else None
        self._end(run, _fail("lost", "drained", history=history, drained=True))

    def _begin(self, run: Run) -> None:
        self.node.raise_fence(*run.key)
        self._world.note_begun(self, run)
        resume = run.assignment.resume
        chain: list[Checkpoint] = []
        if resume is not None:
            source = (run.assignment.execution_id, resume.attempt)
            chain = self._world.blobs[resume.history] if resume.history else self.node.rows[source]
            ids = [checkpoint.checkpoint_id for checkpoint in chain]
            chain = chain[: ids.index(resume.checkpoint_id) + 1]
        self.node.fill(run.key, chain)
        run.effects = chain[-1].effects if chain else ()

    def _run_superstep(self, run: Run) -> None:
        step = len(run.effects)
        effects = (*run.effects, (step, run.assignment.attempt))
        self.node.put(run.key, Checkpoint(f"{run.assignment.attempt}.{step}", effects))
        run.effects = effects
        if self.is_draining:
            self.hand_back(run)

    def _make_outcome(self, run: Run, end: str) -> Outcome:
        if end != "success":
            return _fail(end)
        return Outcome(status="succeeded", output=json.dumps(run.effects))

    def _end(self, run: Run, outcome: Outcome) -> None:
        run.finish = Finish(
            event_id=self._world.new_id("f"),
            execution_id=run.assignment.execution_id,
            attempt=run.assignment.attempt,
            replica_id=self.name,
            actor_id=self.actor_id,
            outcome=outcome,
        )
        self._call("finish", run.finish)

    def _after_finish(self, call: Call, answer: str) -> None:
        finish: Finish = call.arguments[0]
        run = self.runs.pop((finish.execution_id, finish.attempt))
        self._world.note_answered(run, answer)
        del self._permits[run.permit]
        if answer != "refused":
            self.node.forget(run.key)

    def _after_heartbeat(self, _call: Call, directives: Directives) -> None:
        self.is_draining = self.is_draining or directives.drain
        if not directives.known:
            self._register()
        for execution_id, attempt in directives.kill:
            run = self.runs.get((execution_id, attempt))
            if run is not None and run.finish is None:
                self._end(run, Outcome(status="cancelled"))

    def _call(
        self, kind: str, *arguments: Any, permit: str | None = None, give_up_ms: int | None = None
    ) -> int:
        call_id = self._world.new_call()
        self._calls[call_id] = Call(kind, arguments, permit, self._world.now, give_up_ms)
        self._world.send("collector", kind, arguments, self.name, call_id)
        return call_id


def _fail(kind: str, reason: str = "it was so", **fields: Any) -> Outcome:
    return Outcome(status="failed", failure=Failure(kind=kind, reason=reason), **fields)
