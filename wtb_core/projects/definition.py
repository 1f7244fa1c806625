"""What a project file says, and every problem that it can have."""

import os
import stat
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from wtb_core.documents import parse_yaml
from wtb_core.errors import InvalidDocument, Problem, ProjectError
from wtb_core.projects import langgraph_json
from wtb_core.specs import Name, format_path

MAX_FILE_BYTES = 1024**2

_REFERENCE = r"^(\./[^:\x00]+\.py|[A-Za-z_][\w.]*):[\w.]+$"
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
_NO_NUL = r"^[^\x00]*$"
_PATTERNS = {
    _REFERENCE: "a reference is `module:attr` or `./file.py:attr`",
    _VARIABLE: "the name of a variable is letters, digits and _",
    _NO_NUL: "it holds a NUL character",
}

Reference = Annotated[str, StringConstraints(pattern=_REFERENCE)]
Variable = Annotated[str, StringConstraints(pattern=_VARIABLE)]
Text = Annotated[str, StringConstraints(pattern=_NO_NUL)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScoreRule(_Strict):
    """How a metric enters means and the overall score."""

    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    higher_is_better: bool = True
    failure_score: float = Field(default=0.0, allow_inf_nan=False)


class Environment(_Strict):
    """What user code's environment has beside PATH, LANG, TZ and its own HOME and TMPDIR."""

    model_config = ConfigDict(populate_by_name=True)

    pass_: list[Variable] = Field(default=[], alias="pass")
    set: dict[Variable, Text] = {}
    file: Text | None = None
    python: Text | None = None


class ProjectFile(_Strict):
    """The content of a `project.yaml`."""

    name: Name
    graph: Reference | None = None
    graphs: dict[Name, Reference] = {}
    workspace: Text | None = None
    build: Reference | None = None
    nodes: dict[str, dict[Name, Reference]] = {}
    evaluators: dict[Name, Reference] = {}
    scores: dict[str, ScoreRule] = {}
    variant_files: list[str] = []
    environment: Environment = Environment()
    start: Literal["fork", "fresh"] = "fork"

    @property
    def named_graphs(self) -> dict[str, str]:
        """Every graph by its name in a spec; an only graph is `default` as well."""
        if self.graph is not None:
            return {"default": self.graph}
        if len(self.graphs) == 1:
            return {"default": next(iter(self.graphs.values())), **self.graphs}
        return self.graphs

    @property
    def references(self) -> list[str]:
        """Everything that is imported."""
        implementations = [ref for found in self.nodes.values() for ref in found.values()]
        build = [] if self.build is None else [self.build]
        return [
            *self.named_graphs.values(),
            *implementations,
            *self.evaluators.values(),
            *build,
        ]


class Declared(NamedTuple):
    """A project file that can be used, and what of it has no meaning here, in plain words."""

    definition: ProjectFile
    ignored: list[str]


def read_project_file(path: Path) -> Declared:
    """What a `project.yaml` or a `langgraph.json` declares.

    Raises:
        ProjectError: with every problem of the file.
    """
    data = _read(path)
    ignored: list[str] = []
    if path.name == langgraph_json.FILE_NAME:
        try:
            raw, ignored = langgraph_json.convert(data, path.parent.name)
        except ValueError as error:
            raise ProjectError(str(path), list(error.args)) from error
    else:
        raw = _parse_yaml(path, data)
    try:
        definition = ProjectFile.model_validate(raw)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        raise ProjectError(str(path), [_explain(fault) for fault in faults]) from error
    problems = _find_problems(definition)
    if problems:
        raise ProjectError(str(path), problems)
    return Declared(definition, ignored)


def _read(path: Path) -> bytes:
    """A pipe in a project file's place must not be waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
            data = os.read(descriptor, MAX_FILE_BYTES + 1) if is_file else None
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ProjectError(str(path), [f"cannot be read: {error.strerror}"]) from error
    if data is None:
        raise ProjectError(str(path), ["is not a file"])
    if len(data) > MAX_FILE_BYTES:
        raise ProjectError(str(path), [f"is larger than {MAX_FILE_BYTES} bytes"])
    return data


def _parse_yaml(path: Path, data: bytes) -> Any:
    try:
        return parse_yaml(data)
    except InvalidDocument as error:
        place = "" if error.line is None else f"line {error.line}, column {error.column}: "
        raise ProjectError(str(path), [f"is not YAML: {place}{error.message}"]) from error


def _explain(fault: Any) -> str:
    location = tuple(part for part in fault["loc"] if part != "[key]")
    return str(Problem(format_path(location), _describe_fault(fault)))


def _describe_fault(fault: Any) -> str:
    match fault["type"]:
        case "extra_forbidden":
            return "unknown key"
        case "missing":
            return "required"
        case "string_pattern_mismatch":
            name = "a name is letters, digits, . _ - and starts with a letter or a digit"
            return _PATTERNS.get(fault["ctx"]["pattern"], name)
        case "string_type":
            return "give text; numbers, dates, true and false are text in quotes"
        case "model_type" if not fault["loc"]:
            return "a project file is a mapping with at least `name` and `graph`"
        case "model_type" | "dict_type":
            return "give a mapping"
        case "list_type":
            return "give a list"
        case _:
            return fault["msg"]


def find_loose_ends(definition: ProjectFile) -> list[str]:
    """What has no effect and was surely meant to have one; the project can be used all the same."""
    evaluators = definition.evaluators
    known = ", ".join(evaluators) or "none"
    return [
        f"{format_path(('scores', metric))}: no evaluator has this metric; a metric is the name of "
        f"an evaluator or `evaluator.metric`, and the evaluators are: {known}"
        for metric in definition.scores
        if not any(metric == name or metric.startswith(f"{name}.") for name in evaluators)
    ]


def _find_problems(definition: ProjectFile) -> list[str]:
    """What is wrong between the keys."""
    problems: list[str] = []
    if (definition.graph is None) == (not definition.graphs):
        problems.append("give `graph` for one graph or `graphs` for several")
    evaluators = definition.evaluators
    problems += [
        f"evaluators.{name}: its name is that of a metric of {other!r}; take another one"
        for name in evaluators
        for other in evaluators
        if name.startswith(f"{other}.")
    ]
    for index, pattern in enumerate(definition.variant_files):
        if any(part in {"", ".", ".."} for part in pattern.split("/")) or "\\" in pattern:
            problems.append(
                f"variant_files[{index}]: {pattern!r} must be relative to the workspace, without "
                "empty, '.' or '..' parts"
            )
    return problems
