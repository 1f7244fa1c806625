"""What the graphs of the project `documented` are run with, and what they give without WTB."""

import asyncio
import importlib
import json
import re
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import StateGraph
from langgraph.types import Command

from wtb_core.errors import InvalidOutput
from wtb_core.sandbox.rendering import render
from wtb_core.testbench import BatchResult, TestBench

PROJECTS = Path(__file__).parent / "projects"
DIRECTORY = PROJECTS / "documented"

_NOTE = re.compile(r"(?:During|Before) task with name '(.+)' and (?:id|path) '.+'")
_ELAPSED = re.compile(r"elapsed: \d+\.\d+s")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Shape(NamedTuple):
    """Cases of (input, answers) and variants of one graph; each variant runs each case.

    A graph that remembers something in its process, such
    as how often it was called, has one case and one variant: each execution of WTB's starts anew.
    """

    cases: list[tuple[Any, list[Any]]]
    variants: list[dict[str, Any]]
    asynchronous: bool


def shape(*inputs, answers=None, variants=None, asynchronous=False) -> Shape:
    """Each input is run with each list of answers."""
    cases = [(given, resume) for given in inputs for resume in answers or [[]]]
    return Shape(cases, variants or [{}], asynchronous)


def human(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text, "id": "given"}]}


CONVERSATION = {
    "messages": [{"role": "user", "content": f"message {i}", "id": f"m{i}"} for i in range(4)]
}
LOG = {"log": []}
SETTINGS = [{"context": {"user": "ada", "limit": 7}}, {"context": {"user": "bob"}}]

