"""JSON and YAML texts that nobody has vouched for: the one door for bodies, specs and projects.

What comes out is always JSON: mappings with text as keys, lists, texts, finite numbers of 64 bits,
booleans and null, at most `MAX_DEPTH` levels deep. Time and memory stay in proportion to the text's
length, and each value a YAML alias repeats counts.
"""

import itertools
import json
import math
import re
from collections.abc import Iterator
from typing import Any, Never

import yaml

from wtb_core.errors import InvalidDocument

MAX_DEPTH = 100
MAX_JSON_MARKS = 5_000_000
MAX_YAML_VALUES = 2_000_000
MAX_REPEATED_CHARS = 10_000_000
MIN_INTEGER = -(2**63)
MAX_INTEGER = 2**64 - 1

_CHUNK_BYTES = 1 << 20
_INTEGER_CHARS = 20
_NOT_SHAPE = bytes(set(range(256)) - set(b"[]{},"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_STRING = r'"(?:[^"\\]++|\\.)*+"'
_NUMBER = r"-?\d[\d.eE+-]*"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_LONE_SURROGATE = re.compile(
    r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|u([dD][89a-fA-F])|.)", re.DOTALL
)

_TOO_LARGE = "an integer has at most 64 bits; quote it to keep it as text"
_NOT_FINITE = "this is no finite number; JSON has only those"
_NOT_UNICODE = "a lone surrogate is not valid Unicode text"
_TOO_DEEP = f"this is nested more than {MAX_DEPTH} levels deep"


def parse_json(data: bytes) -> Any:
    """The value that a JSON text in UTF-8 (RFC 8259) says; a byte order mark is skipped.

    Raises:
        InvalidDocument: when it is no JSON, or more than the bounds of this module allow.
    """
    text = _decode("JSON", data)
    if not text or text.isspace():
        raise InvalidDocument("JSON", "there is nothing in it", 1, 1)
    _check_shape(text, data)
    closed = itertools.count()

    def make_mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        number = next(closed)
        mapping = dict(pairs)
        if len(mapping) < len(pairs):
            ends = _outside_strings(text, r"\}")
            end = next(itertools.islice(ends, number, None))
            _refuse_json(text, end.start(), f"{_find_duplicate(pairs)}, in the mapping ending here")
        return mapping

    def make_integer(digits: str) -> int:
        if len(digits) > _INTEGER_CHARS or not _fits(number := int(digits)):
            _refuse_number(text, digits, _TOO_LARGE)
        return number

    def make_float(digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number):
            _refuse_number(text, digits, _NOT_FINITE)
        return number

    def refuse_constant(name: str) -> Never:
        found = next(_outside_strings(text, name))
        _refuse_json(text, found.start(), f"{name} is no JSON value; give a number, text or null")

    try:
        value = json.loads(
            text,
            object_pairs_hook=make_mapping,
            parse_int=make_integer,
            parse_float=make_float,
            parse_constant=refuse_constant,
        )
    except json.JSONDecodeError as error:
        message = (error.msg[0].lower() + error.msg[1:]).removesuffix(" at")
        raise InvalidDocument("JSON", message, error.lineno, error.colno) from error
    if _SURROGATE.search(text):
        for escape in _LONE_SURROGATE.finditer(text):
            if escape[1]:
                _refuse_json(text, escape.start(), _NOT_UNICODE)
    return value


def parse_yaml(data: bytes) -> Any:
    """The value that a YAML text in UTF-8 says.

    Unlike YAML 1.1, a mapping's keys are the texts as written (`on` is no boolean there); dates,
    times and numbers with a leading zero are text; `1e-4` is a number, as in JSON.

    Raises:
        InvalidDocument: when it is no YAML, or has what JSON cannot say (tags, keys that are no
            text, infinity), or is more than the bounds of this module allow.
    """
    text = _decode("YAML", data)
    builder = _YamlBuilder()
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InvalidDocument(
            "YAML",
            str(error.problem or error.context),
            mark.line + 1 if mark else None,
            mark.column + 1 if mark else None,
        ) from error
    except yaml.reader.ReaderError as error:
        _refuse("YAML", text, int(error.position), str(error.reason))
    return builder.finish()


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: it has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fits(number: int) -> bool:
    return MIN_INTEGER <= number <= MAX_INTEGER


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _decode(kind: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        message = f"the byte 0x{data[error.start]:02x} is not UTF-8; save it as UTF-8"
        raise InvalidDocument(kind, message, line, column) from error


def _refuse(kind: str, text: str, index: int, message: str) -> Never:
    line = text.count("\n", 0, index) + 1
    raise InvalidDocument(kind, message, line, index - text.rfind("\n", 0, index))


# -- JSON ------------------------------------------------------------------------------------------


def _refuse_json(text: str, index: int, message: str) -> Never:
    _refuse("JSON", text, index, message)


def _refuse_number(text: str, digits: str, message: str) -> Never:
    found = next(m for m in _outside_strings(text, _NUMBER) if m[1] == digits)
    _refuse_json(text, found.start(), message)


def _outside_strings(text: str, pattern: str) -> Iterator[re.Match[str]]:
    """Where `pattern` is found between a JSON text's strings."""
    for found in re.finditer(f"{_STRING}|({pattern})", text, re.DOTALL):
        if found[1] is not None:
            yield found


def _check_shape(text: str, data: bytes) -> None:
    """Refuse what is too deep or has too many parts before any of it is made.

    In pieces, so that other threads run in between.
    """
    # Backslashes stand in strings only, so without the escaped ones each quote opens or closes.
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks, depth, inside = 0, 0, False
    for start in range(0, len(plain), _CHUNK_BYTES):
        pieces = plain[start : start + _CHUNK_BYTES].split(b'"')
        shape = b"".join(pieces[inside::2]).translate(None, _NOT_SHAPE)
        inside ^= len(pieces) % 2 == 0
        brackets = shape.replace(b",", b"")
        marks += len(shape) - len(brackets) + brackets.count(b"[") + brackets.count(b"{")
        if marks > MAX_JSON_MARKS:
            message = f"it has more than {MAX_JSON_MARKS} commas and opening brackets; split it"
            raise InvalidDocument("JSON", message)
        depths = list(itertools.accumulate(map(_STEPS.__getitem__, brackets), initial=depth))
        if max(depths) > MAX_DEPTH:
            _refuse_depth(text)
        depth = depths[-1]


def _refuse_depth(text: str) -> Never:
    depth = 0
    for found in _outside_strings(text, r"[\[\]{}]"):
        depth += _STEPS[ord(found[1])]
        if depth > MAX_DEPTH:
            _refuse_json(text, found.start(), _TOO_DEEP)
    raise InvalidDocument("JSON", _TOO_DEEP)


def _find_duplicate(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return f"the key {_shown(key)} is given twice"
        seen.add(key)
    raise AssertionError(pairs)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "...")


# -- YAML ------------------------------------------------------------------------------------------

_WORDS: dict[str, bool | None] = {
    "null": None,
    **dict.fromkeys(("yes", "true", "on"), True),
    **dict.fromkeys(("no", "false", "off"), False),
}
_CONSTANTS: dict[str, bool | None] = {"": None, "~": None} | {
    spelling: value
    for word, value in _WORDS.items()
    for spelling in (word, word.capitalize(), word.upper())
}
_NUMBER_STARTS = frozenset("-+.0123456789")
_YAML_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)")
_YAML_HEX = re.compile(r"[-+]?0x[0-9a-fA-F]+")
_YAML_FLOAT = re.compile(
    r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)"
    r"|\.[0-9]+(?:[eE][-+]?[0-9]+)?)"
)
_YAML_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")

