"""The batch spec: what a client submits, its defaults, and every problem it can have.

`check` reports all problems of form at once and stops at `MAX_PROBLEMS`, so a hostile spec costs no
more than a long one. Names are compared with a project's description by `submission`.
"""

import difflib
import itertools
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import ErrorDetails

from wtb_core.documents import MAX_DEPTH, MAX_INTEGER, MIN_INTEGER, is_unicode
from wtb_core.errors import InvalidSpec, Problem

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
CASE_ID_CHARS = 256
MAX_PROBLEMS = 100
MAX_ENTRIES = 1_000
MAX_LABELS = 100
MAX_VARIANTS = 10_000
MAX_COUNT = 2**31 - 1
MAX_AXES = 64
FILE_NAME_BYTES = 255
MAX_PATH_PARTS = 32
PATH_PART_CHARS = 200

_RESERVED_CONFIG = {"thread_id", "checkpoint_id", "checkpoint_ns", "checkpoint_map"}
_RESERVED_PREFIX = "__pregel_"

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


def _between(low: float, high: float, message: str) -> AfterValidator:
    def check(value: float) -> float:
        if not low <= value <= high:
            raise ValueError(message)
        return value

    return AfterValidator(check)


def _as_text(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if not MIN_INTEGER <= value <= MAX_INTEGER:
        raise ValueError("an integer has at most 64 bits; make it text")
    return str(value)


def _as_failure_limit(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("give a count such as 10 or a fraction such as 0.1")
    if not 0 <= value <= (1 if isinstance(value, float) else MAX_COUNT):
        raise ValueError(f"give a count from 0 to {MAX_COUNT} or a fraction between 0.0 and 1.0")
    return value


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("use printable characters only")
    return value


def _label(value: str) -> str:
    if "=" in value:
        raise ValueError("a label's name has no '=': batches are listed by `name=value`")
    return _printable(value)


def _configurable(value: str) -> str:
    if value in _RESERVED_CONFIG or value.startswith(_RESERVED_PREFIX):
        raise ValueError("LangGraph and this bench set this key themselves; choose another")
    return value


def _at_most(count: int) -> BeforeValidator:
    """Refuses a longer mapping before its entries are looked at."""

    def check(value: object) -> object:
        if isinstance(value, Mapping) and len(cast("Mapping[object, object]", value)) > count:
            raise ValueError(f"give at most {count} entries")
        return value

    return BeforeValidator(check)


def _relative_path(value: str) -> str:
    parts = value.split("/")
    if not value or value.startswith("/") or "\\" in value or "\0" in value:
        raise ValueError("give a path relative to the workspace, with forward slashes")
    if any(part in {"", ".", ".."} for part in parts):
        raise ValueError("a path in the workspace has no empty, '.' or '..' part")
    if len(parts) > MAX_PATH_PARTS:
        raise ValueError(f"a path has at most {MAX_PATH_PARTS} parts")
    if any(len(part.encode(errors="replace")) > FILE_NAME_BYTES for part in parts):
        raise ValueError(f"a part of a path has at most {FILE_NAME_BYTES} bytes")
    return value


def _file_tree(files: dict[str, str]) -> dict[str, str]:
    # Sorted by their parts, what lies below a file comes right after it.
    for upper, lower in itertools.pairwise(sorted(path.split("/") for path in files)):
        if lower[: len(upper)] == upper:
            file, below = "/".join(upper), "/".join(lower)
            raise ValueError(f"{file!r} cannot be a file and hold {below!r}")
    return files


Duration = Annotated[
    float,
    _between(0.001, 30 * 86400, "give a duration from 1ms to 30d"),
    BeforeValidator(parse_duration_s),
]
Backoff = Annotated[
    float, _between(0, 86400, "give a duration from 0 to 1d"), BeforeValidator(parse_duration_s)
]
Size = Annotated[
    int, _between(1, 2**50, "give a size from 1 byte to 1024TiB"), BeforeValidator(parse_size_bytes)
]
Count = Annotated[int, Field(strict=True, ge=1, le=MAX_COUNT)]
Name = Annotated[str, StringConstraints(pattern=f"^{NAME_PATTERN}$")]
ShortText = Annotated[
    str, StringConstraints(min_length=1, max_length=256), AfterValidator(_printable)
]
CaseId = Annotated[
    str,
    StringConstraints(min_length=1, max_length=CASE_ID_CHARS),
    AfterValidator(_printable),
    BeforeValidator(_as_text),
]
FilePath = Annotated[str, StringConstraints(max_length=1024), AfterValidator(_relative_path)]
Files = Annotated[dict[FilePath, str], _at_most(MAX_ENTRIES), AfterValidator(_file_tree)]
Nodes = Annotated[dict[str, str], _at_most(MAX_ENTRIES)]
ConfigKey = Annotated[str, AfterValidator(_configurable)]
Config = Annotated[dict[ConfigKey, Any], _at_most(MAX_ENTRIES)]
Context = Annotated[dict[str, Any], _at_most(MAX_ENTRIES)]
LabelName = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_label)]
LabelValue = Annotated[str, StringConstraints(max_length=1024), AfterValidator(_printable)]
Labels = Annotated[dict[LabelName, LabelValue], _at_most(MAX_LABELS)]
Alternatives = Annotated[list[str], Field(min_length=1, max_length=MAX_VARIANTS)]
AnyAlternatives = Annotated[list[Any], Field(min_length=1, max_length=MAX_VARIANTS)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Variant(_Strict):
    """One way to build and configure the graph."""

    name: Name
    graph: str = "default"
    nodes: Nodes = {}
    config: Config = {}
    context: Context = {}
    files: Files = {}
    recursion_limit: Annotated[int, Field(strict=True, ge=1, le=100_000)] | None = None


class MatrixEntry(_Strict):
    """A partial variant: every combination that agrees with it is excluded."""

    graph: str | None = None
    nodes: Nodes = {}
    config: Context = {}
    context: Context = {}


class Matrix(_Strict):
    """Lists of values whose product gives variants."""

    graph: Alternatives | None = None
    nodes: Annotated[dict[str, Alternatives], _at_most(MAX_AXES)] = {}
    config: Annotated[dict[ConfigKey, AnyAlternatives], _at_most(MAX_AXES)] = {}
    context: Annotated[dict[str, AnyAlternatives], _at_most(MAX_AXES)] = {}
    exclude: list[MatrixEntry] = []
    include: list[Variant] = []


class Case(TypedDict):
    """One input. A plain dict, because a batch may have a hundred thousand of them."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[misc]

    id: NotRequired[CaseId]
    input: Any
    reference: NotRequired[Any]
    tags: NotRequired[Annotated[list[ShortText], Field(max_length=MAX_ENTRIES)]]
    files: NotRequired[Files]
    resume: NotRequired[list[Any]]


class Limits(_Strict):
    """What one execution, and the batch, may use. Durations in seconds, sizes in bytes."""

    timeout: Duration = 600.0
    evaluator_timeout: Duration = 120.0
    batch_timeout: Duration | None = None
    memory: Size = 2 * 1024**3
    processes: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 256
    output: Size = 10 * 1024**2
    file_size: Size = 1024**3
    max_failures: Annotated[int | float, PlainValidator(_as_failure_limit)] | None = None
    concurrency: Count | None = None


class Retry(_Strict):
    """When a failed attempt is followed by another one."""

    max_attempts: Annotated[int, Field(strict=True, ge=1, le=100)] = 3
    backoff: Backoff = 1.0
    on: Annotated[list[RetryableKind], Field(max_length=MAX_ENTRIES)] = ["crash", "lost"]


class Workspace(_Strict):
    """How an execution's workspace is made and how long it is kept."""

    network: Annotated[bool, Field(strict=True)] = True
    keep: Literal["always", "failed", "never"] = "failed"


class BatchSpec(_Strict):
    """A batch as submitted, with its defaults filled in; the cases are plain dicts."""

    project: Name
    name: ShortText | None = None
    variants: list[Variant] = []
    matrix: Matrix | None = None
    cases: Annotated[list[Case], Field(min_length=1)]
    repetitions: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 1
    evaluators: Annotated[list[str], Field(max_length=MAX_ENTRIES)] | None = None
    baseline: str | None = None
    limits: Limits = Limits()
    retry: Retry = Retry()
    workspace: Workspace = Workspace()
    priority: Annotated[int, Field(strict=True, ge=-100, le=100)] = 0
    labels: Labels = {}


_CASE: TypeAdapter[Case] = TypeAdapter(Case)
_CASE_KEYS = frozenset(Case.__annotations__)
_SECTIONS: dict[str, type[_Strict]] = {"limits": Limits, "retry": Retry, "workspace": Workspace}

Location = tuple[int | str, ...]


class Checked(NamedTuple):
    """A spec that was read; `spec` is None where there are problems.

    `draft` has no more than variants, matrix and baseline, where these can be read; what is wrong
    with them as a whole can be told beside the other problems.
    """

    spec: BatchSpec | None
    problems: list[Problem]
    draft: BatchSpec | None = None


def parse(raw: object) -> BatchSpec:
    """The spec in `raw` (a mapping as JSON or YAML gives it).

    Raises:
        InvalidSpec: with every problem of form; names are checked by `submission`.
    """
    checked = check(raw)
    if checked.spec is None:
        raise InvalidSpec(checked.problems)
    return checked.spec


def find_problems(raw: object) -> list[Problem]:
    """Every problem of form in `raw`, at most `MAX_PROBLEMS`."""
    return check(raw).problems


def check(raw: object) -> Checked:
    """The spec in `raw`, or every problem of form in it, at most `MAX_PROBLEMS`."""
    faults = _Faults()
    if not isinstance(raw, Mapping):
        faults.add((), "a batch spec is a mapping with at least `project` and `cases`")
        return Checked(None, faults.problems)
    parts: dict[str, Any] = {}
    spec = _read_spec(faults, dict(cast("Mapping[str, Any]", raw)), parts)
    if spec is not None and not faults.found:
        return Checked(spec.model_copy(update=parts), [])
    return Checked(None, faults.problems, _make_draft(faults, parts, raw))


def _make_draft(faults: "_Faults", parts: dict[str, Any], raw: Any) -> BatchSpec | None:
    if any(location[:1] in {("variants",), ("matrix",)} for location, _ in faults.found):
        return None
    baseline = raw.get("baseline")
    return BatchSpec.model_construct(
        variants=parts["variants"],
        matrix=parts.get("matrix"),
        baseline=baseline if isinstance(baseline, str) else None,
    )


def find_case_problems(cases: list[Any], name: Callable[[int], str]) -> list[tuple[int, Problem]]:
    """The index of each faulty case with a problem whose path begins in the case.

    Args:
        cases: what may be cases.
        name: what to call the case with an index.
    """
    faults = _Faults()
    _read_cases(faults, (), cases, name)
    return [
        (cast("int", location[0]), Problem(format_path(location[1:]), message))
        for location, message in faults.found
    ]


def format_path(location: Location) -> str:
    """`('variants', 3, 'nodes', 'propose')` as `variants[3].nodes.propose`."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part == "[key]":  # pydantic's word for a mapping's key, after the key
            continue
        elif re.fullmatch(r"[A-Za-z0-9_-]+", part):
            text += f".{part}" if text else part
        else:
            quoted = json.dumps(part[:PATH_PART_CHARS], ensure_ascii=False)
            text += f"[{quoted.encode(errors='backslashreplace').decode()}]"
    return text


def case_id(case: Mapping[str, Any], index: int) -> str:
    """The case's id, or its row number counted from 1."""
    return str(case.get("id", index + 1))


class _Faults:
    """What is wrong, up to `MAX_PROBLEMS`; who looks on asks whether it is `full`."""

    def __init__(self) -> None:
        self.found: list[tuple[Location, str]] = []

    @property
    def full(self) -> bool:
        return len(self.found) >= MAX_PROBLEMS

    @property
    def problems(self) -> list[Problem]:
        return [Problem(format_path(location), message) for location, message in self.found]

    def add(self, location: Location, message: str) -> None:
        if not self.full:
            self.found.append((location, message))


def _read_spec(
    faults: _Faults, document: dict[str, Any], parts: dict[str, Any]
) -> BatchSpec | None:
    """The spec without the `parts` that are read one by one."""
    rest = document | {"variants": [], "matrix": None, "cases": [{"input": None}]}
    for key, model in _SECTIONS.items():
        if key in document:
            parts[key] = _read(faults, (key,), model, document[key])
            rest[key] = {}
    spec = _read(faults, (), BatchSpec, rest)
    _check_evaluators(faults, document.get("evaluators"))
    parts["variants"] = _read_list(faults, ("variants",), Variant, document.get("variants", []))
    if document.get("matrix") is not None:
        parts["matrix"] = _read_matrix(faults, document["matrix"])
    if not document.get("matrix") and document.get("variants", []) == []:
        faults.add(("variants",), "give variants, a matrix, or both")
    if "cases" in document:
        parts["cases"] = _read_cases(faults, ("cases",), document["cases"], _name_case)
    else:
        faults.add(("cases",), "required")
    return spec


def _name_case(index: int) -> str:
    return f"cases[{index}]"


def _read[M: BaseModel](
    faults: _Faults, location: Location, model: type[M], value: object
) -> M | None:
    """The value as its model, or None and why not."""
    return _validate(faults, location, model.model_fields.keys(), model.model_validate, value)


def _validate[T](
    faults: _Faults,
    location: Location,
    known: Collection[str],
    validate: Callable[[object], T],
    value: object,
) -> T | None:
    before = len(faults.found)
    if isinstance(value, dict):
        given = cast("dict[str, object]", value)
        for key in islice((key for key in given if key not in known), MAX_PROBLEMS):
            faults.add((*location, str(key)), _explain_unknown(str(key), known))
        value = {key: given[key] for key in known if key in given}
    try:
        made = validate(value)
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_input=False):
            faults.add((*location, *fault["loc"]), _explain(fault))
        return None
    _find_unwritable(faults, location, value)
    return made if len(faults.found) == before else None