SHAPES = {
    # Agents
    "agents.react": shape(human("1 add 2"), human("7 divide 2, 1 add 1"), human("1 divide 0")),
    "agents.react_forgiving": shape(human("1 divide 0"), human("1 divide 4")),
    "agents.react_strict": shape(human("1 divide 0")),
    "agents.react_asking": shape(
        human("1 confirm 2"),
        human("1 confirm 2, 3 add 4, 5 confirm 6"),
        answers=[["yes", "no"], []],
    ),
    "agents.react_noting": shape(human("1 note 2")),
    "agents.react_async": shape(human("3 multiply 4, 1 add 1"), asynchronous=True),
    "agents.react_async_tools": shape(human("3 multiply 4"), asynchronous=True),
    "agents.streaming_model": shape(human("speak")),
    "agents.forgetting": shape(CONVERSATION),
    "agents.handoffs": shape(human("a trip")),
    "agents.to_parent": shape(human("a report")),
    "agents.supervised": shape(human("build it")),
    # Control flow
    "flow.gated": shape({"topic": "cat"}, {"topic": "horse"}),
    "flow.fan": shape(LOG, {"log": ["given"]}),
    "flow.deferred": shape(LOG),
    "flow.sequence": shape(LOG),
    "flow.several_targets": shape({"count": 1}, {"count": 2}),
    "flow.map_reduce": shape({"topic": "animals"}, {"topic": ""}),
    "flow.orchestrated": shape(LOG),
    "flow.loop": shape({"count": 0}, {"count": 4}),
    "flow.endless": shape(LOG, variants=[{"recursion_limit": 30}, {"recursion_limit": 3}]),
    "flow.evaluator_loop": shape({"count": 3}),
    "flow.retried": shape(LOG),
    "flow.retried_in_vain": shape(LOG),
    "flow.not_retried": shape(LOG),
    "flow.cached": shape({"count": 3}),
    "flow.raising": shape({"log": ["luck"]}),
    "flow.raising_in_parallel": shape({"log": ["luck"]}),
    "flow.conflicting": shape(LOG),
    "flow.wrong_update": shape(LOG),
    "flow.unknown_target": shape(LOG),
    "flow.handled_error": shape({"log": ["luck"]}),
    "flow.timed_out": shape(LOG, asynchronous=True),
    "flow.overwritten": shape({"log": ["given"]}),
    "flow.silent": shape(LOG, {"log": ["kept"], "count": 1}, {}, {"unknown": 1}),
    # State
    "states.reducers": shape(
        {}, {"messages": [{"role": "user", "content": "hi", "id": "h"}], "total": 40, "largest": 9}
    ),
    "states.pydantic_models": shape(
        {"people": [{"name": " ada ", "age": 36}, {"name": "bob", "age": "41"}]},
        {"people": [{"name": "eve", "age": -1}]},
        {"people": []},
        {},
    ),
    "states.pydantic_broken": shape({"people": []}),
    "states.dataclasses": shape({"name": "ada"}, {"name": "ada", "orders": [1]}, {"orders": []}),
    "states.schemas": shape({"question": "why"}, {"question": "why", "ignored": 1}),
    "states.sparse": shape({"needed": 1}, {"perhaps": "given"}),
    "states.unknown_key": shape({"needed": 1}),
    "states.channels": shape(LOG, {"seen": ["given"], "once": 9, "topic": "t"}),
    "states.managed": shape(LOG, variants=[{"recursion_limit": 5}]),
    "states.values": shape({"value": None}),
    "states.no_json_form": shape({"value": None}),
    "states.not_a_number": shape({"value": None}),
    "states.messages": shape(
        {"messages": ["text", ["ai", "pair"], {"type": "human", "content": "dict"}]},
        {"messages": "text alone"},
        {"messages": [{"role": "nobody", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "block"}]}]},
    ),
    # Subgraphs
    "subgraphs.shared": shape({"log": ["given"]}),
    "subgraphs.partly_shared": shape({"n": 1}),
    "subgraphs.private": shape({"n": 12}),
    "subgraphs.three_levels": shape(LOG),
    "subgraphs.mapped": shape({"n": 3}, {"n": 1}),
    "subgraphs.mapped_in_conflict": shape({"n": 3}, {"n": 1}),
    "subgraphs.remembering": shape({"log": ["given"]}),
    "subgraphs.raising_inside": shape({"n": 5}),
    "subgraphs.asynchronous_inside": shape(LOG, asynchronous=True),
    # Interrupts
    "interrupts.one": shape({}, answers=[["ada"], [{"a": [1, None]}], ["ada", "unused"], []]),
    "interrupts.several": shape({}, answers=[["ada", 36, "yes"], ["ada", 36], ["ada"]]),
    "interrupts.validated": shape({}, answers=[["old", [], 7], [7], ["old"]]),
    "interrupts.parallel": shape({}, answers=[["x", None, "z"], ["x", "y"]]),
    "interrupts.sent": shape({}, answers=[[1, 2, 3, 4]]),
    "interrupts.in_subgraph": shape({}, answers=[["i", "o"], ["i"]]),
    "interrupts.in_called_graph": shape({}, answers=[["c"], []]),
    "interrupts.reviewed": shape(
        {"log": ["draft"]},
        answers=[
            [{"ok": False, "why": "short"}, {"ok": True, "why": "fine"}],
            [{"why": "no verdict"}],
        ],
    ),
    "interrupts.asynchronous": shape({}, answers=[["a", "b"]], asynchronous=True),
    "interrupts.breakpoint_before": shape({}, answers=[[True, True], [True]]),
    "interrupts.breakpoint_after": shape({}, answers=[[True, True], [True]]),
    "interrupts.breakpoint_everywhere": shape({}, answers=[["go"] * 3]),
    "interrupts.breakpoint_and_question": shape({}, answers=[["go", "two"], ["go"]]),
    "interrupts.raising": shape({}, answers=[["it"], []]),
    # The functional API
    "functional.parallel": shape([1, 2, 3], []),
    "functional.gathered": shape([3, 1, 2], asynchronous=True),
    "functional.final": shape(5),
    "functional.nothing": shape("something", 0),
    "functional.retried": shape(7),
    "functional.cached": shape(1),
    "functional.asking": shape("draft", answers=[["good", "publish"]]),
    "functional.raising": shape(3),
    "functional.forgiving": shape(3),
    "functional.injected": shape(3, variants=[{"config": {"unit": "m"}, "context": {"k": "v"}}]),
    "functional.calls_graph": shape(6),
    "functional.pregel": shape({"a": "foo"}),
    # What a run brings along
    "runtime.context_dataclass": shape(LOG, variants=SETTINGS),
    "runtime.context_model": shape(LOG, variants=SETTINGS),
    "runtime.context_dict": shape(LOG, variants=SETTINGS),
    "runtime.context_missing": shape(LOG),
    "runtime.configured": shape(
        LOG,
        variants=[
            {"config": {"model": "a"}},
            {"config": {"model": {"b": [1]}}, "recursion_limit": 30},
            {},
        ],
    ),
    "runtime.preset": shape(LOG, variants=[{"config": {"model": "a"}}, {"recursion_limit": 30}]),
    "runtime.stored": shape(LOG),
    "runtime.stored_async": shape(LOG, asynchronous=True),
    "runtime.streaming": shape(LOG),
    "runtime.streaming_async": shape(LOG, asynchronous=True),
    "runtime.consuming": shape(LOG),
    "runtime.consuming_async": shape(LOG, asynchronous=True),
    "runtime.asynchronous": shape(LOG, asynchronous=True),
    "runtime.own_loop": shape(LOG),
    "runtime.asynchronous_branches": shape(LOG, asynchronous=True),
    "runtime.raising_async": shape(LOG, asynchronous=True),
    "runtime.cancelling": shape(LOG, asynchronous=True),
    "runtime.composed": shape({"log": ["given"]}),
    "runtime.callables": shape(LOG),
    "runtime.async_callables": shape(LOG, asynchronous=True),
    "runtime.both_ways": shape(LOG),
}


