import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from wtb_core import events as ev

ATTEMPT = {
    "execution_id": "b-1-0",
    "attempt": 1,
    "variant": "baseline",
    "case_id": "HumanEval/12",
    "repetition": 0,
    "actor_id": "a1",
    "replica_id": "r1",
}
COUNTS = {"pending": 1, "running": 2, "succeeded": 3, "failed": 4, "cancelled": 5, "total": 15}
EXAMPLES = {
    "ray_batch_test_started": {
        "project": "p",
        "project_version": "0" * 64,
        "variants": ["baseline"],
        "cases": 1,
        "repetitions": 1,
        "executions": 1,
        "reused": 0,
        "retry_of": None,
        "limits": {"timeout": 600.0},
        "baseline": "baseline",
        "evaluators": ["tests_pass"],
        "scores": {"tests_pass": {"weight": 1.0}},
    },
    "ray_batch_test_progress": {
        **COUNTS,
        "elapsed_ms": 1,
        "remaining_ms": None,
        "per_s": 0.5,
    },
    "ray_batch_test_completed": {
        "counts": COUNTS,
        "duration_ms": 1,
        "best_variant": None,
        "best_score": None,
        "files_tracked": 0,
    },
    "ray_batch_test_failed": {
        "counts": COUNTS,
        "duration_ms": 1,
        "error_type": "OSError",
        "error_message": "no space left",
    },
    "ray_batch_test_cancelled": {
        "counts": COUNTS,
        "duration_ms": 1,
        "reason": "enough",
        "cancelled_by": "user",
    },
    "ray_actor_pool_created": {
        "replica_ids": ["r1"],
        "slots": 4,
        "max_replicas": 2,
        "max_queued": 16,
    },
    "ray_actor_initialized": {
        "actor_id": "a1",
        "replica_id": "r1",
        "node_id": "n1",
        "initialization_ms": 5,
        "isolation": {"workspace": "C", "confinement": "none", "missed": []},
    },
    "ray_actor_failed": {
        "actor_id": "a1",
        "replica_id": "r1",
        "error_type": "ActorDiedError",
        "error_message": "killed",
        "execution_ids": ["b-1-0"],
    },
    "ray_actor_restarted": {
        "actor_id": "a2",
        "replica_id": "r2",
        "replaces": "r1",
        "restart_count": 1,
        "reason": "killed",
    },
    "ray_variant_execution_started": {**ATTEMPT, "queue_ms": 3, "resumed_from": None},
    "ray_variant_execution_completed": {
        **ATTEMPT,
        "duration_ms": 1,
        "node_count": 2,
        "checkpoint_count": 3,
        "scores": {"tests_pass": 1.0, "size": None},
        "overall_score": 1.0,
        "files_tracked": 0,
        "file_commit_id": None,
        "cpu_ms": 1,
        "peak_rss_bytes": 2,
        "usage": {"gpt": {"input_tokens": 1.0, "output_tokens": 2.0, "cost_usd": 0.1}},
        "reused_from": None,
    },
    "ray_variant_execution_failed": {
        **ATTEMPT,
        "kind": "error",
        "reason": "a node raised",
        "error_type": "ValueError",
        "error_message": "no",
        "failed_at_node": "propose",
        "will_retry": False,
        "duration_ms": 1,
        "node_count": 2,
        "checkpoint_count": 3,
    },
    "ray_variant_execution_cancelled": {**ATTEMPT, "reason": "enough", "duration_ms": 0},
    "ray_variant_files_tracked": {
        **ATTEMPT,
        "file_commit_id": "c1",
        "checkpoint_id": None,
        "created": 1,
        "modified": 2,
        "deleted": 3,
        "size_bytes": 4,
        "paths": ["a.py"],
    },
    "ray_variant_files_tracking_failed": {
        **ATTEMPT,
        "checkpoint_id": None,
        "failed_files": ["a.py"],
        "error_message": "no space left",
    },
    "ray_backpressure_applied": {"level": "executor_queue", "queued": 16, "limit": 16, "held": 7},
    "ray_backpressure_released": {"level": "admission", "duration_ms": 2000},
}
PAYLOADS = {
    "ray_batch_test_started": ev.BatchStarted,
    "ray_batch_test_progress": ev.BatchProgress,
    "ray_batch_test_completed": ev.BatchCompleted,
    "ray_batch_test_failed": ev.BatchFailed,
    "ray_batch_test_cancelled": ev.BatchCancelled,
    "ray_actor_pool_created": ev.PoolCreated,
    "ray_actor_initialized": ev.ActorInitialized,
    "ray_actor_failed": ev.ActorFailed,
    "ray_actor_restarted": ev.ActorRestarted,
    "ray_variant_execution_started": ev.VariantStarted,
    "ray_variant_execution_completed": ev.VariantCompleted,
    "ray_variant_execution_failed": ev.VariantFailed,
    "ray_variant_execution_cancelled": ev.VariantCancelled,
    "ray_variant_files_tracked": ev.FilesTracked,
    "ray_variant_files_tracking_failed": ev.FilesTrackingFailed,
    "ray_backpressure_applied": ev.BackpressureApplied,
    "ray_backpressure_released": ev.BackpressureReleased,
}


