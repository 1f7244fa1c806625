"""What the store makes of attempts that are lost or handed back, and of the replicas behind them."""

import pytest
from store_bench import fail, short, succeed

from wtb_core.attempts import Failure, Origin, Outcome, ResumePoint
from wtb_core.errors import TooManyPending
from wtb_core.store import admission, endings, pool
from wtb_core.store.records import Lookup, Offer
from wtb_core.store.tables import POOL_STREAM


def hand_back() -> Outcome:
    failure = Failure(kind="lost", reason="drained")
    return Outcome(status="failed", failure=failure, history="b" * 64, drained=True)


def started(store, batch):
    return [e["payload"] for e in store.events(batch) if short(e) == "variant_execution_started"]


def failed(store, batch):
    return [e["payload"] for e in store.events(batch) if short(e) == "variant_execution_failed"]


# -- going on from a checkpoint --------------------------------------------------------------------


def test_a_lost_attempt_is_looked_up_before_it_is_given_again(store):
    batch = store.submit()
    first = store.claim("r1")
    store.lose("r1")
    store.now += 10_000
    before = store.snapshot(batch)

    lookup = store.ask("r2", "k")

    assert lookup == Lookup(first.execution_id, 2, [(1, None)])
    assert store.snapshot(batch) == before
    offer = Offer(first.execution_id, 2, source=1, checkpoint_id="c7")
    second = store.ask("r2", "k", offers=(offer,))
    assert second.attempt == 2
    assert second.resume == ResumePoint(attempt=1, checkpoint_id="c7")
    assert [e["resumed_from"] for e in started(store, batch)] == [None, "c7"]
    assert store.ask("r2", "k") == second


@pytest.mark.parametrize(
    "offered",
    [
        {"source": None, "checkpoint_id": None},
        {"source": 3, "checkpoint_id": "c7"},
        {"source": 2, "checkpoint_id": "c7"},
    ],
)
def test_without_a_checkpoint_of_a_lost_attempt_the_next_one_starts_clean(store, offered):
    batch = store.submit()
    first = store.claim("r1")
    store.lose("r1")
    store.now += 10_000

    second = store.ask("r2", "k", offers=(Offer(first.execution_id, 2, **offered),))

    assert second.resume is None
    assert [e["resumed_from"] for e in started(store, batch)] == [None, None]


def test_an_offer_for_another_attempt_is_looked_up_again(store):
    store.submit()
    first = store.claim("r1")
    store.lose("r1")
    store.now += 10_000
    offers = (Offer(first.execution_id, 3, 1, "c"), Offer("b-other-0", 2, 1, "c"))

    assert isinstance(store.ask("r2", "k", offers=offers), Lookup)


def test_attempts_that_were_not_lost_are_no_predecessors(store):
    batch = store.submit(retry={"backoff": 0, "on": ["crash", "lost"], "max_attempts": 9})
    store.finish(store.claim("r1"), fail("crash"))
    store.now += 10_000
    assert store.claim("r1").attempt == 2  # clean, and without a lookup
    store.lose("r1")
    store.now += 10_000
    assert store.ask("r2").predecessors == [(2, None)]
    assert store.claim("r2", find=lambda lookup: (2, "c")).resume.checkpoint_id == "c"
    store.lose("r2")
    store.now += 100_000
    assert store.ask("r3").predecessors == [(3, None), (2, None)]
    assert store.claim("r3").resume is None
    assert [e["resumed_from"] for e in started(store, batch)] == [None, None, "c", None]


def test_a_fork_says_where_it_began(store):
    source = store.submit()
    store.finish(store.claim())
    origin = Origin(
        execution_id=f"{source}-0",
        attempt=1,
        checkpoint_id="c0",
        history="a" * 64,
        file_commit_id="f" * 64,
        state={"x": 1},
    )
    store.accept(store.make()._replace(origin=origin, repetition=0))
    store.claim("r1")
    store.lose("r1")
    store.now += 10_000

    assert store.ask("r2").origin_checkpoint_id == "c0"
    resumed = store.claim("r2", find=lambda lookup: (1, "c3"))
    assert (resumed.origin, resumed.resume.checkpoint_id) == (origin, "c3")


