"""Forks of real graphs over a real store, against what LangGraph does from the same checkpoint."""

import asyncio
import hashlib
import operator
from contextlib import closing
from typing import Annotated, TypedDict

import pytest
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import InvalidUpdateError
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send, interrupt
from saver_bench import Served

from wtb_core import history
from wtb_core.checkpoint_store import CheckpointStore, Scope
from wtb_core.errors import FenceError, InvalidHistory, NotFound
from wtb_core.sandbox.driving import NodeRecorder, StateRefused, Unanswered, drive


class State(TypedDict):
    log: Annotated[list[str], operator.add]
    count: int


def append(state, writes):
    return [*(state or []), *(item for write in writes for item in write)]


class DeltaState(TypedDict):
    log: Annotated[list[str], DeltaChannel(append, snapshot_frequency=1000)]
    count: int


def step(name, log=True):
    def run(state):
        count = state.get("count", 0) + 1
        return {"log": [f"{name}{count}"], "count": count} if log else {"count": count}

    return run


def linear(schema=State):
    builder = StateGraph(schema)
    for name in ("a", "b", "c"):
        builder.add_node(name, step(name))
    builder.add_edge(START, "a").add_edge("a", "b").add_edge("b", "c").add_edge("c", END)
    return builder


def loop(schema=State):
    builder = StateGraph(schema)
    builder.add_node("work", step("work"))
    builder.add_edge(START, "work")
    builder.add_conditional_edges("work", lambda s: END if s["count"] >= 4 else "work")
    return builder


def fan_out():
    builder = StateGraph(State)
    builder.add_node("first", step("first"))
    builder.add_node("split", lambda state: {"log": ["split"]})
    builder.add_node("left", lambda state: {"log": ["left"]})
    builder.add_node("right", lambda state: {"log": ["right"]})
    builder.add_node("item", lambda state: {"log": [f"item{state['n']}"]})
    builder.add_node("join", step("join"))
    builder.add_edge(START, "first").add_edge("first", "split")
    builder.add_edge("split", "left").add_edge("split", "right")
    builder.add_conditional_edges("split", lambda s: [Send("item", {"n": n}) for n in range(3)])
    builder.add_edge(["left", "right"], "join").add_edge("join", END)
    return builder


def subgraph(checkpointer=None, schema=State):
    def run():
        inner = StateGraph(schema)
        inner.add_node("x", lambda state: {"log": [f"x{len(state['log'])}"]})
        inner.add_node("y", lambda state: {"count": len(state["log"])})
        inner.add_edge(START, "x").add_edge("x", "y").add_edge("y", END)
        builder = StateGraph(State)
        builder.add_node("before", step("before"))
        compiled = inner.compile(checkpointer=checkpointer)

        def call(state):
            answer = compiled.invoke({"log": ["in"]})
            return {"log": [",".join(answer["log"])], "count": state["count"] + 1}

        builder.add_node("inner", call)
        builder.add_edge(START, "before").add_edge("before", "inner")
        builder.add_conditional_edges("inner", lambda s: END if s["count"] >= 4 else "inner")
        return builder

    return run


def asking():
    def ask(state):
        answers = [interrupt("one?"), interrupt("two?")]
        return {"log": answers, "count": state["count"] + 1}

    builder = StateGraph(State)
    builder.add_node("before", step("before"))
    builder.add_node("ask", ask)
    builder.add_node("after", step("after"))
    builder.add_edge(START, "before").add_edge("before", "ask").add_edge("ask", "after")
    return builder


def asynchronous():
    async def run(state):
        await asyncio.sleep(0)
        return step("async")(state)

    builder = StateGraph(State)
    builder.add_node("run", run)
    builder.add_node("end", step("end"))
    builder.add_edge(START, "run").add_edge("run", "end")
    return builder


SHAPES = {
    "linear": linear,
    "loop": loop,
    "fan_out": fan_out,
    "stateless": subgraph(),
    "stateful": subgraph(checkpointer=True),
    "delta": lambda: loop(DeltaState),
    "delta_subgraph": subgraph(checkpointer=True, schema=DeltaState),
    "asking": asking,
    "asynchronous": asynchronous,
}
GIVEN = {"log": ["start"], "count": 0}
ANSWERS = ["yes", "no"]
DIGESTS = [hashlib.sha256(bytes([number])).hexdigest() for number in range(30)]


def run(graph, execution_id, served, given=None, answers=ANSWERS, origin=None):
    config = {"configurable": {"thread_id": execution_id}}
    nodes = NodeRecorder(served.session)
    return drive(graph, given, config, None, list(answers), nodes, origin)


def track_in_order():
    commits = iter(DIGESTS[1:])

    async def track(checkpoint_id):
        return next(commits)

    return track