def envelope(kind, payload, **fields):
    return {
        "seq": 1,
        "event_id": "0192",
        "type": kind,
        "occurred_at": "2025-01-01T00:00:00.000Z",
        "batch_id": "b-1",
        "producer": "event_collector",
        "payload": payload,
        **fields,
    }


def class_name(kind):
    return "".join(part.capitalize() for part in kind.split("_")) + "Event"


def test_there_are_seventeen_types_in_the_order_of_the_contract():
    assert tuple(EXAMPLES) == ev.EVENT_TYPES
    assert len(ev.EVENT_TYPES) == 17


@pytest.mark.parametrize("kind", EXAMPLES)
def test_an_event_is_parsed_into_the_class_named_after_its_type(kind):
    raw = envelope(kind, EXAMPLES[kind])

    event = ev.parse_event(raw)

    assert type(event).__name__ == class_name(kind)
    assert event.model_dump() == raw


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_payload_has_the_fields_of_the_contract_and_needs_all_of_them(kind):
    assert set(PAYLOADS[kind].model_fields) == set(EXAMPLES[kind])
    for field in EXAMPLES[kind]:
        rest = {name: value for name, value in EXAMPLES[kind].items() if name != field}
        with pytest.raises(ValidationError):
            ev.parse_event(envelope(kind, rest))


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_draft_becomes_the_event_it_was_made_for(kind):
    payload = PAYLOADS[kind](**EXAMPLES[kind])

    draft = ev.draft(payload, event_id="0193", occurred_at="2025-01-01T00:00:00.000Z", producer="x")
    event = ev.parse_event({"seq": 7, "batch_id": None, **draft._asdict()})

    assert event.type == draft.type == kind
    assert event.payload == payload
    assert (event.seq, event.event_id, event.producer) == (7, "0193", "x")


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_payload_may_gain_fields(kind):
    event = ev.parse_event(envelope(kind, {**EXAMPLES[kind], "added_later": 1}, added_later=2))

    assert event.payload == PAYLOADS[kind](**EXAMPLES[kind])


@given(st.text() | st.none() | st.integers() | st.sampled_from(["ray_batch_test", "progress"]))
def test_another_type_is_refused(kind):
    with pytest.raises(ValidationError):
        ev.parse_event(envelope(kind, EXAMPLES["ray_batch_test_progress"]))


@pytest.mark.parametrize(
    "field", ["seq", "event_id", "type", "occurred_at", "batch_id", "producer"]
)
def test_an_envelope_needs_every_field(field):
    raw = envelope("ray_backpressure_released", EXAMPLES["ray_backpressure_released"])
    del raw[field]

    with pytest.raises(ValidationError):
        ev.parse_event(raw)


def test_a_failure_is_of_one_of_eight_kinds():
    kinds = ["error", "timeout", "crash", "out_of_memory", "lost", "interrupted"]
    kinds += ["invalid_output", "setup"]
    raw = EXAMPLES["ray_variant_execution_failed"]
    for kind in kinds:
        ev.parse_event(envelope("ray_variant_execution_failed", {**raw, "kind": kind}))

    with pytest.raises(ValidationError):
        ev.parse_event(envelope("ray_variant_execution_failed", {**raw, "kind": "bad_luck"}))


@pytest.mark.parametrize(
    ("kind", "payload", "terminal"),
    [
        ("ray_variant_execution_started", {}, False),
        ("ray_variant_execution_completed", {}, True),
        ("ray_variant_execution_cancelled", {}, True),
        ("ray_variant_execution_failed", {"will_retry": False}, True),
        ("ray_variant_execution_failed", {"will_retry": True}, False),
        ("ray_variant_files_tracked", {}, False),
        ("ray_batch_test_completed", {}, False),
    ],
)
def test_an_execution_ends_completed_cancelled_or_failed_for_good(kind, payload, terminal):
    assert ev.ends_execution(kind, payload) is terminal


def test_a_batch_ends_in_three_ways():
    assert {
        "ray_batch_test_completed",
        "ray_batch_test_failed",
        "ray_batch_test_cancelled",
    } == ev.BATCH_TERMINAL_TYPES
