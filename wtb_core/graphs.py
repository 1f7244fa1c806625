"""From a reference in a project to a graph that can run: loading, node swap, compilation.

Nothing of the project's own is changed: a swap works on a copy of the uncompiled graph, and an
unswapped graph runs as a shallow copy that only has another checkpointer.
"""

import collections
import copy
import dataclasses
import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from langchain_core.runnables import RunnableConfig, RunnableSequence
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import Pregel

from wtb_core.errors import GraphError

_DEFAULT_ERROR_HANDLER = "__default_error_handler__"
_KEPT_ATTRIBUTES = ("config", "step_timeout", "retry_policy", "cache_policy", "stream_mode")

Graph = StateGraph[Any, Any, Any, Any] | Pregel[Any, Any, Any, Any]


def load_reference(code: Path, reference: str) -> Any:
    """The object behind `module:attr` or `./file.py:attr`, relative to `code`.

    Whatever the import of user code raises comes through unchanged.

    Raises:
        GraphError: when the reference leads nowhere.
    """
    source, _, attribute = reference.partition(":")
    if not source or not attribute:
        raise GraphError(reference, "write a reference as module:attr or ./file.py:attr")
    found: Any = _load_file(code, source) if source.endswith(".py") else _load_module(source)
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise GraphError(reference, f"{source} has no {name!r}")
        found = getattr(found, name)
    return found


def _load_module(name: str) -> ModuleType:
    return importlib.import_module(name)


def _load_file(code: Path, source: str) -> ModuleType:
    """A file as the module that `import` would give, or under a name of its own.

    With one module per file, a class defined in it is the same class for everyone.
    """
    path = (code / source).resolve()
    if not path.is_relative_to(code.resolve()) or not path.is_file():
        raise GraphError(source, f"there is no file {source} in the project's directory")
    parts = path.relative_to(code.resolve()).with_suffix("").parts
    name = ".".join(parts)
    if all(part.isidentifier() for part in parts) and _origin(name) == path:
        return importlib.import_module(name)
    name = f"wtb_project_{'_'.join(parts)}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise GraphError(source, "it cannot be imported as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:  # raised again below
        del sys.modules[name]
        raise
    return module


def _origin(name: str) -> Path | None:
    """The file that `import name` would load or has loaded, found without importing it."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        file = getattr(loaded, "__file__", None)
        return Path(file).resolve() if file else None
    parent, _, _ = name.rpartition(".")
    if parent:
        # A directory without __init__.py is a namespace package and runs no code.
        directory = sys.modules.get(parent) or importlib.import_module(parent)
        search = list(getattr(directory, "__path__", []))
        spec = importlib.machinery.PathFinder.find_spec(name, search)
    else:
        spec = importlib.util.find_spec(name)
    return Path(spec.origin).resolve() if spec and spec.origin and spec.has_location else None


def takes_config(found: object) -> bool:
    """Whether `found` is a factory that wants the run's config."""
    if isinstance(found, StateGraph | Pregel) or not callable(found):
        return False
    return bool(_required_parameters(found))


def resolve_graph(reference: str, found: Any, config: RunnableConfig | None = None) -> Graph:
    """The graph that `found` is or, for a factory, returns.

    Raises:
        GraphError: when it is neither.
    """
    if callable(found) and not isinstance(found, StateGraph | Pregel):
        required = _required_parameters(found)
        if len(required) > 1:
            raise GraphError(
                reference,
                f"a factory takes nothing or a config, this one needs {', '.join(required)}",
            )
        made = found(config or {}) if required else found()
        if inspect.isawaitable(made):
            if inspect.iscoroutine(made):
                made.close()
            raise GraphError(reference, "an async factory is not supported; make it a plain def")
        found = made
    if not isinstance(found, StateGraph | Pregel):
        kind = type(found)
        raise GraphError(
            reference,
            f"a {kind.__module__}.{kind.__qualname__} is no graph; give a StateGraph, a compiled "
            "graph, an @entrypoint, or a function that returns one",
        )
    return found


