"""What holds for an execution at every isolation level, and what at some of them only."""

import asyncio
import json
import os
import socket
import sys
import textwrap
from pathlib import Path

import pytest
from levels import IN_SLOTS, LEVELS, find_obstacle
from sandbox_bench import find_processes_of, wait_until

from wtb_core.sandbox.ladder import Sandbox

MIB = 1024**2


in_slots = pytest.mark.parametrize("level", IN_SLOTS, indirect=True)
without_slots = pytest.mark.parametrize(
    "level", [name for name in LEVELS if name not in IN_SLOTS], indirect=True
)


def read_stdout(bench, outcome):
    return "" if outcome.stdout is None else bench.blobs.get(outcome.stdout).decode()


def test_a_machine_that_can_reaches_the_best_level(tmp_path):
    obstacle = find_obstacle(LEVELS["overlay"], tmp_path / "check")
    if obstacle is not None:
        pytest.skip(obstacle)
    grade = asyncio.run(Sandbox(tmp_path / "runs", hidden=[tmp_path], require="A").find_grade())
    assert (grade.workspace, grade.confinement.namespaces) == ("A", "user")
    assert {missed.level for missed in grade.missed} <= {"landlock"}


@pytest.mark.parametrize("start", ["fork", "fresh"])
def test_an_execution_succeeds_and_says_its_level(level, start):
    outcome = level.script("value = 6 * 7", start)
    assert (outcome.failure, outcome.start) == (None, start)
    assert json.loads(outcome.output)["value"] == 42
    assert outcome.cpu_ms > 0
    assert outcome.peak_rss_bytes > 10 * MIB
    grade = level.sandbox.grade
    assert outcome.isolation["workspace"] == grade.workspace
    assert ("namespaces" in outcome.isolation["confinement"]) == grade.in_slots
    assert ("landlock" in outcome.isolation["confinement"]) == grade.confinement.landlock


def test_an_error_is_the_nodes(level):
    failure = level.script("raise KeyError('gone')").failure
    assert (failure.kind, failure.error_type, failure.node) == ("error", "KeyError", "run")


def test_a_crash_is_told_with_its_exit_code(level):
    failure = level.script("import os; os._exit(7)").failure
    assert (failure.kind, failure.node) == ("crash", "run")
    assert "exit code 7" in failure.reason


DAEMON = """
    import os, signal, sys, time
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            print("daemon", flush=True)
            while True:
                time.sleep(100)
        os._exit(0)
    while True:
        time.sleep(100)
"""


@pytest.mark.parametrize("start", ["fork", "fresh"])
def test_a_timeout_kills_a_daemon_of_another_session(level, start):
    assert level.script("pass", start).failure is None
    standing = set(find_processes_of(level.root))
    outcome = level.script(DAEMON, start, limits={"timeout": 2})
    assert outcome.failure.kind == "timeout"
    assert read_stdout(level, outcome) == "daemon\n"
    assert set(find_processes_of(level.root)) == standing


def test_the_memory_of_one_process_is_bounded(level):
    code = "value = len(bytearray(1024**3))"
    failure = level.script(code, limits={"memory": 200 * MIB}).failure
    assert (failure.kind, failure.node) == ("out_of_memory", "run")
    assert level.find_value(code) == 1024**3


@in_slots
def test_the_memory_of_several_processes_is_bounded_together(level):
    code = """
        import os, signal, sys, time
        pids = []
        for _ in range(5):
            pids.append(os.fork())
            if pids[-1] == 0:
                held = bytearray(150 * 1024**2)
                time.sleep(SECONDS)
                os._exit(0)
        for pid in pids:
            os.waitpid(pid, 0)
    """
    hold = code.replace("SECONDS", "60")
    failure = level.script(hold, limits={"memory": 200 * MIB}).failure
    assert failure.kind == "out_of_memory"
    assert "together" in failure.reason
    release = code.replace("SECONDS", "1")
    assert level.script(release, limits={"memory": 1024 * MIB}).failure is None


COUNT = """
    import os, signal, time
    children = []
    try:
        while len(children) < 1000:
            children.append(os.fork())
            if children[-1] == 0:
                time.sleep(100)
    except BlockingIOError:
        pass
    pids = [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]
    value = sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids)
    for pid in children:  # the graph itself needs a thread more
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
"""


@in_slots
def test_the_number_of_processes_is_bounded(level):
    outcome = level.script(COUNT, limits={"processes": 20})
    assert outcome.failure is None
    found = json.loads(outcome.output)["value"]
    if os.geteuid() == 0:  # as far as pid_max can be bounded, see slots.py
        assert 20 <= found <= 320
    else:
        assert found == 20


