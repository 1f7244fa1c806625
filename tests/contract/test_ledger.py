import asyncio
import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)
from sqlalchemy import event as sa_event
from sqlalchemy import insert, text
from sqlalchemy.exc import IntegrityError
from store_bench import START_MS, Store, check_store, fail, short, stop, succeed

from wtb_core.errors import (
    Conflict,
    NotFound,
    NotRetryable,
    StaleEpoch,
    TooManyPending,
    Unavailable,
)
from wtb_core.ids import format_time
from wtb_core.parameters import BatchFilter
from wtb_core.states import TERMINAL_BATCH
from wtb_core.store import acceptance, claims, endings, log, pool, reuse, views
from wtb_core.store.records import Claimant
from wtb_core.store.tables import POOL_STREAM, streams
from wtb_core.store.writer import Writer


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(acceptance, "INSERT_CHUNK", 3)
    monkeypatch.setattr(endings, "CANCEL_CHUNK", 2)


# -- accept --------------------------------------------------------------------------------------


def test_a_batch_is_stored_with_all_its_executions_and_no_event(store):
    receipt = store.accept(store.make(variants=2, cases=3, repetitions=2))

    assert receipt[1:] == ("pending", 12, True, 0)
    view = store.view(receipt.batch_id)
    assert view["counts"] == {
        "pending": 12,
        "running": 0,
        "succeeded": 0,
        "failed": 0,
        "cancelled": 0,
        "total": 12,
    }
    assert (view["created_at"], view["started_at"]) == (format_time(START_MS), None)
    assert store.events(receipt.batch_id) == []
    rows = store.executions(receipt.batch_id)
    assert [(row.variant, row.case_id, row.repetition) for row in rows] == [
        (f"v{v}", f"c{c}", r) for r in range(2) for c in range(3) for v in range(2)
    ]


def test_the_same_key_and_spec_give_the_same_batch(store):
    first = store.accept(store.make(key="k", digest="d"))
    store.claim()

    again = store.accept(store.make(key="k", digest="d"))

    assert again == first._replace(status="running", created=False)
    assert len(store.batch_ids()) == 1


def test_the_same_key_for_another_spec_is_a_conflict_and_stores_nothing(store):
    first = store.accept(store.make(key="k", digest="d"))

    with pytest.raises(Conflict) as caught:
        store.accept(store.make(key="k", digest="other"))

    assert caught.value.args == ("k", first.batch_id)
    assert len(store.batch_ids()) == 1


def test_another_key_or_none_makes_another_batch(store):
    for key in ("k", "l", None, None):
        assert store.accept(store.make(key=key)).created

    assert len(store.batch_ids()) == 4


def test_admission_counts_what_has_not_ended_and_lets_in_what_fits(open_store):
    store = open_store(admission=5)
    first = store.submit(cases=3)
    store.submit(cases=2)
    with pytest.raises(TooManyPending) as caught:
        store.submit(cases=1)
    assert (caught.value.pending, caught.value.limit) == (5, 5)
    assert len(store.batch_ids()) == 2

    store.finish(store.claim(only_batch=first))

    store.submit(cases=1)


def test_a_known_key_is_answered_also_when_nothing_more_is_admitted(open_store):
    store = open_store(admission=1)
    first = store.accept(store.make(key="k"))

    assert store.accept(store.make(key="k")) == first._replace(created=False)


@pytest.mark.parametrize(("ended", "retry_after_s"), [(0, 30), (1, 9), (4, 2)])
def test_the_time_to_wait_follows_the_pace(open_store, ended, retry_after_s):
    store = open_store(admission=20)
    batch = store.submit(cases=20)
    for assignment in [store.claim(only_batch=batch) for _ in range(ended)]:
        store.finish(assignment)
    store.now += 1_000

    with pytest.raises(TooManyPending) as caught:
        store.submit(cases=10)

    assert caught.value.retry_after_s == retry_after_s


def test_a_large_batch_is_inserted_in_chunks_and_starts_before_the_last_one(store, small_chunks):
    batch = store.submit(variants=2, cases=4)

    assert store.batch(batch).inserted == 3
    assert store.view(batch)["counts"]["pending"] == 8
    started = [store.claim() for _ in range(4)]
    assert [a and a.execution_id for a in started] == [
        f"{batch}-0",
        f"{batch}-1",
        f"{batch}-2",
        None,
    ]
    assert store.tick() is False
    assert store.claim().execution_id == f"{batch}-3"
    assert store.tick() is True
    assert store.batch(batch).inserted == 8
    assert [row.case_id for row in store.executions(batch)] == [f"c{i // 2}" for i in range(8)]


# -- claim ---------------------------------------------------------------------------------------


