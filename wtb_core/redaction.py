"""Takes the values of secret variables out of what leaves a process of user code.

This keeps a key from being shown by accident. It cannot stop code that hides a value on purpose,
by encoding or splitting it.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

from wtb_core.attempts import Outcome

MIN_CHARS = 8

_CUT_HEAD = "[cut]\n"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


class Redactor:
    """Replaces each secret of at least `MIN_CHARS` characters by `[redacted NAME]`.

    Also found are the forms that a value takes in JSON, in `repr` and in a URL, and the part of a
    value that is left where a text was cut.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        found: dict[str, str] = {}
        for name, value in secrets.items():
            marker = f"[redacted {_UNSAFE.sub('_', name)}]"
            for form in _forms(value):
                found.setdefault(form, marker)
        # The longest first: a value may hold another one.
        self._forms = sorted(found.items(), key=lambda item: -len(item[0]))
        self._bytes = [(form.encode(), marker.encode()) for form, marker in self._forms]
        self.longest_bytes = max((len(form) for form, _ in self._bytes), default=0)

    def text(self, text: str) -> str:
        """A message without secrets, which may have been cut."""
        text = self._replace(text)
        for form, marker in self._forms:
            text = _redact_ends(text, form, marker)
        return text

    def json_text(self, text: str) -> str:
        """JSON text without secrets, and still JSON: only its texts and numbers are changed."""
        if not any(form in text for form, _ in self._forms) and "\\u" not in text:
            return text
        value = json.loads(text)
        redacted = _map_texts(value, self._replace)
        if redacted == value:
            return text
        return json.dumps(redacted, ensure_ascii=False, separators=(",", ":"))

    def log(self, data: bytes, limit: int) -> bytes:
        """The first `limit` bytes of a log of which `data` is at least that much, if there is more.

        Give `limit + longest_bytes`, so that no part of a secret is left at the cut.
        """
        for form, marker in self._bytes:
            data = data.replace(form, marker)
        for form, marker in self._bytes:
            for size in range(min(len(form) - 1, len(data)), MIN_CHARS - 1, -1):
                if data.endswith(form[:size]):
                    data = data[:-size] + marker
                    break
        return data[:limit]

    def value(self, value: Any) -> Any:
        """A JSON value of messages without secrets."""
        return _map_texts(value, self.text) if self._forms else value

    def outcome(self, outcome: Outcome) -> Outcome:
        """An outcome without secrets in its texts; its output and logs are made without them."""
        if not self._forms:
            return outcome
        failure = outcome.failure
        if failure is not None:
            texts = {
                name: None if (text := getattr(failure, name)) is None else self.text(text)
                for name in ("reason", "error_type", "message", "traceback")
            }
            failure = failure.model_copy(update=texts)
        given = outcome.evaluation
        evaluation = given.model_copy(
            update={
                "scores": {self.text(name): score for name, score in given.scores.items()},
                "comments": {self.text(k): self.text(v) for k, v in given.comments.items()},
                "errors": {self.text(k): self.text(v) for k, v in given.errors.items()},
            }
        )
        nodes = [
            run if run.error is None else run.model_copy(update={"error": self.text(run.error)})
            for run in outcome.nodes
        ]
        reason = outcome.start_reason
        return outcome.model_copy(
            update={
                "failure": failure,
                "evaluation": evaluation,
                "nodes": nodes,
                "start_reason": None if reason is None else self.text(reason),
            }
        )

    def _replace(self, text: str) -> str:
        for form, marker in self._forms:
            text = text.replace(form, marker)
        return text


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with `change` applied to keys, texts, and numbers that it changes."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return change(value)
    if isinstance(value, int | float):
        shown = json.dumps(value)
        changed = change(shown)
        return value if changed == shown else changed
    if isinstance(value, Mapping):
        return {change(key): _map_texts(item, change) for key, item in value.items()}
    return [_map_texts(item, change) for item in value]


def _forms(value: str) -> Iterator[str]:
    for plain in {value, value.strip()}:
        if len(plain) < MIN_CHARS:
            continue
        yield plain
        for ascii_only in (True, False):
            once = json.dumps(plain, ensure_ascii=ascii_only)[1:-1]
            yield once
            yield json.dumps(once, ensure_ascii=ascii_only)[1:-1]
        yield repr(plain)[1:-1]
        yield quote(plain, safe="", errors="replace")
        yield quote_plus(plain, errors="replace")


def _redact_ends(text: str, form: str, marker: str) -> str:
    """Messages are cut to a length, tracebacks at their head: a part of a value may be left."""
    head = text.startswith(_CUT_HEAD)
    body = text[len(_CUT_HEAD) :] if head else text
    for size in range(min(len(form) - 1, len(text)), MIN_CHARS - 1, -1):
        if text.endswith(form[:size]):
            text = text[:-size] + marker
            break
    for size in range(min(len(form) - 1, len(body)), MIN_CHARS - 1, -1):
        if head and body.startswith(form[-size:]):
            return _CUT_HEAD + marker + text[len(_CUT_HEAD) + size :]
    return text
