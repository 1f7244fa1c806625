"""What the HTTP API answers, as models: the OpenAPI document is made from them.

Answers are not run through these models, which would cost a second pass over every page; tests
hold real answers against them.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wtb_core.attempts import Failure, NodeRun, TrackingFailure
from wtb_core.events import Counts, Event
from wtb_core.history import CheckpointSummary
from wtb_core.states import BatchStatus, ExecutionStatus

Cursor = str | None


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ProblemItem(_Answer):
    """One fault of a request: where it is and what to do."""

    path: str
    message: str


class ProblemDocument(_Answer):
    """An error (RFC 9457). `arguments` make the same Python error again in our client."""

    type: str
    title: str
    status: int
    detail: str
    problems: list[ProblemItem] = []
    arguments: list[Any] = []


class Links(_Answer):
    """Where a batch and what belongs to it are found."""

    self: str
    events: str
    executions: str
    comparison: str
    cancel: str
    retry: str


class Receipt(_Answer):
    """A batch was accepted and is durable."""

    batch_id: str
    status: BatchStatus
    executions: int
    links: Links


class RetryReceipt(Receipt):
    """A batch that tries another one again; `reused` of its executions are taken over."""

    reused: int
    retry_of: str


class ForkOrigin(_Answer):
    """The checkpoint that a fork goes on from, of the execution that ran."""

    execution_id: str
    attempt: int
    checkpoint_id: str


class ForkReceipt(Receipt):
    """A batch of one execution that goes on from a checkpoint."""

    forked_from: ForkOrigin


class Plan(_Answer):
    """What a spec would run; nothing was stored. `spec` has its defaults and no cases."""

    dry_run: Literal[True]
    project: str
    project_version: str
    executions: int
    cases: int
    repetitions: int
    evaluators: list[str]
    baseline: str
    variants: list[dict[str, Any]]
    spec: dict[str, Any]


class Progress(_Answer):
    """Times in milliseconds; `remaining_ms` is null before a rate is known."""

    elapsed_ms: int
    remaining_ms: int | None
    per_s: float


class BatchSummary(_Answer):
    """One batch of a list."""

    batch_id: str
    name: str | None
    project: str
    project_version: str
    status: BatchStatus
    retry_of: str | None
    forked_from: ForkOrigin | None
    submitted_by: str | None
    labels: dict[str, str]
    created_at: str
    started_at: str | None
    finished_at: str | None
    counts: Counts
    progress: Progress


class Batch(BatchSummary):
    """One batch with its expanded variants and its spec."""

    variants: list[dict[str, Any]]
    spec: dict[str, Any]


class BatchPage(_Answer):
    """Batches, newest first."""

    items: list[BatchSummary]
    next_cursor: Cursor


class BatchCancelled(_Answer):
    """`changed` is false when there was nothing to stop."""

    batch_id: str
    status: BatchStatus
    changed: bool


class ExecutionCancelled(_Answer):
    """`changed` is false when there was nothing to stop."""

    execution_id: str
    status: ExecutionStatus
    changed: bool


class EventPage(_Answer):
    """Events in order; go on with `after` = `next_after` until `ended`."""

    items: list[Event]
    next_after: int
    ended: bool


class _Result(_Answer):
    failure: Failure | None
    output_bytes: int | None
    scores: dict[str, float | None]
    score_comments: dict[str, str]
    score_errors: dict[str, str]
    overall_score: float | None
    duration_ms: int | None
    queue_ms: int | None
    node_count: int | None
    checkpoint_count: int | None
    start_commit_id: str | None
    file_commit_id: str | None
    files_tracked: int | None
    tracking_failures: list[TrackingFailure]
    isolation: dict[str, Any] | None
    start: Literal["fork", "fresh"] | None
    start_reason: str | None
    cpu_ms: int | None
    peak_rss_bytes: int | None
    usage: dict[str, dict[str, float]]


class Execution(_Result):
    """One execution; `output` is there only where it was asked for."""

    execution_id: str
    batch_id: str
    variant: str
    case_id: str
    repetition: int
    status: ExecutionStatus
    attempt: int
    reused_from: str | None
    output: Any = None


class Attempt(_Result):
    """One attempt of an execution. The blobs are digests of what it wrote."""

    attempt: int
    status: Literal["running", "succeeded", "failed", "cancelled"]
    replica_id: str
    actor_id: str
    started_at: str
    ended_at: str | None
    resumed_from: str | None
    nodes: list[NodeRun]
    stdout_blob: str | None
    stderr_blob: str | None
    cut_logs: list[str]


class ExecutionDetail(Execution):
    """One execution with its output and its attempts."""

    attempts: list[Attempt]


class ExecutionPage(_Answer):
    """Executions in order."""

    items: list[Execution]
    next_cursor: Cursor


class AttemptPage(_Answer):
    """The attempts of an execution, oldest first."""

    items: list[Attempt]
    next_cursor: Cursor


class NodePage(_Answer):
    """The node runs of one attempt, in the order of their starts."""

    attempt: int
    items: list[NodeRun]
    next_cursor: Cursor


class CheckpointPage(_Answer):
    """The checkpoints of one attempt, oldest first; `attempt` is 0 where there is none."""

    execution_id: str
    attempt: int
    items: list[CheckpointSummary]
    next_cursor: Cursor


class FileChange(_Answer):
    """One path that differs; a side without it has null. Modes are octal text.

    `binary` and `diff` are null where no diff was asked for; `diff` also for binary files, and
    where `diff_truncated` says that a side is too large.
    """

    path: str
    change: Literal["created", "modified", "deleted"]
    kind: Literal["directory", "file", "link"]
    size_before: int | None
    size_after: int | None
    mode_before: str | None
    mode_after: str | None
    binary: bool | None
    diff: str | None
    diff_truncated: bool


class ChangeCounts(_Answer):
    """How many paths differ, on all pages."""

    created: int
    modified: int
    deleted: int


class FilePage(_Answer):
    """The paths that differ between two points, in their order."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    execution_id: str
    attempt: int
    from_: str = Field(alias="from")
    to: str
    items: list[FileChange]
    next_cursor: Cursor
    counts: ChangeCounts