@contextmanager
def modules() -> Iterator[dict[str, Any]]:
    """The project's modules under the names that they have in its own processes."""
    names = sorted(path.stem for path in DIRECTORY.glob("*.py"))
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(DIRECTORY))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(DIRECTORY))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def run_directly(
    graph: Any, given: Any, answers: list[Any], variant: dict, *, asynchronous: bool
) -> dict:
    """What the graph's own `invoke` or `ainvoke` gives, or how it fails, with answers in order."""
    if isinstance(graph, StateGraph):
        graph = graph.compile()
    saver = InMemorySaver(serde=JsonPlusSerializer(pickle_fallback=True))
    graph = graph.copy(update={"checkpointer": saver})
    config = {"configurable": {**variant.get("config", {}), "thread_id": "direct"}}
    if "recursion_limit" in variant:
        config["recursion_limit"] = variant["recursion_limit"]
    left = deque(answers)

    async def invoke(value):
        keywords = {"context": variant.get("context"), "durability": "sync"}
        if asynchronous:
            return await graph.ainvoke(value, config, **keywords), await graph.aget_state(config)
        # In a thread, as the event loop would be in the way of a graph that is not asynchronous.
        result = await asyncio.to_thread(graph.invoke, value, config, **keywords)
        return result, await asyncio.to_thread(graph.get_state, config)

    async def run():
        result, state = await invoke(given)
        while state.next and left:
            if not state.interrupts:  # a static breakpoint
                left.popleft()
                result, state = await invoke(None)
            elif len(state.interrupts) == 1:
                result, state = await invoke(Command(resume=left.popleft()))
            else:
                resume = {each.id: left.popleft() for each in state.interrupts if left}
                result, state = await invoke(Command(resume=resume))
        return result, state

    try:
        result, state = asyncio.run(run())
    except Exception as error:
        kind = type(error)
        name = (
            kind.__qualname__
            if kind.__module__ == "builtins"
            else f"{kind.__module__}.{kind.__qualname__}"
        )
        return {
            "kind": "error",
            "error_type": name,
            "message": str(error),
            "node": noted_node(graph, error),
        }
    if state.next:
        waiting = [(task.name, each.value) for task in state.tasks for each in task.interrupts]
        if not waiting:
            return {"kind": "interrupted", "node": state.next[0], "waiting": state.next[0]}
        node, value = waiting[0]
        return {"kind": "interrupted", "node": node, "waiting": render(value)}
    try:
        return {"output": json.loads(render(result))}
    except InvalidOutput as error:
        return {"kind": "invalid_output", "reason": str(error)}


def noted_node(graph: Any, error: Exception) -> str | None:
    """The node of the outermost graph that the exception came out of first.

    LangGraph notes tasks on an exception, the innermost first. With the functional API those that
    an entrypoint calls are of the same graph as itself.
    """
    notes = [_NOTE.fullmatch(note) for note in getattr(error, "__notes__", [])]
    names = [match[1] for match in notes if match]
    return None if not names else names[-1] if hasattr(graph, "builder") else names[0]


def expected_results() -> dict[tuple[str, str, str], dict]:
    """By graph, variant and case, what WTB should give."""
    expected = {}
    with modules() as found:
        for name, (cases, variants, asynchronous) in SHAPES.items():
            module, attribute = name.split(".")
            graph = getattr(found[module], attribute)
            for v, variant in enumerate(variants):
                for c, (given, answers) in enumerate(cases):
                    result = run_directly(graph, given, answers, variant, asynchronous=asynchronous)
                    expected[name, f"v{v}", f"c{c}"] = result
    return expected


def spec(name: str) -> dict[str, Any]:
    """The batch that runs one graph's cases in its variants."""
    cases, variants, _ = SHAPES[name]
    return {
        "project": "documented",
        "variants": [{"name": f"v{v}", "graph": name, **each} for v, each in enumerate(variants)],
        "cases": [
            {"id": f"c{c}", "input": given, "resume": answers}
            for c, (given, answers) in enumerate(cases)
        ],
        "limits": {"timeout": "30s"},
    }


def run_all(bench: TestBench) -> dict[tuple[str, str, str], dict]:
    """Every execution of every shape, by graph, variant and case."""
    batches = {name: bench.submit(spec(name)) for name in SHAPES}
    found = {}
    for name, batch_id in batches.items():
        for _ in bench.events(batch_id):
            pass
        result: BatchResult = bench.read(batch_id)
        assert result.batch["status"] == "completed"
        for execution in result.executions:
            found[name, execution["variant"], execution["case_id"]] = execution
    return found


def normalised(value: Any) -> str:
    """JSON text in which random UUIDs, such as messages' ids, are numbers in their order.

    And without the time that a node had run for when its own limit ended it.
    """
    numbers: dict[str, str] = {}
    text = _ELAPSED.sub("elapsed", json.dumps(value))
    return _UUID.sub(lambda match: numbers.setdefault(match[0], f"uuid-{len(numbers)}"), text)
