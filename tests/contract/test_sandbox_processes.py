"""The processes of a sandbox: all of them end, whatever ends first."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from levels import LEVELS
from sandbox_bench import (
    Bench,
    find_children,
    find_processes_of,
    is_alive,
    until_first_checkpoint,
    wait_until,
)

from wtb_core.loops import finish_in_thread
from wtb_core.sandbox.supervisor import make_place
from wtb_core.sandbox.workspaces import Workspace

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("project", ["hostile", "hostile_fresh"])
def test_daemons_end_with_their_execution(hostile, project):
    assert hostile.run(project, "leave_threads_graph", {}).status == "succeeded"
    standing = set(find_processes_of(hostile.root))
    outcome = hostile.run(project, "spawn_daemon_graph", {"value": "pids"})
    assert outcome.output == '{"value":"daemon started"}'
    assert set(find_processes_of(hostile.root)) == standing


@pytest.mark.parametrize("project", ["hostile", "hostile_fresh"])
def test_a_node_that_kills_its_parent_takes_its_daemons_along(hostile, project):
    assert hostile.run(project, "leave_threads_graph", {}).status == "succeeded"
    standing = set(find_processes_of(hostile.root))
    outcome = hostile.run(project, "kill_init_graph", {"value": "pids"}, limits={"timeout": 10})
    assert outcome.failure.kind == "crash"
    assert set(find_processes_of(hostile.root)) == standing
    assert hostile.run(project, "leave_threads_graph", {}).status == "succeeded"


def test_threads_left_behind_do_not_hold_the_result(hostile):
    assert hostile.run("hostile", "leave_threads_graph", {}).status == "succeeded"


def test_cancel_kills_the_processes_and_is_an_outcome(hostile):
    standing = set(find_processes_of(hostile.root))
    assignment = hostile.assign("hostile", "loop_graph", {}, execution_id="to-cancel")

    async def run():
        task = asyncio.ensure_future(hostile.engine.execute(assignment))
        await until_first_checkpoint(hostile.store, "to-cancel")
        before = await asyncio.to_thread(find_processes_of, hostile.root)
        assert await hostile.engine.cancel("to-cancel", 1, "by the user")
        outcome = await task
        return before, await asyncio.to_thread(find_processes_of, hostile.root), outcome

    before, after, outcome = hostile.call(run())
    assert set(before) > standing
    assert set(after) < set(before)
    assert outcome.status == "cancelled"
    assert not hostile.call(hostile.engine.cancel("to-cancel", 1, "again"))


def test_an_attempt_that_is_killed_leaves_the_next_one_alone(hostile):
    """A replica that was taken for dead may be given the execution again while it kills the first."""
    zombie = hostile.assign("hostile", "loop_graph", {}, execution_id="twice")
    second = hostile.assign("hostile", "leave_threads_graph", {}, execution_id="twice", attempt=2)

    async def run():
        old = asyncio.ensure_future(hostile.engine.execute(zombie))
        await until_first_checkpoint(hostile.store, "twice")
        new = asyncio.ensure_future(hostile.engine.execute(second))
        await asyncio.sleep(0)
        assert await hostile.engine.cancel("twice", 1, "no longer its own")
        return await old, await new

    old, new = hostile.call(run())
    assert (old.status, new.status) == ("cancelled", "succeeded")


def test_cancelling_again_and_again_does_not_hurry_what_has_begun(hostile, monkeypatch):
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    make = Workspace.make

    def make_slowly(*arguments):
        begun.set()
        go_on.wait(10)
        make(*arguments)
        ended.set()

    monkeypatch.setattr(Workspace, "make", make_slowly)
    assignment = hostile.assign("hostile", "loop_graph", {}, execution_id="impatient")

    async def run():
        task = asyncio.ensure_future(hostile.engine.execute(assignment))
        await asyncio.to_thread(begun.wait, 10)
        for _ in range(3):
            assert await hostile.engine.cancel("impatient", 1, "a heartbeat says so")
            await asyncio.sleep(0.01)
        assert not task.done()
        go_on.set()
        outcome = await task
        return outcome.status, ended.is_set()

    try:
        assert hostile.call(run()) == ("cancelled", True)
    finally:
        go_on.set()
    wait_until(lambda: not hostile.engine.attempt_directory(assignment).exists())


@pytest.mark.parametrize("times", [1, 3])
def test_a_thread_is_waited_for_however_often_the_caller_is_cancelled(times):
    go_on, ended = threading.Event(), threading.Event()

    def work():
        go_on.wait(10)
        ended.set()

    async def run():
        task = asyncio.ensure_future(finish_in_thread(work))
        for _ in range(times):
            await asyncio.sleep(0.01)
            task.cancel()
        await asyncio.sleep(0.01)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(run())


def test_cancelling_the_caller_kills_the_processes_and_raises(hostile):
    assignment = hostile.assign("hostile", "loop_graph", {}, execution_id="dropped")

    async def run():
        task = asyncio.ensure_future(hostile.engine.execute(assignment))
        await until_first_checkpoint(hostile.store, "dropped")
        before = await asyncio.to_thread(find_processes_of, hostile.root)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return before, await asyncio.to_thread(find_processes_of, hostile.root)

    before, after = hostile.call(run())
    assert set(after) < set(before)


# -- kill -9 -------------------------------------------------------------------------------------

STUBBORN = """
import os, signal, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
for _ in range(2):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            print("daemon", flush=True)
print("ready", flush=True)
while True:
    time.sleep(100)
