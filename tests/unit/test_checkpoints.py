"""The saver, its session and the store, without processes: a session that calls the store."""

import asyncio
import itertools
import operator
import sqlite3
import threading
from contextlib import ExitStack, closing
from typing import Annotated, TypedDict

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from wtb_core.checkpoint_rows import SCHEMA
from wtb_core.checkpoint_store import CheckpointStore, Scope
from wtb_core.checkpoints import SessionSaver
from wtb_core.errors import FenceError, ThreadRefused, Unavailable, WireError
from wtb_core.sandbox.progress import Progress


class LoopSession:
    """A session whose other end runs on an event loop in a thread."""

    def __init__(self, store, scope=None, track=None, file_commit=None):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.server = store.session(scope, track, file_commit)

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
    checkpoint["id"] = metadata.pop("checkpoint_id", checkpoint["id"])
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


def test_replicas_that_start_together_all_open_a_new_file(tmp_path):
    """One in ten such starts failed: SQLite refuses a second change to WAL without waiting."""
    for turn in range(40):
        stores = [CheckpointStore(tmp_path / str(turn) / "checkpoints.db") for _ in range(6)]

        async def run(stores=stores):
            await asyncio.gather(*(store.raise_fence(f"{n}", 1) for n, store in enumerate(stores)))

        try:
            asyncio.run(run())
        finally:
            for store in stores:
                store.close()


def test_a_store_that_cannot_be_opened_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    store = CheckpointStore(tmp_path / "file" / "checkpoints.db")
    with closing(store), pytest.raises(Unavailable, match="failed"):
        asyncio.run(store.raise_fence("e", 1))
    with pytest.raises(Unavailable, match="closed"):
        asyncio.run(store.raise_fence("e", 1))


COMMITS = [digit * 64 for digit in "abcdef"]


class Tracker:
    """Gives commits in order; None in the list is a commit that fails."""

    def __init__(self, *commits):
        self.commits = list(commits)
        self.asked = []

    async def __call__(self, checkpoint_id):
        self.asked.append(checkpoint_id)
        return self.commits.pop(0)


@pytest.fixture
def attempt(store):
    """A function that opens a session of an attempt that holds the fence."""
    opened = []

    def open_attempt(*commits, number=1):
        scope = Scope("e", number)
        tracker = Tracker(*commits)
        opened.append(LoopSession(store, scope, tracker, COMMITS[0]))
        opened[-1].call(store.raise_fence(*scope))
        return opened[-1], tracker

    yield open_attempt
    for session in opened:
        session.close()


def named(config):
    return config["configurable"]["checkpoint_id"]


def test_a_commit_is_made_where_a_root_superstep_ends_and_reused_elsewhere(store, attempt):
    session, tracker = attempt(*COMMITS[1:3])
    saver = SessionSaver(session)
    configs = [
        put(saver, thread="e", source=source, ns=ns)
        for source, ns in (
            ("input", ""),
            ("loop", ""),
            ("loop", "inner:1"),
            ("update", ""),
            ("fork", ""),
            ("loop", ""),
            ("input", "inner:2"),
        )
    ]
    assert tracker.asked == [named(configs[1]), named(configs[5])]
    listed = session.call(store.list_checkpoints("e", 1))
    assert [found.checkpoint_id for found in listed] == list(map(named, configs))
    a, b, c = COMMITS[:3]
    assert [found.file_commit for found in listed] == [a, b, None, b, b, c, None]
    assert session.server.file_commit == c


def test_a_commit_that_fails_leaves_its_checkpoint_without_files(store, attempt):
    session, _ = attempt(COMMITS[1], None, COMMITS[2])
    saver = SessionSaver(session)
    sources = ("loop", "loop", "update", "loop", "update")
    configs = [put(saver, thread="e", source=source) for source in sources]
    listed = session.call(store.list_checkpoints("e", 1))
    assert [found.file_commit for found in listed] == [
        COMMITS[1],
        None,
        None,
        COMMITS[2],
        COMMITS[2],
    ]
    assert saver.get_tuple(configs[1]) is not None


