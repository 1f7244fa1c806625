"""What goes into the ledger and what comes out of it."""

from typing import Any, Literal, NamedTuple

from wtb_core.attempts import Outcome

Answer = Literal["accepted", "duplicate", "refused"]


class NewBatch(NamedTuple):
    """A batch that passed every check; `spec` is canonical JSON without the cases."""

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


class Receipt(NamedTuple):
    """The answer to a submission; `created` is false when the key had been used for this spec."""

    batch_id: str
    status: str
    executions: int
    created: bool


class Claimant(NamedTuple):
    """Who asks for work. The same `claim_id` always gets the same answer."""

    claim_id: str
    replica_id: str
    actor_id: str


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
