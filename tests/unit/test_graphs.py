"""Loading, node swap and compilation; the sandbox tests run the results."""

import dataclasses
import operator
import sys
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import pytest
from langchain_core.runnables import RunnableLambda
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint
from langgraph.graph import END, START, StateGraph
from langgraph.graph._node import StateNodeSpec
from langgraph.prebuilt import ToolNode
from langgraph.store.memory import InMemoryStore
from langgraph.types import CachePolicy, Command, RetryPolicy, TimeoutPolicy, TracePolicy

from wtb_core import graphs
from wtb_core.errors import GraphError


class State(TypedDict):
    log: Annotated[list[str], operator.add]


class Narrow(TypedDict):
    log: list[str]


class Wider(TypedDict):
    log: list[str]
    private: int


def first(state):
    return {"log": ["first"]}


async def second(state):
    return {"log": ["second"]}


def other(state: Wider):
    return {"log": ["other"]}


def routed(state) -> Command[Literal["first"]]:
    return {"log": ["routed"]}


async def other_async(state):
    return {"log": ["other"]}


def rich_builder():
    """Every option that a node can have, at a value that is not the default."""
    builder = StateGraph(State)
    builder.add_node("first", first)
    builder.add_node(
        "second",
        second,
        defer=True,
        metadata={"owner": "me"},
        input_schema=Narrow,
        retry_policy=RetryPolicy(max_attempts=7),
        cache_policy=CachePolicy(ttl=9),
        error_handler=lambda state: {"log": ["handled"]},
        destinations=("first",),
        timeout=TimeoutPolicy(run_timeout=5),
        trace_policy=TracePolicy(),
    )
    builder.add_edge(START, "first")
    builder.add_edge("first", "second")
    return builder


def snapshot(builder):
    return {
        name: {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
        for name, spec in builder.nodes.items()
    }


def test_a_swap_keeps_every_field_of_the_spec_but_the_runnable():
    builder = rich_builder()
    old = builder.nodes["second"]
    new = graphs.copy_builder("ref", builder, {"second": other_async}).nodes["second"]
    fields = {field.name for field in dataclasses.fields(StateNodeSpec)}
    # A field that a new release adds is to be looked at before it is listed here.
    assert fields == {
        *("runnable", "metadata", "input_schema", "retry_policy", "cache_policy"),
        *("is_error_handler", "error_handler_node", "ends", "defer", "timeout", "trace_policy"),
    }
    for name in fields - {"runnable"}:
        assert getattr(new, name) == getattr(old, name), name
        if name != "is_error_handler":
            default = StateNodeSpec.__dataclass_fields__[name].default
            assert getattr(old, name) not in (None, (), False, default), f"{name} is not set here"
    assert new.runnable.afunc is other_async
    assert old.runnable.afunc is second


def test_a_node_without_destinations_takes_those_of_its_implementation():
    copy = graphs.copy_builder("ref", rich_builder(), {"first": routed, "second": routed})
    assert copy.nodes["first"].ends == ("first",)
    copy = graphs.copy_builder("ref", rich_builder(), {"second": other})
    assert copy.nodes["second"].ends == ("first",)


def test_a_swap_leaves_the_original_alone():
    builder = rich_builder()
    builder.add_conditional_edges("second", lambda state: END, [END])
    before = (snapshot(builder), set(builder.edges), dict(builder.channels), builder.compiled)
    branches = {source: dict(found) for source, found in builder.branches.items()}
    copy = graphs.copy_builder("ref", builder, {"first": other})
    copy.add_edge("first", "__end__")
    copy.add_conditional_edges("second", choose, [END])
    copy.compile()
    assert (
        snapshot(builder),
        set(builder.edges),
        dict(builder.channels),
        builder.compiled,
    ) == before
    assert {source: dict(found) for source, found in builder.branches.items()} == branches
    assert "private" in copy.channels
    assert list(copy.nodes) == list(builder.nodes)


def test_a_swap_of_a_compiled_graph_keeps_what_it_was_compiled_with():
    builder = StateGraph(State)
    builder.add_node("first", first)
    builder.add_node("second", first)
    builder.add_edge(START, "first")
    builder.add_edge("first", "second")
    original = builder.compile(
        checkpointer=InMemorySaver(),
        cache=InMemoryCache(),
        store=InMemoryStore(),
        interrupt_before=["second"],
        interrupt_after=["first"],
        debug=True,
        name="mine",
    ).with_config({"recursion_limit": 5})
    original.step_timeout = 3
    saver = InMemorySaver()
    for swaps in ({}, {"first": other}):
        made = graphs.prepare("ref", original, swaps, saver)
        assert made is not original
        assert made.checkpointer is saver
        for name in ("cache", "store", "debug", "name", "config", "step_timeout"):
            assert getattr(made, name) == getattr(original, name), name
        assert made.interrupt_before_nodes == ["second"]
        assert made.interrupt_after_nodes == ["first"]
        assert type(made) is type(original)
    assert original.checkpointer is not saver


def test_node_defaults_and_their_error_handler_survive_a_second_compilation():
    def broken(state):
        raise ValueError

    builder = StateGraph(State)
    builder.add_node("first", first)
    builder.add_edge(START, "first")
    builder.set_node_defaults(
        error_handler=lambda state: {"log": ["handled"]}, retry_policy=RetryPolicy(max_attempts=1)
    )
    compiled = builder.compile()
    for graph in (builder, compiled):
        for _ in range(2):
            made = graphs.prepare("ref", graph, {"first": broken}, None)
            assert made.invoke({"log": []}) == {"log": ["handled"]}
            assert graphs.node_names(graph) == ["first"]
    assert compiled.invoke({"log": []}) == {"log": ["first"]}


@entrypoint()
def functional(x):
    return x


@pytest.mark.parametrize(
    ("graph", "message"),
    [(functional, "functional-API"), (rich_builder(), "no node 'unknown'; it has first")],
)
def test_a_swap_that_is_impossible_says_why(graph, message):
    with pytest.raises(GraphError, match=message):
        graphs.prepare("./graph.py:graph", graph, {"unknown": other}, None)


def factory():
    return rich_builder()


async def async_factory():
    return rich_builder()


def test_factories_are_called_as_they_wish():
    assert isinstance(graphs.resolve_graph("r", factory), StateGraph)
    assert graphs.resolve_graph("r", functional) is functional
    assert not graphs.takes_config(factory)
    assert not graphs.takes_config(functional)
    assert graphs.takes_config(lambda config: None)
    assert graphs.takes_config(lambda config=None: None)
    given = []
    graphs.resolve_graph("r", lambda config: given.append(config) or functional, {"tags": ["x"]})
    assert given == [{"tags": ["x"]}]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (async_factory, "async factory"),
        (lambda a, b: None, "this one needs a, b"),
        (lambda: 5, "builtins.int is no graph"),
        (RunnableLambda(first), "no graph"),
    ],
)
def test_what_is_no_graph_says_what_it_is(found, message):
    with pytest.raises((GraphError, TypeError), match=message):
        graphs.resolve_graph("r", found)


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_file_is_the_module_that_an_import_gives(code):
    (code / "wtb_swap_module.py").write_text("class A:\n    b = object()\n")
    by_file = graphs.load_reference(code, "./wtb_swap_module.py:A.b")
    assert by_file is graphs.load_reference(code, "wtb_swap_module:A.b")
    (code / "wtb_sub").mkdir()
    (code / "wtb_sub" / "deep.py").write_text("x = []")
    by_file = graphs.load_reference(code, "wtb_sub/deep.py:x")
    assert by_file is graphs.load_reference(code, "wtb_sub.deep:x")