class Mean(_Answer):
    """A mean and how many executions it is of; null when there is none."""

    mean: float | None
    n: int


class ComparedVariant(_Answer):
    """What a variant came to. `failed` is by kind; `reused` of `succeeded` ran in another batch."""

    variant: str
    n: int
    succeeded: int
    failed: dict[str, int]
    cancelled: int
    reused: int
    scores: dict[str, Mean]
    overall_score: Mean
    mean_duration_ms: int | None


class Comparison(_Answer):
    """The comparison of a batch's variants as far as its events go. Provisional."""

    batch_id: str
    status: BatchStatus
    baseline: str | None
    metrics: list[str]
    best_variant: str | None
    best_score: float | None
    variants: list[ComparedVariant]


class GraphDescription(_Answer):
    """A graph as its code describes itself; a schema is null where LangGraph has none."""

    kind: Literal["state_graph", "functional"]
    nodes: list[str]
    subgraphs: dict[str, list[str]]
    asynchronous: bool
    input_schema: Any
    output_schema: Any
    context_schema: Any


class Project(_Answer):
    """A project with what it offers. `version` is null while it cannot be used."""

    name: str
    version: str | None
    source: str
    graphs: dict[str, GraphDescription]
    nodes: dict[str, list[str]]
    evaluators: list[str]
    scores: dict[str, dict[str, Any]]
    start: Literal["fork", "fresh"] | None
    start_reason: str | None
    ignored: list[str]
    problems: list[str]


class ProjectPage(_Answer):
    """Projects by name."""

    items: list[Project]
    next_cursor: Cursor


class Replica(_Answer):
    """An executor replica that has registered; `draining` while Serve stops it.

    `running` of its slots hold an execution. `restart_count` is how many failed ones before it have
    had its place.
    """

    replica_id: str
    actor_id: str
    status: Literal["live", "draining"]
    slots: int
    running: int
    restart_count: int
    initialized_at: str
    isolation: dict[str, Any]


class ListedReplica(_Answer):
    """An executor replica as Serve's controller lists it."""

    replica_id: str
    actor_id: str
    state: str


class PoolLimits(_Answer):
    """The executor pool's configuration."""

    slots: int
    min_replicas: int
    max_replicas: int
    max_queued: int


class Permits(_Answer):
    """The calls to executors that are out: each takes a slot and then an execution.

    `queued` of them wait in Serve's queue. There is room for `window`.
    """

    outstanding: int
    queued: int
    most_outstanding: int
    window: int


class PressureLevel(_Answer):
    """Backpressure with its present numbers; `since` is null while it is not applied.

    Of the executor queue: permits that wait, how many may, and executions that are ready and have
    no permit. Of admission: unfinished executions, how many there may be, and those of the batch
    that was refused last.
    """

    applied: bool
    since: str | None
    queued: int
    limit: int
    held: int


class PressureLevels(_Answer):
    """The two levels that have events; beyond them the ingress itself answers 503."""

    executor_queue: PressureLevel
    admission: PressureLevel


class Pool(_Answer):
    """Replicas, slots, queues and backpressure.

    `backpressure` is that of the executor queue. `refused_results` counts the late results of
    attempts that were taken for lost, since the collector started.
    """

    replicas: list[Replica]
    listed: list[ListedReplica]
    slots: int
    running_executions: int
    unfinished_executions: int
    claimable_executions: int
    outstanding_permits: int
    permits: Permits
    backpressure: bool
    pressure: PressureLevels
    refused_results: int
    limits: PoolLimits
    max_pending_executions: int


class Health(_Answer):
    """The process answers."""

    status: Literal["ok"]


class Readiness(_Answer):
    """Whether batches can be accepted and run, or what stands in the way.

    Projects that cannot be used do not make the service unready.
    """

    ready: bool
    problems: list[str]
    project_problems: list[str]


class CancelBody(_Answer):
    """Why; it is kept with the batch and in its events."""

    reason: str = Field(
        default="cancelled on request",
        min_length=1,
        max_length=1_000,
        pattern=r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$",
    )


class ForkBody(_Answer):
    """Where to go on, and with what; `nodes` and `config` go over the variant's own.

    `state` goes through the graph's reducers. Without an `attempt` it is the latest that ended.
    """

    checkpoint_id: str = Field(min_length=1, max_length=128)
    state: dict[str, Any] | None = None
    nodes: dict[str, str] | None = None
    config: dict[str, Any] | None = None
    attempt: int | None = Field(default=None, ge=1, le=1_000)


class RetryBody(_Answer):
    """Whether the retry runs the version of the batch or the project's newest."""

    project_version: Literal["same", "latest"] = "same"
