"""A project's objects, imported: what a zygote keeps ready and a fresh process loads for itself."""

import os
import sys
from collections.abc import Callable, Mapping
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
        sys.path.insert(0, str(self.code))
        os.chdir(self.code)
        self.graphs = {name: self._load(ref, _ready_graph) for name, ref in setup["graphs"].items()}
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
            return Loaded(reference, fault=explain(error, reference, self.code))


def _ready_graph(reference: str, found: Any) -> Any:
    """The graph, compiled once to find faults and fill caches; a factory with config as it is."""
    if takes_config(found):
        return found
    graph = resolve_graph(reference, found)
    prepare(reference, graph, {}, None)
    return graph


def explain(error: BaseException, reference: str, code: Path) -> dict[str, Any]:
    """A fault in plain words, with the exception beside them."""
    described = faults.describe_error(error)
    line = faults.find_user_line(error, code)
    place = f" at {line}" if line else ""
    reason = f"{reference}: {described['error_type']}{place}: {described['message']}"
    return {"reason": reason, **described}
