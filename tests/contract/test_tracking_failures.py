"""Files that cannot be committed: the execution's result stands, and the failure is told."""

import errno
import json
import os
import re
from pathlib import Path

import pytest
from file_systems import Impossible, mounted
from levels import LEVELS, find_obstacle
from sandbox_bench import Bench
from unprivileged import run_unprivileged

from wtb_core.checkpoint_store import CheckpointSession, CheckpointStore
from wtb_core.errors import NotForkable, NotFound, TrackingError, Unavailable
from wtb_core.files.blobs import BlobStore
from wtb_core.files.tracking import Tracker
from wtb_core.history import decode
from wtb_core.testbench import TestBench

PROJECTS = Path(__file__).parents[1] / "projects"
FULL = "the blob store cannot take more: No space left on device"
WRITE = "from pathlib import Path; Path({!r}).write_text({!r})"
REMOVE = "from pathlib import Path; Path({!r}).unlink()"


@pytest.fixture
def local(tmp_path):
    projects = ["steps/project.yaml"]
    with TestBench.local(tmp_path / "data", root=PROJECTS, projects=projects) as bench:
        yield bench


def run_locally(bench, *steps):
    """An execution at its end, and the events of its batch without their prefix."""
    spec = {
        "project": "steps",
        "variants": [{"name": "only"}],
        "cases": [{"id": "case", "input": {"steps": list(steps), "values": []}}],
    }
    events = []
    (execution,) = bench.run_batch(spec, events.append).executions
    assert execution["status"] == "succeeded", execution["failure"]
    assert len(execution["output"]["values"]) == len(steps)
    return bench.execution(execution["execution_id"]), events


def select(events, kind):
    return [e["payload"] for e in events if e["type"] == f"ray_variant_{kind}"]


@pytest.fixture
def refuse(monkeypatch):
    """The blob store takes no file of the name `full.bin`."""
    put = BlobStore.put_descriptor

    def refuse(self, source, *, sync=True):
        if Path(f"/proc/self/fd/{source}").readlink().name == "full.bin":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return put(self, source, sync=sync)

    monkeypatch.setattr(BlobStore, "put_descriptor", refuse)


@pytest.mark.usefixtures("refuse")
def test_a_checkpoint_without_its_files_is_told_and_is_no_fork_point(local):
    execution, events = run_locally(
        local, WRITE.format("a.txt", "a"), WRITE.format("full.bin", "x"), REMOVE.format("full.bin")
    )

    execution_id = execution["execution_id"]
    items = local.checkpoints(execution_id)
    assert [item["forkable"] for item in items] == [True, True, True, False, True]
    failed = items[-2]
    assert failed["file_commit_id"] is None
    told = {
        "checkpoint_id": failed["checkpoint_id"],
        "failed_files": ["full.bin"],
        "error_message": FULL,
    }
    assert execution["tracking_failures"] == [told]
    (event,) = select(events, "files_tracking_failed")
    assert told.items() <= event.items()
    assert event["execution_id"] == execution_id
    with pytest.raises(NotForkable, match="files"):
        local.fork(execution_id, failed["checkpoint_id"])
    with pytest.raises(NotFound):
        local.files(execution_id, "start", failed["checkpoint_id"])
    (tracked,) = select(events, "files_tracked")
    assert (tracked["paths"], tracked["checkpoint_id"]) == (["a.txt"], items[-1]["checkpoint_id"])
    assert execution["file_commit_id"] == items[-1]["file_commit_id"] == tracked["file_commit_id"]
    batch_id = local.fork(execution_id, items[-1]["checkpoint_id"])
    list(local.events(batch_id))
    assert local.read(batch_id).succeeded


@pytest.mark.usefixtures("refuse")
def test_an_end_without_its_files_has_no_commit_and_no_tracked_event(local):
    execution, events = run_locally(
        local, WRITE.format("a.txt", "a"), WRITE.format("full.bin", "x")
    )

    assert execution["file_commit_id"] is None
    assert execution["files_tracked"] is None
    assert select(events, "files_tracked") == []
    failures = execution["tracking_failures"]
    last = local.checkpoints(execution["execution_id"])[-1]["checkpoint_id"]
    assert [failure["checkpoint_id"] for failure in failures] == [last, None]
    assert [e["checkpoint_id"] for e in select(events, "files_tracking_failed")] == [last, None]
    (completed,) = select(events, "execution_completed")
    assert (completed["files_tracked"], completed["file_commit_id"]) == (0, None)
    with pytest.raises(NotFound):
        local.files(execution["execution_id"])
    assert local.files(execution["execution_id"], "base", "start")["items"] == []


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [("max_files", 2, "more than 2 paths"), ("max_bytes", 10, "10 bytes")],
)
def test_too_much_is_not_tracked(local, monkeypatch, limit, value, message):
    monkeypatch.setitem(Tracker.__init__.__kwdefaults__, limit, value)
    names = ("b", "c", "d")
    execution, events = run_locally(
        local,
        WRITE.format("a", "123"),
        "; ".join(WRITE.format(name, "1234") for name in names),
        "; ".join(REMOVE.format(name) for name in names),
    )

    assert [item["forkable"] for item in local.checkpoints(execution["execution_id"])] == [
        *(True, True, True, False, True)
    ]
    (failure,) = execution["tracking_failures"]
    assert message in failure["error_message"]
    (tracked,) = select(events, "files_tracked")
    assert tracked["paths"] == ["a"]


