"""Going on from a checkpoint: the batch of one execution that starts there.

It has the project version, case, evaluators and limits of the execution that ran; the variant is
that execution's, with the given nodes and config over its own.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel, ConfigDict

from wtb_core import matrix, specs
from wtb_core.attempts import Origin
from wtb_core.errors import (
    InvalidHistory,
    InvalidSpec,
    NotForkable,
    NotFound,
    Problem,
    ProjectError,
)
from wtb_core.filehistory import MAX_POINT_CHARS, FileHistory
from wtb_core.history import CheckpointSummary
from wtb_core.ids import new_batch_id
from wtb_core.projects import Registry
from wtb_core.store.records import ForkSource, NewBatch, Trace
from wtb_core.submission import find_unknown_nodes

MAX_ATTEMPT = 1_000
MAX_STATE_CHARS = 8 * 2**20


class ForkRequest(BaseModel):
    """Where to go on, and with what: `state` goes through the graph's reducers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint_id: str
    state: dict[str, Any] | None = None
    nodes: dict[str, str] = {}
    config: dict[str, Any] = {}
    attempt: int | None = None


def read_body(document: object) -> dict[str, Any]:
    """The fields of a request's body, of whatever form; `make` checks them.

    Raises:
        InvalidSpec: when it is no mapping, lacks the checkpoint or has other keys.
    """
    if not isinstance(document, Mapping):
        raise InvalidSpec([Problem("", "give a mapping with at least `checkpoint_id`")])
    given = {str(key): value for key, value in cast("Mapping[object, Any]", document).items()}
    known = ", ".join(ForkRequest.model_fields)
    problems = [
        Problem(specs.format_path((key,)), f"unknown key; known are: {known}")
        for key in given
        if key not in ForkRequest.model_fields
    ]
    if "checkpoint_id" not in given:
        problems.append(Problem("checkpoint_id", "required"))
    if problems:
        raise InvalidSpec(problems[: specs.MAX_PROBLEMS])
    return given


def check_attempt(attempt: object) -> None:
    """Refuse what cannot be the number of an attempt; null is the latest that ended.

    Raises:
        InvalidSpec: says what it may be.
    """
    if attempt is None:
        return
    if not isinstance(attempt, int) or isinstance(attempt, bool) or not 1 <= attempt <= MAX_ATTEMPT:
        message = f"give a whole number from 1 to {MAX_ATTEMPT}"
        raise InvalidSpec([Problem("attempt", message)])


def describe(batch: NewBatch) -> dict[str, Any] | None:
    """What a fork goes on from: `{execution_id, attempt, checkpoint_id}`."""
    if batch.origin is None:
        return None
    return batch.origin.model_dump(include={"execution_id", "attempt", "checkpoint_id"})


async def make(
    asked: Mapping[str, Any], source: ForkSource, files: FileHistory, registry: Registry
) -> NewBatch:
    """The batch that goes on from a checkpoint. It has no idempotency key and no submitter.

    Names are checked while the project still has the version of the execution; of a version that is
    gone the execution itself says what is wrong.

    Args:
        asked: the fields of a `ForkRequest`, of whatever form.
        source: the attempt that it names.
        files: where the attempt's history is read.
        registry: the projects as they are now.

    Raises:
        InvalidSpec: with every problem of form and every unknown name.
        NotForkable: when the attempt has not ended or left no such fork point.
        NotFound: when the attempt has no such checkpoint.
    """
    given = {key: value for key, value in asked.items() if value is not None}
    problems = await asyncio.to_thread(_find_bad_forms, given)
    problems += await _find_unknown_names(given.get("nodes"), source, registry)
    if problems:
        raise InvalidSpec(problems[: specs.MAX_PROBLEMS])
    request = ForkRequest.model_validate(given)
    await asyncio.to_thread(_check_size, request)
    checkpoint = await asyncio.to_thread(_find_checkpoint, request, source.trace, files)
    return await asyncio.to_thread(_make, request, source, checkpoint)


