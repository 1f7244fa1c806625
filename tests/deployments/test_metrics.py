"""What is counted, and that the documentation says so."""

import re
from pathlib import Path

import pytest

from deployments import metrics
from deployments.metrics import CollectorMetrics, ExecutorMetrics, Metric, PoolMetrics
from wtb_core.events import Draft
from wtb_core.store.writer import Commit

DOCUMENTED = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
ALL = [value for value in vars(metrics).values() if isinstance(value, Metric)]


class Recorder:
    """Stands in for a metric: notes each value with its labels."""

    def __init__(self, made: dict[str, list], metric: Metric) -> None:
        self._metric = metric
        self._values = made.setdefault(metric.name, [])

    def _note(self, value: float, tags: dict[str, str] | None = None) -> None:
        assert set(tags or {}) == set(self._metric.labels)
        self._values.append((value, *(tags or {}).values()))

    def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        self._note(value, tags)

    observe = set = inc


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    found: dict[str, list] = {}
    monkeypatch.setattr(Metric, "make", lambda self: Recorder(found, self))
    return found


def make_event(happened: str, **payload) -> Draft:
    return Draft(
        "event", f"ray_variant_execution_{happened}", "now", "test", {"attempt": 1, **payload}
    )


def fail(**payload) -> Draft:
    usual = {"duration_ms": 500, "kind": "error", "reason": "it raised", "will_retry": False}
    return make_event("failed", **(usual | payload))


def test_the_events_of_a_transaction_are_counted(made: dict[str, list]) -> None:
    events = [
        make_event("started", queue_ms=1_500, resumed_from=None),
        make_event("started", queue_ms=0, resumed_from="checkpoint"),
        make_event("completed", duration_ms=2_000, reused_from=None),
        make_event("completed", duration_ms=9_000, reused_from="b-1-0"),
        fail(),
        fail(kind="lost", reason="the replica died", will_retry=True),
        fail(kind="lost", reason="drained", will_retry=True),
        make_event("cancelled", duration_ms=100),
        make_event("cancelled", duration_ms=0, attempt=0),
        Draft("event", "ray_batch_test_progress", "now", "test", {}),
    ]
    CollectorMetrics().note_commit(Commit(events, 0.02))

    assert made["wtb_queue_wait_seconds"] == [(1.5,), (0,)]
    assert made["wtb_resumed_total"] == [(1,)]
    assert made["wtb_handed_back_total"] == [(1,)]
    assert made["wtb_append_seconds"] == [(0.02,)]
    assert made["wtb_executions_ended_total"] == [
        (1, "succeeded", "none"),
        (1, "failed", "error"),
        (1, "cancelled", "none"),
        (1, "cancelled", "none"),
    ]
    assert made["wtb_attempt_duration_seconds"] == [
        (2.0, "succeeded", "none"),
        (0.5, "failed", "error"),
        (0.5, "failed", "lost"),
        (0.5, "failed", "lost"),
        (0.1, "cancelled", "none"),
    ]
    assert (2, "ray_variant_execution_started") in made["wtb_events_appended_total"]
    assert sum(count for count, _ in made["wtb_events_appended_total"]) == len(events)


def test_refusals_are_counted(made: dict[str, list]) -> None:
    CollectorMetrics().note_refusal()
    assert made["wtb_refused_results_total"] == [(1,)]


def test_backpressure_is_counted_for_as_long_as_it_is_applied(
    made: dict[str, list], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    collector, pool = CollectorMetrics(), PoolMetrics()
    for applied, after_s in [(False, 5), (True, 0.25), (True, 0.5), (False, 7)]:
        now[0] += after_s
        collector.note_admission(applied=applied)
        pool.note_state(slots=8, permits=3, held_back=2, applied=applied)

    assert made["wtb_backpressure_seconds_total"] == [
        (0.25, "admission"),
        (0.25, "executor_queue"),
        (0.5, "admission"),
        (0.5, "executor_queue"),
    ]
    assert made["wtb_slots"][-1] == (8,)
    assert made["wtb_permits_outstanding"][-1] == (3,)
    assert made["wtb_executions_held_back"][-1] == (2,)


def test_a_replica_tells_what_it_holds(made: dict[str, list]) -> None:
    ExecutorMetrics().note_held(3)
    assert made["wtb_executions_running"] == [(3,)]


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_a_metric_can_be_made(metric: Metric) -> None:
    made = metric.make()
    assert made.info["name"] == metric.name
    assert made.info["tag_keys"] == metric.labels


def test_every_metric_is_documented_with_its_kind_and_labels() -> None:
    rows = re.findall(
        r"^\| `(wtb_\w+)` \| (\w+) \| ([^|]*) \| ([^|]+) \|$", DOCUMENTED, re.MULTILINE
    )
    documented = {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in rows
    }
    assert documented == {metric.name: (metric.kind, metric.labels) for metric in ALL}
