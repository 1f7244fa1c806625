"""What a project's processes are started with."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict


class ProjectSetup(BaseModel):
    """One version of a project, materialised on this node.

    `code` and `workspace` are the ingested copies, never changed. References are `module:attr` or
    `./file.py:attr`, relative to `code`. `environment` is the complete environment of user code,
    apart from HOME and TMPDIR, which each attempt gets of its own.
    """

    model_config = ConfigDict(frozen=True)

    project: str
    version: str
    code: Path
    workspace: Path | None
    graphs: dict[str, str]
    nodes: dict[str, dict[str, str]] = {}
    evaluators: dict[str, str] = {}
    environment: dict[str, str] = {}
    python: str
    start: Literal["fork", "fresh"] = "fork"
