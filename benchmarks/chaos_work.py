"""Was work that was done kept, and done once? What outputs, files and the witness say of it.

A mark is `<index of the root superstep>.<node>`. With the durability `sync` a superstep starts only
after the checkpoint before it is stored. So when a lost attempt had come to superstep b, the one
that goes on from it starts with b, if its checkpoint was not stored yet, or with b + 1.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks.chaos_records import Mark, parse_mark, read
from benchmarks.chaos_store import ENDS, FAILED, STARTED, Event, Execution, Store, Violation

PROJECT_GRAPHS = ("line", "wide", "nested")


class Visits:
    """Starts of nodes by execution and attempt, in the order in which they were heard of."""

    def __init__(self, folder: Path) -> None:
        self.starts: dict[tuple[str, int], list[Mark]] = defaultdict(list)
        for line in read(folder, "marks"):
            if line["what"] == "started":
                mark = parse_mark(line)
                self.starts[mark.execution_id, mark.attempt].append(mark)


class Resumption(NamedTuple):
    """An attempt that followed a lost one.

    `reached` is the last superstep that was started before, null when none was; `first` the first
    one that was started then.
    """

    execution_id: str
    attempt: int
    resumed_from: str | None
    reached: int | None
    first: Mark | None


def check_work(store: Store, folder: Path) -> Iterator[Violation]:
    """See the module; also what each output says."""
    visits = Visits(folder)
    forks = {line["batch_id"]: line for line in read(folder, "forks")}
    for row in store.executions.values():
        if row.graph not in PROJECT_GRAPHS:
            continue
        base = forks[row.batch_id]["done"] if row.batch_id in forks else 0
        yield from _check_attempts(store, row, visits, base)
        if row.status == "succeeded":
            yield from _check_output(row, forked=store.batches[row.batch_id].origin is not None)
    for execution_id, attempt in visits.starts:
        row = store.executions.get(execution_id)
        if row is None or attempt > row.attempt:
            what = "a node started in an attempt that nobody was given"
            yield Violation("unknown attempt", f"{execution_id}/{attempt}", what)


def find_resumptions(store: Store, visits: Visits) -> Iterator[Resumption]:
    """Every attempt that followed a lost one."""
    for row in store.executions.values():
        starts, ends = _split(store.about.get(row.execution_id, []))
        reached: int | None = None
        for attempt in range(2, row.attempt + 1):
            before = visits.starts.get((row.execution_id, attempt - 1), [])
            if not _is_lost(ends.get(attempt - 1)):
                reached = None
                continue
            reached = max((mark.superstep for mark in before), default=reached)
            now = visits.starts.get((row.execution_id, attempt), [])
            event = starts.get(attempt)
            yield Resumption(
                row.execution_id,
                attempt,
                event.payload["resumed_from"] if event else None,
                reached,
                now[0] if now else None,
            )


def _check_attempts(store: Store, row: Execution, visits: Visits, base: int) -> Iterator[Violation]:
    starts, ends = _split(store.about.get(row.execution_id, []))
    reached: int | None = None
    for attempt in range(1, row.attempt + 1):
        where = f"{row.execution_id}/{attempt}"
        marks = visits.starts.get((row.execution_id, attempt), [])
        event = starts.get(attempt)
        resumed_from = event.payload["resumed_from"] if event else None
        follows_lost = attempt > 1 and _is_lost(ends.get(attempt - 1))
        if not follows_lost:
            reached = None
            if resumed_from is not None:
                what = "it goes on from a checkpoint, and the one before it was not lost"
                yield Violation("resumed", where, what)
        elif reached is not None and reached > base and resumed_from is None:
            what = f"it starts clean after a lost attempt that had reached superstep {reached}"
            yield Violation("not resumed", where, what)
        allowed = {base} if reached is None else {reached, reached + 1}
        if marks and marks[0].superstep not in allowed:
            what = f"it starts with superstep {marks[0].superstep} instead of {sorted(allowed)}"
            yield Violation("work done again", where, what)
        yield from _check_course(where, marks)
        reached = max((mark.superstep for mark in marks), default=reached)


def _check_course(where: str, marks: list[Mark]) -> Iterator[Violation]:
    """One process starts each node once, superstep by superstep."""
    names = Counter((mark.superstep, mark.name) for mark in marks)
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        yield Violation("node twice", where, f"{twice} started again in the same attempt")
    jumps = [
        (a.superstep, b.superstep)
        for a, b in pairwise(marks)
        if b.superstep not in {a.superstep, a.superstep + 1}
    ]
    if jumps:
        yield Violation("order", where, f"supersteps follow each other so: {jumps[:3]}")
    processes = {mark.process for mark in marks}
    if len(processes) > 1:
        yield Violation("two processes", where, f"{len(processes)} processes ran its nodes")


def _check_output(row: Execution, *, forked: bool) -> Iterator[Violation]:
    """Each mark once in the state and once in the file; answers where they belong."""
    output = row.output
    if output is None:
        yield Violation("output", row.execution_id, "it succeeded and has no output")
        return
    expected = sorted(_list_marks(row.graph, len(row.case["input"]["steps"])))
    for name in ("done", "journal"):
        found = output.get(name, [])
        if sorted(found) != expected:
            extra = sorted((Counter(found) - Counter(expected)).elements())
            missing = sorted((Counter(expected) - Counter(found)).elements())
            what = f"{name}: too often {extra}, missing {missing}"
            yield Violation("not exactly once", row.execution_id, what)
        indices = [int(mark.partition(".")[0]) for mark in found]
        if indices != sorted(indices):
            yield Violation("order", row.execution_id, f"{name}: {found}")
    answers = [*(["forked"] if forked else []), *row.case.get("resume", [])]
    if output.get("answers", []) != answers:
        what = f"answers {output.get('answers')} instead of {answers}"
        yield Violation("answers", row.execution_id, what)
    if row.result.get("scores", {}).get("exactly_once") not in {None, 1.0}:
        yield Violation("score", row.execution_id, f"scores {row.result['scores']}")


def _list_marks(graph: str, steps: int) -> list[str]:
    turns = range(steps)
    if graph == "wide":
        made = [f"{2 * n}.{name}" for n in turns for name in ("left", "right")]
        return [*made, *(f"{2 * n + 1}.join" for n in turns), f"{2 * steps}.close"]
    names = ("first", "second") if graph == "nested" else ("step",)
    return [*(f"{n}.{name}" for n in turns for name in names), f"{steps}.close"]


def _split(events: list[Event]) -> tuple[dict[int, Event], dict[int, Event]]:
    """Starts and ends of an execution's attempts by number."""
    starts = {event.payload["attempt"]: event for event in events if event.type == STARTED}
    ends: dict[int, Event] = {}
    for event in events:
        if event.type in ENDS:
            ends.setdefault(event.payload["attempt"], event)
    return starts, ends


def _is_lost(end: Event | None) -> bool:
    return end is not None and end.type == FAILED and end.payload["kind"] == "lost"
