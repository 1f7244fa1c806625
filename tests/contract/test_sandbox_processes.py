"""The processes of a sandbox: all of them end, whatever ends first."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from sandbox_bench import (
    Bench,
    find_processes_of,
    is_alive,
    until_first_checkpoint,
    wait_until,
)


@pytest.mark.parametrize("project", ["hostile", "hostile_fresh"])
def test_a_timeout_kills_the_daemons_too(hostile, tmp_path, project):
    note = tmp_path / "pids"
    outcome = hostile.run(project, "spawn_daemon_graph", {"value": str(note)})
    assert outcome.output == '{"value":"daemon started"}'
    assert not any(is_alive(int(pid)) for pid in note.read_text().split())


@pytest.mark.parametrize("project", ["hostile", "hostile_fresh"])
def test_a_node_that_kills_its_parent_takes_its_daemons_along(hostile, tmp_path, project):
    note = tmp_path / "pids"
    outcome = hostile.run(project, "kill_init_graph", {"value": str(note)})
    assert outcome.failure.kind == "crash"
    pids = [int(pid) for pid in note.read_text().split()]
    wait_until(lambda: not any(map(is_alive, pids)))
    assert hostile.run(project, "leave_threads_graph", {}).status == "succeeded"


def test_threads_left_behind_do_not_hold_the_result(hostile):
    assert hostile.run("hostile", "leave_threads_graph", {}).status == "succeeded"


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