def run_parent(builder, store, answers=ANSWERS):
    """The output and the decoded history of a parent's attempt."""
    scope = Scope("parent", 1)
    with closing(Served(store, scope, track_in_order(), DIGESTS[0])) as served:
        served.call(store.raise_fence(*scope))
        graph = builder().compile(checkpointer=served.saver())
        try:
            output = run(graph, "parent", served, GIVEN, answers)
        except Unanswered:
            output = None
        exported = served.call(store.export(scope))
    blob = history.encode(exported)
    assert history.decode(blob) == exported
    return output, blob


def run_fork(builder, store, blob, checkpoint_id, state, execution_id="fork", answers=ANSWERS):
    scope = Scope(execution_id, 1)
    with closing(Served(store, scope)) as served:
        served.call(store.raise_fence(*scope))
        served.call(store.import_history(scope, history.decode(blob), checkpoint_id))
        graph = builder().compile(checkpointer=served.saver())
        origin = {"state": state}
        output = run(graph, execution_id, served, answers=answers, origin=origin)
        return output, served.call(store.export(scope)), served.other


def run_reference(builder, position, state):
    """What LangGraph itself makes of the checkpoint at a position of the root namespace."""
    config = {"configurable": {"thread_id": "t"}}
    graph = builder().compile(checkpointer=InMemorySaver())

    async def work():
        async def invoke(given, config):
            answers = list(ANSWERS)
            found = await graph.ainvoke(given, config, durability="sync")
            while "__interrupt__" in found:
                thread = {"configurable": {"thread_id": "t"}}
                found = await graph.ainvoke(Command(resume=answers.pop(0)), thread)
            return found

        await invoke(GIVEN, config)
        saved = [snapshot async for snapshot in graph.aget_state_history(config)]
        chosen = saved[::-1][position].config
        if state is not None:
            chosen = await graph.aupdate_state(chosen, state)
        return await invoke(None, chosen)

    return asyncio.run(work())


def roots(blob):
    return [found for found in history.read_summary(blob) if not found.ns]


@pytest.mark.parametrize("state", [None, {"log": ["forked"]}, {"log": ["f"], "count": 2}])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_fork_ends_as_langgraph_does_from_the_same_checkpoint(tmp_path, shape, state):
    builder = SHAPES[shape]
    with (
        closing(CheckpointStore(tmp_path / "one.db")) as store,
        closing(CheckpointStore(tmp_path / "two.db")) as elsewhere,
    ):
        output, blob = run_parent(builder, store)
        assert output == run_reference(builder, 0, None)
        refused = 0
        for position, found in enumerate(roots(blob)):
            assert history.find(history.read_summary(blob), found.checkpoint_id) == found
            try:
                expected = run_reference(builder, position, state)
            except InvalidUpdateError as error:
                with pytest.raises(StateRefused, match=str(error).splitlines()[0]):
                    run_fork(builder, elsewhere, blob, found.checkpoint_id, state, f"f{position}")
                refused += 1
                continue
            forked, _, _ = run_fork(
                builder, elsewhere, blob, found.checkpoint_id, state, f"f{position}"
            )
            assert forked == expected, (position, found)
        assert refused == (1 if shape == "fan_out" and state else 0)
        after = asyncio.run(store.export(Scope("parent", 1)))
    assert history.encode(after) == blob


@pytest.fixture
def store(tmp_path):
    with closing(CheckpointStore(tmp_path / "checkpoints.db")) as store:
        yield store


def test_a_fork_of_a_fork_has_the_whole_chain_and_its_files(store):
    output, blob = run_parent(linear, store)
    second = roots(blob)[2]
    _, forked, _ = run_fork(linear, store, blob, second.checkpoint_id, {"log": ["f"]}, "child")

    child = history.encode(forked)
    chain = roots(child)
    assert [found.checkpoint_id for found in chain[:3]] == [
        found.checkpoint_id for found in roots(blob)[:3]
    ]
    assert [found.created_at for found in chain[:3]] == [
        found.created_at for found in roots(blob)[:3]
    ]
    assert [found.file_commit_id for found in chain[:3]] == DIGESTS[:3]
    grandchild, _, _ = run_fork(linear, store, child, chain[2].checkpoint_id, None, "grandchild")
    assert grandchild == output


def test_what_is_imported_is_the_head_without_pending_writes_and_nothing_later(store):
    _, blob = run_parent(SHAPES["delta_subgraph"], store)
    parent = history.decode(blob)
    head = roots(blob)[3]
    position = [row.checkpoint_id for row in parent.checkpoints].index(head.checkpoint_id)
    pending = [row for row in parent.writes if row.checkpoint_id == head.checkpoint_id]
    later = [row for row in parent.checkpoints[position:] if row.ns]
    assert pending
    assert later
    scope = Scope("fork", 1)

    async def take():
        await store.raise_fence(*scope)
        await store.import_history(scope, parent, head.checkpoint_id)
        await store.import_history(scope, parent, head.checkpoint_id)  # begun again
        return await store.export(scope), await store.find_resume_point(scope)

    taken, resume_point = asyncio.run(take())
    assert taken.checkpoints == parent.checkpoints[: position + 1]
    assert resume_point.checkpoint_id == head.checkpoint_id
    assert taken.writes == [
        row
        for row in parent.writes
        if row.after <= position and row.checkpoint_id != head.checkpoint_id
    ]
    assert {row.ns for row in taken.writes} == {"", "inner"}
    named = {(row.ns, *pair) for row in taken.checkpoints for pair in row.versions.items()}
    assert {(row.ns, row.channel, row.version) for row in taken.values} <= named
    assert len(taken.values) < len(parent.values)


