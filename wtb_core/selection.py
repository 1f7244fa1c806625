"""A part of a spec: fewer variants, fewer cases, other repetitions, before it is submitted."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from wtb_core import matrix, specs
from wtb_core.errors import InvalidRequest, InvalidSpec


class Selection(NamedTuple):
    """What to take of a spec, and what to call it. Empty and null change nothing."""

    variants: Sequence[str] = ()
    cases: Sequence[str] = ()
    first: int | None = None
    repetitions: int | None = None
    name: str | None = None
    labels: Mapping[str, str] = {}

    def apply(self, spec: dict[str, Any]) -> dict[str, Any]:
        """The part of `spec` that is wanted.

        Cases keep the ids that they have in the whole. A matrix becomes the list of its variants
        when some of them are chosen. A baseline that is left out is no baseline any more; the first
        variant is then.

        Raises:
            InvalidRequest: when a pattern matches nothing.
            InvalidSpec: when the variants of a matrix cannot be told.
        """
        part = dict(spec)
        if self.variants:
            part |= self._choose_variants(spec)
        cases: Any = spec.get("cases")
        if isinstance(cases, list) and (self.cases or self.first is not None):
            part["cases"] = self._choose_cases(cases)
        if self.repetitions is not None:
            part["repetitions"] = self.repetitions
        if self.name is not None:
            part["name"] = self.name
        if self.labels:
            part["labels"] = {**(spec.get("labels") or {}), **self.labels}
        return part

    def _choose_variants(self, spec: dict[str, Any]) -> dict[str, Any]:
        parsed = specs.parse(spec)
        problems = matrix.find_problems(parsed)
        if problems:
            raise InvalidSpec(problems)
        variants = matrix.expand(parsed)
        names = [variant.name for variant in variants]
        _check_patterns("--variant", self.variants, names)
        chosen = [v for v in variants if _matches_any(v.name, self.variants)]
        part: dict[str, Any] = {
            "variants": [v.model_dump(mode="json", exclude_defaults=True) for v in chosen],
            "matrix": None,
        }
        if parsed.baseline not in {v.name for v in chosen}:
            part["baseline"] = None
        return part

    def _choose_cases(self, cases: list[Any]) -> list[Any]:
        """What is no case is kept, for the check of the spec to report."""
        named = [
            {**case, "id": case.get("id", index + 1)} if isinstance(case, Mapping) else case
            for index, case in enumerate(cases)
        ]
        if self.cases:
            ids = [str(case["id"]) for case in named if isinstance(case, Mapping)]
            _check_patterns("--case", self.cases, ids)
            named = [
                case
                for case in named
                if not isinstance(case, Mapping) or _matches_any(str(case["id"]), self.cases)
            ]
        return named[: self.first]


def _matches_any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_patterns(option: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise InvalidRequest(option, f"nothing matches {pattern!r}; there is: {shown or '-'}")
