"""The checker of chaos runs finds nothing in a right store, and names what is wrong in others."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import chaos_checker
from benchmarks.chaos_records import Records, digest, read
from benchmarks.chaos_store import Store

SCHEMA = """
CREATE TABLE streams (stream TEXT, last_seq INTEGER);
CREATE TABLE events (stream TEXT, seq INTEGER, event_id TEXT, type TEXT, occurred_at TEXT,
    producer TEXT, payload TEXT);
CREATE TABLE batches (batch_id TEXT, status TEXT, idempotency_key TEXT, retry_of TEXT, spec TEXT,
    variants TEXT, total INTEGER, running INTEGER, succeeded INTEGER, failed INTEGER,
    cancelled INTEGER, origin TEXT);
CREATE TABLE cases (batch_id TEXT, case_index INTEGER, body TEXT);
CREATE TABLE executions (batch_id TEXT, number INTEGER, variant TEXT, variant_index INTEGER,
    case_id TEXT, case_index INTEGER, status TEXT, attempt INTEGER, drained INTEGER,
    reused_from TEXT, cancel_reason TEXT, output TEXT, result TEXT);
CREATE TABLE attempts (batch_id TEXT, number INTEGER, attempt INTEGER, status TEXT,
    started_ms INTEGER, ended_ms INTEGER, end_event_id TEXT, resumed_from TEXT);