def test_the_first_claim_starts_the_batch_in_its_own_transaction(store):
    store.register("r1")
    store.register("r2")
    store.enrol("r1", "r2")
    store.apply_pressure()
    batch = store.submit(cases=2, name="nightly", scores={"score": {"weight": 1.0}})
    store.now += 70
    before = store.events(POOL_STREAM)

    def claim_and_count(connection):
        claims.claim(store.ledger, connection, Claimant("k", "r1", "a1"))
        return log.find_last_seq(connection, batch)

    assert store.write(claim_and_count) == 6
    items = store.events(batch)
    assert [short(item) for item in items] == [
        "batch_test_started",
        "actor_pool_created",
        "actor_initialized",
        "actor_initialized",
        "backpressure_applied",
        "variant_execution_started",
    ]
    copies = {item["event_id"]: item["payload"] for item in items[1:5]}
    assert copies == {item["event_id"]: item["payload"] for item in before}
    assert items[0]["payload"] == {
        "project": "p",
        "project_version": "1",
        "variants": ["v0"],
        "cases": 2,
        "repetitions": 1,
        "executions": 2,
        "reused": 0,
        "retry_of": None,
        "limits": json.loads(store.batch(batch).spec)["limits"],
        "baseline": "v0",
        "evaluators": ["score"],
        "scores": {"score": {"weight": 1.0}},
    }
    assert items[5]["payload"]["queue_ms"] == 70
    assert items[5]["occurred_at"] == format_time(store.now) == store.view(batch)["started_at"]
    assert store.events(POOL_STREAM) == before


def test_the_same_claim_gets_the_same_answer_and_starts_nothing_more(store):
    batch = store.submit(cases=2)
    first = store.claim(claim_id="k")
    before = store.snapshot(batch)

    assert store.claim(claim_id="k") == first
    store.restart()
    assert store.claim(claim_id="k") == first
    assert store.snapshot(batch) == before


def test_a_claim_of_another_replica_or_of_an_ended_attempt_gets_nothing(store):
    """Serve may hand a permit to a second replica, or again: what it ran must not run twice."""
    batch = store.submit(cases=2)
    held = store.claim("r1", "k")

    assert store.claim("r2", "k") is None
    assert store.claim("r1", "k") == held
    store.finish(held)
    before = store.snapshot(batch)
    assert store.claim("r1", "k") is None
    assert store.snapshot(batch) == before


def test_a_replica_that_is_stopped_or_was_taken_for_dead_gets_nothing(store):
    store.submit(cases=3)
    store.register("r1")
    held = store.claim("r1", "k")
    store.write(lambda c: pool.drain(c, ["r1"]))
    assert store.claim("r1") is None
    assert store.claim("r1", "k") == held

    store.lose("r1")
    assert store.claim("r1") is None
    store.register("r1")
    assert store.claim("r1") is not None


def test_an_assignment_says_all_that_an_attempt_needs(store):
    batch = store.submit(
        cases=1,
        repetitions=2,
        limits={"timeout": 7, "batch_timeout": 60},
        workspace={"keep": "always"},
    )
    store.claim()

    assignment = store.claim()

    assert assignment.model_dump(include={"execution_id", "attempt", "repetition", "case"}) == {
        "execution_id": f"{batch}-1",
        "attempt": 1,
        "repetition": 1,
        "case": {"id": "c0", "input": 0},
    }
    assert assignment.limits.timeout == 7
    assert assignment.workspace.keep == "always"
    assert (assignment.project, assignment.project_version) == ("p", "1")
    assert (assignment.variant.name, assignment.evaluators) == ("v0", ["score"])


def test_batches_take_turns(store):
    first, second = store.submit(cases=3), store.submit(cases=3)
    turns = [store.claim().batch_id for _ in range(3)]
    third = store.submit(cases=2)

    turns += [store.claim().batch_id for _ in range(5)]

    assert turns == [first, second, first, third, second, first, third, second]
    assert store.claim() is None


def test_a_batch_runs_no_more_at_once_than_its_concurrency(store):
    narrow = store.submit(cases=3, limits={"concurrency": 1})
    wide = store.submit(cases=1)
    held = store.claim()
    assert held.batch_id == narrow
    assert store.claim().batch_id == wide
    assert store.claim() is None

    store.finish(held)

    assert store.claim().batch_id == narrow


def test_what_can_be_claimed_is_counted(store, monkeypatch):
    def count():
        return store.read(lambda c: claims.count_claimable(store.ledger, c))

    store.submit(cases=3, limits={"concurrency": 2})
    store.submit(cases=4, retry={"backoff": 10, "on": ["error"]})
    assert count() == 6
    assert store.read(claims.count_running) == 0

    held = [store.claim() for _ in range(2)]
    store.finish(held[1], fail())

    assert count() == 4
    assert store.read(claims.count_running) == 1
    monkeypatch.setattr(claims, "COUNT_AT_MOST", 3)
    assert count() == 3


def test_a_retry_waits_for_its_backoff_and_lets_others_go_first(store):
    batch = store.submit(cases=2, retry={"backoff": 10, "on": ["error"]})
    first = store.claim()
    store.finish(first, fail())

    assert store.claim().execution_id == f"{batch}-1"
    assert store.claim() is None
    store.now += 9_999
    assert store.claim() is None
    store.now += 2_501
    again = store.claim()
    assert (again.execution_id, again.attempt) == (first.execution_id, 2)
    (started,) = [
        item["payload"]
        for item in store.events(batch)
        if short(item) == "variant_execution_started" and item["payload"]["attempt"] == 2
    ]
    assert 0 <= started["queue_ms"] <= 2_500


def test_the_backoff_doubles(store):
    store.submit(retry={"backoff": 10, "on": ["error"], "max_attempts": 4})
    waits = []
    for _ in range(3):
        store.finish(store.claim(), fail())
        start = store.now
        while store.read(lambda c: claims.count_claimable(store.ledger, c)) == 0:
            store.now += 500
        waits.append(store.now - start)

    for wait, base in zip(waits, (10_000, 20_000, 40_000), strict=True):
        assert base <= wait <= base * 1.25 + 500


