"""Cases from files, for the client and `wtb`; the server reads none.

A problem says where in the file it is: the line of a JSONL or CSV file, the row (from 1) of a list.
"""

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from wtb_core.documents import parse_json, parse_yaml
from wtb_core.errors import InvalidDocument, InvalidSpec, Problem
from wtb_core.specs import MAX_PROBLEMS, find_case_problems

TAG_SEPARATOR = ";"
_BOM = b"\xef\xbb\xbf"
_REFERENCE = "reference"


class _Row(NamedTuple):
    """A case as it was found, and where."""

    where: str
    case: Any


def read_cases(path: Path) -> list[dict[str, Any]]:
    """The cases in a `.jsonl`, `.json`, `.yaml`, `.yml` or `.csv` file.

    Raises:
        InvalidSpec: with every problem of the file, at most `MAX_PROBLEMS`.
    """
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise InvalidSpec([Problem(path.name, f"give a file that ends in {', '.join(_READERS)}")])
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidSpec([Problem(str(path), f"cannot be read: {reason}")]) from error
    problems: list[Problem] = []
    rows: list[_Row] = []
    for item in read(data):
        if isinstance(item, _Row):
            rows.append(item)
        else:
            problems.append(_in_file(path, item))
            if len(problems) == MAX_PROBLEMS:
                break
    if not rows and not problems:
        problems.append(Problem(path.name, "there is no case in it"))
    cases = [row.case for row in rows]
    found = find_case_problems(cases, lambda index: rows[index].where) if rows else []
    problems += [
        _in_file(path, Problem(rows[index].where, str(problem))) for index, problem in found
    ]
    if problems:
        raise InvalidSpec(problems[:MAX_PROBLEMS])
    return cases


def _in_file(path: Path, problem: Problem) -> Problem:
    return Problem(f"{path.name} {problem.path}".strip(), problem.message)


def _read_jsonl(data: bytes) -> Iterator[_Row | Problem]:
    for number, line in enumerate(data.removeprefix(_BOM).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield _Row(f"line {number}", parse_json(line))
        except InvalidDocument as error:
            column = "" if error.column is None else f" (column {error.column})"
            yield Problem(f"line {number}", f"{error.message}{column}")


def _read_json(data: bytes) -> Iterator[_Row | Problem]:
    return _read_document(parse_json, data)


def _read_yaml(data: bytes) -> Iterator[_Row | Problem]:
    return _read_document(parse_yaml, data)


def _read_document(parse: Callable[[bytes], Any], data: bytes) -> Iterator[_Row | Problem]:
    try:
        value = parse(data)
    except InvalidDocument as error:
        where = "" if error.line is None else f"line {error.line}, column {error.column}"
        yield Problem(where, error.message)
        return
    if isinstance(value, dict) and value.keys() == {"cases"}:
        value = value["cases"]
    if not isinstance(value, list):
        yield Problem("", "give a list of cases, or a mapping with `cases` and nothing else")
        return
    for number, case in enumerate(value, 1):
        yield _Row(f"row {number}", case)


def _read_csv(data: bytes) -> Iterator[_Row | Problem]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        yield Problem(f"line {line}", "this is not UTF-8; save the file as UTF-8")
        return
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        yield Problem(f"line {line}", "there is a NUL character; save the file as plain text")
        return
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    start = 1
    header: list[str] | None = None
    try:
        for cells in reader:
            where, start = f"line {start}", reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                problems = [Problem(where, message) for message in _find_header_faults(header)]
                yield from problems
                if problems:
                    return
            elif len(cells) != len(header):
                message = f"it has {len(cells)} cells and the header {len(header)}"
                yield Problem(where, f"{message}; put a value with a comma in double quotes")
            else:
                yield _Row(where, _make_case(dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        yield Problem(f"line {start}", str(error))


def _find_header_faults(header: list[str]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for number, column in enumerate(header, 1):
        key = _reference_key(column)
        if not column:
            yield f"column {number} has no name"
        elif key == "":
            yield f"column {column!r}: a reference is `reference`, or `reference.NAME` for several"
        target = column if key is None else f"reference.{key}"
        if column and target in seen:
            yield f"column {column!r} is also column {seen[target]}"
        seen.setdefault(target, str(number))
    keyed = [column for column in header if _reference_key(column)]
    if _REFERENCE in header and keyed:
        yield f"give `reference` or {keyed[0]!r}, not both"
    if all(c in {"id", "tags"} or c.startswith(_REFERENCE) for c in header):
        yield "there is no column for the input: any but `id`, `tags` and `reference...`"


def _reference_key(column: str) -> str | None:
    """`x` of `reference.x` and `reference_x`, nothing of what begins so and is neither."""
    if column == _REFERENCE or not column.startswith(_REFERENCE):
        return None
    separator, key = column[len(_REFERENCE)], column[len(_REFERENCE) + 1 :]
    return key if separator in "._" else ""


def _make_case(cells: dict[str, str]) -> dict[str, Any]:
    case: dict[str, Any] = {}
    values: dict[str, str] = {}
    references: dict[str, str] = {}
    for column, text in cells.items():
        if column == "tags":
            tags = [tag.strip() for tag in text.split(TAG_SEPARATOR)]
            if any(tags):
                case["tags"] = [tag for tag in tags if tag]
        elif column in {"id", _REFERENCE}:
            if text:
                case[column] = text
        elif key := _reference_key(column):
            if text:
                references[key] = text
        else:
            values[column] = text
    if references:
        case[_REFERENCE] = references
    return {**case, "input": values}


_READERS: dict[str, Callable[[bytes], Iterator[_Row | Problem]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".csv": _read_csv,
}