def test_a_fork_from_the_end_returns_the_output_and_runs_nothing(store):
    output, blob = run_parent(linear, store)
    forked, _, frames = run_fork(linear, store, blob, roots(blob)[-1].checkpoint_id, None)
    assert (forked, frames) == (output, [])
    changed, _, frames = run_fork(
        linear, store, blob, roots(blob)[-1].checkpoint_id, {"log": ["more"]}, "other"
    )
    assert (changed["log"], frames) == ([*output["log"], "more"], [])


def test_a_fork_from_an_interrupt_asks_again(store):
    output, blob = run_parent(asking, store, answers=[])
    assert output is None
    waiting = roots(blob)[-1].checkpoint_id
    forked, _, _ = run_fork(asking, store, blob, waiting, None)
    assert forked["log"] == ["start", "before1", "yes", "no", "after3"]
    with pytest.raises(Unanswered, match="two"):
        run_fork(asking, store, blob, waiting, None, "short", answers=["yes"])


def test_an_unknown_key_and_a_reducer_that_raises_are_refused_with_the_reason(store):
    class Strict(TypedDict):
        total: Annotated[int, operator.add]

    def builder():
        made = StateGraph(Strict)
        made.add_node("one", lambda state: {"total": 1})
        return made.add_edge(START, "one")

    scope = Scope("parent", 1)
    with closing(Served(store, scope)) as served:
        served.call(store.raise_fence(*scope))
        run(builder().compile(checkpointer=served.saver()), "parent", served, {"total": 1})
        blob = history.encode(served.call(store.export(scope)))
    head = roots(blob)[-1].checkpoint_id
    with pytest.raises(StateRefused, match="no 'totla'; it has total"):
        run_fork(builder, store, blob, head, {"totla": 1})
    with pytest.raises(StateRefused, match="TypeError: unsupported operand"):
        run_fork(builder, store, blob, head, {"total": "text"})


def functional():
    @task
    def double(value):
        return value * 2

    @entrypoint()
    def flow(value):
        return double(value).result() + 1

    return flow


def test_a_functional_graph_is_forked_as_it_was_and_has_no_state_to_change(store):
    class Builder:
        def compile(self, checkpointer):
            flow = functional()
            flow.checkpointer = checkpointer
            return flow

    scope = Scope("parent", 1)
    with closing(Served(store, scope)) as served:
        served.call(store.raise_fence(*scope))
        graph = Builder().compile(served.saver())
        assert run(graph, "parent", served, 4) == 9
        blob = history.encode(served.call(store.export(scope)))
    first = roots(blob)[0].checkpoint_id
    assert run_fork(Builder, store, blob, first, None)[0] == 9
    with pytest.raises(StateRefused, match="functional-API"):
        run_fork(Builder, store, blob, first, {"x": 1}, "changed")


def test_a_fork_needs_the_fence_a_root_checkpoint_and_its_ancestors(store):
    _, blob = run_parent(subgraph(), store)
    parent = history.decode(blob)
    nested = next(row for row in parent.checkpoints if row.ns)
    roots_only = [row for row in parent.checkpoints if not row.ns]
    scope = Scope("fork", 1)

    def take(found, checkpoint_id):
        asyncio.run(store.import_history(scope, found, checkpoint_id))

    with pytest.raises(FenceError, match="no attempt"):
        take(parent, roots_only[1].checkpoint_id)
    asyncio.run(store.raise_fence("fork", 1))
    for absent in (nested.checkpoint_id, "absent"):
        with pytest.raises(NotFound, match="root checkpoint"):
            take(parent, absent)
    without = parent.model_copy(update={"checkpoints": roots_only[1:]})
    with pytest.raises(InvalidHistory, match="is not before it"):
        take(without, roots_only[2].checkpoint_id)
    circle = roots_only[0].model_copy(update={"parent_id": roots_only[2].checkpoint_id})
    with pytest.raises(InvalidHistory, match="is not before it"):
        take(
            parent.model_copy(update={"checkpoints": [circle, *roots_only[1:]]}),
            roots_only[2].checkpoint_id,
        )
    twice = parent.model_copy(update={"values": [*parent.values, parent.values[0]]})
    with pytest.raises(InvalidHistory, match="same key"):
        take(twice, roots_only[1].checkpoint_id)
    assert asyncio.run(store.export(scope)).checkpoints == []
