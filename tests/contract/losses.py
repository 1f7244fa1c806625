"""Ends attempts as the death of their replica does, at a chosen message of their saver."""

import itertools
import json
from typing import NamedTuple

from wtb_core import engine
from wtb_core.attempts import ResumePoint
from wtb_core.checkpoint_store import CheckpointSession
from wtb_core.sandbox.runs import NodeLog
from wtb_core.store.records import Lookup

WRITES = {"put", "put_writes"}
_numbers = itertools.count(1)
VERSION = "1" * 64
GRAPHS = {
    # Each with the answers of its case.
    "plain": [],
    "asynchronous": [],
    "parallel": [],
    "sending": [],
    "forgetting": [],
    "remembering": [],
    "deep": [],
    "as_node": ["first", "second"],
    "asking": ["1", "2", "3", "4"],
    "asking_later": ["1", "2", "3", "4"],
    "asking_together": ["1", "2", "3", "4"],
    "breakpoint_before": ["go", "1", "2", "go on"],
    "breakpoint_after": ["go", "1", "2", "go on"],
    "breakpoint_everywhere": ["a", "b", "one", "1", "2", "c"],
    "breakpoint_after_sends": ["go", "go on", "1", "2"],
    "functional": ["answer"],
    "looping": [],
    "looping_asking": ["yes"],
}


def add_graphs(bench, workspace):
    """The project `resumed` with those graphs, on a base of one file."""
    workspace.mkdir(exist_ok=True)
    (workspace / "base.txt").write_text("of the base")
    graphs = {name: f"./graphs.py:{name}" for name in (*GRAPHS, "waiting")}
    evaluators = {name: f"./evaluators.py:{name}" for name in ("logged", "files")}
    fields = {"workspace": workspace, "version": VERSION, "evaluators": evaluators}
    bench.add("resumed", "resumed", graphs, **fields)
    return bench


def assign(bench, graph, **options):
    name = f"{graph}-{next(_numbers)}"
    options = {
        "resume": GRAPHS.get(graph, []),
        "version": VERSION,
        "execution_id": name,
        **options,
    }
    origin = options.pop("origin", None)
    assignment = bench.assign("resumed", graph, {"log": []}, **options)
    return assignment.model_copy(update={"origin": origin})


def result(outcome):
    """What must not depend on losses."""
    assert outcome.status == "succeeded", outcome.failure
    return (
        json.loads(outcome.output),
        outcome.start_commit_id,
        outcome.files.model_dump(exclude={"checkpoint_id"}),
        outcome.tracking_failures,
    )


class Death(Exception):
    """Nothing in the engine expects this: no outcome, rows and blobs stay as they are."""


class Message(NamedTuple):
    """A message that stores something; `number` counts an attempt's from 0."""

    attempt: int
    number: int
    source: str | None  # of a root checkpoint
    roots: int  # root checkpoints of the attempt before this one


def before(number, attempt=1):
    """At a message that is not stored. Tasks in parallel send theirs in any order."""
    return lambda message, done: not done and (message.attempt, message.number) == (attempt, number)


def after_root(number, attempt=1):
    """At a root checkpoint, counted from 0, that is stored and not answered."""
    return lambda message, done: (
        done
        and message.source is not None
        and (message.attempt, message.roots) == (attempt, number)
    )


class Losses:
    """Watches the attempts of a bench; `dies(message, done)` says when an attempt ends."""

    def __init__(self, bench, monkeypatch):
        self.bench = bench
        self.dies = lambda message, done: False
        self.messages = {}
        self.nodes = {}
        self.done = {}
        monkeypatch.setattr(CheckpointSession, "handle", self._wrap(CheckpointSession.handle))
        monkeypatch.setattr(engine, "AttemptRun", self._watched())

    def _watched(self):
        losses = self

        class Watched(engine.AttemptRun):
            def __init__(self, means, assignment, directory):
                super().__init__(means, assignment, directory)
                losses.nodes[assignment.execution_id, assignment.attempt] = self._nodes

        return Watched

    def _wrap(self, handle):
        async def watch(session, header, blobs):
            if header.get("op") not in WRITES:
                return await handle(session, header, blobs)
            seen = self.messages.setdefault(session.scope, [])
            is_root = header["op"] == "put" and header["ns"] == ""
            roots = sum(earlier.source is not None for earlier in seen)
            source = header["source"] if is_root else None
            message = Message(session.scope.attempt, len(seen), source, roots)
            seen.append(message)
            if self.dies(message, False):
                raise Death
            answer = await handle(session, header, blobs)
            if source == "loop":
                self.done[session.scope] = len(self.nodes[session.scope].runs)
            if self.dies(message, True):
                await session.settle()
                raise Death
            return answer

        return watch

    def run(self, assignment):
        """The first outcome of an execution's attempts; None when that attempt died."""
        try:
            return self.bench.call(self.bench.engine.execute(assignment))
        except Death:
            return None

    def run_to_end(self, assignment, dies=lambda message, done: False, history=None):
        """The outcome of the first attempt that does not die, and where each of them began."""
        self.dies = dies
        points = []
        for number in itertools.count(1):
            point = self.find_point(assignment, number, history) if number > 1 else None
            points.append(point and point.checkpoint_id)
            changes = {"attempt": number, "resume": point}
            outcome = self.run(assignment.model_copy(update=changes))
            if outcome is not None:
                return outcome, points
            assert number < 100, "no attempt makes any progress"
        raise AssertionError("the count never ends")

    def find_point(self, assignment, attempt, history=None):
        """Where an attempt begins that follows lost ones."""
        predecessors = [(number, history) for number in range(attempt - 1, 0, -1)]
        origin = assignment.origin and assignment.origin.checkpoint_id
        lookup = Lookup(assignment.execution_id, attempt, predecessors, origin)
        offer = self.bench.call(self.bench.engine.find_offer(lookup))
        assert (offer.execution_id, offer.attempt) == (lookup.execution_id, attempt)
        if offer.checkpoint_id is None:
            return None
        return ResumePoint(
            attempt=offer.source, checkpoint_id=offer.checkpoint_id, history=offer.history
        )

    def names(self, assignment, attempt):
        """The nodes of the root graph that an attempt began, in their order."""
        log: NodeLog = self.nodes[assignment.execution_id, attempt]
        return [run.name for run in log.runs]

    def interrupted(self, assignment, attempt):
        """Those of them that began after its last superstep was stored.

        A graph does not wait for the checkpoint that a call of it begins with.
        """
        done = self.done.get((assignment.execution_id, attempt), 0)
        return self.names(assignment, attempt)[done:]

    def list_messages(self, assignment, attempt=1):
        """The messages of an attempt that stored something."""
        return self.messages[assignment.execution_id, attempt]