"""
MARKS = ["0.step", "1.step", "2.close"]
RETRY = {"max_attempts": 3, "on": ["crash", "lost"]}


class Made:
    """A store and records, made of rows.

    Batch `b`: execution 0 is lost in superstep 1 and goes on from there, 1 succeeds at once, 2 was
    cancelled before it started. All of its events were seen by one client. With `dies_again` the
    second attempt of execution 0 is lost before a node starts, and the third does its work.
    """

    def __init__(self, folder: Path, *, dies_again: bool = False) -> None:
        self.folder = folder
        self.last = 3 if dies_again else 2
        (folder / ".wtb").mkdir()
        self.db = sqlite3.connect(folder / ".wtb" / "wtb.db", isolation_level=None)
        self.db.executescript("PRAGMA synchronous=OFF; PRAGMA journal_mode=MEMORY;" + SCHEMA)
        self.seqs: dict[str, int] = {}
        with Records(folder) as records:
            self._make(records)

    def _make(self, records: Records) -> None:
        self.event("pool", "ray_actor_initialized", event_id="i1", replica_id="r1")
        self.event("pool", "ray_actor_failed", event_id="f1", replica_id="r1")
        self.event("b", "ray_variant_execution_cancelled", **ids(2, 0))
        self.event("b", "ray_batch_test_started")
        self.event("b", "ray_actor_initialized", event_id="i1", replica_id="r1")
        for number in (0, 1):
            self.event("b", "ray_variant_execution_started", **ids(number, 1), resumed_from=None)
        self.event("b", "ray_variant_execution_completed", **ids(1, 1), reused_from=None)
        self.event("b", "ray_variant_execution_failed", **ids(0, 1), **lost(will_retry=True))
        for attempt in range(2, self.last + 1):
            given = ids(0, attempt)
            self.event("b", "ray_variant_execution_started", **given, resumed_from="c-1")
            if attempt < self.last:
                self.event("b", "ray_variant_execution_failed", **given, **lost(will_retry=True))
        self.event("b", "ray_variant_files_tracked", **ids(0, self.last))
        self.event("b", "ray_variant_execution_completed", **ids(0, self.last), reused_from=None)
        end_seq = self.seqs["b"]
        counts = {"succeeded": 2, "failed": 0, "cancelled": 1, "total": 3}
        self.event("b", "ray_batch_test_completed", counts=counts)
        self.insert(
            "batches",
            *("b", "completed", "key", None, json.dumps({"retry": RETRY})),
            *(json.dumps([{"graph": "line"}]), 3, 0, 2, 0, 1, None),
        )
        case = {"input": {"steps": [{}, {}]}, "resume": ["yes"]}
        output = {"done": MARKS, "journal": MARKS, "answers": ["yes"]}
        rows = [("succeeded", self.last), ("succeeded", 1), ("cancelled", 0)]
        for number, (status, attempt) in enumerate(rows):
            made = json.dumps(output) if status == "succeeded" else None
            self.insert("cases", "b", number, json.dumps(case))
            self.insert(
                "executions",
                *("b", number, "v", 0, str(number), number, status, attempt, 0),
                *(None, None, made, "{}"),
            )
        ends = [(0, 1, "failed", 7), (0, self.last, "succeeded", end_seq), (1, 1, "succeeded", 6)]
        if self.last == 3:
            ends.append((0, 2, "failed", 9))
        for number, attempt, status, seq in ends:
            self.insert("attempts", "b", number, attempt, status, 0, 0, f"b-{seq}", None)
        records.add("loads", key="key", kind="quick", batch_id="b", executions=3)
        self.mark(records, 0, 1, "0.step", "1.step")
        self.mark(records, 0, self.last, "1.step", "2.close")
        self.mark(records, 1, 1, *MARKS)
        for event in Store(self.folder / ".wtb" / "wtb.db").events["b"]:
            records.add(
                "seen",
                client="c",
                batch_id="b",
                seq=event.seq,
                event_id=event.event_id,
                digest=digest(event.envelope()),
            )
        records.add("clients", client="c", batch_id="b", ended=True, streams=1, endings={})
        answer = {"changed": True}
        records.add("asks", at=2e9, what="cancel", target="/v1/executions/b-2", answer=answer)

    def event(self, stream: str, type_: str, /, *, event_id: str = "", **payload: Any) -> None:
        seq = self.seqs[stream] = self.seqs.get(stream, 0) + 1
        at = f"2030-01-01T00:00:{seq:02}.000Z"
        row = (stream, seq, event_id or f"{stream}-{seq}", type_, at, "p", json.dumps(payload))
        self.insert("events", *row)
        self.db.execute("DELETE FROM streams WHERE stream = ?", (stream,))
        self.insert("streams", stream, seq)

    def insert(self, table: str, *values: Any) -> None:
        self.db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)

    def mark(self, records: Records, number: int, attempt: int, *marks: str) -> None:
        for mark in marks:
            records.add(
                "marks",
                at=0,
                execution_id=f"b-{number}",
                attempt=attempt,
                process=f"p{number}{attempt}",
                what="started",
                mark=mark,
            )

    def sql(self, text: str) -> None:
        assert self.db.execute(text).rowcount > 0

    def edit(self, topic: str, change: Callable[[list[dict[str, Any]]], Any]) -> None:
        """Change the lines of a topic in place."""
        lines = list(read(self.folder, topic))
        change(lines)
        (self.folder / "records" / f"{topic}.jsonl").unlink(missing_ok=True)
        with Records(self.folder) as records:
            for line in lines:
                records.add(topic, **line)

    def output(self, **fields: Any) -> None:
        """Change the output of execution 0."""
        found = json.loads(
            self.db.execute("SELECT output FROM executions WHERE number = 0").fetchone()[0]
        )
        self.db.execute(
            "UPDATE executions SET output = ? WHERE number = 0", (json.dumps(found | fields),)
        )

    def payload(self, seq: int, **fields: Any) -> None:
        """Change the payload of an event of the batch, and what the client saw of it."""
        path = self.folder / ".wtb" / "wtb.db"
        changed = json.dumps(Store(path).events["b"][seq - 1].payload | fields)
        change = "UPDATE events SET payload = ? WHERE stream = 'b' AND seq = ?"
        self.db.execute(change, (changed, seq))
        event = Store(path).events["b"][seq - 1]
        self.edit("seen", lambda lines: lines[seq - 1].update(digest=digest(event.envelope())))


def ids(number: int, attempt: int) -> dict[str, Any]:
    return {"execution_id": f"b-{number}", "attempt": attempt}


def lost(*, will_retry: bool) -> dict[str, Any]:
    return {"kind": "lost", "reason": "the replica is gone", "will_retry": will_retry}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def rules(made: Made) -> set[str]:
    return {violation.rule for violation in chaos_checker.check(made.folder)}


def test_a_right_store_has_no_violation(made: Made) -> None:
    assert chaos_checker.check(made.folder) == []
    assert chaos_checker.report(made.folder) == 0


def end_twice(made: Made) -> None:
    """A second terminal event before the batch's."""
    made.sql("UPDATE events SET seq = 12 WHERE stream = 'b' AND seq = 11")
    made.seqs["b"] = 10
    made.event("b", "ray_variant_execution_completed", **ids(1, 1), reused_from=None)
    made.sql("UPDATE streams SET last_seq = 12 WHERE stream = 'b'")


