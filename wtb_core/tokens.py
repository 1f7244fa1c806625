"""Bearer tokens: named in a config, found in the environment, never written down."""

import os
import re
from collections.abc import Mapping

from wtb_core.errors import InvalidRequest

MIN_CHARS = 16

_TOKEN = re.compile(r"[!-~]+")


def resolve_tokens(references: Mapping[str, str]) -> dict[str, str]:
    """User name to token, from references such as `env:WTB_TOKEN_ALICE`.

    Raises:
        InvalidRequest: when a reference has another form, or its variable holds no usable token.
    """
    tokens: dict[str, str] = {}
    for user, reference in references.items():
        source, _, name = str(reference).partition(":")
        if source != "env" or not name:
            raise InvalidRequest(
                f"tokens.{user}",
                "name an environment variable, such as env:WTB_TOKEN_ALICE; a config file is no "
                "place for a token",
            )
        token = os.environ.get(name, "")
        if fault := _find_fault(token):
            raise InvalidRequest(
                f"tokens.{user}",
                f"the environment variable {name} {fault}; set it to a random text of at least "
                f"{MIN_CHARS} characters before the service starts",
            )
        if token in tokens.values():
            raise InvalidRequest(f"tokens.{user}", "another user has the same token")
        tokens[user] = token
    return tokens


def _find_fault(token: str) -> str | None:
    if not token:
        return "is not set"
    if len(token) < MIN_CHARS:
        return f"has {len(token)} characters"
    if not _TOKEN.fullmatch(token):
        return "holds spaces or other characters that no header carries"
    return None
