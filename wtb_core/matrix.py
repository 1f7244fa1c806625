"""From a spec to its variants and executions.

Variants are few and made at once. Executions are numbers: execution `i` of a batch is found from
`i` alone, so a batch of any size needs no list of them.
"""

import difflib
import itertools
import json
import math
import re
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple, cast

from wtb_core.errors import Problem
from wtb_core.specs import (
    MAX_AXES,
    MAX_PROBLEMS,
    MAX_VARIANTS,
    NAME_PATTERN,
    BatchSpec,
    Matrix,
    MatrixEntry,
    Variant,
    format_path,
)

MAX_VARIANTS_CHARS = 8 * 2**20
_NAME_PART = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NAME = re.compile(NAME_PATTERN)


class Position(NamedTuple):
    """Where an execution stands in its batch; every index counts from 0."""

    variant: int
    case: int
    repetition: int


class Shape(NamedTuple):
    """How many variants, cases and repetitions a batch has.

    Executions are numbered repetition by repetition, case by case, with the variants of one case
    next to each other: a batch that is stopped early has compared like with like.
    """

    variants: int
    cases: int
    repetitions: int

    @property
    def executions(self) -> int:
        """Their product."""
        return self.variants * self.cases * self.repetitions

    def position(self, index: int) -> Position:
        """The position of execution `index`.

        Raises:
            IndexError: when the batch has no such execution.
        """
        if not 0 <= index < self.executions:
            raise IndexError(index)
        rest, variant = divmod(index, self.variants)
        repetition, case = divmod(rest, self.cases)
        return Position(variant, case, repetition)

    def number(self, position: Position) -> int:
        """The execution at a position; the inverse of `position`."""
        variant, case, repetition = position
        return (repetition * self.cases + case) * self.variants + variant


def execution_id(batch_id: str, index: int) -> str:
    """The id of a batch's execution `index`."""
    return f"{batch_id}-{index}"


def expand(spec: BatchSpec) -> list[Variant]:
    """The variants of a spec: the listed ones, the matrix's product, its includes.

    Names may collide and the product may be too large; `find_problems` reports both first.
    """
    variants = list(spec.variants)
    if spec.matrix is not None:
        variants += _product(spec.matrix)
        variants += spec.matrix.include
    return variants


def find_problems(spec: BatchSpec) -> list[Problem]:
    """What is wrong with a spec's variants as a whole, at most `MAX_PROBLEMS`.

    Nothing is expanded that would be too large.
    """
    if problems := _find_size_problems(spec):
        return problems
    problems = itertools.chain(_find_name_problems(spec), _find_exclude_problems(spec.matrix))
    return list(itertools.islice(problems, MAX_PROBLEMS))


def _find_size_problems(spec: BatchSpec) -> list[Problem]:
    listed = sum(len(variant.model_dump_json()) for variant in spec.variants)
    if listed > MAX_VARIANTS_CHARS:
        message = f"they have {listed} characters in all, more than {MAX_VARIANTS_CHARS}; "
        return [Problem("variants", message + "keep large values in the workspace or in cases")]
    if spec.matrix is None:
        return []
    axes = _axes(spec.matrix)
    if len(axes) > MAX_AXES:
        return [Problem("matrix", f"it varies {len(axes)} things; {MAX_AXES} is the most")]
    product = _product_size(spec.matrix)
    count = len(spec.variants) + product + len(spec.matrix.include)
    if count > MAX_VARIANTS:
        message = f"{count} variants are more than {MAX_VARIANTS}; split the batch"
        return [Problem("matrix", message)]
    chars = sum(
        product // len(axis.values) * sum(len(json.dumps(value)) for value in axis.values)
        for axis in axes
    )
    if chars > MAX_VARIANTS_CHARS:
        message = (
            f"its variants' values are {chars} characters in all, more than {MAX_VARIANTS_CHARS}; "
            "keep large values in the workspace"
        )
        return [Problem("matrix", message)]
    return []


def _find_exclude_problems(matrix: Matrix | None) -> Iterator[Problem]:
    """What an entry says and the matrix does not vary would exclude nothing, unnoticed."""
    if matrix is None:
        return
    places = {(axis.section, axis.key): axis.places for axis in _axes(matrix)}
    places.setdefault(("graph", "graph"), {_freeze("default"): {0}})
    for index, entry in enumerate(matrix.exclude):
        for (section, key), value in _list_said(entry).items():
            values = places.get((section, key))
            location = ("matrix", "exclude", index, section, *([] if section == "graph" else [key]))
            if values is None:
                message = "the matrix has no list of this name, so nothing is excluded"
                yield Problem(format_path(location), message)
            elif _freeze(value) not in values:
                message = "no list of the matrix has this value, so nothing is excluded"
                yield Problem(format_path(location), message)


