"""What a sandbox promises: results as a direct invoke gives them, failures by kind, nothing alive."""

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import StateGraph
from langgraph.types import Command
from sandbox_bench import PROJECTS, Bench, find_processes_of, is_alive, wait_until

from wtb_core.errors import SetupError
from wtb_core.sandbox.rendering import render
from wtb_core.sandbox.supervisor import describe
from wtb_core.sandbox.writing import write_files

ROOT = Path(__file__).parents[2]


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"project_{path.parent.name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


async def until_first_checkpoint(store, execution_id):
    while not await store.list_checkpoints(execution_id, 1):
        await asyncio.sleep(0.01)


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
GRAPHS = (*SHAPES, "configured_factory", "context", "look", "ask", "ask_both", "breakpoint_graph")


@pytest.fixture(scope="module")
def shaped(bench, tmp_path_factory):
    """The project `shapes`, forked and with a workspace."""
    workspace = tmp_path_factory.mktemp("workspace")
    (workspace / "notes").mkdir()
    (workspace / "notes" / "hello.txt").write_text("from the base")
    (workspace / "link").symlink_to("/etc/hostname")
    graphs = {name: f"./graphs.py:{name}" for name in (*GRAPHS, "endless")}
    fields = {
        "workspace": workspace,
        "environment": {"PATH": os.environ["PATH"], "TOKEN": "t"},
        "nodes": {"increment": {"decrement": "graphs:decrement"}},
    }
    bench.add("shapes", "shapes", graphs, **fields)
    bench.add("fresh", "shapes", graphs, start="fresh", **fields)
    return bench


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


def test_an_attempt_sees_its_own_directories_and_environment_only(shaped):
    files = {"notes/hello.txt": "from the variant", "new/deep.txt": "x"}
    assignment = shaped.assign(
        "shapes",
        "look",
        {"seen": {}},
        variant={"files": files},
        case_files={"notes/hello.txt": "from the case"},
        keep="always",
    )
    outcome = shaped.call(shaped.engine.execute(assignment))
    seen = json.loads(outcome.output)["seen"]
    directory = shaped.engine.attempt_directory(assignment)
    assert seen["cwd"] == str(directory / "workspace")
    assert seen["home"] == str(directory / "home")
    assert seen["tmp"] == str(directory / "tmp")
    assert seen["text"] == "from the case"
    assert seen["link"] == "/etc/hostname"
    assert seen["stdin"] == ""
    assert "TOKEN" in seen["environment"]
    assert "USER" not in seen["environment"]
    assert shaped.blobs.get(outcome.stdout) == b"said on stdout\n"
    assert shaped.blobs.get(outcome.stderr) == b"said on stderr\n"
    assert (directory / "workspace" / "made.txt").read_text() == "made"
    assert (directory / "workspace" / "new" / "deep.txt").read_text() == "x"
    base = shaped.setups["shapes"].workspace
    assert (base / "notes" / "hello.txt").read_text() == "from the base"
    assert not (base / "made.txt").exists()
    wait_until(lambda: not (directory / "home").exists())


def test_every_execution_has_randomness_of_its_own(shaped):
    seen = [
        json.loads(shaped.run("shapes", "look", {"seen": {}}).output)["seen"]["random"]
        for _ in range(2)
    ]
    assert seen[0] != seen[1]


