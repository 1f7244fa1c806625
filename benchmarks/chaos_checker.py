"""Checks a store and the records of a chaos run; shares no code with the service.

Run: python -m benchmarks.chaos_checker FOLDER
where FOLDER is that of a chaos run. Prints figures, then each violation with its place; exit code 1
when there is one.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

from benchmarks.chaos_figures import collect, show
from benchmarks.chaos_records import digest, read
from benchmarks.chaos_store import (
    BATCH_ENDS,
    BATCH_STARTED,
    CANCELLED,
    COMPLETED,
    ENDS,
    FAILED,
    POOL,
    STARTED,
    Event,
    Execution,
    Store,
    Violation,
)
from benchmarks.chaos_work import check_work

POOL_TYPES = {
    "ray_actor_pool_created",
    "ray_actor_initialized",
    "ray_actor_failed",
    "ray_actor_restarted",
    "ray_backpressure_applied",
    "ray_backpressure_released",
}
FILES_TYPES = {"ray_variant_files_tracked", "ray_variant_files_tracking_failed"}
STATUS_OF_END = {COMPLETED: "succeeded", FAILED: "failed", CANCELLED: "cancelled"}
CANCEL_SLACK_S = 0.5
"""How much later than the answer to a cancellation a start may be dated."""

Check = Callable[[Store, Path], Iterator[Violation]]


def check(folder: Path) -> list[Violation]:
    """All violations of a run's store and records."""
    store = Store(folder / ".wtb" / "wtb.db")
    return [violation for rule in CHECKS for violation in rule(store, folder)]


def check_streams(store: Store, _folder: Path) -> Iterator[Violation]:
    """Each stream counts from 1 without a gap, and has no event twice."""
    for stream, last in store.last_seqs.items():
        events = store.events.get(stream, [])
        seqs = [event.seq for event in events]
        if seqs != list(range(1, last + 1)):
            missing = sorted(set(range(1, last + 1)) - set(seqs))[:5]
            yield Violation("gap", stream, f"{len(seqs)} of {last} events; missing {missing}")
        for event_id, count in Counter(event.event_id for event in events).items():
            if count > 1:
                yield Violation("event twice", stream, f"{event_id} is there {count} times")
    for stream in store.events.keys() - store.last_seqs.keys():
        yield Violation("gap", stream, "it has events and no row in `streams`")


def check_batches(store: Store, _folder: Path) -> Iterator[Violation]:
    """Each batch ends, once, as its last event says, with the counts of its rows and events."""
    for batch in store.batches.values():
        events = store.events.get(batch.batch_id, [])
        ends = [event for event in events if event.type in BATCH_ENDS]
        if batch.status not in BATCH_ENDS.values():
            yield Violation("batch not ended", batch.batch_id, f"it is {batch.status}")
            continue
        if len(ends) != 1 or ends != events[-1:]:
            seqs = [event.seq for event in ends]
            last = f"the last event is {events[-1].seq}" if events else "there are no events"
            yield Violation("batch end", batch.batch_id, f"terminal events {seqs}; {last}")
            continue
        if BATCH_ENDS[ends[0].type] != batch.status:
            what = f"it is {batch.status} and its last event is {ends[0].type}"
            yield Violation("batch end", batch.batch_id, what)
        yield from _check_start(batch.batch_id, events)
        rows = store.of_batch(batch.batch_id)
        by_status = Counter(row.status for row in rows)
        by_events = Counter(STATUS_OF_END[event.type] for event in events if event.is_terminal)
        said = ends[0].payload["counts"]
        for name in ("succeeded", "failed", "cancelled"):
            found = (batch.counts[name], by_status[name], by_events[name], said[name])
            if len(set(found)) > 1:
                what = f"{name}: {found} in the row, the executions, the events, the last event"
                yield Violation("counts", batch.batch_id, what)
        if len(rows) != batch.total or batch.counts["running"] or said["total"] != batch.total:
            what = f"{len(rows)} executions of {batch.total}, {batch.counts['running']} running"
            yield Violation("counts", batch.batch_id, what)


def _check_start(batch_id: str, events: list[Event]) -> Iterator[Violation]:
    """The batch's start comes before all but executions that were cancelled before it."""
    starts = [event.seq for event in events if event.type == BATCH_STARTED]
    before = 0
    while before < len(events) and events[before].type == CANCELLED:
        before += 1
    if starts != ([before + 1] if any(event.type == STARTED for event in events) else []):
        yield Violation("batch start", batch_id, f"it starts at {starts}")


