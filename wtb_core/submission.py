"""From what a client sent to a batch that can be stored: every check, none of it half-done."""

import fnmatch
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from wtb_core import matrix, specs
from wtb_core.errors import InvalidRequest, InvalidSpec, NotFound, Problem, ProjectError
from wtb_core.ids import new_batch_id
from wtb_core.projects import Project, Registry
from wtb_core.specs import BatchSpec, Variant
from wtb_core.store.records import NewBatch
from wtb_core.store.reuse import make_digest

MAX_KEY_CHARS = 255


async def prepare(
    raw: object, registry: Registry, *, admission: int, idempotency_key: str | None = None
) -> NewBatch:
    """Check `raw` against its project and make the batch that may be stored.

    Raises:
        InvalidSpec: with all problems found.
        InvalidRequest: when the idempotency key is unusable.
    """
    if idempotency_key is not None:
        check_key(idempotency_key)
    problems = specs.find_problems(raw)
    name: object = raw.get("project") if isinstance(raw, Mapping) else None
    project, found = await _find_project(name, registry)
    problems += found
    if project is not None and isinstance(raw, Mapping):
        problems += find_unknown_names(raw, project)
    if problems:
        raise InvalidSpec(problems)
    assert project is not None
    spec = specs.parse(raw)
    problems = matrix.find_problems(spec)
    if not problems:
        problems = list(_find_size_problems(spec, admission))
    if problems:
        raise InvalidSpec(problems)
    return _make(spec, project, idempotency_key)


async def renew(batch: NewBatch, registry: Registry, *, admission: int) -> NewBatch:
    """`batch`, which tries another one again, for the newest version of its project.

    Raises:
        InvalidSpec: when the project has lost what the spec names.
    """
    assert batch.retry_of is not None
    fresh = await prepare({**batch.spec, "cases": batch.cases}, registry, admission=admission)
    return fresh._replace(
        batch_id=batch.batch_id,
        spec_digest=make_digest(batch.retry_of, fresh.project_version),
        idempotency_key=batch.idempotency_key,
        retry_of=batch.retry_of,
        submitted_by=batch.submitted_by,
    )


def find_unknown_names(raw: Mapping[str, Any], project: Project) -> list[Problem]:
    """Graphs, nodes, implementations, evaluators and files that the project does not have.

    Tolerates any form: what is not of the right type is another check's business.
    """
    problems: list[Problem] = []
    matrix_section: Any = raw.get("matrix")
    listed = [("variants", raw.get("variants"))]
    if isinstance(matrix_section, Mapping):
        listed.append(("matrix.include", matrix_section.get("include")))
        problems += _matrix_names(matrix_section, project)
    for section, variants in listed:
        for index, variant in enumerate(variants if isinstance(variants, list) else []):
            if isinstance(variant, Mapping):
                problems += _variant_names(f"{section}[{index}]", variant, project)
    known = project.description["evaluators"]
    evaluators: Any = raw.get("evaluators")
    for index, name in enumerate(evaluators if isinstance(evaluators, list) else []):
        if isinstance(name, str) and name not in known:
            problems.append(Problem(f"evaluators[{index}]", _unknown("evaluator", name, known)))
    return problems


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
    for node, implementations in nodes.items() if isinstance(nodes, Mapping) else ():
        for index, name in enumerate(implementations if isinstance(implementations, list) else []):
            for graph in names:
                yield from _node_names(f"matrix.nodes.{node}[{index}]", graph, node, name, project)


def _variant_names(path: str, variant: Mapping[str, Any], project: Project) -> Iterator[Problem]:
    graph: Any = variant.get("graph", "default")
    graphs = project.description["graphs"]
    if isinstance(graph, str) and graph not in graphs:
        yield Problem(f"{path}.graph", _unknown("graph", graph, graphs))
    nodes: Any = variant.get("nodes")
    for node, name in nodes.items() if isinstance(nodes, Mapping) else ():
        yield from _node_names(f"{path}.nodes.{node}", graph, node, name, project)
    files: Any = variant.get("files")
    for file in files if isinstance(files, Mapping) else ():
        patterns = project.definition.variant_files
        if not any(_matches(str(file).split("/"), p.split("/")) for p in patterns):
            yield Problem(
                specs.format_path((path, "files", str(file))).replace(f'["{path}"]', path),
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
    path: str, graph: str, node: object, name: object, project: Project
) -> Iterator[Problem]:
    described = project.description["graphs"].get(graph)
    if not isinstance(node, str) or described is None:
        return
    if described["kind"] != "state_graph":
        yield Problem(path, f"the graph {graph!r} is not a StateGraph; its nodes cannot be swapped")
    elif node not in described["nodes"]:
        if outer := [o for o, nodes in described.get("subgraphs", {}).items() if node in nodes]:
            yield Problem(
                path,
                f"{node!r} is a node of the subgraph {outer[0]!r}; only the own nodes of the graph "
                f"{graph!r} can be swapped: {', '.join(described['nodes'])}",
            )
            return
        yield Problem(path, _unknown(f"node in the graph {graph!r}", node, described["nodes"]))
    elif isinstance(name, str):
        known = project.description["nodes"].get(node, [])
        if name not in known:
            yield Problem(path, _unknown(f"implementation of {node!r}", name, known))


def _find_size_problems(spec: BatchSpec, admission: int) -> Iterator[Problem]:
    variants = len(matrix.expand(spec))
    total = matrix.Shape(variants, len(spec.cases), spec.repetitions).executions
    if total > admission:
        yield Problem(
            "",
            f"{variants} variants x {len(spec.cases)} cases x {spec.repetitions} repetitions are "
            f"{total} executions, more than max_pending_executions {admission}; split the batch",
        )


def _make(spec: BatchSpec, project: Project, idempotency_key: str | None) -> NewBatch:
    body = spec.model_dump(mode="json", exclude={"cases"})
    variants: list[Variant] = matrix.expand(spec)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode())
    for case in spec.cases:
        digest.update(json.dumps(case, sort_keys=True).encode())
    evaluators = spec.evaluators
    if evaluators is None:
        evaluators = list(project.definition.evaluators)
    return NewBatch(
        batch_id=new_batch_id(),
        project_version=project.version,
        spec=body,
        spec_digest=digest.hexdigest(),
        cases=[dict(case) for case in spec.cases],
        variants=[variant.model_dump(mode="json") for variant in variants],
        evaluators=evaluators,
        scores={
            metric: rule.model_dump()
            for metric, rule in project.definition.scores.items()
            if any(metric == name or metric.startswith(f"{name}.") for name in evaluators)
        },
        idempotency_key=idempotency_key,
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