@pytest.mark.parametrize("path", ["../out", "/etc/out", "notes/../../out", "", "a\0b"])
def test_a_path_that_leads_out_is_refused_whoever_asks(tmp_path, path):
    """A spec with such a path is refused before; the workspace does not rely on it."""
    with pytest.raises(SetupError, match="is not a path inside the workspace"):
        write_files(tmp_path, {path: "x"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["link/out", "link"])
def test_no_file_is_written_out_of_the_workspace(shaped, path):
    outcome = shaped.run("shapes", "sync", {"x": 1}, case_files={path: "x"})
    assert outcome.failure.kind == "setup"
    assert outcome.failure.reason.startswith("workspace: ")


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


CRASHES = [
    ("exit_now_graph", "exit code 7"),
    ("exit_quietly_graph", "exit code 0"),
    ("fault_graph", "SIGSEGV"),
]


@pytest.mark.parametrize(("graph", "reason"), CRASHES)
def test_a_process_that_ends_without_a_result_has_crashed(hostile, graph, reason):
    outcome = hostile.run("hostile", graph, {})
    assert (outcome.status, outcome.failure.kind) == ("failed", "crash")
    assert reason in outcome.failure.reason
    assert outcome.failure.node == "bad"
    assert [run.name for run in outcome.nodes] == ["before", "bad"]


def test_a_crash_quotes_the_last_words_and_keeps_the_output(hostile):
    outcome = hostile.run("hostile", "exit_now_graph", {})
    assert "and last errors" in outcome.failure.reason
    assert hostile.blobs.get(outcome.stdout) == b"last words\n"


@pytest.mark.parametrize(
    ("graph", "error_type", "message"),
    [
        ("fail_graph", "ValueError", "this node does not work \\ud800"),
        (
            "fail_unprintably_graph",
            "graphs.Unprintable",
            "(its text cannot be shown: RuntimeError)",
        ),
        ("leave_graph", "SystemExit", "the code called sys.exit(3)"),
    ],
)
def test_what_a_node_raises_is_an_error_with_its_node(hostile, graph, error_type, message):
    outcome = hostile.run("hostile", graph, {})
    failure = outcome.failure
    assert (failure.kind, failure.error_type, failure.message) == ("error", error_type, message)
    assert failure.node == "bad"
    assert "graphs.py" in failure.traceback
    assert outcome.nodes[-1].error.startswith(error_type)


@pytest.mark.parametrize("project", ["hostile", "hostile_fresh"])
def test_a_timeout_kills_the_daemons_too(hostile, tmp_path, project):
    note = tmp_path / "pids"
    outcome = hostile.run(project, "spawn_daemon_graph", {"value": str(note)})
    assert outcome.output == '{"value":"daemon started"}'
    assert not any(is_alive(int(pid)) for pid in note.read_text().split())


@pytest.mark.parametrize("graph", ["loop_graph", "close_everything_graph"])
def test_an_endless_node_times_out(hostile, graph):
    outcome = hostile.run("hostile", graph, {}, limits={"timeout": 0.5})
    assert (outcome.failure.kind, outcome.failure.node) == ("timeout", "bad")
    assert "0.5 s" in outcome.failure.reason
    assert 400 <= outcome.duration_ms <= 5000


@pytest.mark.parametrize("project", ["hostile", "hostile_fresh"])
def test_a_node_that_kills_its_parent_takes_its_daemons_along(hostile, tmp_path, project):
    note = tmp_path / "pids"
    outcome = hostile.run(project, "kill_init_graph", {"value": str(note)})
    assert outcome.failure.kind == "crash"
    pids = [int(pid) for pid in note.read_text().split()]
    wait_until(lambda: not any(map(is_alive, pids)))
    assert hostile.run(project, "leave_threads_graph", {}).status == "succeeded"


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        ("output_array", "output.value[2].scores: a numpy.ndarray has no JSON form; return a list"),
        ("output_nan", "output.value: nan is not a JSON number"),
        ("output_bytes", "output.value: a bytes has no JSON form"),
        ("output_keys", "output.value: the key 1 is a int; keys are text"),
        ("output_surrogate", "output.value: the text holds a lone surrogate"),
        ("output_object", "output.value: a type has no JSON form"),
        ("output_cycle", "output.value[0]: the list contains itself"),
    ],
)
def test_an_output_without_an_honest_json_form_is_refused(hostile, graph, reason):
    failure = hostile.run("hostile", graph, {}).failure
    assert failure.kind == "invalid_output", failure
    assert failure.reason.startswith(reason)


def test_an_output_over_the_limit_is_refused_with_both_sizes(hostile):
    failure = hostile.run("hostile", "big_graph", {}, limits={"output": 1000}).failure
    assert failure.kind == "invalid_output"
    assert "5012 bytes" in failure.reason
    assert "1000" in failure.reason
    assert hostile.run("hostile", "big_graph", {}, limits={"output": 5012}).status == "succeeded"


def test_a_hog_runs_out_of_its_own_memory(hostile):
    outcome = hostile.run("hostile", "hog_graph", {}, limits={"memory": 200 * 1024**2})
    assert (outcome.failure.kind, outcome.failure.node) == ("out_of_memory", "bad")
    assert hostile.run("hostile", "hog_graph", {}).output == '{"value":1073741824}'


