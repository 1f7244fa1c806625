"""The seventeen event types and their payloads.

The union is closed: a consumer may match on it exhaustively, and a new type would be a new version
of the contract. Payloads may gain fields, so consumers ignore what they do not know. An event is
made as a `Draft`; the log gives it its `seq` when it is stored.
"""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Discriminator, TypeAdapter

from wtb_core.specs import FailureKind


class Draft(NamedTuple):
    """An event before the log has numbered it."""

    event_id: str
    type: str
    occurred_at: str
    producer: str
    payload: dict[str, Any]


class Payload(BaseModel):
    """What an event says."""

    model_config = ConfigDict(frozen=True)


class Counts(Payload):
    """Executions by status."""

    pending: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    total: int


class BatchStarted(Payload):
    """Appended with the first execution's start. `scores` are the rules means are made by."""

    project: str
    project_version: str
    variants: list[str]
    cases: int
    repetitions: int
    executions: int
    reused: int
    retry_of: str | None
    limits: dict[str, Any]
    baseline: str
    evaluators: list[str]
    scores: dict[str, dict[str, Any]]


class BatchProgress(Payload):
    """At most once a second while executions end. `remaining_ms` is null before a rate is known."""

    total: int
    pending: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    elapsed_ms: int
    remaining_ms: int | None
    per_s: float


class BatchCompleted(Payload):
    """Every execution has ended.

    `files_tracked` is the sum over the executions that succeeded, also over what was taken over.
    """

    counts: Counts
    duration_ms: int
    best_variant: str | None
    best_score: float | None
    files_tracked: int


class BatchFailed(Payload):
    """The system could not carry the batch out."""

    counts: Counts
    duration_ms: int
    error_type: str
    error_message: str


class BatchCancelled(Payload):
    """The batch was stopped."""

    counts: Counts
    duration_ms: int
    reason: str
    cancelled_by: str


class PoolCreated(Payload):
    """The first executor replicas of a deployment are known."""

    replica_ids: list[str]
    slots: int
    max_replicas: int
    max_queued: int


class ActorInitialized(Payload):
    """A replica is ready to run executions."""

    actor_id: str
    replica_id: str
    node_id: str
    initialization_ms: int
    isolation: dict[str, Any]


class ActorFailed(Payload):
    """A replica was lost; a stop that Serve asked for is no failure."""

    actor_id: str
    replica_id: str
    error_type: str
    error_message: str
    execution_ids: list[str]


class ActorRestarted(Payload):
    """A new replica took the place of the oldest unreplaced failed one."""

    actor_id: str
    replica_id: str
    replaces: str
    restart_count: int
    reason: str


class _AttemptPayload(Payload):
    execution_id: str
    attempt: int
    variant: str
    case_id: str
    repetition: int
    actor_id: str
    replica_id: str


class VariantStarted(_AttemptPayload):
    """A replica was given the execution. `queue_ms` is the time since it could first have run."""

    queue_ms: int
    resumed_from: str | None


class VariantCompleted(_AttemptPayload):
    """The graph ended and its output was stored, here or in the batch that is tried again."""

    duration_ms: int
    node_count: int
    checkpoint_count: int
    scores: dict[str, float | None]
    overall_score: float | None
    files_tracked: int
    file_commit_id: str | None
    cpu_ms: int | None
    peak_rss_bytes: int | None
    usage: dict[str, dict[str, float]]
    reused_from: str | None


class VariantFailed(_AttemptPayload):
    """An attempt failed; `will_retry` says whether another follows."""

    kind: FailureKind
    reason: str
    error_type: str | None
    error_message: str | None
    failed_at_node: str | None
    will_retry: bool
    duration_ms: int
    node_count: int
    checkpoint_count: int


class VariantCancelled(_AttemptPayload):
    """The execution was stopped, or never started (`attempt` 0)."""

    reason: str
    duration_ms: int


class FilesTracked(_AttemptPayload):
    """The attempt's final file commit, counted against the files that user code found."""

    file_commit_id: str
    checkpoint_id: str | None
    created: int
    modified: int
    deleted: int
    size_bytes: int
    paths: list[str]


class FilesTrackingFailed(_AttemptPayload):
    """A file commit could not be made; the execution's own result stands.

    `checkpoint_id` is null for the final commit, and where further failures are only counted.
    """

    checkpoint_id: str | None
    failed_files: list[str]
    error_message: str


class BackpressureApplied(Payload):
    """New work is held back: `held` executions wait behind `queued` calls of at most `limit`."""

    level: Literal["executor_queue", "admission"]
    queued: int
    limit: int
    held: int


class BackpressureReleased(Payload):
    """Nothing is held back any more."""

    level: Literal["executor_queue", "admission"]
    duration_ms: int


class _Event(BaseModel):
    """What every event has. `seq` counts from 1 in its stream, without gaps, in commit order.

    `batch_id` is null in the stream `pool`.
    """

    model_config = ConfigDict(frozen=True)

    seq: int
    event_id: str
    occurred_at: str
    batch_id: str | None
    producer: str


class RayBatchTestStartedEvent(_Event):
    """See `BatchStarted`."""

    type: Literal["ray_batch_test_started"]
    payload: BatchStarted


class RayBatchTestProgressEvent(_Event):
    """See `BatchProgress`."""

    type: Literal["ray_batch_test_progress"]
    payload: BatchProgress


