"""A batch that tries another one again takes over what succeeded there, and runs the rest."""

import pytest
from store_bench import fail, succeed

from wtb_core.errors import Conflict, NotFound, NotRetryable
from wtb_core.store import endings, reuse


def run_all(store, outcome=lambda _: succeed()):
    while (assignment := store.claim()) is not None:
        store.finish(assignment, outcome(assignment))


def a_batch_with_failures(store, **fields):
    """Case `c1` fails, the others succeed with a score of their number."""
    batch_id = store.submit(variants=2, cases=3, **fields)
    run_all(
        store,
        lambda a: fail() if a.case["id"] == "c1" else succeed(a.case["input"]),
    )
    assert store.view(batch_id)["counts"]["failed"] == 2
    return batch_id


def test_only_what_did_not_succeed_runs_again(store):
    first = a_batch_with_failures(store)

    receipt = store.renew(first, by="alice")

    assert (receipt.executions, receipt.reused, receipt.status) == (6, 4, "pending")
    ran = []
    while (assignment := store.claim()) is not None:
        ran.append(assignment.case["id"])
        store.finish(assignment, succeed(7))
    store.settle()
    assert ran == ["c1", "c1"]
    view = store.view(receipt.batch_id)
    assert (view["status"], view["retry_of"], view["submitted_by"]) == ("completed", first, "alice")
    assert view["counts"]["succeeded"] == 6
    made = store.fold(receipt.batch_id)
    assert made.counts == view["counts"]
    assert [row["reused"] for row in made.comparison()["variants"]] == [2, 2]
    assert [row["scores"]["score"]["mean"] for row in made.comparison()["variants"]] == [3.0, 3.0]


def test_the_stream_begins_with_batch_started_and_has_one_terminal_event_each(store):
    first = a_batch_with_failures(store)
    receipt = store.renew(first)
    run_all(store)
    store.settle()

    events = store.events(receipt.batch_id)

    assert events[0]["type"] == "ray_batch_test_started"
    assert (events[0]["payload"]["reused"], events[0]["payload"]["retry_of"]) == (4, first)
    done = [e["payload"] for e in events if e["type"] == "ray_variant_execution_completed"]
    assert len({p["execution_id"] for p in done}) == len(done) == 6
    assert sum(p["reused_from"] is not None for p in done) == 4
    assert events[-1]["type"] == "ray_batch_test_completed"


def test_a_retry_of_a_retry_names_the_execution_that_ran(store):
    first = a_batch_with_failures(store)
    second = store.renew(first)
    run_all(store, lambda _: fail())
    store.settle()
    third = store.renew(second.batch_id)
    run_all(store)
    store.settle()

    origins = {row.reused_from for row in store.executions(third.batch_id)} - {None}

    assert {origin.rpartition("-")[0] for origin in origins} == {first}


def test_more_than_a_chunk_is_adopted_before_the_batch_ends(store, monkeypatch):
    monkeypatch.setattr(reuse, "ADOPT_CHUNK", 3)
    first = a_batch_with_failures(store)
    receipt = store.renew(first)
    run_all(store)

    assert store.view(receipt.batch_id)["status"] == "running"
    assert not store.write(lambda c: endings.continue_batch(store.ledger, c, receipt.batch_id))
    assert store.view(receipt.batch_id)["counts"]["succeeded"] == 5
    store.settle()
    assert store.view(receipt.batch_id)["status"] == "completed"


def test_a_retry_that_is_cancelled_before_it_starts_has_no_results(store):
    first = a_batch_with_failures(store)
    receipt = store.renew(first)
    store.cancel(receipt.batch_id)
    store.settle()

    assert store.view(receipt.batch_id)["counts"]["cancelled"] == 6
    assert all(
        (row.status, row.reused_from, row.result) == ("cancelled", None, None)
        for row in store.executions(receipt.batch_id)
    )


def test_what_cannot_be_retried_says_why(store):
    running = store.submit()
    with pytest.raises(NotRetryable, match="it is pending"):
        store.renew(running)
    run_all(store)
    with pytest.raises(NotRetryable, match="all of its 1 executions succeeded"):
        store.renew(running)
    with pytest.raises(NotFound):
        store.renew("b-nosuch")


def test_a_key_makes_one_retry(store):
    first = a_batch_with_failures(store)
    one = store.renew(first, key="again")

    assert store.renew(first, key="again").batch_id == one.batch_id
    other = a_batch_with_failures(store)
    with pytest.raises(Conflict):
        store.renew(other, key="again")


