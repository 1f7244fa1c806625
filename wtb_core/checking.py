"""`wtb project check`: what a project offers, and whether one case of it runs here.

The project is ingested into a temporary data directory, described by a child process like in a
service, and run by the same engine. Nothing of it stays.
"""

import asyncio
import glob
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.console import Console

from wtb_core.attempts import Assignment, Outcome
from wtb_core.checkpoint_store import CheckpointStore
from wtb_core.data import DataDir
from wtb_core.display import clean
from wtb_core.engine import Engine
from wtb_core.errors import InvalidSpec
from wtb_core.files.blobs import BlobStore
from wtb_core.projects import Project, ProjectVersions, Registry
from wtb_core.projects.langgraph_json import FILE_NAME as LANGGRAPH_JSON
from wtb_core.sandbox.ladder import Sandbox
from wtb_core.sandbox.setup import ProjectSetup
from wtb_core.sandbox.supervisor import describe
from wtb_core.submission import DEFAULT_ADMISSION, prepare

MISSING: Any = object()
PROJECT_FILES = ("project.yaml", LANGGRAPH_JSON)
MAX_LOG_CHARS = 4000


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True)


class GraphReport(_Report):
    """A graph as its description says; schemas are JSON schemas, null where there is none."""

    kind: str
    nodes: list[str]
    subgraphs: dict[str, list[str]]
    asynchronous: bool
    input_schema: Any
    output_schema: Any
    context_schema: Any


class CaseReport(_Report):
    """The one execution that was run. `place` is the user's own line that failed."""

    variant: str
    graph: str
    case_id: str
    status: str
    duration_ms: int
    nodes: list[str]
    output: Any
    failure: str | None
    place: str | None
    traceback: str | None
    scores: dict[str, float | None]
    comments: dict[str, str]
    score_errors: dict[str, str]
    stdout: str
    stderr: str


class CheckReport(_Report):
    """What was found. `ok` says that there is no problem and that the case, if any, succeeded.

    `environment` says of each variable's name where it comes from. `note` says what was not tried.
    """

    ok: bool
    source: str
    name: str | None = None
    version: str | None = None
    problems: list[str] = []
    ignored: list[str] = []
    graphs: dict[str, GraphReport] = {}
    implementations: dict[str, list[str]] = {}
    evaluators: dict[str, list[str]] = {}
    environment: dict[str, str] = {}
    start: str | None = None
    start_reason: str | None = None
    python: str | None = None
    langgraph: str | None = None
    case: CaseReport | None = None
    note: str | None = None


def check_project(
    path: Path, *, graph: str = "default", given: Any = MISSING, spec: dict[str, Any] | None = None
) -> CheckReport:
    """Import, compile and describe the project at `path`, and run one case if there is one.

    Args:
        path: a project file, or its directory.
        graph: the graph that gets `given`.
        given: the input of a case.
        spec: a batch spec; its first variant runs on its first case.
    """
    file = find_project_file(path)
    if file is None:
        problem = f"there is no {' or '.join(PROJECT_FILES)} in {path}"
        return CheckReport(ok=False, source=str(path), problems=[problem])
    if spec is not None and given is not MISSING:
        problem = "give an input or a spec, not both"
        return CheckReport(ok=False, source=str(file), problems=[problem])
    with tempfile.TemporaryDirectory(prefix="wtb-check-") as directory:
        check = _Check(file, DataDir(Path(directory, "data")).create())
        return asyncio.run(check.run(graph, given, spec))


def find_project_file(path: Path) -> Path | None:
    """The project file that `path` is, or that is in it; null when there is none."""
    if not path.is_dir():
        return path.absolute() if path.exists() else None
    files = [path.absolute() / name for name in PROJECT_FILES]
    return next((file for file in files if file.is_file()), None)