def test_a_checkpoint_knows_how_many_answers_were_given_before_it(store, attempt):
    session, _ = attempt(*COMMITS[1:4])
    progress = Progress(["one", "two", "three"], 1)
    saver = SessionSaver(session, progress=progress)
    first = put(saver, thread="e")
    assert progress.take_answer() == "two"
    second = put(saver, thread="e", parent=named(first))
    past = session.call(store.export(Scope("e", 1)))
    assert [row.answered for row in past.checkpoints] == [1, 2]
    session.call(store.raise_fence("e", 2))
    session.call(store.import_history(Scope("e", 2), past, named(second)))
    assert session.call(store.export(Scope("e", 2))).checkpoints == past.checkpoints


def test_a_database_of_an_earlier_version_is_completed_and_kept(tmp_path):
    path = tmp_path / "checkpoints.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(SCHEMA.replace(", answered INTEGER NOT NULL DEFAULT 0", ""))
        db.execute("INSERT INTO fences VALUES ('e', 1)")
        db.execute(
            "INSERT INTO checkpoints (storage_key, ns, id, type, body, metadata_type, metadata,"
            " versions, resumable) VALUES ('e/1', '', 'c', 't', x'00', 't', x'00', '{}', 0)"
        )
        db.commit()
    for _ in range(2):
        with closing(CheckpointStore(path)) as store, closing(LoopSession(store)) as session:
            [row] = session.call(store.export(Scope("e", 1))).checkpoints
            assert (row.checkpoint_id, row.answered) == ("c", 0)


def test_a_zombie_commits_nothing(store, attempt):
    old, tracker = attempt(COMMITS[1])
    attempt(number=2)
    with pytest.raises(FenceError, match="attempt 2 holds"):
        put(SessionSaver(old), thread="e")
    assert tracker.asked == []


def test_a_fence_that_is_raised_during_the_commit_refuses_the_checkpoint(store):
    async def overtaken(checkpoint_id):
        await store.raise_fence("e", 2)
        return COMMITS[1]

    with closing(LoopSession(store, Scope("e", 1), overtaken)) as session:
        session.call(store.raise_fence("e", 1))
        with pytest.raises(FenceError):
            put(SessionSaver(session), thread="e")
        assert session.call(store.list_checkpoints("e", 1)) == []


def test_the_latest_checkpoint_is_the_one_stored_last_whatever_its_id(session):
    """A fork holds ids of a node whose clock may have been ahead."""
    saver = SessionSaver(session)
    for name, ns in (("2", ""), ("9", "inner"), ("3", ""), ("1", "inner"), ("0", "")):
        put(saver, ns=ns, checkpoint_id=name)
    thread = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    inner = {"configurable": {"thread_id": "t", "checkpoint_ns": "inner"}}
    assert named(saver.get_tuple(thread).config) == "0"
    assert [named(found.config) for found in saver.list(thread)] == ["0", "3", "2"]
    before = {"configurable": {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": "3"}}
    assert [named(found.config) for found in saver.list(thread, before=before)] == ["2"]
    assert [named(found.config) for found in saver.list(inner, before=before)] == ["9"]
    assert [named(found.config) for found in saver.list(None, before=before)] == ["2", "9"]


def test_a_checkpoint_that_is_stored_again_keeps_its_place(session):
    saver = SessionSaver(session)
    for name, step in (("a", 1), ("b", 2), ("a", 3)):
        put(saver, checkpoint_id=name, step=step)
    thread = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    assert [found.metadata["step"] for found in saver.list(thread)] == [2, 3]


class Moody:
    """A value whose type fails whenever it is looked at."""

    def model_dump(self, mode):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (
            {"x": [1, {"y": "é"}], "__start__": 1, "branch:to:b": None, "join:a+b:c": {1}},
            '{"x":[1,{"y":"é"}]}',
        ),
        ({"__root__": 7}, "7"),
        ({}, "{}"),
        ({"x": b"bytes"}, None),
        ({"x": float("nan")}, None),
        ({"x": Moody()}, None),
        ({"x": "y" * 65_528}, '{"x":"' + "y" * 65_528 + '"}'),
        ({"x": "y" * 65_529}, None),
    ],
)
def test_a_root_checkpoint_shows_its_state_within_bounds(store, attempt, values, shown):
    session, _ = attempt(COMMITS[1])
    serde = JsonPlusSerializer(pickle_fallback=True)
    put(SessionSaver(session, serde=serde), thread="e", values=values)
    put(SessionSaver(session, serde=serde), thread="e", ns="inner", values=values)
    exported = session.call(store.export(Scope("e", 1)))
    assert [row.shown for row in exported.checkpoints] == [shown, None]