_MERGE = "<<"
_NONE = object()


class _Anchored:
    """A value that aliases may repeat, with its length in characters and its depth."""

    def __init__(self, value: Any, chars: int, height: int) -> None:
        self.value = value
        self.chars = chars
        self.height = height


class _Open:
    """A list or a mapping whose end has not come yet."""

    def __init__(self, value: list[Any] | dict[str, Any], anchor: str | None) -> None:
        self.value = value
        self.anchor = anchor
        self.chars = 1
        self.height = 1
        self.key: str | None = None
        self.merged: list[dict[str, Any]] | None = None
        self.merging = False


class _YamlBuilder:
    """Makes the value of one document from the parser's events, without recursion."""

    def __init__(self) -> None:
        self._root: Any = _NONE
        self._open: list[_Open] = []
        self._anchors: dict[str, _Anchored | None] = {}
        self._values = 0
        self._repeated_chars = 0
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        """The next event of the parser."""
        match event:
            case yaml.ScalarEvent():
                self._take_scalar(event)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._start(event)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._end(event)
            case yaml.AliasEvent():
                self._take_alias(event)
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    _refuse_event(event, "give one document; this is the start of a second")
            case _:
                pass

    def finish(self) -> Any:
        """The document's value."""
        if self._root is _NONE:
            raise InvalidDocument("YAML", "there is nothing in it", 1, 1)
        return self._root

    def _take_scalar(self, event: yaml.ScalarEvent) -> None:
        self._count(event)
        text: str = event.value
        if not text.isascii() and not is_unicode(text):
            _refuse_event(event, _NOT_UNICODE)
        plain: bool = event.implicit[0]
        holder = self._open[-1] if self._open else None
        if holder is not None and isinstance(holder.value, dict) and not _expects_value(holder):
            self._take_key(event, holder, text, plain=plain)
            return
        if holder is None and plain and not text:
            return
        value = _resolve(event, text) if plain else text
        chars = 1 + len(text)
        if event.anchor is not None:
            self._anchors[event.anchor] = _Anchored(value, chars, 0)
        self._add(event, value, chars, 0)

    def _take_key(self, event: yaml.ScalarEvent, holder: _Open, text: str, *, plain: bool) -> None:
        if event.anchor is not None:
            _refuse_event(event, "a key has no anchor; put it on a value")
        if plain and not text:
            _refuse_event(event, "a key is missing here")
        holder.chars += 1 + len(text)
        if plain and text == _MERGE:
            if holder.merged is not None:
                _refuse_event(event, f"the key {_MERGE!r} is given twice; give it a list")
            holder.merged, holder.merging = [], True
        elif text in holder.value:
            _refuse_event(event, f"the key {_shown(text)} is given twice in one mapping")
        else:
            holder.key = text

    def _take_alias(self, event: yaml.AliasEvent) -> None:
        name: str = event.anchor
        if name not in self._anchors:
            _refuse_event(event, f"there is no anchor {_shown(name)} before this alias")
        anchored = self._anchors[name]
        if anchored is None:
            _refuse_event(event, f"the alias {_shown(name)} stands inside of what it repeats")
        self._refuse_key(event)
        self._count(event)
        self._repeated_chars += anchored.chars
        if self._repeated_chars > MAX_REPEATED_CHARS:
            _refuse_event(event, f"aliases repeat more than {MAX_REPEATED_CHARS} characters")
        if len(self._open) + anchored.height > MAX_DEPTH:
            _refuse_event(event, _TOO_DEEP)
        self._add(event, anchored.value, anchored.chars, anchored.height)

    def _start(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent) -> None:
        self._count(event)
        self._refuse_key(event)
        if len(self._open) == MAX_DEPTH:
            _refuse_event(event, _TOO_DEEP)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        made: list[Any] | dict[str, Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._open.append(_Open(made, event.anchor))

    def _end(self, event: yaml.Event) -> None:
        done = self._open.pop()
        if done.merged:
            own = done.value
            assert isinstance(own, dict)
            done.value = {k: v for other in reversed(done.merged) for k, v in other.items()} | own
        if done.anchor is not None:
            self._anchors[done.anchor] = _Anchored(done.value, done.chars, done.height)
        self._add(event, done.value, done.chars, done.height)

    def _add(self, event: yaml.Event, value: Any, chars: int, height: int) -> None:
        """Put a value where it belongs."""
        if not self._open:
            self._root = value
            return
        holder = self._open[-1]
        holder.chars += chars
        holder.height = max(holder.height, height + 1)
        if isinstance(holder.value, list):
            holder.value.append(value)
        elif holder.merging:
            assert holder.merged is not None
            others: list[Any] = value if isinstance(value, list) else [value]
            if not all(isinstance(other, dict) for other in others):
                _refuse_event(event, f"{_MERGE!r} takes a mapping or a list of mappings")
            holder.merged, holder.merging = others, False
        else:
            assert holder.key is not None
            holder.value[holder.key] = value
            holder.key = None

    def _refuse_key(self, event: yaml.Event) -> None:
        holder = self._open[-1] if self._open else None
        if holder is not None and isinstance(holder.value, dict) and not _expects_value(holder):
            _refuse_event(event, "a key is text; quote a value that begins with {, [ or *")

    def _count(self, event: Any) -> None:
        self._values += 1
        if self._values > MAX_YAML_VALUES:
            _refuse_event(event, f"more than {MAX_YAML_VALUES} keys and values; write it as JSON")
        if getattr(event, "tag", None) is not None:
            _refuse_event(event, f"tags such as {_shown(event.tag)} are not taken; quote text")


def _expects_value(holder: _Open) -> bool:
    return holder.key is not None or holder.merging


def _resolve(event: yaml.ScalarEvent, text: str) -> Any:
    """What a plain scalar says."""
    if not text or text[0] not in _NUMBER_STARTS:
        return _CONSTANTS.get(text, text)
    if _YAML_INTEGER.fullmatch(text) or _YAML_HEX.fullmatch(text):
        digits = text.replace("_", "")
        if len(digits) > _INTEGER_CHARS or not _fits(number := int(digits, 0)):
            _refuse_event(event, _TOO_LARGE)
        return number
    if _YAML_FLOAT.fullmatch(text):
        value = float(text)
        if not math.isfinite(value):
            _refuse_event(event, _NOT_FINITE)
        return value
    if _YAML_NOT_FINITE.fullmatch(text):
        _refuse_event(event, f"{_NOT_FINITE}; quote it if it is text")
    return text


def _refuse_event(event: yaml.Event, message: str) -> Never:
    mark = event.start_mark
    raise InvalidDocument("YAML", message, mark.line + 1, mark.column + 1)