# -- handing back ----------------------------------------------------------------------------------


def test_what_is_handed_back_runs_again_at_once_and_does_not_count(store):
    batch = store.submit(retry={"backoff": 0, "on": [], "max_attempts": 1})
    for attempt in range(1, 5):
        assignment = store.claim("r1", find=lambda lookup: (lookup.predecessors[0][0], "c"))
        assert assignment.attempt == attempt
        assert store.finish(assignment, hand_back()) == "accepted"

    assert [(e["kind"], e["reason"], e["will_retry"]) for e in failed(store, batch)] == [
        ("lost", "drained", True)
    ] * 4
    lookup = store.ask("r2")
    assert lookup.predecessors[0] == (4, "b" * 64)
    assert store.finish(store.claim("r2"), fail("crash")) == "accepted"
    assert store.executions(batch)[0].status == "failed"


def test_the_limit_of_a_retry_counts_what_was_not_handed_back(store):
    batch = store.submit(retry={"backoff": 0, "on": ["lost"], "max_attempts": 2})
    store.finish(store.claim("r1"), hand_back())
    store.claim("r1")
    store.lose("r1")
    assert store.executions(batch)[0].status == "pending"
    store.now += 10_000
    store.claim("r2")
    store.lose("r2")
    assert store.executions(batch)[0].status == "failed"


@pytest.mark.parametrize("how", ["batch", "execution"])
@pytest.mark.parametrize("end", ["lost", "handed back"])
def test_what_is_lost_while_it_is_cancelled_is_cancelled(store, how, end):
    batch = store.submit(cases=2)
    assignment, other = store.claim("r1"), store.claim("r2")
    if how == "batch":
        store.cancel(batch)
    else:
        store.cancel_execution(assignment.execution_id)
    if end == "lost":
        store.lose("r1")
    else:
        store.finish(assignment, hand_back())
    store.finish(other, replica="r2")

    assert [row.status for row in store.executions(batch)] == ["cancelled", "succeeded"]
    assert store.batch(batch).status == ("cancelled" if how == "batch" else "completed")


def test_a_claim_whose_answer_never_came_is_lost_while_its_replica_lives(store):
    batch = store.submit(cases=3)
    store.register("r1")
    held, dropped = store.claim("r1"), store.claim("r1")
    store.now += 100_000
    young = store.claim("r1")
    names = {(held.execution_id, 1)}

    lost = store.write(
        lambda c: endings.lose_dropped(store.ledger, c, "r1", names, store.now - 90_000)
    )

    assert lost == 1
    assert [e["execution_id"] for e in failed(store, batch)] == [dropped.execution_id]
    assert store.finish(young) == "accepted"
    assert "actor_failed" not in store.types(POOL_STREAM)


# -- a batch that could not be carried out ---------------------------------------------------------


def test_a_batch_of_which_nothing_could_be_carried_out_has_failed(store):
    batch = store.submit(cases=2, retry={"backoff": 0, "on": []})
    store.finish(store.claim(), fail("setup"))
    store.claim("r9")
    store.lose("r9", "the machine burnt down")

    assert store.batch(batch).status == "failed"
    last = store.events(batch)[-1]
    assert short(last) == "batch_test_failed"
    assert last["payload"]["error_type"] == "lost"
    assert "the machine burnt down" in last["payload"]["error_message"]
    assert last["payload"]["counts"]["failed"] == 2
    assert store.fold(batch).status == "failed"


@pytest.mark.parametrize("other", [succeed(), fail("error"), fail("crash")])
def test_a_batch_with_one_result_is_completed(store, other):
    batch = store.submit(cases=2, retry={"backoff": 0, "on": []})
    store.finish(store.claim(), fail("setup"))
    store.finish(store.claim(), other)

    assert store.batch(batch).status == "completed"


# -- whose turn it is ------------------------------------------------------------------------------


def test_a_higher_priority_goes_first_and_equals_take_turns(store):
    low = store.submit(cases=3, priority=-1)
    first, second = store.submit(cases=2), store.submit(cases=2)
    high = store.submit(cases=2, priority=5)

    order = [store.claim().batch_id for _ in range(9)]

    assert order == [high, high, first, second, first, second, low, low, low]


