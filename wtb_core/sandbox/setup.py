"""What a project's processes are started with."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from wtb_core.files.manifests import Manifest


class ProjectSetup(BaseModel):
    """One version of a project, materialised on this node.

    `code`, `packages` and `workspace` are the ingested copies, never changed; `directory` is where
    the project was ingested from. References are `module:attr` or `./file.py:attr`, relative to
    `code`. `environment` is the complete environment of user code, apart from HOME and TMPDIR,
    which each attempt gets of its own; `secrets` are those of its values that must not be shown.
    `files` lists what is in `workspace`.
    """

    model_config = ConfigDict(frozen=True)

    project: str
    version: str
    code: Path
    packages: Path | None = None
    directory: Path | None = None
    workspace: Path | None
    graphs: dict[str, str]
    nodes: dict[str, dict[str, str]] = {}
    evaluators: dict[str, str] = {}
    environment: dict[str, str] = {}
    secrets: dict[str, str] = Field(default={}, exclude=True, repr=False)
    files: Manifest | None = Field(default=None, exclude=True, repr=False)
    python: str
    start: Literal["fork", "fresh"] = "fork"