def _read_list[M: BaseModel](
    faults: _Faults, location: Location, model: type[M], value: object, at_most: int = MAX_VARIANTS
) -> list[M]:
    if not isinstance(value, list):
        faults.add(location, "give a list")
        return []
    items = cast("list[object]", value)
    if len(items) > at_most:
        faults.add(location, f"give at most {at_most}, not {len(items)}; split the batch")
        return []
    made: list[M] = []
    for index, item in enumerate(items):
        if faults.full:
            break
        read = _read(faults, (*location, index), model, item)
        if read is not None:
            made.append(read)
    return made


def _read_matrix(faults: _Faults, value: object) -> Matrix | None:
    if not isinstance(value, dict):
        return _read(faults, ("matrix",), Matrix, value)
    section = cast("dict[str, Any]", value)
    entries = {
        "exclude": _read_list(
            faults, ("matrix", "exclude"), MatrixEntry, section.get("exclude", []), MAX_ENTRIES
        ),
        "include": _read_list(faults, ("matrix", "include"), Variant, section.get("include", [])),
    }
    matrix = _read(faults, ("matrix",), Matrix, section | {"exclude": [], "include": []})
    return None if matrix is None else matrix.model_copy(update=entries)


def _read_cases(
    faults: _Faults, location: Location, value: object, name: Callable[[int], str]
) -> list[Case]:
    if not isinstance(value, list) or not value:
        if isinstance(value, str) and value.startswith("file://"):
            faults.add(
                location,
                "give the cases inline; the server reads no files, `wtb` and the client do",
            )
        else:
            faults.add(location, "give a list of at least 1 case")
        return []
    cases: list[Case] = []
    seen: dict[str, int] = {}
    for index, raw in enumerate(cast("list[object]", value)):
        if faults.full:
            break
        case = _validate(faults, (*location, index), _CASE_KEYS, _CASE.validate_python, raw)
        identity = _find_identity(raw, index)
        if identity in seen:
            message = f"{identity[:80]!r} is also the id of {name(seen[identity])}"
            faults.add((*location, index, "id"), message)
        elif identity is not None:
            seen[identity] = index
        if case is not None:
            case["id"] = case_id(case, index)
            cases.append(case)
    return cases


