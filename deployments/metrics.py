"""What the deployments count, through Ray Serve's metrics.

Most of it is counted from the events of each transaction, once it is durable: what the log says and
what the metrics say are the same. Ray writes `ray_` before each name and adds the labels
`deployment`, `replica` and `application`.
"""

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from ray.serve import metrics

from wtb_core.events import Draft
from wtb_core.store.writer import Commit


class Metric(NamedTuple):
    """A metric before it is made: its name without Ray's prefix, and what it says."""

    kind: str
    name: str
    labels: tuple[str, ...]
    description: str
    boundaries: tuple[float, ...] = ()

    def make(self) -> Any:
        """The metric itself, in this process."""
        labels: Any = self.labels  # typed as a tuple of one
        if self.kind == "histogram":
            return metrics.Histogram(
                self.name, self.description, list(self.boundaries), tag_keys=labels
            )
        cls = {"counter": metrics.Counter, "gauge": metrics.Gauge}[self.kind]
        return cls(self.name, self.description, tag_keys=labels)


LONG_S = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1_000, 3_600, 10_000)
SHORT_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
NO_KIND = "none"

EXECUTIONS_ENDED = Metric(
    "counter", "wtb_executions_ended_total", ("status", "kind"), "Executions that ended"
)
ATTEMPT_DURATION = Metric(
    "histogram",
    "wtb_attempt_duration_seconds",
    ("status", "kind"),
    "How long attempts ran, also those that are tried again",
    LONG_S,
)
QUEUE_WAIT = Metric(
    "histogram",
    "wtb_queue_wait_seconds",
    (),
    "How long executions that could run waited for a slot",
    LONG_S,
)
RESUMED = Metric(
    "counter", "wtb_resumed_total", (), "Attempts that went on from a checkpoint of a lost one"
)
HANDED_BACK = Metric(
    "counter", "wtb_handed_back_total", (), "Attempts that a stopping replica handed back"
)
REFUSED_RESULTS = Metric(
    "counter", "wtb_refused_results_total", (), "Late results of attempts taken for lost"
)
EVENTS_APPENDED = Metric("counter", "wtb_events_appended_total", ("type",), "Events appended")
APPEND = Metric(
    "histogram",
    "wtb_append_seconds",
    (),
    "How long a transaction of the store took until it was durable",
    SHORT_S,
)
PRESSURE = Metric(
    "counter", "wtb_backpressure_seconds_total", ("level",), "How long backpressure was applied"
)
SLOTS = Metric("gauge", "wtb_slots", (), "Slots of the executor replicas that run")
PERMITS = Metric("gauge", "wtb_permits_outstanding", (), "Calls to executors that are out")
HELD_BACK = Metric(
    "gauge", "wtb_executions_held_back", (), "Executions that are ready and have no permit"
)
REJECTIONS = Metric(
    "counter", "wtb_permits_rejected_total", (), "Permits that the executor queue rejected"
)
RUNNING = Metric("gauge", "wtb_executions_running", (), "Executions that a replica holds")


class PressureSeconds:
    """The time for which one level of backpressure was applied."""

    def __init__(self, level: str) -> None:
        self._level = {"level": level}
        self._seconds = PRESSURE.make()
        self._noted_at = time.monotonic()

    def note(self, *, applied: bool) -> None:
        """Count the time since the last note, if it is still applied, or was just released."""
        now = time.monotonic()
        if applied:
            self._seconds.inc(max(now - self._noted_at, 1e-9), tags=self._level)
        self._noted_at = now


class CollectorMetrics:
    """What the collector counts."""

    def __init__(self) -> None:
        self._executions_ended = EXECUTIONS_ENDED.make()
        self._attempt_duration = ATTEMPT_DURATION.make()
        self._queue_wait = QUEUE_WAIT.make()
        self._resumed = RESUMED.make()
        self._handed_back = HANDED_BACK.make()
        self._refused = REFUSED_RESULTS.make()
        self._events = EVENTS_APPENDED.make()
        self._append = APPEND.make()
        self._admission = PressureSeconds("admission")

    def note_commit(self, commit: Commit) -> None:
        """Count a transaction that is durable, and the events in it."""
        self._append.observe(commit.duration_s)
        for kind, count in _count_types(commit.appended).items():
            self._events.inc(count, tags={"type": kind})
        for draft in commit.appended:
            match draft.type:
                case "ray_variant_execution_started":
                    self._note_start(draft.payload)
                case "ray_variant_execution_completed" if draft.payload["reused_from"] is None:
                    self._note_end("succeeded", NO_KIND, draft.payload, ended=True)
                case "ray_variant_execution_failed":
                    self._note_failure(draft.payload)
                case "ray_variant_execution_cancelled":
                    self._note_end("cancelled", NO_KIND, draft.payload, ended=True)
                case _:
                    pass

    def note_refusal(self) -> None:
        """Count a late result."""
        self._refused.inc()

    def note_admission(self, *, applied: bool) -> None:
        """Say several times a second whether admission's backpressure is applied."""
        self._admission.note(applied=applied)

    def _note_start(self, payload: dict[str, Any]) -> None:
        self._queue_wait.observe(payload["queue_ms"] / 1000)
        if payload["resumed_from"] is not None:
            self._resumed.inc()

    def _note_failure(self, payload: dict[str, Any]) -> None:
        self._note_end("failed", payload["kind"], payload, ended=not payload["will_retry"])
        if payload["kind"] == "lost" and payload["reason"] == "drained":
            self._handed_back.inc()

    def _note_end(self, status: str, kind: str, payload: dict[str, Any], *, ended: bool) -> None:
        tags = {"status": status, "kind": kind}
        if payload["attempt"] > 0:
            self._attempt_duration.observe(payload["duration_ms"] / 1000, tags=tags)
        if ended:
            self._executions_ended.inc(tags=tags)


def _count_types(drafts: Iterable[Draft]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for draft in drafts:
        counts[draft.type] = counts.get(draft.type, 0) + 1
    return counts


class ExecutorMetrics:
    """What an executor replica counts."""

    def __init__(self) -> None:
        self._running = RUNNING.make()

    def note_held(self, held: int) -> None:
        """Say how many executions the replica holds."""
        self._running.set(held)


class PoolMetrics:
    """What the ingress counts of the executor pool."""

    def __init__(self) -> None:
        self._slots = SLOTS.make()
        self._permits = PERMITS.make()
        self._held_back = HELD_BACK.make()
        self._rejections = REJECTIONS.make()
        self._pressure = PressureSeconds("executor_queue")

    def note_rejection(self) -> None:
        """Count a rejected permit."""
        self._rejections.inc()

    def note_state(self, *, slots: int, permits: int, held_back: int, applied: bool) -> None:
        """Say, at least once a second, how the pool stands."""
        self._slots.set(slots)
        self._permits.set(permits)
        self._held_back.set(held_back)
        self._pressure.note(applied=applied)