class _Check:
    """The parts of a bench, over a temporary data directory."""

    def __init__(self, file: Path, data: DataDir) -> None:
        self._file = file
        self._data = data
        self._blobs = BlobStore(data.blobs)
        self._sandbox = Sandbox(data.runs, hidden=data.hidden)
        self._versions = ProjectVersions(self._blobs, data.bases, self._sandbox)
        patterns = [glob.escape(str(file))]
        look = partial(describe, self._sandbox)
        self._registry = Registry(file.parent, patterns, self._versions, look)

    async def run(self, graph: str, given: Any, spec: dict[str, Any] | None) -> CheckReport:
        await self._registry.refresh()
        [summary] = self._registry.summaries()
        report = CheckReport(
            ok=not summary["problems"],
            source=summary["source"],
            name=summary["name"],
            version=summary["version"],
            problems=summary["problems"],
            ignored=summary["ignored"],
        )
        if report.version is None:
            return report
        project = await self._registry.get(summary["name"])
        setup = await self._versions.prepare(project.version)
        report = report.model_copy(update=_describe(project, setup))
        if spec is None and given is MISSING:
            note = "nothing was run; give `--input JSON`, or `--spec FILE` to run its first case"
            return report.model_copy(update={"note": note})
        if spec is None:
            variants = [{"name": "check", "graph": graph}]
            case = {"id": "check", "input": given}
            spec = {"project": project.name, "variants": variants, "cases": [case]}
            return await self._run_case(report, setup, spec, with_reference=False)
        return await self._run_case(report, setup, spec, with_reference=True)

    async def _run_case(
        self,
        report: CheckReport,
        setup: ProjectSetup,
        spec: dict[str, Any],
        *,
        with_reference: bool,
    ) -> CheckReport:
        """Without a reference what an evaluator says is shown, and no problem of the project."""
        try:
            batch = await prepare(spec, self._registry, admission=DEFAULT_ADMISSION)
        except InvalidSpec as error:
            found = [str(problem) for problem in error.problems]
            return report.model_copy(update={"ok": False, "problems": [*report.problems, *found]})
        assignment = Assignment.model_validate(
            {
                "execution_id": "check",
                "batch_id": "check",
                "attempt": 1,
                "project": batch.spec["project"],
                "project_version": batch.project_version,
                "variant": batch.variants[0],
                "case": batch.cases[0],
                "repetition": 0,
                "evaluators": batch.evaluators,
                "limits": batch.spec["limits"],
                "workspace": {**batch.spec["workspace"], "keep": "never"},
            }
        )
        outcome = await self._execute(assignment)
        case = self._report_case(assignment, outcome, setup)
        problems = list(report.problems)
        if case.failure is not None:
            place = f" ({case.place})" if case.place else ""
            problems.append(f"the case {case.case_id!r} failed{place}: {case.failure}")
        if with_reference:
            problems += [
                f"the evaluator of {metric!r} failed: {error}"
                for metric, error in case.score_errors.items()
            ]
        return report.model_copy(update={"ok": not problems, "problems": problems, "case": case})

    async def _execute(self, assignment: Assignment) -> Outcome:
        checkpoints = CheckpointStore(self._data.checkpoints)

        async def find_setup(_project: str, version: str) -> ProjectSetup:
            return await self._versions.prepare(version)

        engine = Engine(
            *(self._data.runs, self._blobs, checkpoints, find_setup, self._sandbox),
            self._versions.discard,
        )
        try:
            return await engine.execute(assignment)
        finally:
            await engine.close()
            checkpoints.close()

    def _report_case(
        self, assignment: Assignment, outcome: Outcome, setup: ProjectSetup
    ) -> CaseReport:
        failure = outcome.failure
        return CaseReport(
            variant=assignment.variant.name,
            graph=assignment.variant.graph,
            case_id=str(assignment.case.get("id", "")),
            status=outcome.status,
            duration_ms=outcome.duration_ms,
            nodes=[run.name for run in outcome.nodes],
            output=None if outcome.output is None else json.loads(outcome.output),
            failure=None if failure is None else _show_failure(failure.kind, failure),
            place=None if failure is None else _find_place(failure.traceback, setup),
            traceback=None if failure is None else failure.traceback,
            scores=outcome.evaluation.scores,
            comments=outcome.evaluation.comments,
            score_errors=outcome.evaluation.errors,
            stdout=self._read_log(outcome.stdout),
            stderr=self._read_log(outcome.stderr),
        )

    def _read_log(self, digest: str | None) -> str:
        if digest is None:
            return ""
        return self._blobs.get(digest).decode(errors="replace")[-MAX_LOG_CHARS:]


def _describe(project: Project, setup: ProjectSetup) -> dict[str, Any]:
    description = project.description
    return {
        "graphs": {
            name: GraphReport.model_validate(graph) for name, graph in description["graphs"].items()
        },
        "implementations": description["nodes"],
        "evaluators": {name: found["takes"] for name, found in description["evaluators"].items()},
        "environment": dict(_name_variables(project, setup)),
        "start": description["start"],
        "start_reason": description["start_reason"],
        "python": description["python"],
        "langgraph": description["langgraph"],
    }


def _name_variables(project: Project, setup: ProjectSetup) -> Iterator[tuple[str, str]]:
    wanted = project.definition.environment
    for name in wanted.pass_:
        yield name, "pass" if name in os.environ else "pass, but it is not set here"
    for name in wanted.set:
        yield name, "set"
    for name in setup.secrets.keys() - {*wanted.pass_, *wanted.set}:
        yield name, "file"


