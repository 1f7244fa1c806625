"""A store in a file with a clock and ids of its own, and what must hold for it at any time."""

import itertools
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Container
from pathlib import Path
from types import SimpleNamespace

from sqlalchemy import event

from wtb_core import events as ev
from wtb_core import matrix, specs
from wtb_core.attempts import Evaluation, Failure, Outcome
from wtb_core.report import BatchFold
from wtb_core.states import TERMINAL_BATCH, TERMINAL_EXECUTION
from wtb_core.store import acceptance, claims, endings, pool, reuse, views
from wtb_core.store.database import migrate, open_engine, sqlite_url
from wtb_core.store.ledger import Ledger
from wtb_core.store.records import Claimant, Finish, Lookup, NewBatch, Offer
from wtb_core.store.tables import POOL_STREAM

START_MS = 1_700_000_000_000


def make_template(path: Path) -> Path:
    """An empty store to copy, because migrating takes a while."""
    migrate(sqlite_url(path))
    return path


class Store:
    """A ledger on a copy of `template`; each call is a transaction of its own."""

    def __init__(self, template: Path, path: Path, admission: int = 1_000) -> None:
        shutil.copyfile(template, path)
        self.engine = open_engine(sqlite_url(path))
        event.listen(self.engine, "connect", _do_not_sync)
        self.raw = sqlite3.connect(path, isolation_level=None)
        self.seen: dict[str, list] = {}
        self.now = START_MS
        self.admission = admission
        self._ids = itertools.count(1)
        self.restart()

    def restart(self) -> None:
        """Another writer takes over, with nothing in memory."""
        self.ledger = Ledger(
            producer="test",
            admission=self.admission,
            clock=lambda: self.now,
            new_id=lambda: self.new_id("e"),
        )
        with self.engine.begin() as connection:
            self.epoch = self.ledger.take_over(connection)

    def close(self) -> None:
        self.raw.close()
        self.engine.dispose()

    def new_id(self, prefix: str) -> str:
        return f"{prefix}{next(self._ids)}"

    # -- changes ---------------------------------------------------------------------------------

    def write(self, change):
        with self.engine.begin() as connection:
            return self.ledger.apply(connection, change)

    def accept(self, batch: NewBatch):
        return self.write(lambda c: acceptance.accept(self.ledger, c, batch))

    def submit(self, **fields) -> str:
        return self.accept(self.make(**fields)).batch_id

    def make(self, variants=1, cases=1, **fields) -> NewBatch:
        return make_batch(self.new_id("b-"), variants, cases, **fields)

    def ask(self, replica="r1", claim_id=None, only_batch=None, offers=()):
        """One claim; the answer may be a lookup."""
        claimant = Claimant(claim_id or self.new_id("k"), replica, f"actor-{replica}", offers)
        return self.write(lambda c: claims.claim(self.ledger, c, claimant, only_batch))

    def claim(self, replica="r1", claim_id=None, only_batch=None, find=None):
        """Claim as a replica does; `find` gives checkpoint and source for a lookup."""
        claim_id = claim_id or self.new_id("k")
        offers = ()
        while isinstance(answer := self.ask(replica, claim_id, only_batch, offers), Lookup):
            source, checkpoint_id = find(answer) if find else (None, None)
            offer = Offer(answer.execution_id, answer.attempt, source, checkpoint_id)
            offers = (*offers, offer)
        return answer

    def finish(self, assignment, outcome=None, *, event_id=None, replica="r1", **fields):
        finish = self.make_finish(assignment, outcome, event_id, replica, **fields)
        return self.write(lambda c: endings.finish(self.ledger, c, finish))

    def make_finish(self, assignment, outcome=None, event_id=None, replica="r1", **fields):
        return Finish(
            event_id=event_id or self.new_id("f"),
            execution_id=assignment.execution_id,
            attempt=assignment.attempt,
            replica_id=replica,
            actor_id=f"actor-{replica}",
            outcome=outcome or succeed(),
            **fields,
        )

    def lose(self, replica="r1", reason="gone") -> int:
        return self.write(lambda c: endings.lose(self.ledger, c, replica, "Died", reason))

    def cancel(self, batch_id, reason="enough", by="user") -> bool:
        return self.write(lambda c: endings.cancel(c, batch_id, reason, by))

    def cancel_execution(self, execution_id, reason="not this one") -> bool:
        return self.write(lambda c: endings.cancel_execution(self.ledger, c, execution_id, reason))

    def renew(self, batch_id, *, key=None, by=None):
        new_id = self.new_id("b-")
        return self.accept(self.read(lambda c: reuse.renew(c, batch_id, new_id, key, by)))

    def tick(self) -> bool:
        """What the collector does again and again; true when nothing is left to do at once."""
        for batch_id in self.read(lambda c: endings.find_overdue(self.ledger, c)):
            self.cancel(batch_id, "batch_timeout is over", "deadline")
        unsettled = self.read(endings.find_unsettled)
        done = [
            self.write(lambda c, b=batch_id: endings.continue_batch(self.ledger, c, b))
            for batch_id in unsettled
        ]
        return all(done)

    def settle(self) -> None:
        while not self.tick():
            pass

    def drain(self, batch_id, outcome=None) -> None:
        """Run a batch to its end."""
        while self.batch(batch_id).status not in TERMINAL_BATCH:
            self.settle()
            while (assignment := self.claim("last", only_batch=batch_id)) is not None:
                self.finish(assignment, outcome)
            self.now += 1_000

    def register(self, replica="r1") -> None:
        payload = ev.ActorInitialized(
            actor_id=f"actor-{replica}",
            replica_id=replica,
            node_id="n",
            initialization_ms=1,
            isolation={},
        )
        self.write(lambda c: pool.register(self.ledger, c, payload))

    def enrol(self, *replicas) -> bool:
        payload = ev.PoolCreated(replica_ids=list(replicas), slots=4, max_replicas=2, max_queued=16)
        return self.write(lambda c: pool.enrol(self.ledger, c, payload))

    def apply_pressure(self) -> None:
        payload = ev.BackpressureApplied(level="executor_queue", queued=1, limit=1, held=1)
        self.write(lambda c: pool.announce(self.ledger, c, payload, "executor_queue"))

    def release_pressure(self) -> None:
        def change(connection):
            pool.stand_down(connection, "executor_queue")
            payload = ev.BackpressureReleased(level="executor_queue", duration_ms=1)
            pool.announce(self.ledger, connection, payload, standing_as=None)

        self.write(change)

    # -- reading ---------------------------------------------------------------------------------

    def read(self, query):
        with self.engine.connect().execution_options(read_only=True) as connection:
            return query(connection)

    def select(self, query, *parameters):
        """Rows as another program sees them, without our code between."""
        cursor = self.raw.execute(query, parameters)
        names = [column[0] for column in cursor.description]
        return [SimpleNamespace(**dict(zip(names, row, strict=True))) for row in cursor]

    def batch(self, batch_id):
        return self.select("SELECT * FROM batches WHERE batch_id = ?", batch_id)[0]

    def batch_ids(self):
        return [row.batch_id for row in self.select("SELECT batch_id FROM batches ORDER BY number")]

    def executions(self, batch_id):
        return self.select("SELECT * FROM executions WHERE batch_id = ? ORDER BY number", batch_id)

    def attempts(self, batch_id):
        return self.select("SELECT * FROM attempts WHERE batch_id = ?", batch_id)

    def events(self, stream):
        return [
            {
                "seq": row.seq,
                "event_id": row.event_id,
                "type": row.type,
                "occurred_at": row.occurred_at,
                "batch_id": None if stream == POOL_STREAM else stream,
                "producer": row.producer,
                "payload": json.loads(row.payload),
            }
            for row in self.select("SELECT * FROM events WHERE stream = ? ORDER BY seq", stream)
        ]

    def types(self, stream):
        return [short(item) for item in self.events(stream)]

    def view(self, batch_id):
        return self.read(lambda c: views.read_batch(c, batch_id, self.now))

    def fold(self, batch_id) -> BatchFold:
        fold = BatchFold()
        for item in self.events(batch_id):
            fold.feed(item)
        return fold

    def snapshot(self, batch_id):
        """All that is kept of a batch."""
        return (
            self.batch(batch_id),
            self.executions(batch_id),
            self.attempts(batch_id),
            self.events(batch_id),
        )


