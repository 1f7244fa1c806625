"""Fixtures of the contract tests."""

import os

import pytest
from levels import LEVELS, find_obstacle
from sandbox_bench import Bench
from store_bench import Store, check_store, make_template


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("bench"))
    yield bench
    bench.close()


GRAPHS = (
    *("narrow", "sync", "compiled", "asynchronous", "own_saver", "factory", "nested"),
    *("nested_async", "command", "send", "loop", "async_branch", "pydantic_state"),
    *("dataclass_state", "messages", "functional", "configured_factory", "context", "look"),
    *("ask", "ask_both", "breakpoint_graph", "endless"),
)


@pytest.fixture(scope="module")
def shaped(bench, tmp_path_factory):
    """The project `shapes`, forked and with a workspace."""
    workspace = tmp_path_factory.mktemp("workspace")
    (workspace / "notes").mkdir()
    (workspace / "notes" / "hello.txt").write_text("from the base")
    (workspace / "link").symlink_to("/etc/hostname")
    graphs = {name: f"./graphs.py:{name}" for name in GRAPHS}
    fields = {
        "workspace": workspace,
        "environment": {"PATH": os.environ["PATH"], "TOKEN": "t"},
        "nodes": {"increment": {"decrement": "graphs:decrement"}},
    }
    bench.add("shapes", "shapes", graphs, **fields)
    bench.add("fresh", "shapes", graphs, start="fresh", **fields)
    return bench


@pytest.fixture(scope="module")
def hostile(bench):
    names = [
        *("fail", "fail_unprintably", "leave", "exit_now", "exit_quietly", "fault", "loop"),
        *("spawn_daemon", "kill_init", "hog", "big", "big_file", "close_everything"),
        *("leave_threads", "chatter"),
    ]
    kinds = ("array", "nan", "bytes", "keys", "surrogate", "object", "cycle")
    graphs = {f"{name}_graph": f"./graphs.py:{name}_graph" for name in names}
    graphs |= {f"output_{kind}": f"./graphs.py:output_{kind}" for kind in kinds}
    graphs |= {
        "unimportable": "./unimportable.py:graph",
        "broken_factory": "./graphs.py:broken_factory",
        "not_a_graph": "./graphs.py:not_a_graph",
        "missing": "./graphs.py:missing",
    }
    environment = {"PATH": os.environ["PATH"]}
    bench.add("hostile", "hostile", graphs, environment=environment)
    bench.add("hostile_fresh", "hostile", graphs, environment=environment, start="fresh")
    return bench


@pytest.fixture(scope="module")
def scored(bench):
    names = (
        *("correct", "distance", "several", "from_workspace", "from_execution", "raises"),
        *("returns_text", "returns_nan", "exits", "crashes", "hangs", "asks_too_much"),
    )
    evaluators = {name: f"./evaluators.py:{name}" for name in names}
    bench.add("scored", "scored", {"default": "./graphs.py:builder"}, evaluators=evaluators)
    return bench


@pytest.fixture(scope="module", params=LEVELS)
def level(request, tmp_path_factory):
    """A bench at this level, with a base of one file and one directory."""
    place = tmp_path_factory.mktemp("level")
    obstacle = find_obstacle(LEVELS[request.param], place / "check")
    if obstacle is not None:
        pytest.skip(obstacle)
    workspace = place / "base"
    (workspace / "notes").mkdir(parents=True)
    (workspace / "file.txt").write_text("of the base")
    (workspace / "notes" / "inner.txt").write_text("of the base")
    bench = Bench(place / "data", grade=LEVELS[request.param])
    for start in ("fork", "fresh"):
        bench.add_scripted(start, workspace=workspace)
    yield bench
    bench.close()


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make_template(tmp_path_factory.mktemp("template") / "wtb.db")


@pytest.fixture
def open_store(template, tmp_path):
    opened = []

    def open_store(**options):
        opened.append(Store(template, tmp_path / "wtb.db", **options))
        return opened[-1]

    yield open_store
    for store in opened:
        check_store(store)
        store.close()


@pytest.fixture
def store(open_store):
    return open_store()