def check_executions(store: Store, _folder: Path) -> Iterator[Violation]:
    """Each execution ends exactly once, and its attempts are started once and ended once."""
    for row in store.executions.values():
        yield from _walk(row, store.about.get(row.execution_id, []))
        yield from _check_attempts(store, row)
    for execution_id in store.about.keys() - store.executions.keys():
        yield Violation("unknown execution", execution_id, "it has events and no row")


def _walk(row: Execution, events: list[Event]) -> Iterator[Violation]:
    state, attempt, ended = "pending", 0, 0
    for event in events:
        where = f"{row.execution_id} seq {event.seq}"
        if ended:
            yield Violation("after the end", where, event.type)
        number = event.payload["attempt"]
        if event.type == STARTED:
            if (state, number) != ("pending", attempt + 1):
                what = f"attempt {number} starts while attempt {attempt} is {state}"
                yield Violation("attempt start", where, what)
            state, attempt = "running", number
        elif event.type == COMPLETED and event.payload["reused_from"] is not None:
            if state != "pending":
                yield Violation("attempt end", where, f"taken over while it is {state}")
            state = "succeeded"
        elif event.type in {COMPLETED, FAILED, *FILES_TYPES}:
            if (state, number) != ("running", attempt):
                what = f"{event.type} of attempt {number} while attempt {attempt} is {state}"
                yield Violation("attempt end", where, what)
            if event.type == FAILED and event.payload["will_retry"]:
                state = "pending"
            elif event.type in STATUS_OF_END:
                state = STATUS_OF_END[event.type]
        elif event.type == CANCELLED:
            state = "cancelled"
        ended += event.is_terminal
    if ended != 1:
        yield Violation("terminal events", row.execution_id, f"it has {ended}, and is {row.status}")
    if (row.status, row.attempt) != (state, attempt):
        what = (
            f"its row says {row.status} after attempt {row.attempt}, its events {state} {attempt}"
        )
        yield Violation("execution row", row.execution_id, what)


def _check_attempts(store: Store, row: Execution) -> Iterator[Violation]:
    ends = {e.event_id: e for e in store.about.get(row.execution_id, []) if e.type in ENDS}
    for number in range(1, row.attempt + 1):
        where = f"{row.execution_id}/{number}"
        attempt = store.attempts.get((row.execution_id, number))
        if attempt is None:
            yield Violation("attempt row", where, "there is none")
            continue
        end = ends.get(attempt["end_event_id"])
        if end is None or STATUS_OF_END[end.type] != attempt["status"]:
            what = f"it is {attempt['status']}; the event of its end is {end and end.type}"
            yield Violation("attempt row", where, what)


def check_retries(store: Store, _folder: Path) -> Iterator[Violation]:
    """Nothing fails for good by the system's fault, or with attempts left."""
    for row in store.executions.values():
        batch = store.batches[row.batch_id]
        events = store.about.get(row.execution_id, [])
        last = next((event for event in events if event.is_terminal), None)
        stopped = row.is_cancelled or batch.status == "cancelled"
        if last is None or last.type != FAILED or stopped:
            continue
        kind, reason = last.payload["kind"], last.payload["reason"][:300]
        used = row.attempt - row.drained
        if kind in batch.retry["on"] and used < batch.retry["max_attempts"]:
            what = f"{kind} after {used} of {batch.retry['max_attempts']} attempts: {reason}"
            yield Violation("not retried", row.execution_id, what)
        elif kind == "setup":
            yield Violation("infrastructure", row.execution_id, f"{kind}: {reason}")


def check_pool(store: Store, _folder: Path) -> Iterator[Violation]:
    """Batches have copies of the pool's events; each failed replica is replaced at most once."""
    pool = {event.event_id: event for event in store.events.get(POOL, [])}
    for stream, events in store.events.items():
        for event in events:
            if stream == POOL or event.type not in POOL_TYPES:
                continue
            original = pool.get(event.event_id)
            if original is None or original.payload != event.payload:
                where = f"{stream} seq {event.seq}"
                yield Violation("pool event", where, f"{event.type} is no copy of the pool's")
    failed: list[str] = []
    for event in pool.values():
        if event.type == "ray_actor_failed":
            failed.append(event.payload["replica_id"])
        elif event.type == "ray_actor_restarted":
            if failed[:1] != [event.payload["replaces"]]:
                what = f"it replaces {event.payload['replaces']}, and {failed[:1]} is next"
                yield Violation("restart", f"pool seq {event.seq}", what)
            failed = [name for name in failed if name != event.payload["replaces"]]


