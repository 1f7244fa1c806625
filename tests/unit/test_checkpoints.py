"""The saver, its session and the store, without processes: a session that calls the store."""

import asyncio
import operator
import sqlite3
import threading
from contextlib import closing
from typing import Annotated, TypedDict

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from wtb_core.checkpoint_store import CheckpointStore, Scope
from wtb_core.checkpoints import SessionSaver
from wtb_core.errors import FenceError, ThreadRefused, Unavailable, WireError


class LoopSession:
    """A session whose other end runs on an event loop in a thread."""

    def __init__(self, store, scope=None):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.server = store.session(scope)

    def _handle(self, header, blobs):
        work = self.server.handle(dict(header), [bytes(blob) for blob in blobs])
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def request(self, header, *blobs):
        return self._handle(header, blobs)

    def post(self, header, *blobs):
        assert self._handle(header, blobs) is None

    def call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def store(tmp_path):
    with closing(CheckpointStore(tmp_path / "nested" / "checkpoints.db")) as store:
        yield store


@pytest.fixture
def session(store):
    with closing(LoopSession(store)) as session:
        yield session


class State(TypedDict):
    log: Annotated[list[str], operator.add]
    extra: dict


def build(saver):
    def ask(state):
        return {"log": [interrupt("?")], "extra": {"bytes": b"\0", "set": {1}}}

    inner = StateGraph(State)
    inner.add_node("ask", ask)
    inner.add_edge(START, "ask")
    builder = StateGraph(State)
    builder.add_node("first", lambda state: {"log": ["first"]})
    builder.add_node("left", lambda state: {"log": ["left"]})
    builder.add_node("inner", inner.compile())
    builder.add_edge(START, "first")
    builder.add_edge("first", "left")
    builder.add_edge("first", "inner")
    builder.add_edge("inner", END)
    return builder.compile(checkpointer=saver)


def drive(saver):
    graph = build(saver)
    config = {"configurable": {"thread_id": "thread"}}
    graph.invoke({"log": []}, config, durability="sync")
    result = graph.invoke(Command(resume="answer"), config, durability="sync")
    return graph, config, result


def strip(found):
    """A checkpoint without what is random: ids, times, fractions of versions."""
    return (
        found.metadata["source"],
        found.metadata["step"],
        found.checkpoint["channel_values"],
        sorted(found.checkpoint["channel_versions"]),
        found.parent_config is None,
        [
            (channel, value)
            for _, channel, value in found.pending_writes
            if channel != "__interrupt__"
        ],
    )


def test_a_graph_leaves_what_it_leaves_in_memory(session):
    memory, ours = InMemorySaver(), SessionSaver(session)
    _, config, expected = drive(memory)
    graph, _, result = drive(ours)
    assert result == expected
    for ns in ("", None):
        wanted = {
            "configurable": {
                **config["configurable"],
                **({"checkpoint_ns": ns} if ns == "" else {}),
            }
        }
        assert sorted(map(repr, map(strip, ours.list(wanted)))) == sorted(
            map(repr, map(strip, memory.list(wanted)))
        )
    assert graph.get_state(config).values == expected
    history = list(graph.get_state_history(config))
    assert len(history) == len(
        list(memory.list({"configurable": {"thread_id": "thread", "checkpoint_ns": ""}}))
    )


def test_the_async_twins_do_the_same(session):
    saver = SessionSaver(session)

    async def run():
        graph = build(saver)
        config = {"configurable": {"thread_id": "async"}}
        await graph.ainvoke({"log": []}, config, durability="sync")
        result = await graph.ainvoke(Command(resume="answer"), config, durability="sync")
        listed = [found async for found in saver.alist(config, limit=3)]
        head = await saver.aget_tuple(config)
        await saver.adelete_thread("async")
        return result, listed, head, await saver.aget_tuple(config)

    result, listed, head, deleted = asyncio.run(run())
    assert result == drive(InMemorySaver())[2]
    assert len(listed) == 3
    assert head.checkpoint["channel_values"]["log"] == result["log"]
    assert deleted is None


