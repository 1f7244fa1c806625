"""What an attempt left is on the record, and in the stream just before its end."""

import pytest
from store_bench import Store, fail, stop, succeed

from tests.left_behind import ODD, LeftBehind, failure
from wtb_core import events as ev
from wtb_core.store import endings, views

SHOWN = "out/\\xff \x1b[2J.bin"


@pytest.fixture
def left(tmp_path):
    return LeftBehind(tmp_path)


def run(store: Store, outcome, **fields):
    batch_id = store.submit(**fields)
    assignment = store.claim()
    assert store.finish(assignment, outcome) == "accepted"
    return batch_id, assignment


def payloads(store, batch_id, kind):
    return [e["payload"] for e in store.events(batch_id) if e["type"] == f"ray_variant_{kind}"]


def test_the_files_are_tracked_just_before_the_end(store, left):
    batch_id, assignment = run(store, left.outcome())

    assert store.types(batch_id)[-4:] == [
        "variant_files_tracking_failed",
        "variant_files_tracked",
        "variant_execution_completed",
        "batch_test_completed",
    ]
    (tracked,) = payloads(store, batch_id, "files_tracked")
    assert tracked == {
        "execution_id": assignment.execution_id,
        "attempt": 1,
        "variant": "v0",
        "case_id": "c0",
        "repetition": 0,
        "actor_id": "actor-r1",
        "replica_id": "r1",
        "file_commit_id": left.final,
        "checkpoint_id": "c-3",
        "created": 2,
        "modified": 2,
        "deleted": 1,
        "size_bytes": tracked["size_bytes"],
        "paths": ["etc", "old.txt", "out", SHOWN, "src/gcd.py"],
    }
    (failed,) = payloads(store, batch_id, "files_tracking_failed")
    assert (failed["checkpoint_id"], failed["failed_files"]) == ("lost", [SHOWN])
    (completed,) = payloads(store, batch_id, "execution_completed")
    assert (completed["files_tracked"], completed["file_commit_id"]) == (5, left.final)


def test_the_record_says_what_was_tracked_and_keeps_the_history_to_itself(store, left):
    _, assignment = run(store, left.outcome())

    item = store.read(lambda c: views.read_execution(c, assignment.execution_id))

    for shown in (item, item["attempts"][0]):
        assert shown["file_commit_id"] == left.final
        assert shown["start_commit_id"] == left.start
        assert shown["files_tracked"] == 5
        assert shown["tracking_failures"] == [
            {"checkpoint_id": "lost", "failed_files": [SHOWN], "error_message": "no space left"}
        ]
        assert "history" not in shown
    trace = store.read(lambda c: views.read_trace(c, assignment.execution_id, None))
    assert (trace.history, trace.ended) == (left.history, True)


def test_an_attempt_without_a_commit_has_no_files_and_no_event(store):
    batch_id, assignment = run(store, succeed())

    assert payloads(store, batch_id, "files_tracked") == []
    (completed,) = payloads(store, batch_id, "execution_completed")
    assert (completed["files_tracked"], completed["file_commit_id"]) == (0, None)
    item = store.read(lambda c: views.read_execution(c, assignment.execution_id))
    assert (item["file_commit_id"], item["files_tracked"]) == (None, None)


@pytest.mark.parametrize("end", [fail, stop])
def test_files_of_an_attempt_that_did_not_succeed_are_tracked_too(store, left, end):
    outcome = end().model_copy(update={"files": left.outcome().files})

    batch_id, _ = run(store, outcome)

    kinds = store.types(batch_id)
    assert kinds[-3] == "variant_files_tracked"
    assert kinds[-2] in {"variant_execution_failed", "variant_execution_cancelled"}
    assert store.events(batch_id)[-1]["payload"].get("files_tracked", 0) == 0