def test_what_is_written_to_the_streams_is_kept_in_order(level):
    outcome = level.script(
        """
        import os, subprocess, sys
        print("printed")
        with open("/dev/stdout", "a") as file:
            file.write("through the device\\n")
        subprocess.run(["sh", "-c", "echo by a program; echo an error >&2"], check=True)
        with open("/dev/stderr", "a") as file:
            file.write("through the device\\n")
        os.write(1, b"by its number\\n")
        """
    )
    assert outcome.failure is None
    assert read_stdout(level, outcome) == (
        "printed\nthrough the device\nby a program\nby its number\n"
    )
    assert level.blobs.get(outcome.stderr) == b"an error\nthrough the device\n"


@in_slots
def test_tmp_is_usable_and_private(level):
    code = """
        import os
        from multiprocessing import Lock
        value = os.listdir("/tmp")
        assert os.path.samefile("/tmp", "/var/tmp")
        for directory in ("/tmp", "/dev/shm"):
            with open(f"{directory}/of-one-execution", "x") as file:
                file.write("x")
        Lock()
    """
    first, second = (level.find_value(code) for _ in range(2))
    assert "of-one-execution" not in first
    assert first == second
    assert not Path("/tmp/of-one-execution").exists()
    assert not Path("/dev/shm/of-one-execution").exists()


def test_temporary_files_and_home_are_private(level):
    code = """
        import os, tempfile
        from pathlib import Path
        value = os.listdir(tempfile.gettempdir()) + os.listdir(Path.home())
        Path(tempfile.mkdtemp(), "x").write_text("x")
        (Path.home() / "x").write_text("x")
    """
    first, second = (level.find_value(code) for _ in range(2))
    assert first == second
    shown = [level.root, Path(sys.prefix), Path(__file__)]  # what lies below the host's /tmp
    places = {path.parts[2] for path in shown if path.is_relative_to("/tmp")}
    assert set(first) <= places


def test_files_of_the_variant_and_the_case_lie_over_the_base(level):
    value = level.find_value(
        """
        from pathlib import Path
        paths = ("file.txt", "notes/inner.txt", "notes/new.txt", "deep/er/new.txt")
        value = [Path(path).read_text() for path in paths]
        """,
        variant={"files": {"file.txt": "variant", "notes/new.txt": "variant"}},
        case_files={"file.txt": "case", "deep/er/new.txt": "case"},
    )
    assert value == ["case", "of the base", "variant", "case"]
    assert (level.setups["fork"].workspace / "file.txt").read_text() == "of the base"


SPOIL = """
    import os
    from pathlib import Path
    value = []
    for root in ("", BASE + "/"):
        for change in (
            lambda: Path(root + "file.txt").write_text("spoilt"),
            lambda: Path(root + "notes/inner.txt").open("r+").write("spoilt"),
            lambda: Path(root + "new.txt").write_text("new"),
            lambda: SLOTS and os.chmod(root + "file.txt", 0o777),
            lambda: SLOTS and os.utime(root + "file.txt", (1, 1)),
            lambda: os.rename(root + "file.txt", root + "moved.txt"),
            lambda: os.unlink(root + "notes/inner.txt"),
            lambda: os.rmdir(root + "notes"),
        ):
            try:
                change()
            except OSError as error:
                value.append(error.errno)
    value = [value, sorted(os.listdir())]
"""


@pytest.mark.parametrize("level", [*IN_SLOTS, "landlock_copy"], indirect=True)
def test_no_write_reaches_the_base_or_another_execution(level):
    base = level.setups["fork"].workspace
    # Landlock says nothing of modes and times, see landlock(7).
    code = SPOIL.replace("BASE", repr(str(base)))
    code = code.replace("SLOTS", repr(level.sandbox.grade.in_slots))
    before = look(base)
    [_, names] = level.find_value(code)
    assert names == ["moved.txt", "new.txt"]
    assert look(base) == before
    assert level.find_value("import os; value = sorted(os.listdir())") == ["file.txt", "notes"]


def look(root):
    return {
        str(path.relative_to(root)): (
            path.stat().st_mode,
            path.stat().st_mtime,
            None if path.is_dir() else path.read_text(),
        )
        for path in sorted(root.rglob("*"))
    }


@without_slots
def test_what_is_not_enforced_is_said(level):
    outcome = level.script("pass")
    assert outcome.failure is None
    denied = outcome.isolation["denied"]
    assert "more processes than limits.processes" not in denied
    assert "the network" not in denied


