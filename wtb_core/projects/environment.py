"""The complete environment of user code, and which of its values are secrets."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dotenv import dotenv_values

from wtb_core.projects.definition import Environment

_INHERITED = ("PATH", "LANG", "TZ")
_SECRET_NAME = re.compile(
    r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE
)


class Variables(NamedTuple):
    """Names and values; `secrets` are those of the values that must not be shown."""

    values: dict[str, str]
    secrets: dict[str, str]


def read_environment(wanted: Environment, code: Path) -> Variables:
    """In rising precedence: inherited, file, pass, set."""
    values = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    given: dict[str, str] = {}
    if wanted.file is not None:
        found: Mapping[str, str | None] = dotenv_values(code / wanted.file, interpolate=False)
        given |= {name: value for name, value in found.items() if value is not None}
    given |= {name: os.environ[name] for name in wanted.pass_ if name in os.environ}
    secret = {name: value for name, value in wanted.set.items() if _SECRET_NAME.search(name)}
    return Variables(values | given | wanted.set, given | secret)
