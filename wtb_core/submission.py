"""From what a client sent to a batch that can be stored: every check, none of it half-done."""

import asyncio
import fnmatch
import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, cast

from wtb_core import matrix, specs
from wtb_core.errors import InvalidRequest, InvalidSpec, NotFound, Problem, ProjectError
from wtb_core.ids import new_batch_id
from wtb_core.projects import Project, Registry
from wtb_core.specs import BatchSpec, Location, Variant
from wtb_core.store.records import NewBatch
from wtb_core.store.reuse import make_digest

MAX_KEY_CHARS = 255
DEFAULT_ADMISSION = 100_000
"""How many executions may be unfinished where nothing else is said."""


class _Plan(NamedTuple):
    """A spec that passed every check, with what it expands to."""

    spec: BatchSpec
    project: Project
    variants: list[Variant]
    evaluators: list[str]

    @property
    def canonical(self) -> dict[str, Any]:
        """The spec as JSON with its defaults, without the cases."""
        return self.spec.model_dump(mode="json", exclude={"cases"})

    @property
    def variants_json(self) -> list[dict[str, Any]]:
        return [variant.model_dump(mode="json") for variant in self.variants]


async def prepare(
    raw: object,
    registry: Registry,
    *,
    admission: int,
    idempotency_key: str | None = None,
    submitted_by: str | None = None,
) -> NewBatch:
    """Check `raw` against its project and make the batch that may be stored.

    Raises:
        InvalidSpec: with all problems found.
        InvalidRequest: when the idempotency key is unusable.
    """
    if idempotency_key is not None:
        check_key(idempotency_key)
    plan = await _plan(raw, registry, admission)
    batch = await asyncio.to_thread(_make, plan)
    return batch._replace(idempotency_key=idempotency_key, submitted_by=submitted_by)


async def expand(raw: object, registry: Registry, *, admission: int) -> dict[str, Any]:
    """What `prepare` would make of `raw`, for a dry run: `variants` in full, `cases` as a count.

    Raises:
        InvalidSpec: with all problems found.
    """
    plan = await _plan(raw, registry, admission)
    return await asyncio.to_thread(_describe_plan, plan)


def _describe_plan(plan: _Plan) -> dict[str, Any]:
    spec = plan.spec
    shape = matrix.Shape(len(plan.variants), len(spec.cases), spec.repetitions)
    return {
        "dry_run": True,
        "project": plan.project.name,
        "project_version": plan.project.version,
        "executions": shape.executions,
        "cases": shape.cases,
        "repetitions": shape.repetitions,
        "evaluators": plan.evaluators,
        "baseline": spec.baseline or plan.variants[0].name,
        "variants": plan.variants_json,
        "spec": plan.canonical,
    }


async def _plan(raw: object, registry: Registry, admission: int) -> _Plan:
    # Checking a spec of 64 MiB takes seconds, in which the caller's event loop goes on.
    spec, problems, draft = await asyncio.to_thread(specs.check, raw)
    if draft is not None:
        problems += await asyncio.to_thread(matrix.find_problems, draft)
    document = cast("Mapping[str, Any]", raw) if isinstance(raw, Mapping) else {}
    project, found = await _find_project(document.get("project"), registry)
    if not any(problem.path == "project" for problem in problems):
        problems += found
    if project is not None:
        problems += await asyncio.to_thread(find_unknown_names, document, project)
    if spec is None or project is None or problems:
        raise InvalidSpec(problems[: specs.MAX_PROBLEMS])
    variants, problems = await asyncio.to_thread(_expand, spec, admission)
    if problems:
        raise InvalidSpec(problems)
    evaluators = spec.evaluators
    if evaluators is None:
        evaluators = list(project.definition.evaluators)
    return _Plan(spec, project, variants, evaluators)