def test_nothing_is_claimed_of_a_batch_that_is_cancelled(store):
    batch = store.submit(cases=2)
    store.cancel(batch)

    assert store.claim() is None


# -- finish --------------------------------------------------------------------------------------


def test_an_accepted_result_ends_the_execution_and_the_last_one_the_batch(store):
    batch = store.submit(variants=2, scores={"score": {"weight": 1.0}})
    first, second = store.claim(), store.claim()
    store.now += 400

    assert store.finish(first, succeed(0.5), event_id="f-1", output_bytes=1) == "accepted"
    assert store.finish(second, fail(), event_id="f-2") == "accepted"

    items = store.events(batch)
    assert [short(item) for item in items[-3:]] == [
        "batch_test_progress",
        "variant_execution_failed",
        "batch_test_completed",
    ]
    assert {item["event_id"] for item in items} >= {"f-1", "f-2"}
    assert items[-1]["payload"] == {
        "counts": {
            "pending": 0,
            "running": 0,
            "succeeded": 1,
            "failed": 1,
            "cancelled": 0,
            "total": 2,
        },
        "duration_ms": 400,
        "best_variant": "v0",
        "best_score": 0.5,
        "files_tracked": 0,
    }
    view = store.view(batch)
    assert (view["status"], view["finished_at"]) == ("completed", format_time(store.now))
    assert view["progress"] == {"elapsed_ms": 400, "remaining_ms": 0, "per_s": 5.0}
    ok, bad = store.read(
        lambda c: views.read_executions(c, batch, views.ExecutionFilter(), after=-1, limit=9)
    )[0]
    assert (ok["status"], ok["scores"], ok["overall_score"], ok["output_bytes"]) == (
        "succeeded",
        {"score": 0.5},
        0.5,
        1,
    )
    assert (bad["status"], bad["failure"]["kind"], bad["overall_score"]) == (
        "failed",
        "error",
        None,
    )


def test_a_repeated_result_is_a_duplicate_also_after_the_batch_has_ended(store):
    batch = store.submit()
    assignment = store.claim()
    store.finish(assignment, event_id="f-1")
    before = store.snapshot(batch)

    assert store.finish(assignment, event_id="f-1") == "duplicate"
    assert store.snapshot(batch) == before


@pytest.mark.parametrize("again", [succeed(), fail("lost"), stop()])
def test_a_second_result_of_the_same_attempt_is_refused(store, again):
    batch = store.submit(cases=2)
    assignment = store.claim()
    store.finish(assignment)
    before = store.snapshot(batch)

    assert store.finish(assignment, again) == "refused"
    assert store.snapshot(batch) == before


def test_a_late_result_of_a_lost_attempt_is_refused_while_the_next_one_runs(store):
    batch = store.submit()
    zombie = store.claim("r1")
    store.lose("r1")
    healthy = store.claim("r2")
    before = store.snapshot(batch)

    assert store.finish(zombie, succeed(), replica="r1") == "refused"
    assert store.snapshot(batch) == before
    assert store.finish(healthy, succeed(), replica="r2") == "accepted"


def test_a_result_of_an_execution_that_never_was_is_refused(store):
    batch = store.submit()
    assignment = store.claim()

    for unknown in (f"{batch}-7", "b-unknown-0"):
        renamed = assignment.model_copy(update={"execution_id": unknown})
        assert store.finish(renamed) == "refused"
    assert store.finish(assignment.model_copy(update={"attempt": 2})) == "refused"
    with pytest.raises(NotFound):
        store.finish(assignment.model_copy(update={"execution_id": "nonsense"}))


@pytest.mark.parametrize(
    ("kind", "on", "retried"),
    [
        ("crash", None, True),
        ("lost", None, True),
        ("error", None, False),
        ("timeout", None, False),
        ("out_of_memory", None, False),
        ("setup", None, False),
        ("error", ["error"], True),
        ("timeout", ["timeout"], True),
        ("out_of_memory", ["out_of_memory"], True),
        ("crash", [], False),
        ("lost", ["crash"], False),
    ],
)
def test_a_failure_is_tried_again_when_its_kind_is_listed(store, kind, on, retried):
    retry = {"backoff": 0} if on is None else {"backoff": 0, "on": on}
    batch = store.submit(cases=2, retry=retry)
    store.finish(store.claim(), fail(kind))

    (item,) = [i for i in store.events(batch) if short(i) == "variant_execution_failed"]

    assert item["payload"]["will_retry"] is retried
    assert item["payload"]["kind"] == kind
    assert store.executions(batch)[0].status == ("pending" if retried else "failed")


def test_attempts_are_limited(store):
    batch = store.submit(retry={"backoff": 0, "max_attempts": 3})
    for attempt in (1, 2, 3):
        assignment = store.claim()
        assert assignment.attempt == attempt
        store.finish(assignment, fail("crash"))

    assert store.claim() is None
    assert store.types(batch).count("variant_execution_failed") == 3
    assert store.batch(batch).status == "completed"
    shown = store.read(lambda c: views.read_execution(c, f"{batch}-0"))
    assert [item["attempt"] for item in shown["attempts"]] == [1, 2, 3]


