"""Exceptions of user code as data: type, message, traceback and the user's own line."""

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MAX_MESSAGE_CHARS = 8 * 1024
MAX_TRACEBACK_CHARS = 16 * 1024


def describe_error(error: BaseException) -> dict[str, Any]:
    """`error_type`, `message` and `traceback` of an exception; never raises."""
    return {
        "error_type": type_name(error),
        "message": error_text(error),
        "traceback": _cut_head("".join(_format(error)), MAX_TRACEBACK_CHARS),
    }


def error_text(error: BaseException) -> str:
    """`str(error)`, cut, for any exception; SystemExit says its code."""
    if isinstance(error, SystemExit):
        return f"the code called sys.exit({error.code!r})"[:MAX_MESSAGE_CHARS]
    try:
        return clean(str(error)[:MAX_MESSAGE_CHARS])
    except Exception as fault:  # noqa: BLE001 - __str__ is user code
        return f"(its text cannot be shown: {type(fault).__name__})"


def type_name(error: object) -> str:
    """The qualified name of an object's type, short for built-in ones."""
    kind = type(error)
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def find_user_line(error: BaseException, roots: Sequence[Path]) -> str | None:
    """`file.py:12`, the innermost place below one of `roots` that an exception went through."""
    found: str | None = None
    if isinstance(error, SyntaxError) and error.filename:
        found = _relative(error.filename, error.lineno or 0, roots)
    for frame in traceback.extract_tb(error.__traceback__):
        found = _relative(frame.filename, frame.lineno or 0, roots) or found
    return found


def clean(text: str) -> str:
    """Valid UTF-8: lone surrogates are shown as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _relative(filename: str, line: int, roots: Sequence[Path]) -> str | None:
    path = Path(filename)
    root = next((root for root in roots if path.is_relative_to(root)), None)
    return None if root is None else f"{path.relative_to(root)}:{line}"


def _format(error: BaseException) -> list[str]:
    try:
        return [clean(line) for line in traceback.format_exception(error)]
    except Exception as fault:  # noqa: BLE001 - __str__ is user code
        return [f"(the traceback cannot be shown: {type(fault).__name__})"]


def _cut_head(text: str, size: int) -> str:
    """The end of a traceback says most."""
    return text if len(text) <= size else f"[cut]\n{text[-(size - 6) :]}"