def _expand(spec: BatchSpec, admission: int) -> tuple[list[Variant], list[Problem]]:
    if problems := matrix.find_problems(spec):
        return [], problems
    variants = matrix.expand(spec)
    shape = matrix.Shape(len(variants), len(spec.cases), spec.repetitions)
    if shape.executions > admission:
        message = (
            f"{shape.variants} variants x {shape.cases} cases x {shape.repetitions} repetitions "
            f"are {shape.executions} executions, more than max_pending_executions {admission}; "
            "split the batch"
        )
        return [], [Problem("", message)]
    return variants, []


async def renew(batch: NewBatch, registry: Registry, *, admission: int) -> NewBatch:
    """`batch`, which tries another one again, for the newest version of its project.

    Raises:
        InvalidSpec: when the project has lost what the spec names.
        InvalidRequest: when the batch is a fork, whose files are those of its own version.
    """
    assert batch.retry_of is not None
    fresh = await prepare({**batch.spec, "cases": batch.cases}, registry, admission=admission)
    if batch.origin is not None and fresh.project_version != batch.project_version:
        message = (
            f"the project has changed, and a fork goes on from checkpoint "
            f"{batch.origin.checkpoint_id} with the code of then; retry it with `same`"
        )
        raise InvalidRequest("project_version", message)
    return fresh._replace(
        batch_id=batch.batch_id,
        spec_digest=make_digest(batch.retry_of, "latest"),
        idempotency_key=batch.idempotency_key,
        retry_of=batch.retry_of,
        submitted_by=batch.submitted_by,
        origin=batch.origin,
        repetition=batch.repetition,
    )


def find_unknown_names(raw: Mapping[str, Any], project: Project) -> list[Problem]:
    """Graphs, nodes, implementations, evaluators and files that the project does not have.

    Tolerates any form: what is not of the right type is another check's business.
    """
    return list(islice(_find_unknown_names(raw, project), specs.MAX_PROBLEMS))


def _find_unknown_names(raw: Mapping[str, Any], project: Project) -> Iterator[Problem]:
    section: Any = raw.get("matrix")
    listed: list[tuple[Location, Any]] = [(("variants",), raw.get("variants"))]
    if isinstance(section, Mapping):
        yield from _matrix_names(section, project)
        listed.append((("matrix", "include"), section.get("include")))
    for location, variants in listed:
        for index, variant in enumerate(variants if isinstance(variants, list) else []):
            if isinstance(variant, Mapping):
                yield from _variant_names((*location, index), variant, project)
    known = project.description["evaluators"]
    evaluators: Any = raw.get("evaluators")
    for index, name in enumerate(evaluators if isinstance(evaluators, list) else []):
        if isinstance(name, str) and name not in known:
            yield Problem(f"evaluators[{index}]", _unknown("evaluator", name, known))


def find_unknown_nodes(graph: str, nodes: object, project: Project) -> list[Problem]:
    """Nodes that the graph does not have, and implementations that the project does not have."""
    named = _variant_names((), {"graph": graph, "nodes": nodes}, project)
    return list(islice(named, specs.MAX_PROBLEMS))


async def _find_project(name: object, registry: Registry) -> tuple[Project | None, list[Problem]]:
    if not isinstance(name, str):
        return None, []
    try:
        return await registry.get(name), []
    except NotFound:
        return None, [Problem("project", _unknown("project", name, await registry.names()))]
    except ProjectError as error:
        return None, [Problem("project", str(error))]


def _matrix_names(section: Mapping[str, Any], project: Project) -> Iterator[Problem]:
    graphs: Any = section.get("graph")
    names: list[Any] = graphs if isinstance(graphs, list) else ["default"]
    for index, graph in enumerate(names):
        if isinstance(graph, str) and graph not in project.description["graphs"]:
            path = f"matrix.graph[{index}]" if isinstance(graphs, list) else "matrix"
            yield Problem(path, _unknown("graph", graph, project.description["graphs"]))
    nodes: Any = section.get("nodes")
    described = project.description["graphs"]
    known = dict.fromkeys(name for name in names if isinstance(name, str) and name in described)
    for node, implementations in nodes.items() if isinstance(nodes, Mapping) else ():
        for index, name in enumerate(implementations if isinstance(implementations, list) else []):
            for graph in known:
                yield from _node_names(("matrix", "nodes", node, index), graph, node, name, project)