# -- what cannot be stored at the end ------------------------------------------------------------

VERSION = "1" * 64
STEPS = [
    "print('said'); open('file.txt', 'w').write('one')",
    "open('made.txt', 'w').write('two')",
]


@pytest.fixture(params=["overlay", "landlock_copy"])
def engine(request, tmp_path):
    obstacle = find_obstacle(LEVELS[request.param], tmp_path / "check")
    if obstacle is not None:
        pytest.skip(obstacle)
    yield from open_engine(tmp_path / "data", LEVELS[request.param])


def open_engine(root, grade):
    bench = Bench(root, grade=grade)
    workspace = PROJECTS / "steps" / "base"
    graphs = {"default": "./graphs.py:builder"}
    bench.add("steps", "steps", graphs, workspace=workspace, version=VERSION)
    bench.add_scripted()
    yield bench
    bench.close()


def run_steps(bench, *steps):
    given = {"steps": list(steps), "values": []}
    outcome = bench.run("steps", given=given, version=VERSION)
    assert outcome.status == "succeeded", outcome.failure
    assert len(json.loads(outcome.output)["values"]) == len(steps)
    return outcome


class Disk:
    """Counts what the blob store writes and makes durable, and is full from some call on."""

    def __init__(self, monkeypatch):
        self.calls = 0
        self.full_from = None
        for name in ("put", "put_descriptor", "sync"):
            self._wrap(monkeypatch, name)

    def is_reached(self):
        return self.full_from is None or self.calls >= self.full_from

    def _wrap(self, monkeypatch, name):
        method = getattr(BlobStore, name)

        def call(*args, **options):
            self.calls += 1
            if self.full_from is not None and self.is_reached():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return method(*args, **options)

        monkeypatch.setattr(BlobStore, name, call)


def test_a_disk_that_is_full_from_any_moment_on_costs_no_result(engine, monkeypatch):
    disk = Disk(monkeypatch)
    whole = run_steps(engine, *STEPS)
    assert whole.tracking_failures == []
    assert whole.history is not None
    found = []
    while disk.is_reached():
        disk.calls, disk.full_from = 0, len(found) + 1
        outcome = run_steps(engine, *STEPS)
        assert outcome.output == whole.output
        found.append(outcome)
    assert found.pop().tracking_failures == []
    assert len(found) >= 6
    for outcome in found:
        assert outcome.tracking_failures[-1].checkpoint_id is None
        assert "No space left on device" in outcome.tracking_failures[-1].error_message
        assert outcome.history is None
    assert found[0].stdout is None
    assert found[0].start_commit_id is None