def test_a_state_too_large_to_be_shown_is_not_walked_to_its_end(store, attempt):
    class Endless(dict):
        def items(self):
            return ((str(number), "x" * 1000) for number in itertools.count())

    session, _ = attempt(COMMITS[1])
    put(SessionSaver(session), thread="e", values={"x": Endless()}, new={}, versions={})
    assert session.call(store.export(Scope("e", 1))).checkpoints[0].shown is None


def put_header(**changes):
    return {
        "op": "put",
        "thread_id": "e",
        "ns": "",
        "id": "1",
        "parent": None,
        "source": "loop",
        "step": 1,
        "type": "t",
        "metadata_type": "t",
        "versions": {},
        "channels": [],
        "shown": None,
        **changes,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ""},
        {"id": "x" * 129},
        {"id": 7},
        {"id": "\ud800"},
        {"ns": "x" * 8193},
        {"ns": None},
        {"parent": "x" * 129},
        {"source": "x" * 129},
        {"step": 2**63},
        {"versions": {"x": 1}},
        {"versions": [1]},
        {"channels": [["x", "1"]]},
        {"shown": "{"},
        {"shown": "[" * 60_000},
        {"shown": "NaN"},
        {"shown": "1e999"},
        {"shown": '"\\ud800"'},
        {"shown": '"' + "x" * 65_535 + '"'},
        {"op": "put_writes", "task_path": "", "task_id": "x" * 65_537, "writes": []},
        {"op": "put_writes", "task_path": "", "task_id": "", "writes": [[2**63, "c", "t"]]},
    ],
)
def test_what_a_put_may_hold_is_bounded_before_files_are_committed(store, attempt, changes):
    session, tracker = attempt(COMMITS[1])
    with pytest.raises(WireError):
        session.request(put_header(**changes), b"", b"")
    assert tracker.asked == []
    assert session.call(store.export(Scope("e", 1))).checkpoints == []
    session.request(put_header(), b"", b"")
    assert len(tracker.asked) == 1


def test_a_frame_without_an_operation_is_no_request(attempt):
    session, _ = attempt()
    with pytest.raises(WireError, match="None is no checkpoint request"):
        session.request({"thread_id": "e"})
    with pytest.raises(ThreadRefused):
        session.request({})


def test_ended_attempts_are_forgotten_and_the_fence_stays(store, attempt):
    for number in (1, 2, 3):
        session, _ = attempt(COMMITS[number], number=number)
        config = put(SessionSaver(session), thread="e", values={"x": 1}, versions={"x": "1"})
        SessionSaver(session).put_writes(config, [("x", 1)], "task")
        session.call(session.server.settle())
    session.call(store.forget("e", 2))
    with closing(sqlite3.connect(store.path)) as db:
        for table in ("checkpoints", "channel_values", "writes"):
            assert db.execute(f"SELECT storage_key FROM {table}").fetchall() == [("e/3",)]
    with pytest.raises(FenceError, match="attempt 3 holds"):
        session.call(store.raise_fence("e", 2))


def test_executions_that_have_ended_are_forgotten_with_their_fences(store):
    names = ["b-1", "b-10", "b-1-2", "b-2"]
    with ExitStack() as opened:
        sessions = [
            opened.enter_context(closing(LoopSession(store, Scope(name, 1)))) for name in names
        ]
        call = sessions[0].call
        for session, name in zip(sessions, names, strict=True):
            call(store.raise_fence(name, 1))
            config = put(SessionSaver(session), thread=name, values={"x": 1}, versions={"x": "1"})
            SessionSaver(session).put_writes(config, [("x", 1)], "task")
            call(session.server.settle())
        assert call(store.list_executions("", 10)) == sorted(names)
        assert call(store.list_executions("b-1", 2)) == ["b-1-2", "b-10"]

        call(store.forget_executions(["b-1", "never"]))

        assert call(store.list_executions("", 10)) == ["b-1-2", "b-10", "b-2"]
        with closing(sqlite3.connect(store.path)) as db:
            for table in ("checkpoints", "channel_values", "writes"):
                found = db.execute(f"SELECT DISTINCT storage_key FROM {table} ORDER BY 1")
                assert [key for (key,) in found] == ["b-1-2/1", "b-10/1", "b-2/1"]
        with pytest.raises(FenceError, match="no attempt holds"):
            put(SessionSaver(sessions[0]), thread="b-1")