# -- replicas --------------------------------------------------------------------------------------


def test_a_dead_replica_is_told_before_what_it_held_and_replaced_by_the_next(store):
    batch = store.submit(cases=2)
    store.register("r1")
    ids = [store.claim("r1").execution_id, store.claim("r1").execution_id]
    store.lose("r1", "killed")
    store.register("r2")
    store.register("r3")

    assert store.types(POOL_STREAM) == [
        "actor_initialized",
        "actor_failed",
        "actor_initialized",
        "actor_restarted",
        "actor_initialized",
    ]
    _, died, _, restarted, _ = (e["payload"] for e in store.events(POOL_STREAM))
    assert died["execution_ids"] == ids
    assert (died["error_type"], died["error_message"]) == ("Died", "killed")
    assert (restarted["replaces"], restarted["replica_id"]) == ("r1", "r2")
    assert restarted["restart_count"] == 1
    kinds = store.types(batch)
    assert kinds.index("actor_failed") < kinds.index("variant_execution_failed")


def test_failed_replicas_are_replaced_oldest_first_and_restarts_are_counted(store):
    for name in ("r1", "r2"):
        store.register(name)
    store.lose("r2")
    store.now += 1
    store.lose("r1")
    for name in ("r3", "r4"):
        store.register(name)
    store.lose("r3")
    store.register("r5")

    restarts = [e["payload"] for e in store.events(POOL_STREAM) if short(e) == "actor_restarted"]
    assert [(e["replaces"], e["replica_id"], e["restart_count"]) for e in restarts] == [
        ("r2", "r3", 1),
        ("r1", "r4", 1),
        ("r3", "r5", 2),
    ]


def test_a_replica_that_serve_stops_is_no_failure(store):
    batch = store.submit()
    store.register("r1")
    store.claim("r1")
    store.write(lambda c: pool.drain(c, ["r1"]))
    store.lose("r1")

    assert store.types(POOL_STREAM) == ["actor_initialized"]
    assert failed(store, batch)[0]["kind"] == "lost"


def test_a_replica_that_was_taken_for_dead_comes_back_as_a_new_one(store):
    store.register("r1")
    store.lose("r1")
    store.register("r1")

    assert store.types(POOL_STREAM) == [
        "actor_initialized",
        "actor_failed",
        "actor_initialized",
        "actor_restarted",
    ]


# -- admission -------------------------------------------------------------------------------------


def test_admission_pressure_is_told_once_and_ends_when_the_refused_batch_fits(store):
    store.ledger.admission = 5
    running = store.submit(cases=4)
    store.claim()
    pressure = admission.Pressure()

    def refuse() -> None:
        with pytest.raises(TooManyPending) as refusal:
            store.submit(cases=3)
        store.write(lambda c: pressure.apply(store.ledger, c, refusal.value))

    refuse()
    store.now += 2_000
    refuse()
    assert store.types(POOL_STREAM) == ["backpressure_applied"]
    assert store.events(POOL_STREAM)[0]["payload"] == {
        "level": "admission",
        "queued": 4,
        "limit": 5,
        "held": 3,
    }
    assert not store.read(lambda c: pressure.is_over(store.ledger, c))
    store.finish(store.claim())
    store.finish(store.claim())
    assert store.read(lambda c: pressure.is_over(store.ledger, c))

    successor = admission.Pressure()
    store.read(lambda c: successor.load(store.ledger, c))
    assert successor.is_applied
    store.write(lambda c: successor.release(store.ledger, c))
    assert store.events(POOL_STREAM)[-1]["payload"] == {"level": "admission", "duration_ms": 2_000}
    assert "backpressure_applied" not in store.types(running)


def test_admission_pressure_ends_when_nobody_asks_any_more(store):
    store.ledger.admission = 5
    store.submit(cases=4)
    pressure = admission.Pressure()
    with pytest.raises(TooManyPending) as refusal:
        store.submit(cases=3)
    store.write(lambda c: pressure.apply(store.ledger, c, refusal.value))
    store.now += admission.CALM_MS - 1
    assert not store.read(lambda c: pressure.is_over(store.ledger, c))
    store.now += 1
    assert store.read(lambda c: pressure.is_over(store.ledger, c))