def test_progress_is_told_at_most_once_a_second(store):
    batch = store.submit(cases=8)
    for step_ms in (0, 999, 0, 1, 500, 1_500, 0):
        store.now += step_ms
        store.finish(store.claim())

    told = [i["payload"] for i in store.events(batch) if short(i) == "batch_test_progress"]
    assert [(p["elapsed_ms"], p["succeeded"]) for p in told] == [(0, 1), (1_000, 4), (3_000, 6)]
    assert told[1] == {
        "total": 8,
        "pending": 4,
        "running": 0,
        "succeeded": 4,
        "failed": 0,
        "cancelled": 0,
        "elapsed_ms": 1_000,
        "remaining_ms": 1_000,
        "per_s": 4.0,
    }


# -- lose ----------------------------------------------------------------------------------------


def test_a_lost_replicas_attempts_end_and_are_tried_again(store):
    batch = store.submit(cases=3)
    store.register("r1")
    gone = [store.claim("r1"), store.claim("r1")]
    other = store.claim("r2")
    store.now += 250

    assert store.lose("r1", "it fell over") == 2

    items = [i["payload"] for i in store.events(batch) if short(i) == "variant_execution_failed"]
    assert [(p["execution_id"], p["kind"], p["reason"], p["will_retry"]) for p in items] == [
        (assignment.execution_id, "lost", "it fell over", True) for assignment in gone
    ]
    assert {(p["replica_id"], p["duration_ms"]) for p in items} == {("r1", 250)}
    assert store.read(views.read_replicas) == []
    assert store.finish(other, replica="r2") == "accepted"
    assert store.lose("r1") == 0


# -- cancel --------------------------------------------------------------------------------------


def test_a_pending_batch_that_is_cancelled_never_starts(store):
    batch = store.submit(cases=2)

    assert store.cancel(batch, "enough", "alice") is True
    assert store.batch(batch).status == "cancelling"
    store.settle()

    items = store.events(batch)
    assert [short(item) for item in items] == [
        "variant_execution_cancelled",
        "variant_execution_cancelled",
        "batch_test_cancelled",
    ]
    assert {item["payload"]["attempt"] for item in items[:2]} == {0}
    assert items[-1]["payload"]["duration_ms"] == 0
    assert (items[-1]["payload"]["reason"], items[-1]["payload"]["cancelled_by"]) == (
        "enough",
        "alice",
    )
    assert store.view(batch)["started_at"] is None


def test_a_running_batch_is_cancelled_when_its_last_execution_has_ended(store):
    batch = store.submit(cases=4)
    held = [store.claim(), store.claim(), store.claim()]
    store.cancel(batch)
    store.settle()
    assert store.view(batch)["counts"]["cancelled"] == 1
    assert store.batch(batch).status == "cancelling"

    store.finish(held[0], stop())
    store.finish(held[1], succeed())
    assert store.batch(batch).status == "cancelling"
    store.finish(held[2], fail("crash"))

    assert store.batch(batch).status == "cancelled"
    counts = store.view(batch)["counts"]
    assert (counts["succeeded"], counts["failed"], counts["cancelled"]) == (1, 1, 2)
    reasons = {
        item["payload"]["reason"]
        for item in store.events(batch)
        if short(item) == "variant_execution_cancelled"
    }
    assert reasons == {"enough"}


@pytest.mark.parametrize("settled", [False, True])
def test_cancelling_twice_changes_nothing(store, settled):
    batch = store.submit(cases=2)
    store.cancel(batch, "first", "alice")
    if settled:
        store.settle()
    before = store.snapshot(batch)

    assert store.cancel(batch, "second", "bob") is False
    assert store.snapshot(batch) == before


def test_a_batch_that_has_ended_cannot_be_cancelled(store):
    batch = store.submit()
    store.finish(store.claim())
    before = store.snapshot(batch)

    assert store.cancel(batch) is False
    store.settle()
    assert store.snapshot(batch) == before


def test_an_unknown_batch_cannot_be_cancelled(store):
    with pytest.raises(NotFound):
        store.cancel("b-unknown")


def test_a_large_batch_is_cancelled_in_chunks(store, small_chunks):
    batch = store.submit(cases=8)
    store.cancel(batch)
    steps = 1
    while not store.tick():
        steps += 1
        check_store(store)

    assert steps > 2
    assert store.batch(batch).status == "cancelled"
    assert store.types(batch).count("variant_execution_cancelled") == 8


def test_an_execution_that_waits_for_its_retry_is_cancelled_once(store):
    batch = store.submit(retry={"backoff": 60, "on": ["error"]})
    store.finish(store.claim(), fail())
    store.cancel(batch)
    store.settle()

    last = [i for i in store.events(batch) if short(i).startswith("variant_execution")][-1]
    assert (short(last), last["payload"]["attempt"]) == ("variant_execution_cancelled", 1)
    assert store.batch(batch).status == "cancelled"


# -- limits of the batch -------------------------------------------------------------------------


def test_the_batch_timeout_counts_from_the_first_claim(store):
    batch = store.submit(cases=3, limits={"batch_timeout": 10})
    store.now += 60_000
    store.settle()
    held = store.claim()
    store.now += 9_999
    store.settle()
    assert store.batch(batch).status == "running"

    store.now += 1
    store.settle()
    assert store.batch(batch).status == "cancelling"
    store.finish(held, stop())

    payload = store.events(batch)[-1]["payload"]
    assert (payload["cancelled_by"], payload["reason"]) == ("deadline", "batch_timeout is over")


