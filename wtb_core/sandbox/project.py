"""A project's objects, imported: what a zygote keeps ready and a fresh process loads for itself."""

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wtb_core.errors import WtbError
from wtb_core.graphs import load_reference, prepare, resolve_graph, takes_config
from wtb_core.sandbox import faults


class Loaded(NamedTuple):
    """What a reference led to: a value, or the fault that loading it ended with."""

    reference: str
    value: Any = None
    fault: dict[str, Any] | None = None


class LoadedProject:
    """All references of a setup; one that fails does not keep the others from loading."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        self.code = Path(setup["code"])
        packages = setup.get("packages")
        self.roots = [self.code, *([Path(packages)] if packages else [])]
        _import_from(self.roots, setup.get("directory"))
        os.chdir(self.code)
        graphs: dict[str, str] = setup["graphs"]
        loaded = {ref: self._load(ref, _ready_graph) for ref in dict.fromkeys(graphs.values())}
        self.graphs = {name: loaded[ref] for name, ref in graphs.items()}
        self.nodes = {
            node: {name: self._load(ref) for name, ref in implementations.items()}
            for node, implementations in setup["nodes"].items()
        }
        self.evaluators = {name: self._load(ref) for name, ref in setup["evaluators"].items()}

    def _load(
        self, reference: str, finish: Callable[[str, Any], Any] = lambda _, found: found
    ) -> Loaded:
        try:
            return Loaded(reference, finish(reference, load_reference(self.code, reference)))
        except WtbError as error:
            return Loaded(reference, fault={"reason": str(error)})
        except BaseException as error:  # noqa: BLE001 - user code at import raises what it likes
            return Loaded(reference, fault=explain(error, reference, self.roots))


def _ready_graph(reference: str, found: Any) -> Any:
    """The graph, compiled once to find faults and fill caches; a factory with config as it is."""
    if takes_config(found):
        return found
    graph = resolve_graph(reference, found)
    prepare(reference, graph, {}, None)
    return graph


def _import_from(roots: list[Path], directory: str | None) -> None:
    """Put the ingested copies first, and in the place of directories they are copies of.

    An editable install of the project's own `src` would lead past the version.
    """
    code = roots[0]
    entries: list[str] = []
    for entry in sys.path:
        path = Path(entry)
        if directory is not None and path.is_relative_to(directory):
            copied = code / path.relative_to(directory)
            entries.append(str(copied) if copied.is_dir() else entry)
        else:
            entries.append(entry)
    sys.path[:] = [*map(str, roots), *entries]


def build(reference: str, workspace: Path, project: LoadedProject) -> str | None:
    """Let the project's build fill `workspace`; what is wrong, None when it went well."""
    try:
        made = load_reference(project.code, reference)(workspace)
    except WtbError as error:
        return str(error)
    except BaseException as error:  # noqa: BLE001 - user code raises what it likes
        return str(explain(error, reference, project.roots)["reason"])
    if inspect.iscoroutine(made):
        made.close()
        return f"{reference}: an async build is not supported; make it a plain def"
    return None


def explain(error: BaseException, reference: str, roots: Sequence[Path]) -> dict[str, Any]:
    """A fault in plain words, with the exception beside them."""
    described = faults.describe_error(error)
    line = faults.find_user_line(error, roots)
    place = f" at {line}" if line else ""
    reason = f"{reference}: {described['error_type']}{place}: {described['message']}"
    return {"reason": reason, **described}
