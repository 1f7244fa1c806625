"""`langgraph.json`, the file of LangGraph's own tools, as a project file.

`graphs` and `env` are honoured. The rest describes LangGraph's server and its image, which have no
counterpart here.
"""

import json
import re
from typing import Any

from wtb_core.documents import parse_json
from wtb_core.errors import InvalidDocument

FILE_NAME = "langgraph.json"

_SERVER = "is a part of LangGraph's server, which is not used here"
_IMAGE = "is about an image, and none is built"
_REASONS = {
    "dependencies": "are not installed; the interpreter that runs the project must have them",
    "python_version": "is not looked at; a project.yaml can name an interpreter",
    "node_version": "is not looked at; only Python graphs are run",
    **dict.fromkeys(("auth", "checkpointer", "encryption", "http", "store", "webhooks"), _SERVER),
    **dict.fromkeys(("api_version", "ui", "ui_config"), _SERVER),
    **dict.fromkeys(("base_image", "dockerfile_lines", "image_distro", "keep_pkg_tools"), _IMAGE),
    **dict.fromkeys(("pip_config_file", "pip_installer"), "is not looked at; nothing is installed"),
}


def convert(data: bytes, directory: str) -> tuple[dict[str, Any], list[str]]:
    """The same as a `project.yaml` would say it, and what is ignored, in plain words.

    The project is named after its directory.

    Raises:
        ValueError: with every problem as one of its arguments.
    """
    try:
        raw: Any = parse_json(data)
    except InvalidDocument as error:
        place = "" if error.line is None else f"line {error.line}, column {error.column}: "
        raise ValueError(f"is not JSON: {place}{error.message}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("graphs"), dict) or not raw["graphs"]:
        raise ValueError("it names no graphs; give `graphs`, a mapping of names to references")
    problems: list[str] = []
    ignored: list[str] = []
    graphs: dict[str, str] = {}
    for name, found in raw["graphs"].items():
        reference = found.get("path") if isinstance(found, dict) else found
        if isinstance(found, dict):
            ignored += [
                f"graphs.{name}.{key}: has no meaning here" for key in found.keys() - {"path"}
            ]
        if isinstance(reference, str):
            graphs[name] = _as_reference(reference)
        else:
            problems.append(f"graphs.{name}: give a reference such as `./agent.py:graph`")
    environment, more = _read_env(raw.get("env"))
    if problems or more:
        raise ValueError(*problems, *more)
    for key in raw.keys() - {"graphs", "env"}:
        ignored.append(f"{key}: {_REASONS.get(key, 'has no meaning here')}")
    converted = {"name": _as_name(directory), "graphs": graphs, "environment": environment}
    return converted, sorted(ignored)


def _as_reference(text: str) -> str:
    """Files may be written without `./` there."""
    source, separator, attribute = text.rpartition(":")
    is_file = source.endswith(".py") and not source.startswith(("./", "/", "../"))
    return f"./{source}{separator}{attribute}" if is_file else text


def _read_env(given: object) -> tuple[dict[str, Any], list[str]]:
    """`env` is the path of a file or a mapping."""
    if given is None:
        return {}, []
    if isinstance(given, str):
        return {"file": given}, []
    if not isinstance(given, dict):
        return {}, ["env: give the path of a file, or a mapping of names to texts"]
    values: dict[str, str] = {}
    problems: list[str] = []
    for name, value in given.items():
        if isinstance(value, str):
            values[name] = value
        elif isinstance(value, int | float):
            values[name] = json.dumps(value)
        else:
            problems.append(f"env.{name}: give text")
    return {"set": values}, problems


def _as_name(directory: str) -> str:
    """A directory's name as the name of a project."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", directory).lstrip("._-")[:128] or "project"