EVALUATE = """
from pathlib import Path
made, changed = workspace / "made.txt", workspace / "file.txt"
score = (
    made.read_text() == "by the node"
    and changed.read_text() == "changed"
    and not (workspace / "notes").exists()
)
made.write_text("by an evaluator")
changed.unlink()
(workspace / "by-an-evaluator.txt").write_text("x")
"""


def test_evaluators_get_the_final_files_and_cannot_change_them(level):
    assignment = level.assign(
        "fork",
        given={
            "code": textwrap.dedent("""
                import shutil
                from pathlib import Path
                Path("made.txt").write_text("by the node")
                Path("file.txt").write_text("changed")
                shutil.rmtree("notes")
            """)
        },
        reference=EVALUATE,
        evaluators=["spoil", "run"],
        keep="always",
    )
    outcome = level.call(level.engine.execute(assignment))
    assert outcome.failure is None
    assert outcome.evaluation.errors == {"spoil": "its process ended with exit code 3"}
    assert outcome.evaluation.scores == {"spoil": None, "run": 1.0}
    commit = json.loads(level.blobs.get(outcome.files.file_commit_id))
    assert {path: level.blobs.get(entry["blob"]) for path, entry in commit["entries"].items()} == {
        "made.txt": b"by the node",
        "file.txt": b"changed",
    }
    assert commit["deleted"] == ["notes"]
    directory = level.engine.attempt_directory(assignment)
    wait_until(lambda: [entry.name for entry in directory.iterdir()] == ["workspace"])
    kept = {path.name: path for path in (directory / "workspace").iterdir()}
    assert kept.pop("notes", None) is None or level.sandbox.grade.has_overlay  # a whiteout
    assert {name: path.read_text() for name, path in kept.items()} == {
        "made.txt": "by the node",
        "file.txt": "changed",
    }


CONNECT = """
    import socket
    def connect(port):
        try:
            with socket.create_connection(("127.0.0.1", port), 5):
                return True
        except OSError:
            return False
    with socket.create_server(("127.0.0.1", 0)) as own:
        inside = connect(own.getsockname()[1])
    value = [inside, connect(PORT)]
"""


@in_slots
@pytest.mark.parametrize("network", [True, False])
def test_an_execution_without_network_has_a_loopback_of_its_own(level, network):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code = CONNECT.replace("PORT", str(listener.getsockname()[1]))
        outcome = level.script(code, network=network)
    assert outcome.failure is None
    assert json.loads(outcome.output)["value"] == [True, network]
    assert ("the network" in outcome.isolation["denied"]) != network


def test_two_versions_run_side_by_side(level, tmp_path):
    for version in ("old", "new"):
        workspace = tmp_path / version
        workspace.mkdir()
        (workspace / "version.txt").write_text(version)
        level.add(
            "versioned",
            "scripted",
            {"default": "./graphs.py:builder"},
            version=version,
            workspace=workspace,
        )
    code = textwrap.dedent("""
        import time
        from pathlib import Path
        value = Path("version.txt").read_text()
        Path("version.txt").write_text("spoilt")
        time.sleep(0.5)
    """)

    async def run():
        assignments = [
            level.assign("versioned", given={"code": code}, version=version)
            for version in ("old", "new", "old", "new")
        ]
        return await asyncio.gather(*map(level.engine.execute, assignments))

    outcomes = level.call(run())
    assert [outcome.failure for outcome in outcomes] == [None] * 4
    values = [json.loads(outcome.output)["value"] for outcome in outcomes]
    assert values == ["old", "new", "old", "new"]


def test_a_base_that_was_changed_is_said_and_no_longer_shared(level, tmp_path):
    workspace = tmp_path / "base"
    workspace.mkdir()
    (workspace / "file.txt").write_text("before")
    level.add_scripted(workspace=workspace, version="changing")
    options = {"version": "changing"}
    assert level.script("pass", **options).isolation["base"]["changed"] is False
    first = level.engine._supervisors._standing["fork", "changing"]

    async def run():
        code = "import time; print('ready', flush=True); time.sleep(1)"
        assignment = level.assign("fork", given={"code": code}, **options)
        execution = asyncio.ensure_future(level.engine.execute(assignment))
        stdout = level.engine.attempt_directory(assignment) / "stdout"
        while not (stdout.exists() and stdout.stat().st_size):
            await asyncio.sleep(0.01)
        (workspace / "file.txt").write_text("changed from outside")
        return await execution

    outcome = level.call(run())
    base = outcome.isolation["base"]
    assert base["changed"] is True
    assert base["before"] != base["after"]
    assert ("fork", "changing") not in level.engine._supervisors._standing
    assert level.discarded == ["changing"]
    assert level.script("pass", **options).isolation["base"]["changed"] is False
    assert level.engine._supervisors._standing["fork", "changing"] is not first