@pytest.mark.parametrize(
    ("limit", "total", "allowed"),
    [(0, 5, 0), (2, 5, 2), (0.5, 5, 2), (0.0, 5, 0), (1.0, 5, 5), (0.29, 100, 29), (0.07, 100, 7)],
)
def test_failures_beyond_the_limit_cancel_the_rest(store, limit, total, allowed):
    batch = store.submit(cases=total, limits={"max_failures": limit})
    for _ in range(allowed):
        store.finish(store.claim(), fail())
    assert store.batch(batch).status in {"pending", "running", "completed"}
    if allowed == total:
        assert store.batch(batch).status == "completed"
        return

    store.finish(store.claim(), fail())
    store.settle()

    payload = store.events(batch)[-1]["payload"]
    assert store.batch(batch).status == "cancelled"
    assert payload["cancelled_by"] == "max_failures"
    assert payload["reason"] == (
        f"{allowed + 1} executions failed and max_failures allows {allowed}"
    )
    assert payload["counts"]["failed"] == allowed + 1


def test_failures_that_are_tried_again_do_not_count_towards_the_limit(store):
    batch = store.submit(cases=2, limits={"max_failures": 0})
    store.finish(store.claim(), fail("crash"))

    assert store.batch(batch).status == "running"


def test_a_failure_beyond_the_limit_that_is_the_last_one_completes_the_batch(store):
    batch = store.submit(limits={"max_failures": 0})
    store.finish(store.claim(), fail())

    assert store.batch(batch).status == "completed"


# -- the pool ------------------------------------------------------------------------------------


def test_pool_events_reach_the_running_batches_with_the_same_id(store):
    waiting, running, ended = store.submit(), store.submit(cases=2), store.submit()
    store.claim(only_batch=running)
    store.finish(store.claim(only_batch=ended))
    before = {batch: store.events(batch) for batch in (waiting, ended)}

    store.register("r1")
    store.enrol("r1")
    store.apply_pressure()
    store.release_pressure()

    kinds = [
        "actor_initialized",
        "actor_pool_created",
        "backpressure_applied",
        "backpressure_released",
    ]
    assert store.types(POOL_STREAM) == kinds
    copies = store.events(running)[-4:]
    original = store.events(POOL_STREAM)
    assert [(item["event_id"], item["payload"]) for item in copies] == [
        (item["event_id"], item["payload"]) for item in original
    ]
    assert {item["batch_id"] for item in original} == {None}
    assert {batch: store.events(batch) for batch in (waiting, ended)} == before


def test_a_batch_that_is_being_cancelled_still_gets_pool_events(store):
    batch = store.submit(cases=2)
    held = store.claim()
    store.cancel(batch)
    store.register("r2")

    assert "actor_initialized" in store.types(batch)
    store.finish(held, stop())


def test_what_is_no_longer_in_force_is_not_copied_into_a_new_batch(store):
    store.register("r1")
    store.register("r2")
    store.apply_pressure()
    store.release_pressure()
    store.lose("r2")
    batch = store.submit()
    store.claim()

    assert store.types(batch) == [
        "batch_test_started",
        "actor_initialized",
        "variant_execution_started",
    ]


def test_registering_again_says_nothing_new(store):
    store.register("r1")
    store.register("r1")
    store.write(lambda c: pool.retire(c, "r1"))
    store.register("r1")

    assert store.types(POOL_STREAM) == ["actor_initialized"]
    assert [r["replica_id"] for r in store.read(views.read_replicas)] == ["r1"]


def test_a_pool_is_created_once_when_its_first_replicas_run(store):
    assert store.enrol("r1") is False
    assert store.types(POOL_STREAM) == []
    store.register("r1")
    assert store.enrol("r1") is True
    store.register("r2")
    assert store.enrol("r1", "r2") is True

    assert store.types(POOL_STREAM) == [
        "actor_initialized",
        "actor_pool_created",
        "actor_initialized",
    ]


def test_a_replica_that_serve_does_not_list_is_unlisted_with_what_it_holds(store):
    for replica in ("r1", "r2", "r3", "r4"):
        store.register(replica)
    store.submit()
    store.claim("r2")
    store.write(lambda c: pool.drain(c, ["r3"]))
    store.write(lambda c: pool.retire(c, "r4"))

    found = store.read(lambda c: pool.find_unlisted(c, ["r1"]))
    assert [(item.replica_id, item.status, item.held) for item in found] == [
        ("r2", "live", 1),
        ("r3", "draining", 0),
    ]


def test_what_was_undone_has_no_part_in_the_result(store):
    batch = store.submit(variants=2, scores={"score": {"weight": 1.0}})
    first, second = store.claim(), store.claim()

    def finish_and_fail(connection):
        endings.finish(store.ledger, connection, store.make_finish(first, succeed(1.0)))
        raise KeyError("oh")

    with pytest.raises(KeyError):
        store.write(finish_and_fail)
    store.finish(first, succeed(0.25))
    store.finish(second, succeed(0.5))

    ended = store.events(batch)[-1]["payload"]
    assert (ended["best_variant"], ended["best_score"]) == ("v1", 0.5)


def test_nothing_is_kept_in_memory_of_a_batch_that_has_ended(store):
    for cancelled in (False, True):
        batch = store.submit(cases=2)
        store.finish(store.claim())
        if cancelled:
            store.cancel(batch)
        store.drain(batch)

    assert store.ledger._facts == {}
    assert store.ledger._folds == {}