def test_a_file_over_the_limit_is_an_error(hostile):
    failure = hostile.run("hostile", "big_file_graph", {}, limits={"file_size": 1024**2}).failure
    assert (failure.kind, failure.error_type) == ("error", "OSError")


def test_threads_left_behind_do_not_hold_the_result(hostile):
    assert hostile.run("hostile", "leave_threads_graph", {}).status == "succeeded"


def test_a_long_log_is_cut_and_says_so(hostile):
    stdout = hostile.blobs.get(hostile.run("hostile", "chatter_graph", {}).stdout)
    assert len(stdout) < 10 * 1024**2 + 200
    assert b"[cut: the first 10485760 of 11534337 bytes are kept]" in stdout[-200:]


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        ("unimportable", "ModuleNotFoundError at unimportable.py:1: No module named"),
        ("broken_factory", "RuntimeError at graphs.py:"),
        ("not_a_graph", "a builtins.int is no graph"),
        ("missing", "./graphs.py has no 'missing'"),
        ("unknown", "the project has no graph 'unknown'"),
    ],
)
def test_a_graph_that_cannot_be_made_is_a_setup_failure_of_its_own(hostile, graph, reason):
    failure = hostile.run("hostile", graph, {}).failure
    assert failure.kind == "setup"
    assert reason in failure.reason


def test_a_project_that_dies_at_import_says_its_last_words(bench):
    bench.add("dies", "hostile", {"default": "./dies_at_import.py:graph"})
    failure = bench.run("dies", given={}).failure
    assert failure.kind == "setup"
    assert "exit code 9" in failure.reason
    assert "about to die" in failure.reason


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/true"])
def test_an_interpreter_that_does_not_start_is_a_setup_failure(bench, python):
    bench.add("no_python", "shapes", {"default": "./graphs.py:sync"}, python=python)
    bench.engine._supervisors.pop(("no_python", "v1"), None)
    failure = bench.run("no_python", given={"x": 1}).failure
    assert failure.kind == "setup"
    assert failure.reason.startswith("start: ")


@pytest.mark.parametrize(
    ("project", "reason"),
    [
        ("threads", "2 threads are alive after import: poll beside the main thread"),
        ("sockets", "a socket is open after import: IPv4 at ('127.0.0.1',"),
    ],
)
def test_what_cannot_be_forked_starts_fresh_and_says_why(bench, project, reason):
    bench.add(project, project, {"default": "./graphs.py:graph"})
    outcome = bench.run(project, given={"x": 1})
    assert (outcome.failure, outcome.output, outcome.start) == (None, '{"x":2}', "fresh")
    assert outcome.start_reason.startswith(reason)


def test_a_zygote_that_was_killed_is_started_again(shaped):
    assert shaped.run("shapes", "sync", {"x": 1}).status == "succeeded"
    shared = shaped.engine._supervisors["shapes", "v1"]
    zygote = shared.supervisor._source
    [pid] = [
        pid
        for pid in find_processes_of(shared.supervisor.directory)
        if f"{zygote._interpreter.pid}" in Path(f"/proc/{pid}/stat").read_text().split()[3:4]
    ]
    os.kill(pid, signal.SIGKILL)
    shaped.call(zygote.wait())
    assert shaped.run("shapes", "sync", {"x": 1}).status == "succeeded"


def test_cancel_kills_the_processes_and_is_an_outcome(hostile):
    assignment = hostile.assign("hostile", "loop_graph", {}, execution_id="to-cancel")

    async def run():
        task = asyncio.ensure_future(hostile.engine.execute(assignment))
        await until_first_checkpoint(hostile.store, "to-cancel")
        directory = hostile.engine.attempt_directory(assignment)
        [*before] = await asyncio.to_thread(find_cwd_below, directory)
        assert await hostile.engine.cancel("to-cancel", "by the user")
        outcome = await task
        return before, await asyncio.to_thread(find_cwd_below, directory), outcome

    before, after, outcome = hostile.call(run())
    assert before
    assert not after
    assert outcome.status == "cancelled"
    assert not hostile.call(hostile.engine.cancel("to-cancel", "again"))