def make_batch(
    batch_id, variants=1, cases=1, *, key=None, digest="d", scores=None, **fields
) -> NewBatch:
    if isinstance(variants, int):
        variants = [{"name": f"v{i}"} for i in range(variants)]
    spec = specs.parse(
        {
            "project": "p",
            "variants": variants,
            "cases": [{"id": f"c{i}", "input": i} for i in range(cases)],
            "retry": {"backoff": 0},
            **fields,
        }
    )
    return NewBatch(
        batch_id=batch_id,
        project_version="1",
        spec=spec.model_dump(mode="json", exclude={"cases"}),
        spec_digest=digest,
        cases=[dict(case) for case in spec.cases],
        variants=[variant.model_dump(mode="json") for variant in matrix.expand(spec)],
        evaluators=["score"],
        scores=scores or {},
        idempotency_key=key,
    )


def check_store(store: Store, but: Container[str] = ()) -> None:
    """The invariants of the contract, for the pool and every batch but those in `but`."""
    check_stream(store, POOL_STREAM)
    for batch_id in store.batch_ids():
        if batch_id in but:
            continue
        check_stream(store, batch_id)
        check_batch(store, batch_id)


def check_stream(store: Store, stream: str) -> None:
    items, seen = store.events(stream), store.seen.get(stream, [])
    assert items[: len(seen)] == seen, "events are only ever appended"
    assert [item["seq"] for item in items] == list(range(1, len(items) + 1))
    assert store.select("SELECT last_seq FROM streams WHERE stream = ?", stream)[0].last_seq == len(
        items
    )
    ids = [item["event_id"] for item in items]
    assert len(set(ids)) == len(ids)
    for item in items[len(seen) :]:
        ev.parse_event(item)
    store.seen[stream] = items


