"""What a project file says, and every problem that it can have."""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from wtb_core.errors import Problem, ProjectError
from wtb_core.specs import Name, format_path

Reference = Annotated[str, StringConstraints(pattern=r"^(\./[^:]+\.py|[A-Za-z_][\w.]*):[\w.]+$")]


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

    pass_: list[str] = Field(default=[], alias="pass")
    set: dict[str, str] = {}
    file: str | None = None
    python: str | None = None


class ProjectFile(_Strict):
    """The content of a `project.yaml`."""

    name: Name
    graph: Reference | None = None
    graphs: dict[str, Reference] = {}
    workspace: str | None = None
    nodes: dict[str, dict[str, Reference]] = {}
    evaluators: dict[str, Reference] = {}
    scores: dict[str, ScoreRule] = {}
    variant_files: list[str] = []
    environment: Environment = Environment()
    start: Literal["fork", "fresh"] = "fork"

    @property
    def named_graphs(self) -> dict[str, str]:
        """Every graph by its name in a spec."""
        return self.graphs if self.graph is None else {"default": self.graph}


def read_project_file(path: Path) -> ProjectFile:
    """The definition in a project file.

    Raises:
        ProjectError: with every problem of the file.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProjectError(str(path), [f"cannot be read: {error.strerror}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProjectError(str(path), [f"is not YAML: {error}"]) from error
    try:
        definition = ProjectFile.model_validate(raw)
    except ValidationError as error:
        problems = [
            str(Problem(format_path(fault["loc"]), _explain(fault["type"], fault["msg"])))
            for fault in error.errors(include_url=False, include_input=False)
        ]
        raise ProjectError(str(path), problems) from error
    if (definition.graph is None) == (not definition.graphs):
        raise ProjectError(str(path), ["give `graph` for one graph or `graphs` for several"])
    return definition


def _explain(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "missing":
        return "required"
    if kind == "string_pattern_mismatch":
        return "a reference is `module:attr` or `./file.py:attr`; a name is letters, digits, . _ -"
    if kind == "model_type":
        return "a project file is a mapping with at least `name` and `graph`"
    return message