def _variant_names(
    location: Location, variant: Mapping[str, Any], project: Project
) -> Iterator[Problem]:
    graph: Any = variant.get("graph", "default")
    graphs = project.description["graphs"]
    if isinstance(graph, str) and graph not in graphs:
        yield Problem(specs.format_path((*location, "graph")), _unknown("graph", graph, graphs))
    nodes: Any = variant.get("nodes")
    for node, name in nodes.items() if isinstance(nodes, Mapping) else ():
        yield from _node_names((*location, "nodes", node), graph, node, name, project)
    files: Any = variant.get("files")
    patterns = project.definition.variant_files
    for file in files if isinstance(files, Mapping) else ():
        if not any(_matches(str(file).split("/"), p.split("/")) for p in patterns):
            yield Problem(
                specs.format_path((*location, "files", str(file))),
                f"the project's `variant_files` do not allow it: {', '.join(patterns) or 'none'}",
            )


def _matches(path: list[str], pattern: list[str]) -> bool:
    """Whether a path's parts match a pattern's, where `**` stands for any number of them."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_matches(path[i:], pattern[1:]) for i in range(len(path) + 1))
    return (
        bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])
    )


def _node_names(
    location: Location, graph: object, node: object, name: object, project: Project
) -> Iterator[Problem]:
    described = project.description["graphs"].get(graph) if isinstance(graph, str) else None
    if not isinstance(node, str) or described is None:
        return
    if described["kind"] != "state_graph":
        message = f"the graph {graph!r} is not a StateGraph; its nodes cannot be swapped"
    elif node not in described["nodes"]:
        if outer := [o for o, nodes in described["subgraphs"].items() if node in nodes]:
            message = (
                f"{node!r} is a node of the subgraph {outer[0]!r}; only the own nodes of the graph "
                f"{graph!r} can be swapped: {', '.join(described['nodes'])}"
            )
        else:
            message = _unknown(f"node in the graph {graph!r}", node, described["nodes"])
    elif isinstance(name, str) and name not in (
        known := project.description["nodes"].get(node, [])
    ):
        message = _unknown(f"implementation of {node!r}", name, known)
    else:
        return
    yield Problem(specs.format_path(location), message)


def _make(plan: _Plan) -> NewBatch:
    spec, project, body = plan.spec, plan.project, plan.canonical
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode())
    for case in spec.cases:
        digest.update(json.dumps(case, sort_keys=True).encode())
    return NewBatch(
        batch_id=new_batch_id(),
        project_version=project.version,
        spec=body,
        spec_digest=digest.hexdigest(),
        cases=[dict(case) for case in spec.cases],
        variants=plan.variants_json,
        evaluators=plan.evaluators,
        scores={
            metric: rule.model_dump()
            for metric, rule in project.definition.scores.items()
            if any(metric == name or metric.startswith(f"{name}.") for name in plan.evaluators)
        },
    )


def check_key(key: str) -> None:
    """Refuse an idempotency key that cannot be one.

    Raises:
        InvalidRequest: says what a key may be.
    """
    if not 0 < len(key) <= MAX_KEY_CHARS or not key.isprintable():
        raise InvalidRequest(
            "Idempotency-Key", f"use 1 to {MAX_KEY_CHARS} printable characters, such as a UUID"
        )


def _unknown(noun: str, name: object, known: Any) -> str:
    offered = ", ".join(sorted(str(item) for item in known)) or "none"
    return f"there is no {noun} {str(name)[:80]!r}; there is: {offered}"
