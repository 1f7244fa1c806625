"""Graphs in a sandbox: results as a direct invoke gives them, attempts, fences."""

import asyncio
import importlib.util
import json
import sys
from pathlib import Path

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import StateGraph
from langgraph.types import Command
from sandbox_bench import (
    PROJECTS,
    Bench,
    until_first_checkpoint,
)

from wtb_core.sandbox.rendering import render


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"project_{path.parent.name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shapes():
    return load(PROJECTS / "shapes" / "graphs.py")


SHAPES = {
    "narrow": {"x": 1},
    "sync": {"x": 3},
    "compiled": {"x": 3},
    "asynchronous": {"x": 3},
    "own_saver": {"x": 3},
    "factory": {"x": 3},
    "nested": {"x": 3},
    "nested_async": {"x": 3},
    "command": {"log": ["a"]},
    "send": {"log": []},
    "loop": {"log": []},
    "async_branch": {"x": 3},
    "pydantic_state": {"name": "n", "tags": ["t"]},
    "dataclass_state": {"name": "n"},
    "messages": {"messages": [{"role": "user", "content": "hi", "id": "given"}]},
    "functional": 4,
}


def invoke(graph, given, **keywords):
    """The reference: the graph as a user runs it, with a checkpointer."""
    if isinstance(graph, StateGraph):
        graph = graph.compile()
    graph = graph.copy(update={"checkpointer": InMemorySaver()})
    config = {"configurable": {"thread_id": "direct", **keywords.pop("config", {})}}
    answers = keywords.pop("resume", None)

    async def run():
        value = await graph.ainvoke(given, config, durability="sync", **keywords)
        for answer in answers or ():
            value = await graph.ainvoke(Command(resume=answer), config, durability="sync")
        return value

    return asyncio.run(run())


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_gives_what_a_direct_invoke_gives(shaped, shapes, name):
    graph = getattr(shapes, name)
    expected = invoke(graph() if name == "factory" else graph, SHAPES[name])
    outcome = shaped.run("shapes", name, SHAPES[name])
    assert outcome.failure is None
    assert json.loads(outcome.output) == json.loads(render(expected))
    assert outcome.start == "fork"
    assert outcome.start_reason is None
    assert outcome.node_count >= 1
    assert outcome.checkpoint_count >= 1
    assert outcome.cpu_ms > 0
    assert outcome.peak_rss_bytes > 10**7


def test_a_fresh_interpreter_gives_the_same(shaped):
    outcome = shaped.run("fresh", "asynchronous", {"x": 3})
    assert (outcome.failure, outcome.output) == (None, '{"x":7}')
    assert (outcome.start, outcome.start_reason) == ("fresh", "the project says `start: fresh`")


def test_the_node_runs_are_recorded_with_their_supersteps(shaped):
    outcome = shaped.run("shapes", "send", {"log": []})
    assert [(run.name, run.superstep) for run in outcome.nodes] == [
        ("split", 1),
        ("work", 2),
        ("work", 2),
        ("work", 2),
    ]
    assert outcome.node_count == 4
    assert all(run.start_ms <= run.end_ms and run.error is None for run in outcome.nodes)


def test_a_factory_gets_the_config(shaped):
    up = shaped.run("shapes", "configured_factory", {"x": 1}, variant={"config": {"step": "up"}})
    down = shaped.run("shapes", "configured_factory", {"x": 1})
    assert (up.output, down.output) == ('{"x":2}', '{"x":0}')


def test_context_reaches_the_graph_in_its_schema(shaped):
    outcome = shaped.run("shapes", "context", {"x": 2}, variant={"context": {"factor": 21}})
    assert outcome.output == '{"x":42}'


def test_a_node_is_swapped_in_one_execution_only(shaped):
    swap = {"nodes": {"increment": "decrement"}}
    assert shaped.run("shapes", "compiled", {"x": 3}, variant=swap).output == '{"x":5}'
    assert shaped.run("shapes", "compiled", {"x": 3}).output == '{"x":7}'


@pytest.mark.parametrize("graph", ["functional", "nested"])
def test_a_node_that_cannot_be_swapped_is_the_variants_own_error(shaped, graph):
    outcome = shaped.run("shapes", graph, 1, variant={"nodes": {"increment": "decrement"}})
    assert outcome.failure.kind == "error"
    assert "node" in outcome.failure.reason