def test_each_attempt_is_tracked_once(store, left):
    files = left.outcome().files
    batch_id, _ = run(store, fail("crash").model_copy(update={"files": files}))

    store.finish(store.claim(), left.outcome())

    assert [p["attempt"] for p in payloads(store, batch_id, "files_tracked")] == [1, 2]
    assert store.events(batch_id)[-1]["payload"]["files_tracked"] == 5


def test_a_repeated_end_is_not_tracked_again(store, left):
    batch_id = store.submit()
    finish = store.make_finish(store.claim(), left.outcome())
    answers = [
        store.write(lambda c: endings.finish(store.ledger, c, finish)),
        store.write(lambda c: endings.finish(store.ledger, c, finish)),
        store.write(lambda c: endings.finish(store.ledger, c, finish._replace(event_id="another"))),
    ]

    assert answers == ["accepted", "duplicate", "refused"]
    assert len(payloads(store, batch_id, "files_tracked")) == 1
    assert len(payloads(store, batch_id, "files_tracking_failed")) == 1


def test_so_many_failures_are_told_and_the_rest_is_counted(store, left):
    failures = [failure(f"c-{n}", f"no {n}") for n in range(23)]

    batch_id, assignment = run(store, left.outcome(tracking_failures=failures))

    told = payloads(store, batch_id, "files_tracking_failed")
    assert [p["error_message"] for p in told[:20]] == [f"no {n}" for n in range(20)]
    assert told[20]["error_message"] == "3 more file commits of this attempt failed"
    assert (told[20]["checkpoint_id"], told[20]["failed_files"], len(told)) == (None, [], 21)
    item = store.read(lambda c: views.read_execution(c, assignment.execution_id))
    assert len(item["tracking_failures"]) == 21


def test_so_many_paths_are_told(store, left):
    files = left.outcome().files.model_copy(update={"paths": [f"f{n}" for n in range(300)]})
    many = failure().model_copy(update={"failed_files": [ODD] * 300})

    batch_id, _ = run(store, left.outcome(files=files, tracking_failures=[many]))

    assert len(payloads(store, batch_id, "files_tracked")[0]["paths"]) == 200
    assert payloads(store, batch_id, "files_tracking_failed")[0]["failed_files"] == [SHOWN] * 20


def test_a_batch_counts_the_files_of_what_succeeded_and_of_what_it_took_over(store, left):
    first = store.submit(cases=3)
    for outcome in (left.outcome(), fail().model_copy(update={"files": left.outcome().files})):
        store.finish(store.claim(), outcome)
    store.finish(store.claim(), left.outcome())
    assert store.events(first)[-1]["payload"]["files_tracked"] == 10

    second = store.renew(first).batch_id
    store.finish(store.claim(), left.outcome())
    store.settle()

    assert store.events(second)[-1]["payload"]["files_tracked"] == 15
    reused = [p for p in payloads(store, second, "execution_completed") if p["reused_from"]]
    assert {(p["files_tracked"], p["file_commit_id"]) for p in reused} == {(5, left.final)}
    assert len(payloads(store, second, "files_tracked")) == 1


def test_a_reused_execution_has_the_files_of_the_one_that_ran(store, left):
    first = store.submit(cases=2)
    store.finish(store.claim(), left.outcome())
    store.finish(store.claim(), fail())
    second = store.renew(first).batch_id

    trace = store.read(lambda c: views.read_trace(c, f"{second}-0", None))

    assert trace.execution_id == f"{first}-0"
    assert (trace.attempt, trace.file_commit_id) == (1, left.final)


def test_an_execution_without_an_attempt_left_nothing(store):
    batch_id = store.submit()

    trace = store.read(lambda c: views.read_trace(c, f"{batch_id}-0", None))

    assert (trace.attempt, trace.ended, trace.history) == (0, False, None)


def test_every_event_of_files_is_one_of_the_contract(store, left):
    batch_id, _ = run(store, left.outcome())
    for item in store.events(batch_id):
        ev.parse_event(item)
