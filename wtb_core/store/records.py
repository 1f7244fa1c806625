"""What goes into the ledger and what comes out of it."""

from typing import Any, Literal, NamedTuple

from wtb_core.attempts import Origin, Outcome

Answer = Literal["accepted", "duplicate", "refused"]


class NewBatch(NamedTuple):
    """A batch that passed every check; `spec` is canonical JSON without the cases.

    A fork has an `origin`, and `repetition` is the number of its only one.
    """

    batch_id: str
    project_version: str
    spec: dict[str, Any]
    spec_digest: str
    cases: list[dict[str, Any]]
    variants: list[dict[str, Any]]
    evaluators: list[str]
    scores: dict[str, dict[str, Any]]
    idempotency_key: str | None = None
    retry_of: str | None = None
    submitted_by: str | None = None
    origin: Origin | None = None
    repetition: int | None = None


class Receipt(NamedTuple):
    """The answer to a submission; `created` is false when the key had been used for this spec.

    `reused` of the executions are taken over from the batch that this one tries again.
    """

    batch_id: str
    status: str
    executions: int
    created: bool
    reused: int = 0


class Trace(NamedTuple):
    """What an attempt left: its checkpoints and file commits, as digests of blobs.

    It is an attempt of the execution that ran, not of one that took its result over. `attempt` is 0
    for an execution that has none.
    """

    execution_id: str
    attempt: int
    project_version: str
    ended: bool = False
    history: str | None = None
    start_commit_id: str | None = None
    file_commit_id: str | None = None


class ForkSource(NamedTuple):
    """An attempt, and what its batch says of the execution; `spec` is without the cases."""

    trace: Trace
    spec: dict[str, Any]
    variant: dict[str, Any]
    case: dict[str, Any]
    repetition: int
    evaluators: list[str]
    scores: dict[str, dict[str, Any]]


class Offer(NamedTuple):
    """What a claimant can go on from, should it be given `attempt` of an execution.

    `source` is the attempt that the checkpoint is of, `history` the blob that holds it, null when
    it is in the claimant's checkpoint store. Without a checkpoint the attempt starts clean.
    """

    execution_id: str
    attempt: int
    source: int | None = None
    checkpoint_id: str | None = None
    history: str | None = None


class Lookup(NamedTuple):
    """The answer to a claim that would get an execution whose last attempts were lost.

    Nothing has been given yet: the claimant raises the execution's fence to `attempt`, looks for
    the latest checkpoint of the `predecessors` that it can reach, and claims again with an offer.
    Predecessors are the newest first, each with the blob of its history where it left one.
    `origin_checkpoint_id` is where a fork began: not a point to go on from, for its change of state
    comes after it.
    """

    execution_id: str
    attempt: int
    predecessors: list[tuple[int, str | None]]
    origin_checkpoint_id: str | None = None


class Claimant(NamedTuple):
    """Who asks for work. The same `claim_id` always gets the same answer."""

    claim_id: str
    replica_id: str
    actor_id: str
    offers: tuple[Offer, ...] = ()


class Finish(NamedTuple):
    """The end of an attempt, as its replica reports it. `event_id` makes repeating it harmless."""

    event_id: str
    execution_id: str
    attempt: int
    replica_id: str
    actor_id: str
    outcome: Outcome
    output_blob: str | None = None
    output_bytes: int | None = None