def check_clients(store: Store, folder: Path) -> Iterator[Violation]:
    """Every client of a stream saw all of it, once, in order, as it is stored."""
    seqs: dict[str, list[int]] = defaultdict(list)
    for line in read(folder, "seen"):
        client, batch_id, seq = line["client"], line["batch_id"], line["seq"]
        seqs[client].append(seq)
        events = store.events.get(batch_id, [])
        if not 1 <= seq <= len(events) or digest(events[seq - 1].envelope()) != line["digest"]:
            yield Violation("client", f"{client} seq {seq}", "it saw another event than is stored")
    for line in read(folder, "clients"):
        seen = seqs.pop(line["client"], [])
        wrong = [pair for pair in pairwise([0, *seen]) if pair[1] != pair[0] + 1]
        stored = len(store.events.get(line["batch_id"], []))
        if wrong or len(seen) != stored or not line["ended"]:
            what = f"it saw {len(seen)} of {stored} events; out of order: {wrong[:3]}"
            streams = f"{line['streams']} streams, ended: {line['endings']}"
            yield Violation("client", line["client"], f"{what}; {streams}")
    for client in seqs:
        yield Violation("client", client, "it is not known how it ended")


def check_accepted(store: Store, folder: Path) -> Iterator[Violation]:
    """What was accepted is there once and whole, and nothing else is."""
    keys: dict[str, str] = {}
    for line in read(folder, "loads"):
        keys[line["key"]] = line["batch_id"]
        batch = store.batches.get(line["batch_id"])
        if batch is None or batch.idempotency_key != line["key"]:
            yield Violation("accepted", line["batch_id"], f"it is not stored for {line['key']}")
        elif batch.total != line["executions"]:
            what = f"{batch.total} executions instead of {line['executions']}"
            yield Violation("accepted", line["batch_id"], what)
    for batch in store.batches.values():
        if batch.idempotency_key not in keys:
            yield Violation("accepted", batch.batch_id, "nobody was told of it")


def check_cancelled(store: Store, folder: Path) -> Iterator[Violation]:
    """Nothing starts after its cancellation was answered; a cancelled batch ends so."""
    for line in read(folder, "asks"):
        if line["what"] != "cancel":
            yield Violation("refused", line["what"], f"{line['status']}: {line['text'][:300]}")
            continue
        _, _, noun, target = line["target"].split("/")
        if noun == "batches" and line["answer"]["changed"]:
            batch = store.batches.get(target)
            if batch is not None and batch.status != "cancelled":
                yield Violation("cancel", target, f"it was cancelled and is {batch.status}")
        events = store.events.get(target, []) if noun == "batches" else store.about.get(target, [])
        for event in events:
            if event.type == STARTED and event.at > line["at"] + CANCEL_SLACK_S:
                late = event.at - line["at"]
                where = f"{event.execution_id} seq {event.seq}"
                yield Violation("cancel", where, f"it starts {late:.1f} s after the cancellation")


def check_left(_store: Store, folder: Path) -> Iterator[Violation]:
    """No process, mount or directory is left, and the run had no trouble of its own."""
    for line in read(folder, "left"):
        yield Violation("left", line["when"], line["what"])


CHECKS: list[Check] = [
    check_streams,
    check_batches,
    check_executions,
    check_retries,
    check_pool,
    check_work,
    check_clients,
    check_accepted,
    check_cancelled,
    check_left,
]
MAX_SHOWN = 20


def report(folder: Path) -> int:
    """Print figures and violations; how many violations there are."""
    violations = check(folder)
    print(show(collect(Store(folder / ".wtb" / "wtb.db"), folder)))
    by_rule: dict[str, list[Violation]] = defaultdict(list)
    for violation in violations:
        by_rule[violation.rule].append(violation)
    for rule, found in by_rule.items():
        print(f"\nVIOLATED {rule}: {len(found)}")
        for violation in found[:MAX_SHOWN]:
            print(f"  {violation.where}: {violation.what}")
    print(f"\n{len(violations)} violations")
    return len(violations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    sys.exit(report(parser.parse_args().folder) > 0)


if __name__ == "__main__":
    main()
