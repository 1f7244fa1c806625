"""Specs as users write them: a YAML or JSON file, with its cases inline or in a file beside it."""

from pathlib import Path
from typing import Any

from wtb_core.cases import read_cases
from wtb_core.documents import parse_json, parse_yaml
from wtb_core.errors import InvalidDocument, InvalidSpec, Problem

_FILE_SCHEME = "file://"


def read_spec(spec: dict[str, Any] | str | Path) -> dict[str, Any]:
    """The spec in a YAML or JSON file, or as given, with the cases of `cases: file://...` in it.

    Args:
        spec: a path, or a spec. A relative path of cases starts at the spec's directory, or at the
            working directory where the spec is none of a file.

    Raises:
        InvalidSpec: when a file cannot be read, or is none of a spec or of cases; what the spec
            says is checked by whom it is submitted to.
    """
    if isinstance(spec, dict):
        return _with_cases(spec, Path())
    path = Path(spec)
    parse = parse_json if path.suffix.lower() == ".json" else parse_yaml
    try:
        raw = parse(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidSpec([Problem(str(spec), f"cannot be read: {reason}")]) from error
    except InvalidDocument as error:
        raise InvalidSpec([Problem(str(spec), str(error))]) from error
    if not isinstance(raw, dict):
        message = "a batch spec is a mapping with at least `project` and `cases`"
        raise InvalidSpec([Problem(str(spec), message)])
    return _with_cases(raw, path.parent)


def _with_cases(spec: dict[str, Any], directory: Path) -> dict[str, Any]:
    cases = spec.get("cases")
    if not isinstance(cases, str) or not cases.startswith(_FILE_SCHEME):
        return spec
    name = cases.removeprefix(_FILE_SCHEME)
    if not name:
        raise InvalidSpec([Problem("cases", "give a path after `file://`")])
    return {**spec, "cases": read_cases(directory / name)}