def put(saver, thread="t", ns="", parent=None, values=None, versions=None, step=1, **metadata):
    checkpoint = empty_checkpoint()
    checkpoint["channel_values"] = values or {}
    checkpoint["channel_versions"] = versions or {}
    configurable = {"thread_id": thread, "checkpoint_ns": ns}
    if parent:
        configurable["checkpoint_id"] = parent
    new = metadata.pop("new", versions or {})
    return saver.put(
        {"configurable": configurable},
        checkpoint,
        {"source": "loop", "step": step, **metadata},
        new,
    )


def test_unchanged_channels_are_read_from_the_version_that_wrote_them(session):
    saver = SessionSaver(session)
    first = put(saver, values={"a": 1, "b": [2]}, versions={"a": "1.0", "b": "1.0"})
    parent = first["configurable"]["checkpoint_id"]
    second = put(
        saver,
        parent=parent,
        values={"a": 3},
        versions={"a": "2.0", "b": "1.0", "gone": 1},
        new={"a": "2.0", "gone": 1},
    )
    found = saver.get_tuple(second)
    assert found.checkpoint["channel_values"] == {"a": 3, "b": [2]}
    assert found.config == second
    assert found.parent_config == first
    assert saver.get_tuple(first).checkpoint["channel_values"] == {"a": 1, "b": [2]}


def test_writes_are_kept_once_and_special_ones_replaced_in_replay_order(session):
    saver = SessionSaver(session)
    config = put(saver)
    saver.put_writes(config, [("x", 1), ("y", 2)], "task-b", "~2")
    saver.put_writes(config, [("x", 9)], "task-b", "~2")
    saver.put_writes(config, [("z", 3)], "task-z", "~1")
    saver.put_writes(config, [("__error__", "old")], "task-a")
    saver.put_writes(config, [("__error__", "new")], "task-a")
    assert saver.get_tuple(config).pending_writes == [
        ("task-a", "__error__", "new"),
        ("task-z", "z", 3),
        ("task-b", "x", 1),
        ("task-b", "y", 2),
    ]


def test_list_filters_as_in_memory(session):
    ours, memory = SessionSaver(session), InMemorySaver()
    configs = {id(ours): [], id(memory): []}
    for saver in (ours, memory):
        for step in range(4):
            configs[id(saver)].append(put(saver, step=step, even=step % 2 == 0))
        put(saver, ns="child", step=9)
        put(saver, thread="other", step=7)

    def steps(saver, *arguments, **keywords):
        return [found.metadata["step"] for found in saver.list(*arguments, **keywords)]

    thread = {"configurable": {"thread_id": "t"}}
    root = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    for arguments, keywords in (
        ((thread,), {}),
        ((root,), {}),
        ((root,), {"limit": 2}),
        ((root,), {"limit": 0}),
        ((root,), {"filter": {"even": True}, "limit": 1}),
        ((root,), {"filter": {"even": True, "step": 0}}),
        ((root,), {"filter": {"missing": 1}}),
        ((None,), {"filter": {"step": 7}}),
    ):
        assert sorted(steps(ours, *arguments, **keywords)) == sorted(
            steps(memory, *arguments, **keywords)
        )
    assert steps(ours, root) == [3, 2, 1, 0]
    assert steps(ours, root, before=configs[id(ours)][2]) == [1, 0]
    assert steps(ours, configs[id(ours)][1]) == [1]
    assert len(list(ours.list(None))) == 6


def test_versions_grow(session):
    saver = SessionSaver(session)
    versions = [saver.get_next_version(None, None)]
    for _ in range(12):
        versions.append(saver.get_next_version(versions[-1], None))
    assert versions == sorted(versions)
    assert len(set(versions)) == 13


def test_an_attempt_reads_and_appends_its_own_thread_only(store):
    with closing(LoopSession(store, Scope("mine", 1))) as session:
        session.call(store.raise_fence("mine", 1))
        saver = SessionSaver(session)
        config = put(saver, thread="mine")
        assert saver.get_tuple(config) is not None
        for reach in (
            lambda: put(saver, thread="other"),
            lambda: saver.get_tuple({"configurable": {"thread_id": "other"}}),
            lambda: list(saver.list(None)),
            lambda: saver.delete_thread("mine"),
        ):
            with pytest.raises(ThreadRefused, match="own thread 'mine'"):
                reach()