def test_the_recursion_limit_is_the_variants(shaped):
    outcome = shaped.run("shapes", "endless", {"log": []}, variant={"recursion_limit": 4})
    assert outcome.failure.kind == "error"
    assert outcome.failure.error_type == "langgraph.errors.GraphRecursionError"
    assert outcome.node_count == 4


def test_interrupts_are_answered_in_order(shaped, shapes):
    expected = invoke(shapes.ask, {"answers": []}, resume=["one", {"two": None}])
    outcome = shaped.run("shapes", "ask", {"answers": []}, resume=["one", {"two": None}])
    assert json.loads(outcome.output) == expected == {"answers": ["one", {"two": None}]}


def test_interrupts_at_the_same_time_are_answered_in_the_order_of_their_tasks(shaped):
    outcome = shaped.run("shapes", "ask_both", {"answers": []}, resume=[1, None])
    assert sorted(json.loads(outcome.output)["answers"]) == [["one", 1], ["two", None]]


@pytest.mark.parametrize(
    ("graph", "given", "answers", "expected"),
    [
        ("ask", {"answers": []}, [], '"first?"'),
        ("ask", {"answers": []}, ["one"], '{"second":2}'),
        ("ask_both", {"answers": []}, [1], '"two?"'),
        ("breakpoint_graph", {"x": 1}, [], "breakpoint before increment"),
    ],
)
def test_an_interrupt_without_an_answer_fails_the_execution(
    shaped, graph, given, answers, expected
):
    outcome = shaped.run("shapes", graph, given, resume=answers)
    assert outcome.failure.kind == "interrupted"
    assert expected in outcome.failure.reason
    assert outcome.failure.node in {"ask", "two", "increment"}


def test_an_answer_lets_a_static_breakpoint_pass(shaped):
    assert shaped.run("shapes", "breakpoint_graph", {"x": 1}, resume=["go"]).output == '{"x":3}'


def test_every_execution_has_randomness_of_its_own(shaped):
    seen = [
        json.loads(shaped.run("shapes", "look", {"seen": {}}).output)["seen"]["random"]
        for _ in range(2)
    ]
    assert seen[0] != seen[1]


def test_a_retry_starts_clean_under_the_same_thread(shaped):
    for attempt in (1, 2):
        outcome = shaped.run("shapes", "loop", {"log": []}, execution_id="again", attempt=attempt)
        assert len(json.loads(outcome.output)["log"]) == 5
        found = shaped.call(shaped.store.list_checkpoints("again", attempt))
        assert len(found) == outcome.checkpoint_count


def test_an_attempt_behind_the_fence_is_lost(shaped):
    shaped.call(shaped.store.raise_fence("fenced", 2))
    outcome = shaped.run("shapes", "sync", {"x": 1}, execution_id="fenced", attempt=1)
    assert outcome.failure.kind == "lost"
    assert "attempt 2" in outcome.failure.reason


def test_the_fence_stops_a_running_attempt_at_its_next_checkpoint(shaped):
    options = {"execution_id": "overtaken", "variant": {"recursion_limit": 100_000}}

    async def run():
        assignment = shaped.assign("shapes", "endless", {"log": []}, **options)
        task = asyncio.ensure_future(shaped.engine.execute(assignment))
        await until_first_checkpoint(shaped.store, "overtaken")
        await shaped.store.raise_fence("overtaken", 2)
        return await task

    outcome = shaped.call(run())
    assert outcome.failure.kind == "lost"
    assert "attempt 2 holds the fence" in outcome.failure.reason


def test_it_works_on_plain_asyncio_too(tmp_path):
    bench = Bench(tmp_path)
    bench.loop.call_soon_threadsafe(bench.loop.stop)
    bench.thread.join()
    bench.loop.close()
    bench.add("shapes", "shapes", {"default": "./graphs.py:asynchronous"})

    async def run():
        try:
            return await bench.engine.execute(bench.assign("shapes", given={"x": 1}))
        finally:
            await bench.engine.close()
            bench.store.close()

    assert asyncio.run(run()).output == '{"x":3}'