def check_batch(store: Store, batch_id: str) -> None:
    batch, rows, items = store.batch(batch_id), store.executions(batch_id), store.events(batch_id)
    fold, view = store.fold(batch_id), store.view(batch_id)
    by_status = Counter(row.status for row in rows)
    by_status["pending"] += batch.total - len(rows)
    counts = {name: by_status[name] for name in view["counts"] if name != "total"}
    assert view["counts"] == {**counts, "total": batch.total}
    assert batch.inserted == len(rows)
    if batch.started_ms is not None or batch.status in TERMINAL_BATCH:
        assert fold.counts == view["counts"]
    if batch.status == "cancelling":  # no event says so
        assert fold.status in {"pending", "running"}
    else:
        assert fold.status == batch.status
    if batch.concurrency is not None:
        assert batch.running <= batch.concurrency
    if batch.max_failures is not None and batch.failed > batch.max_failures:
        assert batch.status != "running"
    check_start(batch, items)
    check_end(batch, items, fold)
    check_progress(store, items)
    for row in rows:
        check_execution(row, [item for item in items if is_about(item, batch_id, row.number)])


def check_start(batch, items) -> None:
    starts = [item for item in items if short(item) == "batch_test_started"]
    if batch.started_ms is None:
        assert not starts
        return
    kinds = [short(item) for item in items]
    before = len(list(itertools.takewhile("variant_execution_cancelled".__eq__, kinds)))
    assert starts == items[before : before + 1], "only what was cancelled alone comes before"
    head = kinds[before + 1 : kinds.index("variant_execution_started")]
    standing = {"actor_pool_created": 0, "actor_initialized": 1, "backpressure_applied": 2}
    order = [standing[kind] for kind in head]
    assert order == sorted(order)


