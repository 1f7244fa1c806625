"""Projects in a sandbox: how they start, what cannot be made of them, how they are described."""

import asyncio
import contextlib
import tempfile

import psutil
import pytest
from sandbox_bench import Bench, find_processes_of

from wtb_core.sandbox.supervisor import Supervisor, describe


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


def test_a_fresh_interpreter_whose_project_ends_it_is_not_started_again(bench, monkeypatch):
    launches = []
    launch = Supervisor.launch

    async def count(*arguments):
        launches.append(arguments)
        return await launch(*arguments)

    monkeypatch.setattr(Supervisor, "launch", count)
    graphs = {"default": "./dies_at_import.py:graph"}
    bench.add("dies_fresh", "hostile", graphs, start="fresh")
    outcome = bench.run("dies_fresh", given={})
    assert outcome.failure.kind == "setup"
    assert "exit code 9" in outcome.failure.reason
    assert len(launches) == 1


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/true"])
def test_an_interpreter_that_does_not_start_is_a_setup_failure(bench, python):
    bench.add("no_python", "shapes", {"default": "./graphs.py:sync"}, python=python)
    bench.engine._supervisors._standing.pop(("no_python", "v1"), None)
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


def test_describe_tells_what_there_is(shaped):
    setup = shaped.setups["shapes"]
    found = shaped.call(describe(shaped.sandbox, setup))
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
    found = bench.call(describe(bench.sandbox, setup))
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
    problems = hostile.call(describe(hostile.sandbox, hostile.setups["hostile"]))["problems"]
    assert sorted(problem.split(":")[1].split()[0] for problem in problems) == [
        *("broken_factory", "graph", "missing", "not_a_graph")
    ]
    found = scored.call(describe(scored.sandbox, scored.setups["scored"]))
    assert found["evaluators"]["from_workspace"] == {"takes": ["workspace"]}
    [problem] = found["problems"]
    assert problem.startswith("./evaluators.py:asks_too_much: it takes 'weather', an evaluator ")


@pytest.mark.parametrize("after_s", [0.2, 2.5])
def test_a_description_that_was_killed_says_nothing_of_the_project(tmp_path, after_s):
    """Else a kill of that process would stand as the project's problem until its code changes."""
    bench = Bench(tmp_path)
    setup = bench.add("slow", "hostile", {"default": "./hangs_at_import.py:graph"})
    killed = []

    async def describe_and_kill() -> list[str]:
        describing = asyncio.create_task(describe(bench.sandbox, setup, timeout_s=5))
        await bench.sandbox.find_grade()
        await asyncio.sleep(after_s)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                killed.append(process.pid)
        return (await describing)["problems"]

    try:
        problems = bench.call(describe_and_kill(), 100)
    finally:
        bench.close()
    assert killed
    assert problems == ["importing the project took longer than 5 s"]


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
    [problem] = bench.call(describe(bench.sandbox, setup, timeout_s=timeout_s), 100)["problems"]
    assert message in problem
    assert find_processes_of(tmp_path) == []


def test_describe_says_why_a_project_starts_fresh(bench):
    threads = bench.add("threads", "threads", {"default": "./graphs.py:graph"})
    found = bench.call(describe(bench.sandbox, threads))
    assert found["start"] == "fresh"
    assert "poll" in found["start_reason"]