def _show_failure(kind: str, failure: Any) -> str:
    node = f" in the node {failure.node!r}" if failure.node else ""
    return f"{kind}{node}: {failure.reason}"


def _find_place(traceback: str | None, setup: ProjectSetup) -> str | None:
    """The innermost line of the project in a traceback, as `file.py:12`."""
    roots = [root for root in (setup.code, setup.packages) if root is not None]
    names = "|".join(re.escape(str(root)) for root in roots)
    found = re.findall(rf'File "(?:{names})/([^"]+)", line (\d+)', traceback or "")
    return f"{found[-1][0]}:{found[-1][1]}" if found else None


def render_check(report: CheckReport, console: Console) -> None:
    """The report for a reader; text of user code without control sequences."""
    console.print(f"[bold]{clean(report.name or 'no project')}[/]  {clean(report.source)}")
    if report.version is not None:
        reason = f" ({clean(report.start_reason)})" if report.start_reason else ""
        console.print(
            f"version {report.version[:16]}, Python {clean(report.python)}, "
            f"langgraph {clean(report.langgraph)}, start {report.start}{reason}"
        )
    for name, graph in report.graphs.items():
        console.print(f"\ngraph [bold]{clean(name)}[/] ({clean(graph.kind)})")
        console.print(f"  nodes: {_join(graph.nodes)}")
        for outer, nodes in graph.subgraphs.items():
            console.print(f"  subgraph {clean(outer)}: {_join(nodes)}")
        for noun, schema in (
            ("input", graph.input_schema),
            ("output", graph.output_schema),
            ("context", graph.context_schema),
        ):
            if schema is not None:
                console.print(f"  {noun}: {clean(_show_schema(schema))}")
    _render_mapping("implementations", report.implementations, console)
    _render_mapping("evaluators", report.evaluators, console)
    _render_mapping("environment", {k: [v] for k, v in report.environment.items()}, console)
    _render_lines("ignored", report.ignored, console)
    if report.case is not None:
        _render_case(report.case, console)
    _render_lines("[red]problems[/]", report.problems, console)
    if report.note is not None:
        console.print(f"\n{clean(report.note)}")
    console.print("\n[green]ok[/]" if report.ok else "\n[red]not ok[/]")


def _render_case(case: CaseReport, console: Console) -> None:
    console.print(
        f"\ncase [bold]{clean(case.case_id)}[/] of variant {clean(case.variant)}: {case.status} "
        f"in {case.duration_ms} ms"
    )
    console.print(f"  nodes: {_join(case.nodes)}")
    if case.status == "succeeded":
        console.print(f"  output: {clean(json.dumps(case.output, ensure_ascii=False))}")
    for metric, score in case.scores.items():
        said = case.score_errors.get(metric) or case.comments.get(metric)
        after = f" ({clean(said)})" if said else ""
        console.print(f"  {clean(metric)}: {'-' if score is None else f'{score:g}'}{after}")
    for noun, text in (
        ("stdout", case.stdout),
        ("stderr", case.stderr),
        ("traceback", case.traceback or ""),
    ):
        if text:
            console.print(f"  {noun}:")
            for line in text.rstrip().splitlines():
                console.print(f"    {clean(line)}")


def _render_mapping(title: str, entries: Mapping[str, list[str]], console: Console) -> None:
    _render_lines(
        title, [f"{name}: {', '.join(items)}" for name, items in entries.items()], console
    )


def _render_lines(title: str, lines: list[str], console: Console) -> None:
    if lines:
        console.print(f"\n{title}")
    for line in lines:
        console.print(f"  {clean(line, MAX_LOG_CHARS)}")


def _join(names: list[str]) -> str:
    return clean(", ".join(names) or "none")


def _show_schema(schema: Any) -> str:
    """The fields of a schema with their types; required ones first come first in it anyway."""
    properties: Any = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping):
        return _show_type(schema)
    required: Any = schema.get("required", [])
    fields = [
        f"{name}{'' if name in required else '?'}: {_show_type(field)}"
        for name, field in properties.items()
    ]
    return ", ".join(fields) or "nothing"


def _show_type(field: Any) -> str:
    if not isinstance(field, Mapping):
        return "anything"
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "anyOf" in field:
        return " or ".join(_show_type(option) for option in field["anyOf"])
    if field.get("type") == "array":
        return f"list of {_show_type(field.get('items'))}"
    return str(field.get("type", "anything"))