def test_cancelling_the_caller_kills_the_processes_and_raises(hostile):
    assignment = hostile.assign("hostile", "loop_graph", {}, execution_id="dropped")

    async def run():
        task = asyncio.ensure_future(hostile.engine.execute(assignment))
        await until_first_checkpoint(hostile.store, "dropped")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await asyncio.to_thread(find_cwd_below, hostile.engine.attempt_directory(assignment))

    assert not hostile.call(run())


def find_cwd_below(directory: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").readlink().is_relative_to(directory):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.parametrize(("keep", "kept"), [("always", 2), ("failed", 1), ("never", 0)])
def test_the_workspace_is_kept_as_asked(hostile, keep, kept):
    directories = []
    for graph in ("leave_threads_graph", "fail_graph"):
        assignment = hostile.assign("hostile", graph, {}, keep=keep)
        hostile.call(hostile.engine.execute(assignment))
        directories.append(hostile.engine.attempt_directory(assignment))

    def count():
        names = [{e.name for e in d.iterdir()} if d.exists() else set() for d in directories]
        return names.count({"workspace"}) if all(n <= {"workspace"} for n in names) else -1

    wait_until(lambda: count() == kept)


SURVIVOR = """
import asyncio, os, sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from sandbox_bench import Bench
bench = Bench(Path({directory!r}))
bench.add("hostile", "hostile", {{"g": "./graphs.py:loop_graph", "d": "./graphs.py:kill_init_graph"}}, start={start!r}, environment={{"PATH": os.environ["PATH"]}})
bench.call(bench.engine.execute(bench.assign("hostile", "g", {{}}, execution_id="looping")), 100)
"""


@pytest.mark.parametrize("start", ["fork", "fresh"])
def test_kill_minus_9_of_the_supervisor_leaves_no_process(tmp_path, start):
    script = SURVIVOR.format(
        root=str(ROOT), tests=str(Path(__file__).parent), directory=str(tmp_path), start=start
    )
    supervisor = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    try:
        ours = wait_until(lambda: find_cwd_below(tmp_path / "runs"), 60)
        below = find_processes_of(tmp_path)
        assert set(ours) <= set(below)
        assert len(below) >= 2
    finally:
        supervisor.kill()
        supervisor.wait()
    wait_until(lambda: not any(map(is_alive, below)))
    assert find_processes_of(tmp_path) == []


def test_closing_the_engine_ends_everything(tmp_path):
    bench = Bench(tmp_path)
    try:
        bench.add("shapes", "shapes", {"default": "./graphs.py:sync"})
        assert bench.run("shapes", given={"x": 1}).status == "succeeded"
        assert find_processes_of(tmp_path)
    finally:
        bench.close()
    assert find_processes_of(tmp_path) == []
    assert not list((tmp_path / "runs").rglob("*"))


@pytest.fixture(scope="module")
def scored(bench):
    names = (
        *("correct", "distance", "several", "from_workspace", "from_execution", "raises"),
        *("returns_text", "returns_nan", "exits", "crashes", "hangs", "asks_too_much"),
    )
    evaluators = {name: f"./evaluators.py:{name}" for name in names}
    bench.add("scored", "scored", {"default": "./graphs.py:builder"}, evaluators=evaluators)
    return bench


def test_evaluators_return_what_they_may(scored):
    outcome = scored.run(
        "scored",
        given={"x": 4},
        reference=5,
        evaluators=["correct", "distance", "several", "from_workspace", "from_execution"],
        variant={"config": {"extra": 10}},
    )
    assert outcome.evaluation.errors == {}
    assert outcome.evaluation.scores == {
        "correct": 1.0,
        "distance": 0.0,
        "several.input": 4.0,
        "several.odd": 1.0,
        "several.note": 0.5,
        "from_workspace": 5.0,
        "from_execution": 11.0,
    }
    assert outcome.evaluation.comments == {"distance": "steps away", "several.note": "half"}


def test_evaluators_work_on_a_throwaway_copy(scored):
    assignment = scored.assign(
        "scored", given={"x": 4}, evaluators=["from_workspace"], keep="always"
    )
    scored.call(scored.engine.execute(assignment))
    directory = scored.engine.attempt_directory(assignment)
    assert (directory / "workspace" / "result.txt").read_text() == "5"
    wait_until(lambda: [entry.name for entry in directory.iterdir()] == ["workspace"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "KeyError: 'evaluator broke'"),
        ("returns_text", "it returned a str; return a bool, a number"),
        ("returns_nan", "it returned nan; a score is a finite number"),
        ("exits", "SystemExit: the code called sys.exit(1)"),
        ("crashes", "its process ended with exit code 5"),
        ("hangs", "it did not end within limits.evaluator_timeout of 0.5 s"),
        ("asks_too_much", "it takes 'weather', an evaluator takes any of input, output"),
        ("unknown", "the project has no such evaluator"),
    ],
)
def test_an_evaluator_that_fails_leaves_the_execution_and_the_others(scored, name, message):
    outcome = scored.run(
        "scored",
        given={"x": 4},
        reference=5,
        evaluators=["correct", name, "distance"],
        limits={"evaluator_timeout": 0.5},
    )
    assert outcome.status == "succeeded"
    assert outcome.evaluation.scores == {"correct": 1.0, name: None, "distance": 0.0}
    assert outcome.evaluation.errors[name].startswith(message)