def _find_identity(case: object, index: int) -> str | None:
    given = cast("dict[str, object]", case).get("id", index + 1) if isinstance(case, dict) else None
    try:
        given = _as_text(given)
    except ValueError:
        return None
    return given if isinstance(given, str) else None


def _check_evaluators(faults: _Faults, evaluators: object) -> None:
    seen: set[str] = set()
    names = cast("list[object]", evaluators) if isinstance(evaluators, list) else []
    for index, name in enumerate(names):
        if isinstance(name, str):
            if name in seen:
                faults.add(("evaluators", index), f"{name[:80]!r} is listed twice")
            seen.add(name)


def _find_unwritable(faults: _Faults, location: Location, value: object) -> None:
    """What JSON, or the text of a database, cannot hold; such values come through handles."""
    if not isinstance(value, dict | list | tuple):
        if message := _explain_unwritable(value):
            faults.add(location, message)
        return
    if len(location) >= MAX_DEPTH:
        faults.add(location[:8], f"this is nested more than {MAX_DEPTH} levels deep")
        return
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in cast("Iterable[tuple[Any, object]]", items):
        if isinstance(value, dict):
            if not isinstance(key, str):
                faults.add((*location, str(key)), "a key is text; quote it")
            elif message := _explain_unwritable(key):
                faults.add((*location, key), message)
        if isinstance(item, dict | list | tuple):
            _find_unwritable(faults, (*location, key), item)
        elif message := _explain_unwritable(item):
            faults.add((*location, key), message)


