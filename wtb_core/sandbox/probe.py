"""What an interpreter has: `python -I -B probe.py NAME...`, in any Python from 3.8.

Prints its version, its langgraph's version, its `sys.path`, and for each top-level name where it
lies: null when there is no such module, an empty list when it is installed or of the standard
library. No module of that name is imported.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

INSTALLED = {"site-packages", "dist-packages"}


def is_installed(path: str) -> bool:
    """Whether a module at `path` is imported from where it is."""
    if INSTALLED & set(Path(path).parts):
        return True
    standard = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    return any(Path(place).resolve() in Path(path).resolve().parents for place in standard)


def find(name: str) -> list[str] | None:
    """The places of a top-level module that is neither installed nor of the standard library."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or ())
    if not places and spec.has_location and spec.origin:
        places = [spec.origin]
    return [place for place in places if Path(place).exists() and not is_installed(place)]


def main() -> None:
    """Print all of it as JSON."""
    try:
        langgraph = metadata.version("langgraph")
    except metadata.PackageNotFoundError:
        langgraph = None
    found = {
        "version": list(sys.version_info[:3]),
        "langgraph": langgraph,
        "path": sys.path,
        "packages": {name: find(name) for name in sys.argv[1:]},
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
