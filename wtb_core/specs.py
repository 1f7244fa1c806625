"""The batch spec: what a client submits, its defaults, and every problem it can have.

`parse` reports all problems of a spec at once. Checks against a project's description need no
project code: they compare names.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from wtb_core.errors import InvalidSpec, Problem

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
CASE_ID_CHARS = 256
MAX_PROBLEMS = 100

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|[kKMGT]i?B?)?")
_BYTES = {
    "": 1,
    "K": 1000,
    "M": 1000**2,
    "G": 1000**3,
    "T": 1000**4,
    "KI": 1024,
    "MI": 1024**2,
    "GI": 1024**3,
    "TI": 1024**4,
}

FailureKind = Literal[
    "error",
    "timeout",
    "crash",
    "out_of_memory",
    "lost",
    "interrupted",
    "invalid_output",
    "setup",
]
RetryableKind = Literal["crash", "lost", "timeout", "out_of_memory", "error"]


def parse_duration_s(value: object) -> float:
    """Seconds from a number of seconds or a text such as `90`, `1.5s`, `10m` or `250ms`."""
    if isinstance(value, bool):
        raise ValueError("give a duration such as 30, 30s, 10m or 2h")
    if isinstance(value, int | float):
        return _finite(value)
    if isinstance(value, str):
        text = value.strip()
        if match := _DURATION.fullmatch(text):
            return _finite(float(match[1]) * _SECONDS[match[2]])
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return _finite(float(text))
    raise ValueError("give a duration such as 30, 30s, 10m or 2h")


def parse_size_bytes(value: object) -> int:
    """Bytes from a number of bytes or a text such as `512`, `500k`, `10MB` or `2GiB`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        unit = (match[2] or "").upper().removesuffix("B")
        return int(_finite(float(match[1]) * _BYTES[unit]))
    raise ValueError("give a size such as 1048576, 500k, 10MB or 2GiB")


def _finite(value: float) -> float:
    """`value` as a float; an integer may be too large to be one."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("this number is too large")
    return number


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _as_failure_limit(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("give a count such as 10 or a fraction such as 0.1")
    if value < 0 or (isinstance(value, float) and value > 1):
        raise ValueError("give a count of at least 0 or a fraction between 0 and 1")
    return value


def _relative_path(value: str) -> str:
    parts = value.split("/")
    if not value or value.startswith("/") or "\\" in value or "\0" in value:
        raise ValueError("give a path relative to the workspace, with forward slashes")
    if any(part in {"", ".", ".."} for part in parts):
        raise ValueError("a path in the workspace has no empty, '.' or '..' part")
    return value


Duration = Annotated[float, BeforeValidator(parse_duration_s), Field(gt=0, le=30 * 86400)]
Backoff = Annotated[float, BeforeValidator(parse_duration_s), Field(ge=0, le=86400)]
Size = Annotated[int, BeforeValidator(parse_size_bytes), Field(gt=0, le=2**50)]
Name = Annotated[str, StringConstraints(pattern=f"^{NAME_PATTERN}$")]
CaseId = Annotated[
    str,
    StringConstraints(min_length=1, max_length=CASE_ID_CHARS),
    BeforeValidator(_as_text),
]
FilePath = Annotated[str, StringConstraints(max_length=1024)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Variant(_Strict):
    """One way to build and configure the graph."""

    name: Name
    graph: str = "default"
    nodes: dict[str, str] = {}
    config: dict[str, Any] = {}
    context: dict[str, Any] = {}
    files: dict[FilePath, str] = {}
    recursion_limit: Annotated[int, Field(ge=1, le=100_000)] | None = None


class MatrixEntry(_Strict):
    """A partial variant: every combination that agrees with it is excluded."""

    graph: str | None = None
    nodes: dict[str, str] = {}
    config: dict[str, Any] = {}
    context: dict[str, Any] = {}


class Matrix(_Strict):
    """Lists of values whose product gives variants."""

    graph: Annotated[list[str], Field(min_length=1)] | None = None
    nodes: dict[str, Annotated[list[str], Field(min_length=1)]] = {}
    config: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    context: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    exclude: list[MatrixEntry] = []
    include: list[Variant] = []


class Case(TypedDict):
    """One input. A plain dict, because a batch may have a hundred thousand of them."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[misc]

    id: NotRequired[CaseId]
    input: Any
    reference: NotRequired[Any]
    tags: NotRequired[list[str]]
    files: NotRequired[dict[FilePath, str]]
    resume: NotRequired[list[Any]]


class Limits(_Strict):
    """What one execution, and the batch, may use. Durations in seconds, sizes in bytes."""

    timeout: Duration = 600.0
    evaluator_timeout: Duration = 120.0
    batch_timeout: Duration | None = None
    memory: Size = 2 * 1024**3
    processes: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    output: Size = 10 * 1024**2
    file_size: Size = 1024**3
    max_failures: Annotated[int | float, BeforeValidator(_as_failure_limit)] | None = None
    concurrency: Annotated[int, Field(ge=1)] | None = None


class Retry(_Strict):
    """When a failed attempt is followed by another one."""

    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    backoff: Backoff = 1.0
    on: list[RetryableKind] = ["crash", "lost"]


class Workspace(_Strict):
    """How an execution's workspace is made and how long it is kept."""

    network: bool = True
    keep: Literal["always", "failed", "never"] = "failed"