def test_a_history_that_cannot_be_stored_costs_nothing_else(engine, monkeypatch):
    put = BlobStore.put

    def refuse(self, data, *, sync=True):
        if data.startswith(b"WTBHIST"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return put(self, data, sync=sync)

    whole = run_steps(engine, *STEPS)
    monkeypatch.setattr(BlobStore, "put", refuse)
    outcome = run_steps(engine, *STEPS)
    assert outcome.history is None
    assert engine.blobs.get(outcome.stdout) == b"said\n"
    assert outcome.start_commit_id == whole.start_commit_id
    assert outcome.files.file_commit_id == whole.files.file_commit_id
    assert [failure.error_message for failure in outcome.tracking_failures] == [
        "the history cannot be stored: No space left on device"
    ]


def test_a_checkpoint_store_that_fails_at_the_end_costs_the_history_only(engine, monkeypatch):
    async def fail(*_args):
        raise Unavailable("the disk is full")

    whole = run_steps(engine, *STEPS)
    monkeypatch.setattr(CheckpointStore, "export", fail)
    outcome = run_steps(engine, *STEPS)
    assert (outcome.history, outcome.output) == (None, whole.output)
    assert outcome.files == whole.files.model_copy(
        update={"checkpoint_id": outcome.files.checkpoint_id}
    )
    (failure,) = outcome.tracking_failures
    assert failure.error_message == "the history cannot be stored: the disk is full"


def test_writes_that_are_not_durable_at_the_end_are_told(engine, monkeypatch):
    settle = CheckpointSession.settle

    async def fail(self):
        await settle(self)
        raise Unavailable("the disk is full")

    monkeypatch.setattr(CheckpointSession, "settle", fail)
    outcome = run_steps(engine, *STEPS)
    assert outcome.files is not None
    assert [failure.error_message for failure in outcome.tracking_failures] == [
        "the last writes cannot be stored: the disk is full"
    ]


def test_a_disk_that_is_full_before_the_start_is_a_loss(engine, monkeypatch):
    """It is the node's trouble and passes, so the execution is tried again."""

    def fail(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(engine.engine._supervisors.owner), "make", fail)
    failure = engine.script("value = 1").failure
    assert failure.kind == "lost"
    assert "No space left on device" in failure.reason


def test_files_at_the_beginning_that_cannot_be_committed_leave_no_start(engine, monkeypatch):
    """Later commits are no substitute: what user code found is not known."""
    track, calls = Tracker.track, []

    def fail_once(self):
        calls.append(self)
        if len(calls) == 1:
            raise TrackingError([], "no space")
        return track(self)

    monkeypatch.setattr(Tracker, "track", fail_once)
    outcome = run_steps(engine, *STEPS)
    assert (outcome.start_commit_id, outcome.files) == (None, None)
    commits = [row.file_commit for row in decode(engine.blobs.get(outcome.history)).checkpoints]
    assert [commit is None for commit in commits] == [True, False, False, False]
    assert [failure.checkpoint_id for failure in outcome.tracking_failures] == [None]


@pytest.mark.parametrize("level", ["overlay", "bare_copy"])
def test_blobs_on_a_full_file_system(tmp_path, level):
    obstacle = find_obstacle(LEVELS[level], tmp_path / "check")
    if obstacle is not None:
        pytest.skip(obstacle)
    root = tmp_path / "data"
    try:
        with mounted("tmpfs", tmp_path / "disk", 4 * 1024**2) as small:
            root.mkdir()
            (root / "blobs").symlink_to(small)
            opened = open_engine(root, LEVELS[level])
            bench = next(opened)
            try:
                check_full_file_system(bench)
            finally:
                for _ in opened:
                    pass
    except Impossible as error:
        pytest.skip(str(error))


def check_full_file_system(bench):
    fill = "import os; open('large.bin', 'wb').write(os.urandom(8 * 1024**2))"
    outcome = run_steps(bench, *STEPS, fill, "import os; os.unlink('large.bin')")
    (failure,) = outcome.tracking_failures
    assert (failure.failed_files, failure.error_message) == (["large.bin"], FULL)
    assert outcome.files.paths == ["file.txt", "made.txt"]
    commits = [row.file_commit for row in decode(bench.blobs.get(outcome.history)).checkpoints]
    assert [commit is None for commit in commits] == [False] * 4 + [True, False]
    assert not list(bench.blobs.root.glob("*.tmp"))


# -- as a user whom modes stop -------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file_is_named(engine):
    outcome = run_steps(
        engine,
        "import os; open('secret.txt', 'w').write('x'); os.chmod('secret.txt', 0)",
        "import os; os.chmod('secret.txt', 0o600)",
        "import os; os.mkdir('closed', 0)",
    )
    first, second, last = outcome.tracking_failures
    assert first.failed_files == ["secret.txt"]
    assert re.search("cannot be read: Permission denied", first.error_message)
    assert second.failed_files == last.failed_files == ["closed"]
    assert last.checkpoint_id is None
    commits = [row.file_commit for row in decode(engine.blobs.get(outcome.history)).checkpoints]
    assert [commit is None for commit in commits] == [False, False, True, False, True]


@pytest.mark.skipif(os.geteuid() != 0, reason="the test before this one does it")
def test_an_unreadable_file_is_named_for_a_user_without_privileges(tmp_path):
    directory = tmp_path / "nobody"
    directory.mkdir()
    options = ["-q", "-p", "no:cacheprovider", "--timeout", "60", "--basetemp"]
    chosen = f"{Path(__file__)}::test_an_unreadable_file_is_named"
    ended = run_unprivileged(
        ["-m", "pytest", *options, str(directory / "tests"), chosen], directory, timeout_s=100
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"[12] passed", ended.stdout)