def _find_name_problems(spec: BatchSpec) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for path, variant in _with_paths(spec):
        name = variant.name
        if not _NAME.fullmatch(name):
            yield Problem(path, f"{name[:80]!r} is no name; list this variant with its own")
        elif seen.get(name) == path:
            yield Problem(
                path,
                f"two combinations are named {name!r}; leave one out, or list it with its own name",
            )
        elif name in seen:
            yield Problem(f"{path}.name", f"{name!r} is also the name of {seen[name]}")
        seen.setdefault(name, path)
    if not seen:
        reason = (
            "every combination is excluded"
            if spec.matrix is not None and _product_size(spec.matrix)
            else "it has no list of values"
        )
        yield Problem("matrix", f"{reason}; no variant is left")
    elif spec.baseline is not None and spec.baseline not in seen:
        near = difflib.get_close_matches(spec.baseline[:128], seen, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        yield Problem("baseline", f"there is no variant {spec.baseline[:80]!r}{hint}")


def _with_paths(spec: BatchSpec) -> Iterator[tuple[str, Variant]]:
    for index, variant in enumerate(spec.variants):
        yield f"variants[{index}]", variant
    if spec.matrix is not None:
        for variant in _product(spec.matrix):
            yield f"matrix ({variant.name})", variant
        for index, variant in enumerate(spec.matrix.include):
            yield f"matrix.include[{index}]", variant


class _Axis(NamedTuple):
    """One list of the matrix, and where in it each of its values stands."""

    section: str
    key: str
    values: Sequence[Any]
    places: dict[Hashable, set[int]]


def _axes(matrix: Matrix) -> list[_Axis]:
    axes = [_make_axis("graph", "graph", matrix.graph)] if matrix.graph else []
    for section in ("nodes", "config", "context"):
        lists: dict[str, list[Any]] = getattr(matrix, section)
        axes += [_make_axis(section, key, values) for key, values in lists.items()]
    return axes


def _make_axis(section: str, key: str, values: Sequence[Any]) -> _Axis:
    places: dict[Hashable, set[int]] = {}
    for index, value in enumerate(values):
        places.setdefault(_freeze(value), set()).add(index)
    return _Axis(section, key, values, places)


def _product_size(matrix: Matrix) -> int:
    axes = _axes(matrix)
    return math.prod(len(axis.values) for axis in axes) if axes else 0


def _product(matrix: Matrix) -> Iterator[Variant]:
    axes = _axes(matrix)
    if not axes:
        return
    excluded = _index_excludes(matrix.exclude, axes)
    if excluded is None:
        return
    for indices in itertools.product(*(range(len(axis.values)) for axis in axes)):
        if any(
            all(indices[number] in agreeing for number, agreeing in rest)
            for place in enumerate(indices)
            for rest in excluded.get(place, ())
        ):
            continue
        chosen = [(axis, axis.values[i], i) for axis, i in zip(axes, indices, strict=True)]
        sections: dict[str, dict[str, Any]] = {
            "graph": {},
            "nodes": {},
            "config": {},
            "context": {},
        }
        for axis, value, _ in chosen:
            sections[axis.section][axis.key] = value
        yield Variant.model_construct(
            name=_name([(value, i) for _, value, i in chosen]),
            graph=sections["graph"].get("graph", "default"),
            nodes=sections["nodes"],
            config=sections["config"],
            context=sections["context"],
            files={},
            recursion_limit=None,
        )


def _name(chosen: list[tuple[object, int]]) -> str:
    """The values joined; one that does not fit its place in a name is there by its index."""
    parts = [_name_part(value, i) for value, i in chosen]
    if not _NAME.fullmatch(parts[0]):
        parts[0] = str(chosen[0][1])
    return "-".join(parts)


def _name_part(value: object, index: int) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    text = str(value) if isinstance(value, str | int | float) else ""
    return text if _NAME_PART.fullmatch(text) else str(index)


type _Wanted = list[tuple[int, set[int]]]


def _index_excludes(
    entries: Sequence[MatrixEntry], axes: list[_Axis]
) -> dict[tuple[int, int], list[_Wanted]] | None:
    """What else an entry wants, by one axis and index that it wants; None when one wants nothing.

    A product of ten thousand with a thousand entries then compares few of them with each.
    """
    index: dict[tuple[int, int], list[_Wanted]] = {}
    for entry in entries:
        wanted = _find_wanted(entry, axes)
        if wanted is None:
            continue
        if not wanted:
            return None
        wanted.sort(key=lambda want: -len(axes[want[0]].values))
        (number, agreeing), *rest = wanted
        for i in agreeing:
            index.setdefault((number, i), []).append(rest)
    return index


def _find_wanted(entry: MatrixEntry, axes: list[_Axis]) -> _Wanted | None:
    """For each axis that an exclude entry speaks of, the indices of the values that agree.

    None where no combination can agree with all of it.
    """
    said = _list_said(entry)
    numbers = {(axis.section, axis.key): number for number, axis in enumerate(axes)}
    if ("graph", "graph") not in numbers and entry.graph == "default":
        del said["graph", "graph"]
    wanted: _Wanted = []
    for place, value in said.items():
        number = numbers.get(place)
        agreeing = axes[number].places.get(_freeze(value)) if number is not None else None
        if number is None or agreeing is None:
            return None
        wanted.append((number, agreeing))
    return wanted


def _list_said(entry: MatrixEntry) -> dict[tuple[str, str], Any]:
    """What an exclude entry wants, by section and key."""
    said: dict[tuple[str, str], Any] = {
        (section, key): value
        for section, values in (
            ("nodes", entry.nodes),
            ("config", entry.config),
            ("context", entry.context),
        )
        for key, value in values.items()
    }
    return said if entry.graph is None else said | {("graph", "graph"): entry.graph}


def _freeze(value: object) -> Hashable:
    """A JSON value to look up; equal where the values are: 1 is 1.0, and true is not 1."""
    match value:
        case dict():
            items = cast("dict[str, object]", value).items()
            return ("mapping", frozenset((key, _freeze(item)) for key, item in items))
        case list():
            return ("list", tuple(map(_freeze, cast("list[object]", value))))
        case _:
            return (isinstance(value, bool), cast("Hashable", value))