class BatchSpec(_Strict):
    """A batch as submitted, with its defaults filled in; the cases are plain dicts."""

    project: Name
    name: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    variants: list[Variant] = []
    matrix: Matrix | None = None
    cases: Annotated[list[Case], Field(min_length=1)]
    repetitions: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    evaluators: list[str] | None = None
    baseline: str | None = None
    limits: Limits = Limits()
    retry: Retry = Retry()
    workspace: Workspace = Workspace()
    labels: dict[str, str] = {}


_SPEC: TypeAdapter[BatchSpec] = TypeAdapter(BatchSpec)


def parse(raw: object) -> BatchSpec:
    """The spec in `raw` (a mapping as JSON or YAML gives it).

    Raises:
        InvalidSpec: with every problem of form; names are checked by `check_names`.
    """
    problems = find_problems(raw)
    if problems:
        raise InvalidSpec(problems)
    return _with_case_ids(_SPEC.validate_python(raw))


def find_problems(raw: object) -> list[Problem]:
    """Every problem of form in `raw`, in the order of the document, at most a hundred."""
    if not isinstance(raw, Mapping):
        return [Problem("", "a batch spec is a mapping with at least `project` and `cases`")]
    document = cast("Mapping[str, Any]", raw)
    problems: list[Problem] = []
    cases = document.get("cases")
    if isinstance(cases, str):
        problems.append(
            Problem(
                "cases",
                "give the cases inline; the server reads no files"
                if cases.startswith("file://")
                else "give a list of cases",
            )
        )
        document = {**document, "cases": [{"input": None}]}
    try:
        _SPEC.validate_python(document)
    except ValidationError as error:
        problems += [
            Problem(format_path(fault["loc"]), _explain(fault["type"], fault["msg"]))
            for fault in error.errors(include_url=False, include_input=False, include_context=False)
        ]
    if not document.get("variants") and not document.get("matrix"):
        problems.append(Problem("variants", "give variants, a matrix, or both"))
    problems += _case_problems(document.get("cases"))
    problems += _evaluator_problems(document.get("evaluators"))
    problems += _path_problems(document)
    problems += _text_problems(document)
    return problems[:MAX_PROBLEMS]


def format_path(location: tuple[int | str, ...]) -> str:
    """`('variants', 3, 'nodes', 'propose')` as `variants[3].nodes.propose`."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part == "[key]":
            continue
        elif re.fullmatch(r"[A-Za-z0-9_-]+", part):
            text += f".{part}" if text else part
        else:
            quoted = json.dumps(part, ensure_ascii=False)
            text += f"[{quoted.encode(errors='backslashreplace').decode()}]"
    return text


def case_id(case: Mapping[str, Any], index: int) -> str:
    """The case's id, or its row number counted from 1."""
    return str(case.get("id", index + 1))


def _with_case_ids(spec: BatchSpec) -> BatchSpec:
    for index, case in enumerate(spec.cases):
        case["id"] = case_id(case, index)
    return spec


def _explain(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "missing":
        return "required"
    if kind == "string_pattern_mismatch":
        return "use letters, digits, '.', '_' and '-', starting with a letter or digit, at most 128"
    return message.removeprefix("Value error, ")


def _case_problems(cases: object) -> Iterator[Problem]:
    if not isinstance(cases, list):
        return
    seen: dict[str, int] = {}
    for index, case in enumerate(cast("list[object]", cases)):
        if not isinstance(case, Mapping):
            continue
        given = cast("Mapping[str, Any]", case)
        if not isinstance(given.get("id", index), str | int):
            continue
        try:
            identity = case_id(given, index)
        except ValueError:  # an integer with more digits than Python prints; the form is refused
            continue
        if not identity.isprintable():
            yield Problem(f"cases[{index}].id", "use printable characters only")
        if identity in seen:
            yield Problem(
                f"cases[{index}].id", f"{identity[:80]!r} is also the id of cases[{seen[identity]}]"
            )
        seen.setdefault(identity, index)


def _evaluator_problems(evaluators: object) -> Iterator[Problem]:
    names = cast("list[object]", evaluators) if isinstance(evaluators, list) else []
    seen: set[str] = set()
    for index, name in enumerate(names):
        if isinstance(name, str):
            if name in seen:
                yield Problem(f"evaluators[{index}]", f"{name[:80]!r} is listed twice")
            seen.add(name)


def _path_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    matrix: Any = document.get("matrix")
    included = matrix.get("include") if isinstance(matrix, Mapping) else None
    for section, entries in (
        (("variants",), document.get("variants")),
        (("matrix", "include"), included),
        (("cases",), document.get("cases")),
    ):
        for index, entry in enumerate(entries if isinstance(entries, list) else []):
            files: Any = entry.get("files") if isinstance(entry, Mapping) else None
            for path in files if isinstance(files, Mapping) else ():
                try:
                    _relative_path(str(path))
                except ValueError as error:
                    yield Problem(format_path((*section, index, "files", str(path))), str(error))


def _text_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Lone surrogates pass `json.loads` but cannot be stored as UTF-8."""
    for key, value in document.items():
        try:
            text = json.dumps({key: value}, ensure_ascii=False, allow_nan=False, sort_keys=True)
            text.encode()
        except UnicodeEncodeError:
            yield Problem(format_path((str(key),)), "the text is not valid UTF-8")
        except (TypeError, ValueError, RecursionError) as error:
            yield Problem(format_path((str(key),)), f"this cannot be written as JSON: {error}")