def swap_start(made: Made) -> None:
    made.sql("UPDATE events SET seq = 0 WHERE stream = 'b' AND seq = 4")
    made.sql("UPDATE events SET seq = 4 WHERE stream = 'b' AND seq = 2")
    made.sql("UPDATE events SET seq = 2 WHERE stream = 'b' AND seq = 0")


def restart_wrongly(made: Made) -> None:
    made.event("pool", "ray_actor_restarted", replica_id="r2", replaces="r0")


def skip_client_event(lines: list[dict[str, Any]]) -> None:
    del lines[4]


DOCTORED: list[tuple[str, Callable[[Made], Any]]] = [
    ("gap", lambda m: m.sql("DELETE FROM events WHERE stream = 'b' AND seq = 9")),
    ("gap", lambda m: m.sql("UPDATE streams SET last_seq = 12 WHERE stream = 'b'")),
    ("gap", lambda m: m.sql("DELETE FROM streams WHERE stream = 'pool'")),
    ("event twice", lambda m: m.sql("UPDATE events SET event_id = 'b-5' WHERE event_id = 'b-4'")),
    ("batch not ended", lambda m: m.sql("UPDATE batches SET status = 'running'")),
    ("batch end", lambda m: m.sql("UPDATE batches SET status = 'cancelled'")),
    ("batch end", lambda m: m.event("b", "ray_batch_test_progress")),
    ("batch start", swap_start),
    ("counts", lambda m: m.sql("UPDATE batches SET succeeded = 3")),
    ("counts", lambda m: m.sql("UPDATE batches SET running = 1")),
    ("counts", lambda m: m.sql("UPDATE executions SET status = 'failed' WHERE number = 1")),
    (
        "counts",
        lambda m: m.payload(11, counts={"succeeded": 1, "failed": 0, "cancelled": 1, "total": 3}),
    ),
    ("terminal events", lambda m: m.sql("DELETE FROM events WHERE seq = 6")),
    ("terminal events", end_twice),
    ("after the end", end_twice),
    ("attempt start", lambda m: m.payload(8, attempt=3)),
    ("attempt end", lambda m: m.payload(9, attempt=1)),
    ("execution row", lambda m: m.sql("UPDATE executions SET attempt = 1 WHERE number = 0")),
    ("attempt row", lambda m: m.sql("DELETE FROM attempts WHERE number = 1")),
    ("attempt row", lambda m: m.sql("UPDATE attempts SET status = 'running' WHERE number = 1")),
    ("unknown execution", lambda m: m.sql("DELETE FROM executions WHERE number = 1")),
    ("not retried", lambda m: m.payload(7, will_retry=False)),
    ("infrastructure", lambda m: m.payload(7, will_retry=False, kind="setup")),
    ("pool event", lambda m: m.sql("UPDATE events SET event_id = 'i2' WHERE stream = 'pool'")),
    ("pool event", lambda m: m.payload(3, replica_id="r3")),
    ("restart", restart_wrongly),
    ("not resumed", lambda m: m.payload(8, resumed_from=None)),
    ("resumed", lambda m: m.payload(4, resumed_from="c-0")),
    ("resumed", lambda m: m.payload(7, kind="crash")),
    ("work done again", lambda m: m.edit("marks", lambda ls: ls[2].update(mark="0.step"))),
    ("work done again", lambda m: m.edit("marks", lambda ls: ls[0].update(mark="1.step"))),
    ("node twice", lambda m: m.edit("marks", lambda ls: ls.append(ls[-1]))),
    ("order", lambda m: m.edit("marks", lambda ls: ls[5].update(mark="3.step"))),
    ("two processes", lambda m: m.edit("marks", lambda ls: ls[3].update(process="q"))),
    ("unknown attempt", lambda m: m.edit("marks", lambda ls: ls[3].update(attempt=3))),
    ("output", lambda m: m.sql("UPDATE executions SET output = NULL WHERE number = 1")),
    ("not exactly once", lambda m: m.output(done=[*MARKS, "2.close"])),
    ("not exactly once", lambda m: m.output(journal=["0.step", "1.step", "1.step", "2.close"])),
    ("not exactly once", lambda m: m.output(journal=MARKS[1:])),
    ("order", lambda m: m.output(done=["1.step", "0.step", "2.close"])),
    ("answers", lambda m: m.output(answers=["yes", "yes"])),
    (
        "score",
        lambda m: m.sql("""UPDATE executions SET result = '{"scores":{"exactly_once":0.0}}'"""),
    ),
    ("client", lambda m: m.edit("seen", skip_client_event)),
    ("client", lambda m: m.edit("seen", lambda lines: lines.append(lines[-1]))),
    ("client", lambda m: m.edit("seen", lambda lines: lines[3].update(digest="0"))),
    ("client", lambda m: m.edit("clients", lambda lines: lines[0].update(ended=False))),
    ("client", lambda m: m.edit("clients", lambda lines: lines.clear())),
    ("accepted", lambda m: m.edit("loads", lambda lines: lines[0].update(batch_id="b-9"))),
    ("accepted", lambda m: m.edit("loads", lambda lines: lines[0].update(executions=4))),
    ("accepted", lambda m: m.edit("loads", lambda lines: lines.clear())),
    ("cancel", lambda m: m.edit("asks", lambda ls: ls[0].update(at=0, target="/v1/batches/b"))),
    ("refused", lambda m: m.edit("asks", lambda ls: ls[0].update(what="x", status=422, text="t"))),
    ("left", lambda m: m.edit("left", lambda lines: lines.append({"when": "x", "what": "y"}))),
]