def test_reused_executions_do_not_count_for_admission(open_store):
    store = open_store(admission=6)
    first = a_batch_with_failures(store)
    store.submit(cases=4)

    assert store.renew(first).reused == 4


# -- one execution is cancelled ------------------------------------------------------------------


def test_a_pending_execution_never_starts_and_the_others_do(store):
    batch_id = store.submit(cases=3)

    assert store.cancel_execution(f"{batch_id}-1")
    run_all(store)

    view = store.view(batch_id)
    assert (view["status"], view["counts"]["cancelled"], view["counts"]["succeeded"]) == (
        "completed",
        1,
        2,
    )
    assert store.fold(batch_id).counts == view["counts"]


def test_a_running_execution_is_no_longer_wanted_and_is_not_tried_again(store):
    batch_id = store.submit(cases=2, retry={"backoff": 0, "on": ["crash"]})
    assignment = store.claim()

    def find_wanted():
        return store.write(lambda c: endings.find_wanted_attempts(c, "r1"))

    assert find_wanted() == {(assignment.execution_id, 1)}
    assert store.cancel_execution(assignment.execution_id)
    assert not store.cancel_execution(assignment.execution_id)
    assert find_wanted() == set()
    store.finish(assignment, fail("crash"))
    (ended,) = [e for e in store.events(batch_id) if e["type"].endswith("execution_failed")]
    assert ended["payload"]["will_retry"] is False


def test_cancelling_what_has_ended_changes_nothing(store):
    batch_id = store.submit(cases=2)
    store.finish(store.claim())

    assert not store.cancel_execution(f"{batch_id}-0")
    with pytest.raises(NotFound):
        store.cancel_execution(f"{batch_id}-2")
    with pytest.raises(NotFound):
        store.cancel_execution("nonsense")


def test_a_batch_whose_executions_are_all_cancelled_before_it_starts_is_cancelled(store):
    batch_id = store.submit(cases=2)
    store.cancel_execution(f"{batch_id}-0")
    assert store.view(batch_id)["status"] == "pending"
    store.cancel_execution(f"{batch_id}-1")

    assert store.view(batch_id)["status"] == "cancelled"
    assert store.events(batch_id)[-1]["payload"]["reason"] == "not this one"


def test_a_retry_whose_runs_are_all_cancelled_before_it_starts_is_cancelled(store):
    receipt = store.renew(a_batch_with_failures(store))
    for number in (2, 3):
        assert store.cancel_execution(f"{receipt.batch_id}-{number}")
    store.settle()

    assert store.view(receipt.batch_id)["status"] == "cancelled"


def test_cancelling_a_reused_execution_leaves_the_others_to_run(store):
    receipt = store.renew(a_batch_with_failures(store))

    assert store.cancel_execution(f"{receipt.batch_id}-0")
    run_all(store)
    store.settle()

    view = store.view(receipt.batch_id)
    assert (view["status"], view["counts"]["succeeded"]) == ("completed", 5)
    assert store.events(receipt.batch_id)[1]["payload"]["reused"] == 3
    assert store.read(endings.find_unsettled) == []


def test_what_was_taken_over_stays_when_a_retry_is_stopped(store):
    receipt = store.renew(a_batch_with_failures(store))
    assignment = store.claim()
    store.cancel(receipt.batch_id)
    store.finish(assignment, fail())
    store.settle()

    view = store.view(receipt.batch_id)
    assert (view["status"], view["counts"]["succeeded"]) == ("cancelled", 4)
    assert view["counts"]["cancelled"] == 1
    assert store.fold(receipt.batch_id).counts == view["counts"]


def test_adopted_executions_are_no_throughput(store):
    receipt = store.renew(a_batch_with_failures(store))
    assignment = store.claim()
    store.settle()
    store.now += 2_000

    pace = store.view(receipt.batch_id)["progress"]
    assert pace == {"elapsed_ms": 2_000, "remaining_ms": None, "per_s": 0.0}
    store.finish(assignment)
    pace = store.view(receipt.batch_id)["progress"]
    assert pace == {"elapsed_ms": 2_000, "remaining_ms": 2_000, "per_s": 0.5}


def test_a_key_of_a_retry_stands_for_what_was_asked():
    assert reuse.make_digest("b", "same") != reuse.make_digest("b", "latest")


@pytest.mark.parametrize("number", ["00", "01", "+0", "", "9" * 10])
def test_an_execution_has_one_id(store, number):
    batch_id = store.submit(cases=2)

    with pytest.raises(NotFound):
        store.cancel_execution(f"{batch_id}-{number}")