def _explain_unwritable(value: object) -> str | None:
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        return None if value.isascii() or is_unicode(value) else "the text is not valid Unicode"
    if isinstance(value, int):
        if MIN_INTEGER <= value <= MAX_INTEGER:
            return None
        return "an integer has at most 64 bits; make it text"
    if isinstance(value, float):
        return None if math.isfinite(value) else "infinity and NaN are no JSON values; give null"
    return f"a {type(value).__name__} is no JSON value"


def _explain_unknown(key: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(key.lower(), known, 1) if len(key) <= 40 else []
    return f"unknown key; did you mean `{near[0]}`?" if near else "unknown key"


def _explain(fault: ErrorDetails) -> str:
    if fault["type"] == "string_pattern_mismatch":
        return "use letters, digits, '.', '_' and '-', starting with a letter or digit, at most 128"
    template = _EXPLANATIONS.get(fault["type"])
    if template is None:
        return fault["msg"].removeprefix("Value error, ")
    return template.format_map(fault.get("ctx", {}))


_EXPLANATIONS = {
    "missing": "required",
    "string_type": "give text",
    "int_type": "give a whole number",
    "bool_type": "give true or false",
    "list_type": "give a list",
    "dict_type": "give a mapping",
    "model_type": "give a mapping",
    "literal_error": "give {expected}",
    "too_short": "give at least {min_length}",
    "too_long": "give at most {max_length}",
    "string_too_short": "give at least {min_length} character",
    "string_too_long": "give at most {max_length} characters",
    "greater_than_equal": "give at least {ge}",
    "less_than_equal": "give at most {le}",
}
