"""What one attempt at an execution is given, and what comes out of it.

An `Assignment` is the answer to a claim; an `Outcome` is what the engine makes of it. Both cross
process boundaries as JSON.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from wtb_core.sandbox.faults import clean
from wtb_core.specs import Case, FailureKind, Limits, Variant, Workspace

MAX_LOG_BYTES = 10 * 1024**2
"""How much of each of an attempt's output streams is kept: its beginning."""


MAX_TEXT_CHARS = 64 * 1024
"""How much of each text from user code is kept, its beginning: events and records carry it."""


def _bound(text: str) -> str:
    return clean(text[:MAX_TEXT_CHARS])


Text = Annotated[str, AfterValidator(_bound)]
"""Text from user code, bounded; lone surrogates, which no message could carry, become escapes."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Origin(_Message):
    """The checkpoint that a forked execution starts from.

    `history` is the blob of the attempt's checkpoints, `file_commit_id` the files of the
    checkpoint. `state` goes through the graph's reducers before the graph goes on; null changes
    nothing.
    """

    execution_id: str
    attempt: int
    checkpoint_id: str
    history: str
    file_commit_id: str
    state: dict[str, Any] | None = None


class ResumePoint(_Message):
    """The root checkpoint that an attempt goes on from, after an earlier one was lost.

    `attempt` is the one that stored it. `history` is the blob that holds it, null when it is in the
    checkpoint store of the node.
    """

    attempt: int
    checkpoint_id: str
    history: str | None = None


class Assignment(_Message):
    """One attempt, complete: whoever holds it needs nothing else to run it.

    `attempt` counts from 1 and is also the fence of the attempt's checkpoints. `origin` is set for
    a fork; with a `resume` it has been applied already.
    """

    execution_id: str
    batch_id: str
    attempt: int
    project: str
    project_version: str
    variant: Variant
    case: Case
    repetition: int
    evaluators: list[str]
    limits: Limits
    workspace: Workspace
    resume: ResumePoint | None = None
    origin: Origin | None = None

    @property
    def names(self) -> dict[str, str | int]:
        """What a log line about the attempt carries as `extra`."""
        return {
            "batch_id": self.batch_id,
            "execution_id": self.execution_id,
            "attempt": self.attempt,
        }


class Failure(_Message):
    """Why an attempt did not succeed. The text fields are data from user code."""

    kind: FailureKind
    reason: Text
    error_type: Text | None = None
    message: Text | None = None
    node: Text | None = None
    traceback: Text | None = None


class NodeRun(_Message):
    """One node's run in one superstep; times in milliseconds since the attempt's start."""

    name: Text
    superstep: int
    start_ms: int
    end_ms: int | None = None
    error: Text | None = None


class Evaluation(_Message):
    """What the evaluators said. A metric that could not be computed is null in `scores`."""

    scores: dict[Text, float | None] = {}
    comments: dict[Text, Text] = {}
    errors: dict[Text, Text] = {}


class TrackedFiles(_Message):
    """An attempt's final file commit, counted against the files that user code found.

    `checkpoint_id` is the last checkpoint with the same files, `size_bytes` the size of what was
    created or modified, `paths` the first changed paths in their order.
    """

    file_commit_id: str
    checkpoint_id: str | None
    created: int
    modified: int
    deleted: int
    size_bytes: int
    paths: list[str]


class TrackingFailure(_Message):
    """A file commit that could not be made; `checkpoint_id` is null for the final one."""

    checkpoint_id: str | None
    failed_files: list[str]
    error_message: str


class Outcome(_Message):
    """The end of one attempt.

    `output` is JSON text. `stdout` and `stderr` are blob digests, null when nothing was written;
    `cut_logs` names those of which only the beginning was kept.
    `history` is the blob of the attempt's checkpoints, see `history.py`; `start_commit_id` names
    the files that user code found, and `files` those it left.
    `drained` says that the replica is being stopped and hands the execution back: the failure is
    `lost`, and the attempt does not count.
    `start` says whether the process was forked from the warm zygote or was a new interpreter, and
    `start_reason` why it was not forked. A failed attempt has a failure, and only that one.
    """

    status: Literal["succeeded", "failed", "cancelled"]
    failure: Failure | None = None
    output: str | None = None
    evaluation: Evaluation = Evaluation()
    duration_ms: int = 0
    node_count: int = 0
    checkpoint_count: int = 0
    cpu_ms: int | None = None
    peak_rss_bytes: int | None = None
    nodes: list[NodeRun] = []
    stdout: str | None = None
    stderr: str | None = None
    cut_logs: list[Literal["stdout", "stderr"]] = []
    history: str | None = None
    start_commit_id: str | None = None
    files: TrackedFiles | None = None
    tracking_failures: list[TrackingFailure] = []
    start: Literal["fork", "fresh"] = "fork"
    start_reason: str | None = None
    isolation: dict[str, Any] = {}
    usage: dict[Text, dict[Text, float]] = {}
    drained: bool = False

    @property
    def is_lost(self) -> bool:
        """Whether the next attempt goes on from this one's checkpoints, so that they must stay."""
        return self.failure is not None and self.failure.kind == "lost"

    @model_validator(mode="after")
    def _check_failure(self) -> Self:
        if (self.status == "failed") != (self.failure is not None):
            raise ValueError("an outcome has a failure when its status is failed, and only then")
        return self