class RayBatchTestCompletedEvent(_Event):
    """See `BatchCompleted`."""

    type: Literal["ray_batch_test_completed"]
    payload: BatchCompleted


class RayBatchTestFailedEvent(_Event):
    """See `BatchFailed`."""

    type: Literal["ray_batch_test_failed"]
    payload: BatchFailed


class RayBatchTestCancelledEvent(_Event):
    """See `BatchCancelled`."""

    type: Literal["ray_batch_test_cancelled"]
    payload: BatchCancelled


class RayActorPoolCreatedEvent(_Event):
    """See `PoolCreated`."""

    type: Literal["ray_actor_pool_created"]
    payload: PoolCreated


class RayActorInitializedEvent(_Event):
    """See `ActorInitialized`."""

    type: Literal["ray_actor_initialized"]
    payload: ActorInitialized


class RayActorFailedEvent(_Event):
    """See `ActorFailed`."""

    type: Literal["ray_actor_failed"]
    payload: ActorFailed


class RayActorRestartedEvent(_Event):
    """See `ActorRestarted`."""

    type: Literal["ray_actor_restarted"]
    payload: ActorRestarted


class RayVariantExecutionStartedEvent(_Event):
    """See `VariantStarted`."""

    type: Literal["ray_variant_execution_started"]
    payload: VariantStarted


class RayVariantExecutionCompletedEvent(_Event):
    """See `VariantCompleted`."""

    type: Literal["ray_variant_execution_completed"]
    payload: VariantCompleted


class RayVariantExecutionFailedEvent(_Event):
    """See `VariantFailed`."""

    type: Literal["ray_variant_execution_failed"]
    payload: VariantFailed


class RayVariantExecutionCancelledEvent(_Event):
    """See `VariantCancelled`."""

    type: Literal["ray_variant_execution_cancelled"]
    payload: VariantCancelled


class RayVariantFilesTrackedEvent(_Event):
    """See `FilesTracked`."""

    type: Literal["ray_variant_files_tracked"]
    payload: FilesTracked


class RayVariantFilesTrackingFailedEvent(_Event):
    """See `FilesTrackingFailed`."""

    type: Literal["ray_variant_files_tracking_failed"]
    payload: FilesTrackingFailed


class RayBackpressureAppliedEvent(_Event):
    """See `BackpressureApplied`."""

    type: Literal["ray_backpressure_applied"]
    payload: BackpressureApplied


class RayBackpressureReleasedEvent(_Event):
    """See `BackpressureReleased`."""

    type: Literal["ray_backpressure_released"]
    payload: BackpressureReleased


Event = Annotated[
    RayBatchTestStartedEvent
    | RayBatchTestProgressEvent
    | RayBatchTestCompletedEvent
    | RayBatchTestFailedEvent
    | RayBatchTestCancelledEvent
    | RayActorPoolCreatedEvent
    | RayActorInitializedEvent
    | RayActorFailedEvent
    | RayActorRestartedEvent
    | RayVariantExecutionStartedEvent
    | RayVariantExecutionCompletedEvent
    | RayVariantExecutionFailedEvent
    | RayVariantExecutionCancelledEvent
    | RayVariantFilesTrackedEvent
    | RayVariantFilesTrackingFailedEvent
    | RayBackpressureAppliedEvent
    | RayBackpressureReleasedEvent,
    Discriminator("type"),
]

_EVENT: TypeAdapter[Event] = TypeAdapter(Event)

_TYPES: dict[type[Payload], str] = {
    BatchStarted: "ray_batch_test_started",
    BatchProgress: "ray_batch_test_progress",
    BatchCompleted: "ray_batch_test_completed",
    BatchFailed: "ray_batch_test_failed",
    BatchCancelled: "ray_batch_test_cancelled",
    PoolCreated: "ray_actor_pool_created",
    ActorInitialized: "ray_actor_initialized",
    ActorFailed: "ray_actor_failed",
    ActorRestarted: "ray_actor_restarted",
    VariantStarted: "ray_variant_execution_started",
    VariantCompleted: "ray_variant_execution_completed",
    VariantFailed: "ray_variant_execution_failed",
    VariantCancelled: "ray_variant_execution_cancelled",
    FilesTracked: "ray_variant_files_tracked",
    FilesTrackingFailed: "ray_variant_files_tracking_failed",
    BackpressureApplied: "ray_backpressure_applied",
    BackpressureReleased: "ray_backpressure_released",
}

EVENT_TYPES = tuple(_TYPES.values())
BATCH_TERMINAL_TYPES = frozenset(
    {"ray_batch_test_completed", "ray_batch_test_failed", "ray_batch_test_cancelled"}
)


def draft(payload: Payload, *, event_id: str, occurred_at: str, producer: str) -> Draft:
    """The event that says `payload`."""
    return Draft(event_id, _TYPES[type(payload)], occurred_at, producer, payload.model_dump())


def parse_event(raw: object) -> Event:
    """The event in `raw`, a mapping with an envelope and a payload.

    Raises:
        pydantic.ValidationError: when it is none of the seventeen.
    """
    return _EVENT.validate_python(raw)


def ends_execution(event_type: str, payload: dict[str, Any]) -> bool:
    """Whether an event is execution-terminal: completed, cancelled, or failed for good."""
    if event_type == "ray_variant_execution_failed":
        return not payload["will_retry"]
    return event_type in {"ray_variant_execution_completed", "ray_variant_execution_cancelled"}
