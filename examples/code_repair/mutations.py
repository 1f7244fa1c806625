"""Patches of one spot in a module's source.

Spots are found in the syntax tree and edited in the text, so that formatting and comments stay.
"""

import ast
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import TypedDict

SYMBOLS = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.And: "and",
    ast.Or: "or",
}
CONFUSED_WITH = {
    "<": ["<=", ">"],
    "<=": ["<", ">="],
    ">": [">=", "<"],
    ">=": [">", "<="],
    "==": ["!="],
    "!=": ["=="],
    "+": ["-"],
    "-": ["+"],
    "*": ["//"],
    "//": ["%", "*"],
    "%": ["//"],
    "and": ["or"],
    "or": ["and"],
}
# These bind at least as tightly as the `+ 1` that is put behind them.
BINDS_TIGHTLY = (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.UnaryOp)
ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)


class Patch(TypedDict):
    """An edit: `before`, at `start` in the UTF-8 bytes of the source, becomes `after`."""

    line: int
    start: int
    before: str
    after: str


def patched(source: str, patch: Patch) -> str:
    """Return the source with the patch applied."""
    data = source.encode()
    end = patch["start"] + len(patch["before"].encode())
    return (data[: patch["start"]] + patch["after"].encode() + data[end:]).decode()


def operator_flips(source: str) -> Iterator[Patch]:
    """Replace a comparison, arithmetic or boolean operator by one it is easily confused with."""
    spots = _Spots(source)
    for node in ast.walk(spots.tree):
        for left, operator, right in _operations(node):
            symbol = SYMBOLS.get(type(operator), "")
            for other in CONFUSED_WITH.get(symbol, []):
                # The tree has no position for operators: it is the one between the operands.
                start = spots.data.index(symbol.encode(), spots.end(left), spots.start(right))
                yield spots.patch(start, symbol, other)


def constant_shifts(source: str) -> Iterator[Patch]:
    """Add 1 to an integer literal, or take 1 away."""
    spots = _Spots(source)
    for node in ast.walk(spots.tree):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            for value in (node.value + 1, node.value - 1):
                yield spots.patch(spots.start(node), spots.text(node), str(value))


def bound_adjustments(source: str) -> Iterator[Patch]:
    """Add 1 to a computed range limit, slice end or index, or take 1 away."""
    spots = _Spots(source)
    for node in ast.walk(spots.tree):
        for bound in _bounds(node):
            text = spots.text(bound)
            tight = isinstance(bound, BINDS_TIGHTLY) or (
                isinstance(bound, ast.BinOp) and isinstance(bound.op, ARITHMETIC)
            )
            for step in ("+ 1", "- 1"):
                after = f"{text} {step}" if tight else f"({text}) {step}"
                yield spots.patch(spots.start(bound), text, after)


def _operations(node: ast.AST) -> list[tuple[ast.expr, ast.AST, ast.expr]]:
    """Return the (left, operator, right) that the node consists of."""
    match node:
        case ast.BinOp(left, operator, right) | ast.AugAssign(left, operator, right):
            return [(left, operator, right)]
        case ast.Compare(first, operators, others):
            return list(zip([first, *others], operators, others, strict=False))
        case ast.BoolOp(operator, values):
            return [(left, operator, right) for left, right in pairwise(values)]
    return []


def _bounds(node: ast.AST) -> list[ast.expr]:
    """Return the node's limits and indices, literals left out: those are constants to shift."""
    match node:
        case ast.Call(ast.Name("range"), arguments):
            bounds = arguments[:2]
        case ast.Slice(lower, upper):
            bounds = [lower, upper]
        case ast.Subscript(slice=index) if not isinstance(index, ast.Slice | ast.Tuple):
            bounds = [index]
        case _:
            bounds = []
    return [bound for bound in bounds if bound and not isinstance(bound, ast.Constant)]


class _Spots:
    """A source with its tree, and where the tree's nodes are in its bytes."""

    def __init__(self, source: str) -> None:
        self.tree = ast.parse(source)
        self.data = source.encode()
        lines = self.data.splitlines(keepends=True)
        self.line_starts = list(accumulate(map(len, lines), initial=0))

    def start(self, node: ast.expr) -> int:
        return self.line_starts[node.lineno - 1] + node.col_offset

    def end(self, node: ast.expr) -> int:
        return self.line_starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.expr) -> str:
        return self.data[self.start(node) : self.end(node)].decode()

    def patch(self, start: int, before: str, after: str) -> Patch:
        line = self.data.count(b"\n", 0, start) + 1
        return {"line": line, "start": start, "before": before, "after": after}