"""


def find_family(bench, start):
    """The pids of one running execution's ancestors, and of its own process, by their roles."""
    nursery = bench.engine._supervisors._standing[start, "v1"].supervisor._nursery
    stem = nursery._interpreter.pid
    family = {"stem": stem}
    if bench.sandbox.grade.in_slots:
        [family["launcher"]] = find_children(stem)
        family["source"] = find_children(family["launcher"])[0]
        [family["child"]] = find_children(family["source"])
        [family["init"]] = set(find_children(family["launcher"])) - {family["source"]}
    else:
        [family["source"]] = find_children(stem)
        [family["init"]] = find_children(family["source"])
        family["child"] = find_children(family["init"])[0]
    return family


def find_leftovers(bench):
    """Mounts that this process sees below the bench, and directories of its executions."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return [line for line in mounts if str(bench.root) in line] + [*bench.engine.runs.iterdir()]


@pytest.mark.parametrize("start", ["fork", "fresh"])
@pytest.mark.parametrize("role", ["child", "init", "source", "launcher", "stem"])
def test_kill_minus_9_leaves_nothing_and_the_next_execution_works(level, role, start):
    if role == "launcher" and not level.sandbox.grade.in_slots:
        pytest.skip("a launcher makes slots")
    assert level.script("pass", start).failure is None
    standing = set(find_processes_of(level.root))
    # Without slots an execution is below an init of its own, which needs no stem.
    outlives = role == "stem" and not level.sandbox.grade.in_slots
    limits = {"timeout": 5 if outlives else 30}
    assignment = level.assign(start, given={"code": STUBBORN}, limits=limits)
    stdout = level.engine.attempt_directory(assignment) / "stdout"

    async def run():
        execution = asyncio.ensure_future(level.engine.execute(assignment))
        while not (stdout.exists() and stdout.read_text().count("\n") >= 3):
            await asyncio.sleep(0.01)
        running = await asyncio.to_thread(find_processes_of, level.root)
        family = find_family(level, start)
        os.kill(family[role], signal.SIGKILL)
        return await execution, family, set(running)

    outcome, family, running = level.call(run())
    assert outcome.failure.kind == ("timeout" if outlives else "crash"), outcome.failure
    assert len(running - standing) >= 3
    assert not set(find_processes_of(level.root)) - standing
    if role in {"source", "launcher", "stem"}:
        ancestors = [family[name] for name in ("source", "launcher", "stem") if name in family]
        wait_until(lambda: not any(map(is_alive, ancestors)))
    wait_until(lambda: not find_leftovers(level))
    assert level.find_value("value = 'works'", start) == "works"


SURVIVOR = """
import sys
from pathlib import Path
from levels import LEVELS
from sandbox_bench import Bench

root, level, start, code = sys.argv[1:]
bench = Bench(Path(root), grade=LEVELS[level])
bench.add_scripted(start)
bench.run(start, given={"code": code}, execution_id="looping")
"""


@pytest.mark.parametrize("start", ["fork", "fresh"])
def test_kill_minus_9_of_the_supervisor_leaves_no_process(level, tmp_path, start):
    name = next(name for name, grade in LEVELS.items() if grade is level.sandbox.grade)
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SURVIVOR, str(tmp_path), name, start, STUBBORN],
        env={**os.environ, "PYTHONPATH": path},
    )
    stdout = tmp_path / "runs" / "looping" / "1" / "stdout"
    try:
        wait_until(lambda: stdout.exists() and stdout.read_text().count("\n") >= 3, 60)
        below = find_processes_of(tmp_path)
        assert len(below) >= 5
    finally:
        supervisor.kill()
        supervisor.wait()
    wait_until(lambda: not find_processes_of(tmp_path))
    again = Bench(tmp_path, grade=level.sandbox.grade)
    try:
        again.add_scripted(start)
        assert again.find_value("value = 1", start, execution_id="looping") == 1
        wait_until(lambda: not find_leftovers(again))
    finally:
        again.close()


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


def test_a_slot_that_is_killed_before_its_process_is_forked_costs_only_itself(tmp_path):
    """The zygote's fork fails then, with ENOMEM; it used to take the zygote along."""
    bench = Bench(tmp_path)

    async def race() -> list[bool]:
        shared = bench.engine._supervisors._standing["fork", "v1"]
        nursery = await shared.supervisor.ready()
        alive = []
        for turn in range(20):
            room = bench.engine.runs / f"race-{turn}"
            place = make_place(room, tmp_path / "output")
            process = await nursery.fork(place)
            await process.close()
            alive.append(nursery.is_alive())
        return alive

    try:
        bench.add_scripted()
        assert bench.find_value("value = 1") == 1
        assert all(bench.call(race()))
        assert bench.find_value("value = 2") == 2
    finally:
        bench.close()


def test_a_nursery_whose_launcher_has_just_died_is_not_asked_again(tmp_path):
    """Its interpreter takes a moment longer to end; asking thrice in that moment is in vain."""
    bench = Bench(tmp_path)

    async def break_and_run():
        shared = bench.engine._supervisors._standing["fork", "v1"]
        nursery = await shared.supervisor.ready()
        nursery._control.sock.shutdown(socket.SHUT_RDWR)
        assert nursery.is_alive()
        return await bench.engine.execute(bench.assign("fork", given={"code": "value = 3"}))

    try:
        bench.add_scripted()
        assert bench.find_value("value = 1") == 1
        assert bench.call(break_and_run()).status == "succeeded"
    finally:
        bench.close()