# -- the log -------------------------------------------------------------------------------------


def test_a_change_that_fails_leaves_no_number_behind(store):
    batch = store.submit(cases=2)

    def claim_and_fail(connection):
        claims.claim(store.ledger, connection, Claimant("k", "r1", "a"))
        raise KeyError("oh")

    before = store.snapshot(batch)
    with pytest.raises(KeyError):
        store.write(claim_and_fail)

    assert store.snapshot(batch) == before
    store.claim()
    assert [item["seq"] for item in store.events(batch)] == [1, 2]


def test_events_are_paged_and_the_last_page_says_so(store):
    batch = store.submit(cases=3)
    store.drain(batch)
    total = len(store.events(batch))

    def page(after, limit):
        return store.read(lambda c: views.read_events(c, batch, after, limit))

    first, ended = page(0, 4)
    assert first.items == store.events(batch)[:4]
    assert ([item["seq"] for item in first.items], ended) == ([1, 2, 3, 4], False)
    assert first.last_seq == total
    rest, ended = page(4, 1_000)
    assert (rest.items[-1]["seq"], ended) == (total, True)
    assert page(total, 10) == (log.LogPage([], total), True)
    with pytest.raises(NotFound):
        store.read(lambda c: views.read_events(c, "b-unknown", 0, 10))


# -- reading -------------------------------------------------------------------------------------


def test_batches_are_listed_newest_first_and_filtered(store):
    ids = [store.submit(labels={"team": team}) for team in ("red", "blue", "red")]
    store.finish(store.claim(only_batch=ids[0]))

    def listed(after=None, limit=10, **filters):
        items, more = store.read(
            lambda c: views.read_batches(
                c, store.now, BatchFilter(**filters), after=after, limit=limit
            )
        )
        return [item["batch_id"] for item in items], more

    assert listed() == (ids[::-1], None)
    page, more = listed(limit=2)
    assert page == [ids[2], ids[1]]
    assert listed(after=more) == ([ids[0]], None)
    assert listed(label=("team", "red"))[0] == [ids[2], ids[0]]
    assert listed(status="completed")[0] == [ids[0]]
    assert listed(project="other")[0] == []


def test_executions_are_listed_in_order_and_filtered(store):
    batch = store.submit(variants=2, cases=3)
    store.finish(store.claim())

    def listed(after=-1, limit=10, **wanted):
        items, more = store.read(
            lambda c: views.read_executions(
                c, batch, views.ExecutionFilter(**wanted), after=after, limit=limit
            )
        )
        return [int(item["execution_id"].rpartition("-")[2]) for item in items], more

    assert listed() == ([0, 1, 2, 3, 4, 5], None)
    assert listed(limit=4) == ([0, 1, 2, 3], 3)
    assert listed(after=3) == ([4, 5], None)
    assert listed(status="succeeded") == ([0], None)
    assert listed(variant="v1") == ([1, 3, 5], None)
    assert listed(case_id="c2", variant="v0") == ([4], None)


@pytest.mark.parametrize(
    "text_", ["", "-", "b-1", "b-1-", "b-1-x", "b-1--1", "b-1-٣", "b-1-0000000000", "b-1-0"]
)
def test_an_unknown_execution_is_not_found(store, text_):
    with pytest.raises(NotFound):
        store.read(lambda c: views.read_execution(c, text_))


# -- writers -------------------------------------------------------------------------------------


def test_a_second_writer_makes_the_first_one_stale(store):
    batch = store.submit(cases=2)
    first = Writer(store.engine, store.ledger)
    second = Writer(store.engine, store.ledger)
    assert second.epoch == first.epoch + 1
    before = store.snapshot(batch)

    async def write():
        with pytest.raises(StaleEpoch) as caught:
            await first.write(lambda c: endings.cancel(c, batch, "no", "old"))
        assert caught.value.args == (first.epoch, second.epoch)
        assert store.snapshot(batch) == before
        assert await second.write(lambda c: endings.cancel(c, batch, "yes", "new")) is True
        await first.close()
        await second.close()

    asyncio.run(write())
    assert store.batch(batch).cancelled_by == "new"


def break_a_rule(connection):
    connection.execute(insert(streams).values(stream=POOL_STREAM, last_seq=7))


def raise_key_error(_connection):
    raise KeyError("oh")


@pytest.mark.parametrize(
    ("failing", "error"), [(raise_key_error, KeyError), (break_a_rule, IntegrityError)]
)
def test_a_failing_change_hinders_no_other_of_its_transaction(store, failing, error):
    commits = []
    sa_event.listen(store.engine, "commit", commits.append)
    one, other = store.submit(), store.submit()

    def claim_and_fail(connection):
        claims.claim(store.ledger, connection, Claimant("failed", "r1", "a"), one)
        failing(connection)

    async def write():
        writer = Writer(store.engine, store.ledger)
        commits.clear()
        results = await asyncio.gather(
            writer.write(lambda c: claims.claim(store.ledger, c, Claimant("k1", "r1", "a"), other)),
            writer.write(claim_and_fail),
            writer.write(lambda c: claims.claim(store.ledger, c, Claimant("k2", "r1", "a"), one)),
            return_exceptions=True,
        )
        await writer.close()
        return results

    first, failed, last = asyncio.run(write())

    assert len(commits) == 1
    assert isinstance(failed, error)
    assert first.execution_id == f"{other}-0"
    assert (last.execution_id, last.attempt) == (f"{one}-0", 1)
    assert store.types(one) == ["batch_test_started", "variant_execution_started"]