def _find_bad_forms(given: Mapping[str, Any]) -> list[Problem]:
    problems: list[Problem] = []
    checkpoint_id, state = given.get("checkpoint_id"), given.get("state")
    if not isinstance(checkpoint_id, str) or not 0 < len(checkpoint_id) <= MAX_POINT_CHARS:
        problems.append(Problem("checkpoint_id", "give the id of a checkpoint of the execution"))
    if state is not None and not isinstance(state, dict):
        problems.append(Problem("state", "give a mapping of the graph's state"))
    # What a spec says of a variant and an input holds for these too.
    variant = {"name": "v", "nodes": given.get("nodes", {}), "config": given.get("config", {})}
    as_spec = {"project": "p", "variants": [variant], "cases": [{"input": state}]}
    for path, message in specs.find_problems(as_spec):
        place = path.replace("cases[0].input", "state", 1).replace("variants[0].", "", 1)
        problems.append(Problem(place, message))
    return problems


def _check_size(request: ForkRequest) -> None:
    """A state is kept with its batch, which is read at every claim."""
    size = len(json.dumps(request.state))
    if size > MAX_STATE_CHARS:
        message = f"it has {size} characters as JSON, more than {MAX_STATE_CHARS}"
        raise InvalidSpec([Problem("state", message)])


def _find_checkpoint(request: ForkRequest, trace: Trace, files: FileHistory) -> CheckpointSummary:
    wanted = request.checkpoint_id
    if trace.attempt == 0:
        raise NotForkable(wanted, f"execution {trace.execution_id} has not run")
    attempt = f"attempt {trace.attempt} of execution {trace.execution_id}"
    if not trace.ended:
        raise NotForkable(wanted, f"{attempt} is still running")
    if trace.history is None:
        raise NotForkable(wanted, f"{attempt} left no history of checkpoints")
    try:
        return files.find_checkpoint(trace, wanted)
    except InvalidHistory as error:
        raise NotForkable(wanted, f"the history of {attempt} is damaged: {error}") from error
    except NotFound as error:
        if error.noun == "blob":
            raise NotForkable(wanted, f"the history of {attempt} is gone") from error
        raise


async def _find_unknown_names(
    nodes: object, source: ForkSource, registry: Registry
) -> list[Problem]:
    try:
        project = await registry.get(source.spec["project"])
    except (NotFound, ProjectError):
        return []
    if project.version != source.trace.project_version:
        return []
    return find_unknown_nodes(source.variant["graph"], nodes, project)


def _make(request: ForkRequest, source: ForkSource, checkpoint: CheckpointSummary) -> NewBatch:
    trace, old = source.trace, source.variant
    variant = {
        **old,
        "nodes": {**old["nodes"], **request.nodes},
        "config": {**old["config"], **request.config},
    }
    changes = {"variants": [variant], "matrix": None, "baseline": None, "repetitions": 1}
    spec = specs.parse({**source.spec, **changes, "cases": [source.case]})
    if problems := matrix.find_problems(spec):
        raise InvalidSpec(problems)
    assert checkpoint.file_commit_id is not None
    return NewBatch(
        batch_id=new_batch_id(),
        project_version=trace.project_version,
        spec=spec.model_dump(mode="json", exclude={"cases"}),
        spec_digest=_make_digest(request, trace),
        cases=[dict(case) for case in spec.cases],
        variants=[each.model_dump(mode="json") for each in matrix.expand(spec)],
        evaluators=source.evaluators,
        scores=source.scores,
        origin=Origin(
            execution_id=trace.execution_id,
            attempt=trace.attempt,
            checkpoint_id=checkpoint.checkpoint_id,
            history=trace.history or "",
            file_commit_id=checkpoint.file_commit_id,
            state=request.state,
        ),
        repetition=source.repetition,
    )


def _make_digest(request: ForkRequest, trace: Trace) -> str:
    """What an idempotency key of a fork stands for: what was asked."""
    asked = json.dumps(["fork", trace.execution_id, request.model_dump()], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()