def _required_parameters(factory: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # a callable written in C need not have a signature
        return []
    required = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    optional_config = any(parameter.name == "config" for parameter in parameters)
    return required or (["config"] if optional_config else [])


def prepare(
    reference: str,
    graph: Graph,
    implementations: Mapping[str, Any],
    saver: BaseCheckpointSaver[Any] | None,
) -> Pregel[Any, Any, Any, Any]:
    """`graph` ready to run, with `implementations` in place of nodes and `saver` as checkpointer.

    Raises:
        GraphError: when a node cannot be replaced.
    """
    if isinstance(graph, StateGraph):
        return copy_builder(reference, graph, implementations).compile(checkpointer=saver)
    if not implementations:
        runnable = copy.copy(graph)
        runnable.checkpointer = saver
        return runnable
    if not isinstance(graph, CompiledStateGraph):
        raise GraphError(
            reference, "the nodes of a functional-API graph cannot be replaced, only a StateGraph's"
        )
    compiled = copy_builder(reference, graph.builder, implementations).compile(
        checkpointer=saver,
        cache=graph.cache,
        store=graph.store,
        interrupt_before=_as_list(graph.interrupt_before_nodes),
        interrupt_after=_as_list(graph.interrupt_after_nodes),
        debug=graph.debug,
        name=graph.name,
        **_transformers(graph),
    )
    for attribute in _KEPT_ATTRIBUTES:
        setattr(compiled, attribute, getattr(graph, attribute))
    return compiled


def _as_list(nodes: Any) -> Any:
    return nodes if nodes == "*" else list(nodes)


def _transformers(graph: Pregel[Any, Any, Any, Any]) -> dict[str, Any]:
    """Older releases of langgraph, in a project's own environment, have no stream transformers."""
    transformers = getattr(graph, "stream_transformers", None)
    return {"transformers": transformers} if transformers else {}


def copy_builder(
    reference: str, builder: StateGraph[Any, Any, Any, Any], implementations: Mapping[str, Any]
) -> StateGraph[Any, Any, Any, Any]:
    """An uncompiled copy of `builder` that shares no container with it.

    A replaced node keeps every field of its old spec but the runnable. The node that `compile`
    generates for a default error handler is left out, because `compile` generates it again.
    """
    own = copy.copy(builder)
    for name, value in vars(builder).items():
        if isinstance(value, dict | set | list):
            setattr(own, name, copy.copy(value))
    own.branches = collections.defaultdict(
        dict, {source: dict(branches) for source, branches in builder.branches.items()}
    )
    own.compiled = False
    own.nodes = {
        name: _without_default_handler(spec)
        for name, spec in builder.nodes.items()
        if name != _DEFAULT_ERROR_HANDLER
    }
    for name, implementation in implementations.items():
        _replace_node(reference, own, name, implementation)
    return own


def _without_default_handler(spec: Any) -> Any:
    if getattr(spec, "error_handler_node", None) == _DEFAULT_ERROR_HANDLER:
        return dataclasses.replace(spec, error_handler_node=None)
    return dataclasses.replace(spec)


def _replace_node(
    reference: str, builder: StateGraph[Any, Any, Any, Any], name: str, implementation: Any
) -> None:
    nodes = builder.nodes
    old = nodes.get(name)
    if old is None:
        raise GraphError(reference, f"it has no node {name!r}; it has {', '.join(nodes)}")
    builder.nodes = {}
    builder.add_node(name, implementation)
    new = builder.nodes[name]
    # The declared destinations are only drawn and validated; a node that declared none may have
    # an implementation whose annotation names some.
    merged = dataclasses.replace(old, runnable=new.runnable, ends=old.ends or new.ends)
    builder.nodes = {key: merged if key == name else spec for key, spec in nodes.items()}


def node_names(graph: Graph) -> list[str]:
    """The nodes a user wrote, in their order."""
    builder = graph if isinstance(graph, StateGraph) else getattr(graph, "builder", None)
    if builder is None:
        return list(graph.nodes)
    return [
        name for name, spec in builder.nodes.items() if not getattr(spec, "is_error_handler", False)
    ]


def needs_asyncio(graph: Pregel[Any, Any, Any, Any]) -> bool:
    """Whether some node or branch, in subgraphs too, can only be awaited."""
    graphs: list[Any] = [graph, *(subgraph for _, subgraph in graph.get_subgraphs(recurse=True))]
    return any(_only_async(part) for each in graphs for part in _runnables(each))


def _runnables(graph: Any) -> Iterator[Any]:
    if not isinstance(graph, Pregel):
        return
    for node in graph.nodes.values():
        yield node.bound
        yield from getattr(node.bound, "tools_by_name", {}).values()
    builder = getattr(graph, "builder", None)
    for branches in builder.branches.values() if builder is not None else ():
        for branch in branches.values():
            yield branch.path


def _only_async(runnable: Any) -> bool:
    if isinstance(runnable, RunnableSequence):
        return any(map(_only_async, runnable.steps))
    has_async = getattr(runnable, "afunc", None) or getattr(runnable, "coroutine", None)
    return bool(has_async) and getattr(runnable, "func", None) is None