def test_when_the_transaction_fails_every_change_is_told_and_none_is_stored(store):
    batch = store.submit(cases=2)
    before = store.snapshot(batch)

    def lose_the_disk(connection):
        connection.execute(text("SELECT * FROM no_such_table"))

    async def write():
        writer = Writer(store.engine, store.ledger)
        results = await asyncio.gather(
            writer.write(lambda c: endings.cancel(c, batch, "no", "user")),
            writer.write(lose_the_disk),
            return_exceptions=True,
        )
        after = await writer.write(lambda c: log.find_last_seq(c, batch))
        await writer.close()
        return results, after

    results, after = asyncio.run(write())

    assert [type(result) for result in results] == [Unavailable, Unavailable]
    assert "no_such_table" in str(results[0])
    assert store.snapshot(batch) == before
    assert after == 0


def test_a_change_goes_on_when_its_caller_is_cancelled(store):
    batch = store.submit(cases=2)

    async def write():
        writer = Writer(store.engine, store.ledger)
        task = asyncio.create_task(writer.write(lambda c: endings.cancel(c, batch, "gone", "user")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await writer.close()

    asyncio.run(write())
    assert store.batch(batch).status == "cancelling"


def test_a_commit_is_announced_after_it_is_durable(store):
    batch = store.submit()
    seen = []

    async def write():
        writer = Writer(
            store.engine, store.ledger, lambda _: seen.append(store.batch(batch).cancel_reason)
        )
        await writer.write(lambda c: endings.cancel(c, batch, "enough", "user"))
        await writer.close()

    asyncio.run(write())
    assert seen == ["enough"]


def test_a_commit_names_the_events_that_are_durable_and_no_others(store):
    batch = store.submit()
    commits = []

    def claim(connection, claim_id):
        return claims.claim(store.ledger, connection, Claimant(claim_id, "r1", "a1"))

    def claim_and_fail(connection):
        claim(connection, "c1")
        raise NotFound("claim", "c1")

    async def write():
        writer = Writer(store.engine, store.ledger, commits.append)
        changes = [writer.write(claim_and_fail), writer.write(lambda c: claim(c, "c2"))]
        await asyncio.gather(*changes, return_exceptions=True)
        await writer.write(lambda _: None)
        await writer.close()

    asyncio.run(write())
    named = [draft.event_id for commit in commits for draft in commit.appended]
    assert named == [event["event_id"] for event in store.events(batch)]
    assert len(named) >= 2
    assert commits[-1].appended == ()
    assert all(commit.duration_s > 0 for commit in commits)


def test_a_transaction_that_fails_is_no_commit(store):
    commits = []

    async def write():
        first = Writer(store.engine, store.ledger, commits.append)
        second = Writer(store.engine, store.ledger)
        with pytest.raises(StaleEpoch):
            await first.write(lambda _: None)
        await first.close()
        await second.close()

    asyncio.run(write())
    assert commits == []


def test_a_closed_writer_refuses_instead_of_waiting_for_ever(store):
    async def write():
        writer = Writer(store.engine, store.ledger)
        await writer.close()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(writer.write(lambda _: None), 5)

    asyncio.run(write())


# -- any order -----------------------------------------------------------------------------------

REPLICAS = ("r1", "r2")
OUTCOMES = [
    succeed(0.25),
    succeed(None),
    fail(),
    fail("crash"),
    fail("lost"),
    fail("setup"),
    stop(),
]


class AnyOrder(RuleBasedStateMachine):
    """Submissions, claims, results, losses, cancellations and ticks, in whatever order."""

    template = None
    directory = None

    held = Bundle("held")
    reported = Bundle("reported")
    asked = Bundle("asked")

    @initialize()
    def open(self):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(acceptance, "INSERT_CHUNK", 3)
        self.patch.setattr(endings, "CANCEL_CHUNK", 2)
        self.patch.setattr(reuse, "ADOPT_CHUNK", 2)
        path = self.directory / "wtb.db"
        for rest in self.directory.glob("wtb.db*"):
            rest.unlink()
        self.store = Store(self.template, path, admission=24)
        self.ended = {}

    @rule(
        variants=st.integers(1, 2),
        cases=st.integers(1, 3),
        repetitions=st.integers(1, 2),
        max_failures=st.sampled_from([None, None, 0, 1, 0.5]),
        concurrency=st.sampled_from([None, None, 1, 2]),
        batch_timeout=st.sampled_from([None, None, 1, 5]),
        on=st.sampled_from([["crash", "lost"], ["error", "crash", "lost"], []]),
        backoff=st.sampled_from([0, 1]),
    )
    def submit(
        self, variants, cases, max_failures, concurrency, batch_timeout, on, backoff, **rest
    ):
        limits = {
            "max_failures": max_failures,
            "concurrency": concurrency,
            "batch_timeout": batch_timeout,
        }
        retry = {"on": on, "backoff": backoff, "max_attempts": 2}
        scores = {"score": {"weight": 1.0, "failure_score": -1.0}}
        try:
            self.store.submit(
                variants=variants, cases=cases, limits=limits, retry=retry, scores=scores, **rest
            )
        except TooManyPending as error:
            assert error.pending + variants * cases * rest["repetitions"] > 24

    @rule(target=held, replica=st.sampled_from(REPLICAS))
    def claim(self, replica):
        claim_id = self.store.new_id("k")
        assignment = self.store.claim(replica, claim_id)
        return multiple() if assignment is None else (claim_id, replica, assignment)

    @rule(taken=held)
    def claim_again(self, taken):
        claim_id, replica, assignment = taken
        attempts = self.store.attempts(assignment.batch_id)
        (status,) = [row.status for row in attempts if row.claim_id == claim_id]
        again = assignment if status == "running" else None
        assert self.store.claim(replica, claim_id) == again

    @rule(target=reported, taken=consumes(held), outcome=st.sampled_from(OUTCOMES))
    def finish(self, taken, outcome):
        _, replica, assignment = taken
        event_id = self.store.new_id("f")
        answer = self.store.finish(assignment, outcome, event_id=event_id, replica=replica)
        assert answer in {"accepted", "refused"}
        return (replica, assignment, event_id, answer)

    @rule(report=reported, outcome=st.sampled_from(OUTCOMES))
    def finish_again(self, report, outcome):
        replica, assignment, event_id, answer = report
        again = self.store.finish(assignment, outcome, event_id=event_id, replica=replica)
        assert again == ("duplicate" if answer == "accepted" else "refused")

    @rule(report=reported, outcome=st.sampled_from(OUTCOMES))
    def finish_late(self, report, outcome):
        replica, assignment, _, _ = report
        assert self.store.finish(assignment, outcome, replica=replica) == "refused"

    @rule(replica=st.sampled_from(REPLICAS))
    def lose(self, replica):
        self.store.lose(replica)

    @rule(data=st.data())
    def cancel(self, data):
        ids = self.store.batch_ids()
        if ids:
            batch_id = data.draw(st.sampled_from(ids))
            open_ = self.store.batch(batch_id).status in {"pending", "running"}
            assert self.store.cancel(batch_id) is open_

    @rule(data=st.data())
    def cancel_one(self, data):
        ids = self.store.batch_ids()
        if not ids:
            return
        row = data.draw(st.sampled_from(self.store.executions(data.draw(st.sampled_from(ids)))))
        cancelling = self.store.batch(row.batch_id).status == "cancelling"
        open_ = row.status in {"pending", "running"} and row.cancel_reason is None
        changed = self.store.cancel_execution(f"{row.batch_id}-{row.number}")
        assert changed is (open_ and not cancelling)

    @rule(data=st.data())
    def retry(self, data):
        ids = self.store.batch_ids()
        if not ids:
            return
        old = self.store.batch(data.draw(st.sampled_from(ids)))
        ended = old.status in TERMINAL_BATCH and old.succeeded < old.total
        try:
            receipt = self.store.renew(old.batch_id)
        except NotRetryable:
            assert not ended
        except TooManyPending as error:
            assert error.pending + old.total - old.succeeded > 24
        else:
            assert ended
            assert (receipt.executions, receipt.reused) == (old.total, old.succeeded)

    @rule(step_ms=st.sampled_from([0, 1, 999, 1_000, 5_000]))
    def tick(self, step_ms):
        self.store.now += step_ms
        self.store.tick()

    @rule(replica=st.sampled_from(REPLICAS))
    def register(self, replica):
        self.store.register(replica)
        self.store.enrol(*REPLICAS)

    @rule(applied=st.booleans())
    def press(self, applied):
        (self.store.apply_pressure if applied else self.store.release_pressure)()

    @rule(replica=st.sampled_from(REPLICAS))
    def fail_after_a_claim_and_a_loss(self, replica):
        def change(connection):
            claims.claim(self.store.ledger, connection, Claimant("failed", replica, "a"))
            endings.lose(self.store.ledger, connection, replica, "Died", "undone")
            raise KeyError(replica)

        with pytest.raises(KeyError):
            self.store.write(change)

    @rule()
    def restart(self):
        epoch = self.store.epoch
        self.store.restart()
        assert self.store.epoch == epoch + 1

    @invariant()
    def all_holds(self):
        if not hasattr(self, "store"):
            return
        check_store(self.store, but=self.ended)
        for batch_id, snapshot in self.ended.items():
            assert self.store.snapshot(batch_id) == snapshot
        for batch_id in self.store.batch_ids():
            if self.store.batch(batch_id).status in TERMINAL_BATCH:
                self.ended.setdefault(batch_id, self.store.snapshot(batch_id))

    def teardown(self):
        if not hasattr(self, "store"):
            return
        for replica in REPLICAS:
            self.store.lose(replica)
        for batch_id in self.store.batch_ids():
            self.store.drain(batch_id)
        self.all_holds()
        for batch_id in self.store.batch_ids():
            fold, view = self.store.fold(batch_id), self.store.view(batch_id)
            assert (fold.status, fold.counts) == (view["status"], view["counts"])
        self.store.close()
        self.patch.undo()


def test_no_order_of_changes_breaks_the_books(template, tmp_path):
    class Here(AnyOrder):
        pass

    Here.template, Here.directory = template, tmp_path
    Here.TestCase.settings = settings(max_examples=25, stateful_step_count=40)

    Here.TestCase("runTest").runTest()