def test_a_file_named_as_another_module_is_still_that_file(code):
    for name in ("json.py", "not-a-name.py"):
        (code / name).write_text("x = 'mine'")
        assert graphs.load_reference(code, f"./{name}:x") == "mine"
        assert graphs.load_reference(code, f"./{name}:x") == "mine"
    assert "dumps" in dir(sys.modules["json"])


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("graph.py", "write a reference as"),
        ("./missing.py:x", "there is no file ./missing.py"),
        ("../outside.py:x", "there is no file"),
        ("operator:nothing", "operator has no 'nothing'"),
    ],
)
def test_a_reference_that_leads_nowhere_says_so(code, reference, message):
    Path(code.parent, "outside.py").write_text("x = 1")
    with pytest.raises(GraphError, match=message):
        graphs.load_reference(code, reference)


def compiled_with(node=first, branch=None):
    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    if branch:
        builder.add_conditional_edges("node", branch, [END])
    return builder.compile()


async def choose(state):
    return END


def tool_node(**keywords):
    from langchain_core.tools import StructuredTool

    return ToolNode([StructuredTool.from_function(name="t", description="d", **keywords)])


def plain_tool(x: int) -> int:
    return x


async def async_tool(x: int) -> int:
    return x


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (compiled_with(), False),
        (compiled_with(second), True),
        (compiled_with(RunnableLambda(first, second)), False),
        (compiled_with(RunnableLambda(first) | RunnableLambda(second)), True),
        (compiled_with(branch=choose), True),
        (compiled_with(compiled_with(second)), True),
        (compiled_with(compiled_with(compiled_with(branch=choose))), True),
        (compiled_with(compiled_with()), False),
        (compiled_with(tool_node(func=plain_tool)), False),
        (compiled_with(tool_node(coroutine=async_tool)), True),
        (functional, False),
    ],
)
def test_what_can_only_be_awaited_is_found_anywhere(graph, expected):
    assert graphs.needs_asyncio(graph) is expected
