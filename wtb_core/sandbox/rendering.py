"""JSON text of what a graph returned, only where the text says the same as the value.

Finite numbers, text keys, valid UTF-8, no cycles. What has no such form is refused with its path
and a way out, never approximated. The text grows piece by piece and stops at the limit, so a huge
value costs no more memory than the limit; its size is still counted, to be told.
"""

import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import pathlib
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from wtb_core.errors import InvalidOutput

MAX_DEPTH = 200
MAX_STATE_BYTES = 64 * 1024
"""How much JSON text of a checkpoint's state is kept to be shown."""

_TEXT_TYPES = (
    dt.datetime,
    dt.date,
    dt.time,
    uuid.UUID,
    pathlib.PurePath,
    decimal.Decimal,
)
_HINTS = {
    "numpy.ndarray": "return a list (`.tolist()`)",
    "pandas.DataFrame": "return a list of dicts (`.to_dict('records')`)",
    "bytes": "return text, or base64 of it",
    "bytearray": "return text, or base64 of it",
}


def render(value: object, root: str = "output", limit: int | None = None) -> str:
    """`value` as compact JSON text of at most `limit` bytes in UTF-8.

    Pydantic models (LangChain messages are some) become their JSON dump, dataclasses and mappings
    objects, enums their values, tuples arrays, sets arrays in the order of their items' text;
    dates, UUIDs, paths and decimals become their text. A subclass of a built-in type counts as that
    type.

    Raises:
        InvalidOutput: when part of it has no honest JSON form, or the text is over the limit.
    """
    writer = _Writer(limit)
    writer.value(value, root, 0)
    if writer.over:
        raise InvalidOutput(
            root, f"its JSON text has about {writer.size} bytes, over limits.output of {limit}"
        )
    return "".join(writer.pieces)


def render_within(value: object, limit: int) -> str | None:
    """As `render`, None where that raises, or where a method of the value does.

    It stops at the limit, however much of the value is left.
    """
    writer = _StoppingWriter(limit)
    try:
        writer.value(value, "state", 0)
    except Exception:  # noqa: BLE001 - the methods of a user's types may raise anything
        return None
    return "".join(writer.pieces)


class _Writer:
    """Pieces of text as long as they fit the limit; beyond it only their size is counted."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.pieces: list[str] = []
        self.size = 0
        self.over = False
        self.open: set[int] = set()

    def put(self, text: str, size: int | None = None) -> None:
        self.size += len(text) if size is None else size
        if self.limit is not None and self.size > self.limit:
            self.over = True
            self.pieces.clear()
        else:
            self.pieces.append(text)

    def text(self, text: str, path: str) -> None:
        if self.limit is not None and len(text) > self.limit:
            self.put("", len(text) + 2)
            return
        try:
            rendered = json.dumps(text, ensure_ascii=False)
            self.put(rendered, len(rendered.encode()))
        except UnicodeEncodeError as error:
            raise InvalidOutput(
                path, f"the text holds a lone surrogate at character {error.start}, not valid UTF-8"
            ) from error

    def value(self, value: Any, path: str, depth: int) -> None:
        if value is None or value is True or value is False:
            self.put(json.dumps(value))
        elif isinstance(value, enum.Enum):
            self.value(value.value, path, depth + 1)
        elif isinstance(value, str):
            self.text(str.__str__(value), path)
        elif isinstance(value, int):
            self.integer(value, path)
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise InvalidOutput(path, f"{value!r} is not a JSON number; return null or text")
            self.put(float.__repr__(value))
        elif isinstance(value, _TEXT_TYPES):
            isoformat = getattr(value, "isoformat", None)
            self.text(isoformat() if isoformat else str(value), path)
        else:
            self.container(value, path, depth)

    def integer(self, value: int, path: str) -> None:
        try:
            self.put(int.__repr__(value))
        except ValueError as error:  # more digits than sys.get_int_max_str_digits()
            raise InvalidOutput(path, "the integer has too many digits to be written") from error

    def container(self, value: Any, path: str, depth: int) -> None:
        if id(value) in self.open:
            raise InvalidOutput(path, f"the {_name(value)} contains itself")
        if depth >= MAX_DEPTH:
            raise InvalidOutput(path, f"nested deeper than {MAX_DEPTH} levels")
        self.open.add(id(value))
        if isinstance(value, Mapping):
            self.mapping(value.items(), path, depth)
        elif isinstance(value, list | tuple):
            self.array(value, path, depth)
        elif isinstance(value, set | frozenset):
            self.array_of_set(value, path, depth)
        elif callable(dump := getattr(type(value), "model_dump", None)):
            self.value(self.dumped(value, dump, path), path, depth + 1)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = dataclasses.fields(value)
            pairs = ((field.name, getattr(value, field.name)) for field in fields)
            self.mapping(pairs, path, depth)
        else:
            raise InvalidOutput(path, f"a {_name(value)} has no JSON form; {_way_out(value)}")
        self.open.discard(id(value))

    def dumped(self, value: Any, dump: Callable[..., Any], path: str) -> Any:
        try:
            return dump(value, mode="json")
        except Exception as error:  # a serializer of the user's model may raise anything
            raise InvalidOutput(
                path, f"a {_name(value)} could not be dumped as JSON: {error}"
            ) from error

    def mapping(self, pairs: Iterable[tuple[Any, Any]], path: str, depth: int) -> None:
        self.put("{")
        keys: set[str] = set()
        for index, (given, item) in enumerate(pairs):
            key = given.value if isinstance(given, enum.Enum) else given
            if not isinstance(key, str):
                raise InvalidOutput(path, f"the key {key!r:.80} is a {_name(key)}; keys are text")
            if key in keys:
                raise InvalidOutput(path, f"the key {key!r:.80} occurs twice")
            keys.add(key)
            if index:
                self.put(",")
            self.text(str.__str__(key), path)
            self.put(":")
            self.value(item, f"{path}{_step(key)}", depth + 1)
        self.put("}")

    def array(self, items: Iterable[Any], path: str, depth: int) -> None:
        self.put("[")
        for index, item in enumerate(items):
            if index:
                self.put(",")
            self.value(item, f"{path}[{index}]", depth + 1)
        self.put("]")

    def array_of_set(self, items: Iterable[Any], path: str, depth: int) -> None:
        rendered: list[str] = []
        start, size = len(self.pieces), self.size
        for item in items:
            self.value(item, f"{path}{{}}", depth + 1)
            rendered.append("".join(self.pieces[start:]))
            del self.pieces[start:]
        if self.over:
            return
        self.size = size
        text = f"[{','.join(sorted(rendered))}]"
        self.put(text, len(text.encode()))


class _OverLimit(Exception):
    """The text has reached the limit."""


class _StoppingWriter(_Writer):
    def put(self, text: str, size: int | None = None) -> None:
        super().put(text, size)
        if self.over:
            raise _OverLimit


def _name(value: object) -> str:
    kind = type(value)
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def _way_out(value: object) -> str:
    name = _name(value)
    if name in _HINTS:
        return _HINTS[name]
    if name.startswith("numpy."):
        return "return a plain number (`.item()`)"
    return "return plain dicts, lists, text and numbers"


def _step(key: str) -> str:
    """One key as part of a path: `.scores`, or `["two words"]` cut to a readable length."""
    return f".{key}" if key.isidentifier() and len(key) <= 80 else f"[{json.dumps(key[:80])}]"