def check_end(batch, items, fold) -> None:
    ends = [item for item in items if item["type"] in ev.BATCH_TERMINAL_TYPES]
    if batch.status not in TERMINAL_BATCH:
        assert not ends
        return
    assert ends == items[-1:]
    assert items[-1]["type"] == f"ray_batch_test_{batch.status}"
    payload = items[-1]["payload"]
    assert payload["counts"] == fold.counts
    assert batch.succeeded + batch.failed + batch.cancelled == batch.total
    assert batch.running == 0
    if batch.status == "completed":
        comparison = fold.comparison()
        assert payload["best_variant"] == comparison["best_variant"]
        assert payload["best_score"] == comparison["best_score"]
        assert payload["files_tracked"] == sum(
            item["payload"]["files_tracked"]
            for item in items
            if short(item) == "variant_execution_completed"
        )
    elif batch.status == "failed":
        failures = [
            item["payload"]["kind"]
            for item in items
            if short(item) == "variant_execution_failed" and not item["payload"]["will_retry"]
        ]
        assert len(failures) == batch.total
        assert set(failures) <= {"lost", "setup"}
        assert payload["error_type"] in failures
    else:
        assert payload["reason"] == batch.cancel_reason
        assert payload["cancelled_by"] == batch.cancelled_by


def check_progress(store: Store, items) -> None:
    times = [item["payload"] for item in items if short(item) == "batch_test_progress"]
    moments = [payload["elapsed_ms"] for payload in times]
    assert all(later - earlier >= 1_000 for earlier, later in itertools.pairwise(moments))
    for payload in times:
        parts = ("pending", "running", "succeeded", "failed", "cancelled")
        assert sum(payload[part] for part in parts) == payload["total"]


def check_execution(row, items) -> None:
    """started 1, failed 1 (will be retried), started 2, ..., and at most one end.

    What was tracked comes right before the end of its attempt, the final commit last and once.
    """
    state, attempt, ended = "pending", 0, 0
    tracked = 0
    for item in items:
        kind, payload = short(item).removeprefix("variant_execution_"), item["payload"]
        assert not ended, "an event after the end"
        if kind.startswith("variant_files_"):
            assert (state, payload["attempt"]) == ("running", attempt)
            assert not tracked
            tracked += kind == "variant_files_tracked"
            continue
        tracked = 0
        if kind == "started":
            assert state == "pending"
            attempt += 1
            state = "running"
        elif kind == "cancelled":
            state = "cancelled"
        elif kind == "completed" and payload["reused_from"] is not None:
            assert (state, row.reused_from) == ("pending", payload["reused_from"])
            state = "succeeded"
        else:
            assert state == "running"
            state = "succeeded" if kind == "completed" else "failed"
            if kind == "failed" and payload["will_retry"]:
                state = "pending"
        assert payload["attempt"] == attempt
        assert (payload["variant"], payload["case_id"]) == (row.variant, row.case_id)
        ended += ev.ends_execution(item["type"], payload)
    assert (row.status, row.attempt) == (state, attempt)
    assert ended == (row.status in TERMINAL_EXECUTION)


def is_about(item, batch_id, number) -> bool:
    return item["payload"].get("execution_id") == matrix.execution_id(batch_id, number)


def short(item) -> str:
    return item["type"].removeprefix("ray_")


def succeed(score=1.0, **fields) -> Outcome:
    fields.setdefault("output", "1")
    evaluation = Evaluation(scores={} if score is None else {"score": score})
    return Outcome(status="succeeded", evaluation=evaluation, duration_ms=5, **fields)


def fail(kind="error") -> Outcome:
    return Outcome(status="failed", failure=Failure(kind=kind, reason=f"it was {kind}"))


def stop() -> Outcome:
    return Outcome(status="cancelled", duration_ms=3)


def _do_not_sync(connection: sqlite3.Connection, _record) -> None:
    """What a power cut does to the file is not what these tests are about."""
    connection.execute("PRAGMA synchronous=OFF")
