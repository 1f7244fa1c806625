"""What an engine does beside its executions: idle processes end, and full disks are looked for."""

import asyncio

import pytest
from sandbox_bench import Bench, find_processes_of, is_alive, wait_until

from wtb_core import attempt_run, supervisors
from wtb_core.files import layers

MIB = 1024**2


@pytest.fixture
def own_bench(tmp_path):
    bench = Bench(tmp_path)
    bench.add_scripted()
    bench.add_scripted("fresh")
    yield bench
    bench.close()


def find_supervisor(bench, project):
    shared = bench.engine._supervisors._standing.get((project, "v1"))
    return shared and shared.supervisor


@pytest.mark.parametrize("project", ["fork", "fresh"])
def test_idle_processes_end_and_the_next_execution_starts_new_ones(own_bench, monkeypatch, project):
    monkeypatch.setattr(supervisors, "UPKEEP_S", 0.05)
    monkeypatch.setattr(supervisors, "ZYGOTE_IDLE_S", 0.3)
    assert own_bench.script("pass", project).failure is None
    supervisor = find_supervisor(own_bench, project)
    pids = find_processes_of(supervisor.directory)
    assert pids

    wait_until(lambda: find_supervisor(own_bench, project) is None)

    wait_until(lambda: not any(is_alive(pid) for pid in pids))
    wait_until(lambda: not supervisor.directory.exists())
    assert own_bench.script("pass", project).failure is None
    assert find_supervisor(own_bench, project) not in {None, supervisor}


def test_processes_in_use_are_not_idle(own_bench, monkeypatch):
    monkeypatch.setattr(supervisors, "UPKEEP_S", 0.02)
    monkeypatch.setattr(supervisors, "ZYGOTE_IDLE_S", 0.0)
    assert own_bench.find_value("import time; time.sleep(0.5); value = 'slept'") == "slept"
    wait_until(lambda: find_supervisor(own_bench, "fork") is None)


WRITE = """
    import os, time
    with open(PATH, "wb") as file:
        file.write(os.urandom(8 * 1024**2))
        os.fsync(file.fileno())
    time.sleep(30)
"""


@pytest.mark.parametrize(
    "path", ["'file.bin'", "os.path.expanduser('~/file.bin')", "os.environ['TMPDIR'] + '/file.bin'"]
)
def test_what_fills_the_disk_is_killed_wherever_it_writes(own_bench, monkeypatch, path):
    monkeypatch.setattr(attempt_run, "DISK_LOOK_S", 0.05)
    monkeypatch.setattr(attempt_run, "MAX_DISK_BYTES", 4 * MIB)
    outcome = own_bench.script(WRITE.replace("PATH", path))
    assert (outcome.failure.kind, outcome.failure.node) == ("crash", "run")
    assert "fills the disk" in outcome.failure.reason
    assert outcome.duration_ms < 20_000


def test_what_has_written_much_is_killed_when_little_is_free(own_bench, monkeypatch):
    monkeypatch.setattr(attempt_run, "DISK_LOOK_S", 0.05)
    monkeypatch.setattr(attempt_run.os, "statvfs", lambda _path: Room(1, 4 * MIB))
    monkeypatch.setattr(attempt_run, "MIN_FREE_BYTES", 5 * MIB)
    outcome = own_bench.script(WRITE.replace("PATH", "'file.bin'"))
    assert outcome.failure.kind == "crash"
    assert "fills the disk" in outcome.failure.reason


def test_what_has_written_little_is_let_be_when_little_is_free(own_bench, monkeypatch):
    """Others have filled the disk."""
    looks = []

    def look(path):
        looks.append(path)
        return Room(1, 4 * MIB)

    monkeypatch.setattr(attempt_run, "DISK_LOOK_S", 0.05)
    monkeypatch.setattr(attempt_run, "DISK_LOOK_SHARE", 1.0)
    monkeypatch.setattr(attempt_run.os, "statvfs", look)
    code = "import time; open('a', 'w').write('x'); time.sleep(2); value = 1"
    assert own_bench.find_value(code) == 1
    assert len(looks) > 3


class Room:
    """What statvfs says."""

    def __init__(self, f_bavail, f_frsize):
        self.f_bavail = f_bavail
        self.f_frsize = f_frsize


def test_layers_of_forks_are_trimmed_beside_the_executions(own_bench, monkeypatch):
    trimmed = []
    monkeypatch.setattr(supervisors, "UPKEEP_S", 0.05)
    monkeypatch.setattr(layers.LayerCache, "trim", lambda cache: trimmed.append(cache) or 0)
    assert own_bench.script("pass").failure is None
    wait_until(lambda: len(trimmed) > 2)


def test_upkeep_goes_on_after_an_error(own_bench, monkeypatch):
    trimmed = []

    def fail(cache):
        trimmed.append(cache)
        raise OSError(5, "broken")

    monkeypatch.setattr(supervisors, "UPKEEP_S", 0.05)
    monkeypatch.setattr(layers.LayerCache, "trim", fail)
    assert own_bench.script("pass").failure is None
    wait_until(lambda: len(trimmed) > 2)


def test_an_engine_closes_after_background_work_that_has_just_ended(tmp_path, monkeypatch):
    bench = Bench(tmp_path)
    close = bench.engine.close

    async def close_at_once():
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        bench.engine._background.start(done)
        await close()

    monkeypatch.setattr(bench.engine, "close", close_at_once)
    bench.close()
    assert not bench.engine._background._running