@pytest.mark.parametrize(
    ("rule", "doctor"), DOCTORED, ids=[f"{n}-{rule}" for n, (rule, _) in enumerate(DOCTORED)]
)
def test_what_is_wrong_is_named(
    made: Made, capsys: pytest.CaptureFixture[str], rule: str, doctor: Callable[[Made], Any]
) -> None:
    doctor(made)

    assert rule in rules(made)
    assert chaos_checker.report(made.folder) > 0
    assert f"VIOLATED {rule}:" in capsys.readouterr().out


def test_every_rule_is_tried() -> None:
    """Each rule that the checker knows is broken by a store above."""
    known = set()
    for module in ("chaos_checker", "chaos_work"):
        text = (Path(chaos_checker.__file__).parent / f"{module}.py").read_text()
        known |= {part.split('"')[0] for part in text.split('Violation("')[1:]}
    assert known == {rule for rule, _ in DOCTORED}


def test_an_attempt_after_one_that_was_not_lost_starts_from_the_beginning(made: Made) -> None:
    made.payload(7, kind="crash")
    made.payload(8, resumed_from=None)
    made.edit("marks", lambda lines: lines.insert(2, lines[2] | {"mark": "0.step"}))

    assert chaos_checker.check(made.folder) == []


def test_an_attempt_may_go_on_after_the_last_superstep_that_had_started(made: Made) -> None:
    """The checkpoint after it can have been stored before the process died."""
    made.edit("marks", lambda lines: lines.pop(2))

    assert chaos_checker.check(made.folder) == []


def test_an_attempt_that_started_no_node_leaves_what_the_one_before_it_had_done(
    tmp_path: Path,
) -> None:
    made = Made(tmp_path, dies_again=True)
    assert chaos_checker.check(made.folder) == []

    made.edit("marks", lambda lines: lines.insert(2, lines[2] | {"mark": "0.step"}))
    assert rules(made) == {"work done again"}