def test_attempts_start_clean_and_the_fence_keeps_the_old_one_out(store):
    old, new = (LoopSession(store, Scope("e", attempt)) for attempt in (1, 2))
    with closing(old), closing(new):
        with pytest.raises(FenceError, match="no attempt holds"):
            put(SessionSaver(old), thread="e")
        old.call(store.raise_fence("e", 1))
        config = put(SessionSaver(old), thread="e")
        new.call(store.raise_fence("e", 2))
        assert SessionSaver(new).get_tuple({"configurable": {"thread_id": "e"}}) is None
        with pytest.raises(FenceError, match="attempt 2 holds the fence"):
            put(SessionSaver(old), thread="e")
        SessionSaver(old).put_writes(config, [("x", 1)], "task")
        with pytest.raises(FenceError):
            old.call(old.server.settle())
        with pytest.raises(FenceError):
            old.call(store.raise_fence("e", 1))
        put(SessionSaver(new), thread="e")
        listed = [len(new.call(store.list_checkpoints("e", attempt))) for attempt in (1, 2)]
    assert listed == [1, 1]
    assert (old.server.checkpoint_count, new.server.checkpoint_count) == (1, 1)


def test_a_refused_put_undoes_nothing_of_the_others_in_its_transaction(store):
    """The store's thread is held up while requests queue, so that one transaction takes them all."""
    gate = threading.Event()
    held = store.submit(lambda db: gate.wait(20))
    good = [store.submit(lambda db: db.execute("INSERT INTO fences VALUES ('a', 1)").rowcount)]

    def fail(db):
        db.execute("INSERT INTO fences VALUES ('b', 1)")
        raise KeyError("malformed")

    bad = store.submit(fail)
    good.append(store.submit(lambda db: db.execute("INSERT INTO fences VALUES ('c', 1)").rowcount))
    gate.set()
    assert held.result(20)
    assert [future.result(20) for future in good] == [1, 1]
    with pytest.raises(WireError, match="malformed"):
        bad.result(20)
    with closing(sqlite3.connect(store.path)) as db:
        assert db.execute("SELECT execution_id FROM fences ORDER BY 1").fetchall() == [
            ("a",),
            ("c",),
        ]


@pytest.mark.parametrize(
    "header",
    [
        {"op": "put", "thread_id": "t"},
        {"op": "get", "thread_id": "t", "ns": [], "id": None},
        {"op": "nothing", "thread_id": "t"},
        {
            "op": "put_writes",
            "thread_id": "t",
            "ns": "",
            "id": "1",
            "task_id": "t",
            "task_path": "",
            "writes": [1],
        },
    ],
)
def test_a_malformed_request_is_answered_and_harms_nobody(store, session, header):
    with pytest.raises((WireError, KeyError)):
        if header["op"] == "put_writes":
            session.post(header, b"")
            session.call(session.server.settle())
        else:
            session.request(header)
    config = put(SessionSaver(session))
    assert SessionSaver(session).get_tuple(config)


def test_two_stores_share_the_file_and_what_is_answered_is_durable(tmp_path):
    path = tmp_path / "checkpoints.db"
    first, second = CheckpointStore(path), CheckpointStore(path)

    async def run():
        await asyncio.gather(
            *(
                store.raise_fence(f"{name}-{n}", 1)
                for n in range(50)
                for name, store in (("a", first), ("b", second))
            )
        )

    with closing(first), closing(second):
        asyncio.run(run())
        with closing(sqlite3.connect(path)) as db:
            assert db.execute("SELECT count(*) FROM fences").fetchone() == (100,)
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_store_that_cannot_be_opened_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    store = CheckpointStore(tmp_path / "file" / "checkpoints.db")
    with closing(store), pytest.raises(Unavailable, match="failed"):
        asyncio.run(store.raise_fence("e", 1))
    with pytest.raises(Unavailable, match="closed"):
        asyncio.run(store.raise_fence("e", 1))