def test_describe_tells_what_there_is(shaped):
    setup = shaped.setups["shapes"]
    found = shaped.call(describe(setup))
    assert found["problems"] == []
    assert found["graphs"]["compiled"]["kind"] == "state_graph"
    assert found["graphs"]["compiled"]["nodes"] == ["double", "increment"]
    assert found["graphs"]["functional"]["kind"] == "functional"
    assert found["graphs"]["configured_factory"]["nodes"] == ["step"]
    assert {name for name, graph in found["graphs"].items() if graph["asynchronous"]} == {
        "asynchronous",
        "nested_async",
        "async_branch",
    }
    assert found["graphs"]["context"]["context_schema"]["properties"].keys() == {"factor"}
    assert found["nodes"] == {"increment": ["decrement"]}
    assert (found["start"], found["start_reason"]) == ("fork", None)
    assert found["python"].startswith("3.")
    assert found["langgraph"][0].isdigit()


def test_describe_tells_of_subgraphs_and_of_implementations_that_fit_no_graph(bench):
    graphs = {"default": "./graphs.py:nested"}
    implementations = {"x": "./graphs.py:decrement"}
    nodes = dict.fromkeys(("inner_increment", "unknown"), implementations)
    setup = bench.add("loose", "shapes", graphs, nodes=nodes)
    found = bench.call(describe(setup))
    [(outer, inner)] = found["graphs"]["default"]["subgraphs"].items()
    assert "inner_increment" in inner
    assert sorted(found["problems"]) == [
        (
            f"nodes.inner_increment: it is a node of the subgraph {outer!r}; only the graph's own nodes can "
            "be replaced"
        ),
        "nodes.unknown: no graph has this node; there are: "
        + ", ".join(sorted(found["graphs"]["default"]["nodes"])),
    ]


def test_describe_names_every_problem(hostile, scored):
    problems = hostile.call(describe(hostile.setups["hostile"]))["problems"]
    assert sorted(problem.split(":")[1].split()[0] for problem in problems) == [
        *("broken_factory", "graph", "missing", "not_a_graph")
    ]
    found = scored.call(describe(scored.setups["scored"]))
    assert found["evaluators"]["from_workspace"] == {"takes": ["workspace"]}
    [problem] = found["problems"]
    assert problem.startswith("./evaluators.py:asks_too_much: it takes 'weather', an evaluator ")


@pytest.mark.parametrize(
    ("source", "timeout_s", "message"),
    [
        ("dies_at_import", 60, "exit code 9; it last said:\nabout to die"),
        ("hangs_at_import", 3, "importing the project took longer than 3 s"),
    ],
)
def test_describe_survives_what_it_imports(
    bench, tmp_path, monkeypatch, source, timeout_s, message
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    setup = bench.add("described", "hostile", {"default": f"./{source}.py:graph"})
    [problem] = bench.call(describe(setup, timeout_s=timeout_s), 100)["problems"]
    assert message in problem
    assert find_processes_of(tmp_path) == []


def test_describe_says_why_a_project_starts_fresh(bench):
    threads = bench.add("threads", "threads", {"default": "./graphs.py:graph"})
    found = bench.call(describe(threads))
    assert found["start"] == "fresh"
    assert "poll" in found["start_reason"]


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
