"""What a project consists of and what is wrong with it, found out by importing it.

Runs in a process of its own: no deployment imports project code.
"""

import platform
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph

from wtb_core.graphs import needs_asyncio, node_names, prepare, resolve_graph, takes_config
from wtb_core.sandbox.project import Loaded, LoadedProject, explain
from wtb_core.sandbox.scoring import find_arguments


def describe_project(project: LoadedProject, obstacle: str | None) -> dict[str, Any]:
    """Graphs, nodes, evaluators and problems; a reference that fails hides no other's problems."""
    problems: list[str] = []

    def collect(entries: dict[str, Loaded], part: Callable[[Loaded], Any]) -> dict[str, Any]:
        described: dict[str, Any] = {}
        for name, loaded in entries.items():
            if loaded.fault is not None:
                problems.append(loaded.fault["reason"])
                continue
            try:
                described[name] = part(loaded)
            except Exception as error:  # noqa: BLE001 - factories are user code
                problems.append(explain(error, loaded.reference, project.roots)["reason"])
        return described

    graphs = collect(project.graphs, _describe_graph)
    nodes = {node: list(collect(found, _check_node)) for node, found in project.nodes.items()}
    evaluators = collect(project.evaluators, _describe_evaluator)
    for name, found in evaluators.items():
        reference = project.evaluators[name].reference
        problems += [f"{reference}: {fault}" for fault in found.pop("problems")]
    if len(graphs) == len(project.graphs):  # else the nodes may be those of a broken one
        problems += _find_unknown_nodes(project, graphs)
    return {
        "graphs": graphs,
        "nodes": nodes,
        "evaluators": evaluators,
        "problems": list(dict.fromkeys(problems)),
        "start": "fresh" if obstacle else "fork",
        "start_reason": obstacle,
        "python": platform.python_version(),
        "langgraph": metadata.version("langgraph"),
    }


def _find_unknown_nodes(project: LoadedProject, graphs: dict[str, Any]) -> Iterator[str]:
    known = {node for graph in graphs.values() for node in graph["nodes"]}
    inner = {
        node: outer
        for graph in graphs.values()
        for outer, nodes in graph["subgraphs"].items()
        for node in nodes
    }
    for node in project.nodes.keys() - known:
        if node in inner:
            yield (
                f"nodes.{node}: it is a node of the subgraph {inner[node]!r}; only the graph's own "
                "nodes can be replaced"
            )
        else:
            yield f"nodes.{node}: no graph has this node; there are: {', '.join(sorted(known))}"


def _describe_graph(loaded: Loaded) -> dict[str, Any]:
    found = loaded.value
    config: RunnableConfig | None = {"configurable": {}} if takes_config(found) else None
    graph = resolve_graph(loaded.reference, found, config)
    runnable = prepare(loaded.reference, graph, {}, None)
    state_graph = isinstance(graph, StateGraph) or hasattr(graph, "builder")
    return {
        "kind": "state_graph" if state_graph else "functional",
        "nodes": node_names(graph),
        "subgraphs": {
            name: node_names(subgraph)
            for name, subgraph in runnable.get_subgraphs(recurse=True)
            if isinstance(subgraph, CompiledStateGraph)
        },
        "asynchronous": needs_asyncio(runnable),
        "input_schema": _schema(runnable.get_input_jsonschema),
        "output_schema": _schema(runnable.get_output_jsonschema),
        "context_schema": _schema(runnable.get_context_jsonschema),
    }


def _schema(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception:  # noqa: BLE001 - not every type has a schema; the graph runs all the same
        return None


def _check_node(loaded: Loaded) -> None:
    if not callable(loaded.value) and not hasattr(loaded.value, "invoke"):
        raise TypeError(f"a {type(loaded.value).__name__} cannot be a node; give a function")


def _describe_evaluator(loaded: Loaded) -> dict[str, Any]:
    if not callable(loaded.value):
        raise TypeError(f"a {type(loaded.value).__name__} is no evaluator; give a function")
    takes, problems = find_arguments(loaded.value)
    return {"takes": takes, "problems": problems}
