"""`wtb prune` on a data directory: what goes, what stays, and that what stays is whole."""

import asyncio
import itertools
import json
import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from store_bench import Store, check_store, fail, make_batch, make_template

from tests.left_behind import LeftBehind
from wtb_core import retention
from wtb_core.attempts import Origin
from wtb_core.checkpoint_store import CheckpointStore
from wtb_core.cli import main
from wtb_core.data import DataDir, hold
from wtb_core.errors import InvalidRequest, NotFound, Unavailable
from wtb_core.files.blobs import BlobStore
from wtb_core.ids import now_ms
from wtb_core.projects import ProjectVersions, Registry
from wtb_core.retention import GRACE_S, Policy, prune
from wtb_core.store import pruning, views

DAY_S = 86_400.0
NOW = Policy(older_than_s=0.0)


def later(seconds):
    return lambda: time.time() + seconds


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make_template(tmp_path_factory.mktemp("template") / "wtb.db")


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    """What a power cut does is not what these tests are about."""
    loosen = pruning._loosen

    def do_not_sync(connection, record):
        loosen(connection, record)
        connection.execute("PRAGMA synchronous=OFF")

    monkeypatch.setattr(pruning, "_loosen", do_not_sync)
    monkeypatch.setattr(os, "fsync", lambda _: None)


class Place:
    """A data directory with a store, and attempts that leave what real ones do."""

    def __init__(self, template: Path, path: Path) -> None:
        self.data = DataDir(path).create()
        self.store = Store(template, path / "wtb.db")
        self.store.now = now_ms()
        self.left = LeftBehind(path)

    def close(self) -> None:
        check_store(self.store)
        self.store.close()

    def begin(self, version=None, **fields):
        batch = make_batch(self.store.new_id("b-"), **fields)
        batch = batch._replace(project_version=version or self.left.version)
        self.store.accept(batch)
        return self.store.claim(only_batch=batch.batch_id)

    def end(self, assignment, outcome=None, **fields):
        self.store.finish(assignment, outcome or self.left.outcome(), **fields)
        self.store.settle()

    def run(self, text=None):
        """A batch of one execution, which leaves a file, a log and an output with `text`."""
        assignment = self.begin()
        blobs, left = self.left.blobs, self.left
        if text is None:
            self.end(assignment)
        else:
            final = left.commit({"new.txt": left.file(text.encode())})
            files = left.outcome().files.model_copy(update={"file_commit_id": final})
            outcome = left.outcome(
                files=files,
                history=left.keep(
                    left.checkpoint("c-0", left.start), left.checkpoint("c-1", final)
                ),
                stdout=blobs.put(f"log {text}".encode()),
                output=None,
            )
            output = blobs.put(json.dumps(text).encode())
            self.end(assignment, outcome, output_blob=output, output_bytes=9)
        return assignment.batch_id

    def read_all(self, batch_id):
        """Everything that is kept of a batch, read as a service reads it."""
        read, files, blobs = self.store.read, self.left.files, self.left.blobs
        found = []
        for row in self.store.executions(batch_id):
            name = f"{batch_id}-{row.number}"
            item = read(lambda c, n=name: views.read_execution(c, n))
            for attempt in item["attempts"]:
                trace = read(lambda c, n=name, a=attempt: views.read_trace(c, n, a["attempt"]))
                points = ["start", "final"] if trace.history else []
                for checkpoint in files.list_checkpoints(trace, 1000)["items"]:
                    if checkpoint["forkable"]:
                        points.append(checkpoint["checkpoint_id"])
                for one, other in itertools.product(points, points):
                    found.append(files.list_changes(trace, one, other, diff=True, limit=1000))
                    for change in found[-1]["items"]:
                        if change["kind"] == "file" and change["change"] != "deleted":
                            path = os.fsdecode(b"out/\xff \x1b[2J.bin")
                            path = path if change["path"].startswith("out/") else change["path"]
                            found.append(files.read_file(trace, path, other)["data"])
                found += [views.load_log(attempt, stream, blobs) for stream in ("stdout", "stderr")]
            outputs = read(lambda c, n=row.number: views.read_outputs(c, batch_id, [n]))
            found.append(views.load_output(outputs[row.number], blobs))
            ingested = self.left.versions.read(self.store.batch(batch_id).project_version)
            found += [blobs.get(e.blob) for e in ingested.workspace.values() if e.blob]
        return found

    def list_blobs(self):
        shards = [path for path in self.data.blobs.iterdir() if len(path.name) == 2]
        return {path.name for shard in shards for path in shard.iterdir()}

    def snapshot(self):
        files = {p: p.stat().st_mtime_ns for p in self.data.path.rglob("*") if p.is_file()}
        databases = {p for p in files if p.name.startswith(("wtb.db", "checkpoints.db"))}
        return {p: t for p, t in files.items() if p not in databases}, list(
            self.store.raw.iterdump()
        )


@pytest.fixture
def place(template, tmp_path):
    with closing(Place(template, tmp_path / "data")) as place:
        yield place


def run(place, policy=NOW, after_s=100 * DAY_S, **options):
    return prune(place.data, policy, clock=later(after_s), sleep=lambda _: None, **options)


def age(place):
    """Make all files 40 days old."""
    then = time.time() - 40 * DAY_S
    for path in place.data.blobs.rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))


def test_what_only_the_removed_batches_named_goes_and_the_rest_can_be_read(place):
    old = place.run("of the old one")
    before = place.list_blobs()
    place.store.now += 50_000_000
    kept = [place.run("of the new one"), place.run()]
    read = [place.read_all(batch_id) for batch_id in kept]
    added = place.list_blobs() - before

    report = run(place, Policy(older_than_s=100 * DAY_S - 1000.0))

    assert place.store.batch_ids() == kept
    assert [place.read_all(batch_id) for batch_id in kept] == read
    gone = before - place.list_blobs()
    names = {"new.txt", "log", "output", "commit", "history"}
    assert len(gone) == len(names) + 1  # and the one that no attempt of any batch ever named
    assert place.list_blobs() >= added
    assert (report.batches, report.executions, report.blobs) == (1, 1, len(gone))
    assert report.blobs_bytes >= len(gone) * 512
    assert report.problems == []
    with pytest.raises(NotFound):
        place.left.blobs.get(place.left.secret)
    with pytest.raises(NotFound):
        place.store.read(lambda c: views.read_batch(c, old, 0))


def test_when_everything_is_old_nothing_is_left(place):
    place.run("one")
    place.run()

    report = run(place)

    assert (report.batches, place.list_blobs()) == (2, set())
    assert (report.young_blobs, report.problems) == (0, [])


def test_young_blobs_stay_until_they_are_old(place):
    place.run("one")
    count = len(place.list_blobs())

    report = run(place, after_s=GRACE_S - 60)
    assert (report.batches, report.blobs, report.young_blobs) == (1, 0, count)

    report = run(place, after_s=GRACE_S + 60)
    assert (report.batches, report.blobs, report.young_blobs) == (0, count, 0)


def test_a_short_grace_is_for_when_nothing_else_runs(place):
    place.run("one")
    policy = NOW._replace(grace_s=0.0)
    for name in ("serve.lock", "runner.lock"):
        with closing(hold(place.data.path / name, "test")), pytest.raises(Unavailable):
            run(place, policy, after_s=1)
    assert len(place.store.batch_ids()) == 1

    report = run(place, policy, after_s=1)

    assert (report.batches, place.list_blobs()) == (1, set())


def test_a_dry_run_says_what_would_go_and_changes_nothing(place):
    place.run("one")
    kept_directory(place, "b-gone-0")
    place.store.now += 60_000_000
    place.run()
    policy = Policy(older_than_s=100 * DAY_S - 1000.0)
    before = place.snapshot()

    promised = run(place, policy, dry_run=True)

    assert place.snapshot() == before
    assert promised.dry_run
    assert promised.batches == promised.workspaces == 1
    done = run(place, policy)
    assert done.model_dump(exclude={"dry_run"}) == promised.model_dump(exclude={"dry_run"})


def test_blobs_of_an_attempt_that_has_not_ended_stay_however_long_it_runs(place):
    early = place.left.blobs.put(b"before the batch")
    then = time.time() - 3 * DAY_S
    os.utime(place.left.blobs.path(early), (then, then))
    running = place.begin()
    mine = place.left.blobs.put(b"a file that no commit of an ended attempt names")

    report = run(place)

    assert place.left.blobs.get(mine)
    assert place.store.batch_ids() == [running.batch_id]
    assert report.young_blobs > 0
    with pytest.raises(NotFound):
        place.left.blobs.get(early)
    place.end(running)
    place.read_all(running.batch_id)
    run(place)
    assert place.list_blobs() == set()


def test_what_an_attempt_stored_that_was_there_before_stays_too(place):
    """The content is older than the batch, and nothing in the store names it yet."""
    old = place.run("the same text")
    age(place)
    running = place.begin()
    outcome_of = LeftBehind(place.data.path)
    text = place.left.blobs.put(b"the same text")

    run(place)

    assert place.store.batch_ids() == [running.batch_id] != [old]
    assert place.left.blobs.get(text) == b"the same text"
    place.end(running, outcome_of.outcome())
    place.read_all(running.batch_id)


def test_forks_and_retries_can_still_start_when_their_source_has_gone(place):
    source = place.run()
    origin = make_origin(place, f"{source}-0")
    fork = make_batch("b-fork")._replace(
        project_version=place.left.version, origin=origin, repetition=0
    )
    place.store.accept(fork)
    age(place)

    report = run(place)

    assert (report.batches, place.store.batch_ids()) == (1, ["b-fork"])
    read_origin(place, origin)
    place.end(place.store.claim())


def read_origin(place, origin):
    """All that a fork of a fork could start from."""
    blobs = place.left.blobs
    assert blobs.get(origin.history)
    assert place.left.versions.read(place.left.version)
    for commit in (place.left.start, place.left.middle, place.left.final):
        for entry in json.loads(blobs.get(commit))["entries"].values():
            assert "blob" not in entry or blobs.get(entry["blob"])


def make_origin(place, execution_id):
    return Origin(
        execution_id=execution_id,
        attempt=1,
        checkpoint_id="c-2",
        history=place.left.history,
        file_commit_id=place.left.middle,
    )


# -- other processes, in the middle ----------------------------------------------------------------


class Between:
    """Calls `act` once, right before the n-th of the calls that are watched."""

    def __init__(self, monkeypatch, n, act):
        self.left, self.act, self.monkeypatch = n, act, monkeypatch

    def watch(self, owner, name):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            self.left -= 1
            if self.left == 0:
                self.act()
            return real(*args, **kwargs)

        self.monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("step", [*range(1, 14), 16, 20, 26, 34, 50, 70])
@pytest.mark.parametrize("action", ["batch", "fork", "retry"])
def test_a_batch_that_comes_at_any_moment_of_a_prune_is_whole(place, monkeypatch, step, action):
    """It stores the very content that is being collected, or goes on from what is being removed."""
    store, came = place.store, []
    store.now -= round(40 * DAY_S * 1000)
    old = place.run("the text")
    source = place.begin(cases=2)
    place.end(source)
    place.end(store.claim(), fail())
    store.now = now_ms()
    age(place)

    def act():
        if action == "fork":  # it stores nothing, now
            batch = make_batch("b-new")._replace(
                project_version=place.left.version,
                origin=make_origin(place, source.execution_id),
                repetition=0,
            )
        else:
            fresh = LeftBehind(place.data.path)
            batch = make_batch("b-new")._replace(project_version=fresh.version)
        try:
            if action == "retry":
                came.append(store.renew(source.batch_id).batch_id)
            else:
                came.append(store.accept(batch).batch_id)
        except NotFound:
            assert action != "batch"
            return
        while action != "fork" and (assignment := store.claim(only_batch=came[0])):
            store.finish(assignment, fresh.outcome())
        store.settle()

    between = Between(monkeypatch, step, act)
    between.watch(retention._Pruning, "_read")
    for name in ("rename", "unlink", "lstat"):
        between.watch(Path, name)
    report = run(place, Policy(), after_s=0)
    between.left = 0

    assert report.problems == []
    assert store.batch_ids() == [source.batch_id] * (action == "retry" and bool(came)) + came
    assert old not in store.batch_ids()
    run(place, Policy(), after_s=0)
    age(place)
    run(place, Policy(), after_s=0)
    for batch_id in store.batch_ids():
        place.read_all(batch_id)
        origin = store.batch(batch_id).origin
        if origin is not None:
            read_origin(place, Origin.model_validate_json(origin))


def test_what_a_batch_took_over_stays_when_it_is_tried_again_meanwhile(place, monkeypatch):
    """The newest batch takes over, through the second, what the first one made."""
    store = place.store
    first = place.begin(cases=2)
    place.end(first)
    place.end(store.claim(), fail())
    second = store.renew(first.batch_id).batch_id
    place.end(store.claim(), fail())
    choose, third = pruning.choose, []

    def choose_then(connection, rule):
        choice = choose(connection, rule)
        connection.rollback()
        third.append(store.renew(second).batch_id)
        return choice

    monkeypatch.setattr(pruning, "choose", choose_then)
    report = run(place)

    assert (report.batches, report.held) == (0, 2)
    assert store.batch_ids() == [first.batch_id, second, *third]
    place.end(store.claim())
    place.read_all(third[0])


def test_one_prunes_at_a_time(place):
    place.run()
    with (
        closing(hold(place.data.path / "prune.lock", "test")),
        pytest.raises(Unavailable, match="another wtb prune uses"),
    ):
        run(place)
    assert run(place, dry_run=True).batches == 1
    assert run(place).batches == 1


# -- versions that a service may hand out ----------------------------------------------------------


GRAPH = """
def build():
    raise SystemExit
"""


async def describe(_setup):
    graph = {"kind": "state_graph", "nodes": ["a"], "subgraphs": {}}
    return {
        "graphs": {"default": graph},
        "nodes": {},
        "evaluators": [],
        "problems": [],
        "start": "fork",
        "start_reason": None,
    }


class Service:
    """The part of a service that knows projects, for as long as it runs."""

    def __init__(self, place, root, build=None):
        self.place = place
        self.builds = 0
        (root / "one").mkdir(parents=True)
        (root / "one" / "graph.py").write_text(GRAPH)
        (root / "one" / "base").mkdir()
        (root / "one" / "base" / "a.txt").write_text("of the base")
        lines = ["name: one", "graph: ./graph.py:build", "workspace: ./base"]
        if build:
            lines.append("build: ./graph.py:build")
        (root / "one" / "project.yaml").write_text("\n".join(lines))
        self.blobs = BlobStore(place.data.blobs)
        self.versions = ProjectVersions(self.blobs, place.data.bases, build=self._build)
        self.registry = Registry(root, ["*/project.yaml"], self.versions, describe)

    async def _build(self, _sandbox, _setup, _reference, workspace, _directory):
        self.builds += 1
        (workspace / "built.txt").write_text("built")

    def get(self):
        return asyncio.run(self.registry.get("one")).version

    def read(self, version):
        """All files of a version."""
        ingested = self.versions.read(version)
        trees = (ingested.code, ingested.workspace)
        return [
            self.blobs.get(entry.blob) for tree in trees for entry in tree.values() if entry.blob
        ]


@pytest.fixture(params=[False, True], ids=["plain", "built"])
def service(request, place, tmp_path):
    return Service(place, tmp_path / "projects", build=request.param)


def test_a_version_that_was_handed_out_lately_stays_and_an_old_one_is_stored_again(place, service):
    version = service.get()
    files = service.read(version)
    assert len(files) >= 2
    bases = place.data.bases / version
    assert bases.is_dir()

    run(place, after_s=GRACE_S - 60)
    assert service.read(version) == files
    assert bases.is_dir()

    run(place, after_s=DAY_S)
    assert place.list_blobs() == set()
    assert not bases.exists()

    assert service.get() == version
    assert service.read(version) == files
    assert (asyncio.run(service.versions.prepare(version)).code / "graph.py").read_text() == GRAPH


def test_a_version_is_not_stored_again_while_it_is_there(place, service):
    version = service.get()
    batch = place.begin(version=version)
    builds = service.builds
    run(place)

    assert service.get() == version
    assert service.builds == builds
    assert service.read(version)
    place.end(batch, place.left.outcome(history=None, start_commit_id=None, files=None))


@pytest.mark.parametrize("step", [*range(1, 14), 16, 20, 26, 34, 44])
def test_a_version_that_is_handed_out_in_the_middle_is_whole(place, tmp_path, monkeypatch, step):
    service = Service(place, tmp_path / "projects", build=step % 2 == 0)
    version = service.get()
    files = service.read(version)
    age(place)
    handed = []

    def act():
        handed.append(service.get())
        place.store.accept(make_batch("b-new")._replace(project_version=handed[0]))

    between = Between(monkeypatch, step, act)
    between.watch(retention._Pruning, "_read")
    for name in ("rename", "unlink", "iterdir"):
        between.watch(Path, name)
    report = run(place, Policy(), after_s=0)
    between.left = 0

    assert report.problems == []
    if handed:
        assert handed == [version]
        assert service.read(version) == files
        age(place)
        run(place, Policy(), after_s=0)
        assert service.read(version) == files
        assignment = place.store.claim()
        place.end(assignment, place.left.outcome(history=None, start_commit_id=None, files=None))


# -- on the node -----------------------------------------------------------------------------------


def kept_directory(place, execution_id, attempt="1"):
    workspace = place.data.runs / execution_id / attempt / "workspace"
    workspace.mkdir(parents=True)
    (workspace / "file").write_text("x" * 5000)
    return workspace.parent


def test_kept_workspaces_go_with_their_batch(place):
    batch_id = place.run()
    running = place.begin()
    gone = [kept_directory(place, "b-gone-0"), kept_directory(place, "b-gone-0", "2")]
    kept_directory(place, f"{batch_id}-0")
    stays = [
        kept_directory(place, running.execution_id),
        kept_directory(place, "no-execution"),
        kept_directory(place, "b-owned-0"),
    ]
    (stays[-1] / "owner").write_text("1-a")
    (place.data.runs / "b-link-0").symlink_to("/etc")

    report = run(place)

    assert report.workspaces == 3
    assert report.workspaces_bytes >= 3 * 8192
    assert [path for path in stays if not (path / "workspace" / "file").is_file()] == []
    assert not gone[0].parent.exists()
    assert not (place.data.runs / f"{batch_id}-0").exists()
    assert (place.data.runs / "b-link-0").is_symlink()
    place.end(running)


def test_materialised_versions_go_when_nobody_uses_them(place):
    def base(name, days=9):
        path = place.data.bases / name
        path.mkdir(parents=True)
        (path / "file").write_text("x")
        os.utime(path, (time.time() - days * DAY_S,) * 2)
        return path

    kept = place.begin()
    unused, young, used = "1" * 64, "2" * 64, "3" * 64
    (place.data.cache / "zygotes" / f"77-p-{used[:16]}-abcd").mkdir(parents=True)
    gone = [base(unused), base("new-abc"), base("old-" + unused)]
    stays = [
        base(young, 0),
        base(used),
        base("other"),
        base("build-x", 0),
        base(kept.project_version),
    ]

    report = run(place, after_s=60)

    assert report.problems == []
    assert [path for path in gone if path.exists()] == []
    assert [path for path in stays if not path.exists()] == []
    assert report.bases == 3
    place.end(kept)


def test_live_checkpoints_of_ended_executions_go_and_fences_with_their_batch(place):
    ended, running = place.run(), place.begin()
    attempts = [(f"{ended}-0", 1), (running.execution_id, 1), ("b-gone-0", 2)]
    names = [name for name, _ in attempts]
    commit = place.left.commit({"only.txt": place.left.file(b"only in a live checkpoint")})
    age(place)

    def fill(db):
        for name, attempt in attempts:
            db.execute("INSERT INTO fences VALUES (?, ?)", (name, attempt))
            db.execute(
                "INSERT INTO checkpoints (storage_key, ns, id, type, body, metadata_type, metadata,"
                " versions, file_commit, resumable) VALUES (?, '', 'c', '', '', '', '', '', ?, 1)",
                (f"{name}/{attempt}", commit if name == running.execution_id else None),
            )
            for _ in range(3):
                db.execute(
                    "INSERT INTO writes VALUES (?, '', 'c', '', ?, 0, '', '', '', 0)",
                    (f"{name}/{attempt}", os.urandom(4).hex()),
                )
        db.execute("INSERT INTO channel_values VALUES ('thread', '', '', '', '', '')")

    with closing(CheckpointStore(place.data.checkpoints)) as checkpoints:
        checkpoints.submit(fill).result()
    policy = Policy(older_than_s=10 * DAY_S)

    run(place, policy, after_s=0, dry_run=True)
    run(place, policy, after_s=0)

    with closing(sqlite3.connect(place.data.checkpoints)) as db:
        keys = {key for (key,) in db.execute("SELECT storage_key FROM checkpoints")}
        writes = {key for (key,) in db.execute("SELECT storage_key FROM writes")}
        others = {key for (key,) in db.execute("SELECT storage_key FROM channel_values")}
        fences = {key for (key,) in db.execute("SELECT execution_id FROM fences")}
    assert keys == writes == {f"{running.execution_id}/1"}
    assert others == {"thread"}
    assert fences == set(names) - {"b-gone-0"}
    [entry] = json.loads(place.left.blobs.get(commit))["entries"].values()
    assert place.left.blobs.get(entry["blob"]) == b"only in a live checkpoint"
    place.end(running)


# -- when something is wrong -----------------------------------------------------------------------


@pytest.mark.parametrize("what", ["history", "final", "version", "missing version"])
def test_no_blob_goes_when_one_that_names_others_cannot_be_read(place, what):
    place.run("old")
    place.store.now += 60_000_000
    kept = place.begin()
    place.end(kept)
    blobs = place.left.blobs
    damaged = blobs.path(getattr(place.left, what.removeprefix("missing ")))
    if what == "missing version":
        damaged.unlink()
    else:
        damaged.write_bytes(b"{}")
    before = place.list_blobs()

    report = run(place, Policy(older_than_s=100 * DAY_S - 1000.0))

    assert (report.batches, report.blobs) == (1, 0)
    [problem] = report.problems
    assert problem.startswith("blobs: ")
    assert place.list_blobs() == before


def test_what_a_kept_batch_named_and_is_gone_stops_nothing(place):
    kept = place.begin()
    place.end(kept)
    for digest in (place.left.history, place.left.final):
        place.left.blobs.path(digest).unlink()

    assert run(place, Policy(), after_s=10 * DAY_S).problems == []


def test_blobs_that_two_stores_share_are_not_collected(template, tmp_path):
    shared = tmp_path / "blobs"
    one, other = (DataDir(tmp_path / name, blob_dir=shared).create() for name in ("one", "other"))
    shutil.copyfile(template, one.path / "wtb.db")
    digest = BlobStore(shared).put(b"of the other one")

    report = prune(one, NOW, clock=later(DAY_S))

    assert "another store" in report.problems[0]
    assert BlobStore(shared).get(digest)
    [note] = one.find_sharers()
    assert note.read_text() == f"{other.path}\n"
    note.unlink()
    assert prune(one, NOW, clock=later(DAY_S)).blobs == 1


def test_where_there_is_no_store_nothing_is_made(tmp_path):
    with pytest.raises(InvalidRequest, match=r"no wtb\.db"):
        prune(DataDir(tmp_path), NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_another_version_is_left_alone(place):
    place.run()
    place.store.raw.execute("UPDATE alembic_version SET version_num = '0001'")

    with pytest.raises(InvalidRequest, match="another version"):
        run(place)

    assert len(place.store.batch_ids()) == 1
    assert place.list_blobs()


def test_a_step_that_fails_is_told_and_the_others_go_on(place, monkeypatch):
    place.run("one")
    kept_directory(place, "b-gone-0")

    def refuse(_path):
        raise PermissionError(13, "not permitted", "runs/b-gone-0")

    monkeypatch.setattr(retention, "remove_tree", refuse)
    report = run(place)

    assert (report.batches, place.list_blobs()) == (1, set())
    assert report.problems == ["workspaces: [Errno 13] not permitted: 'runs/b-gone-0'"]


def test_others_can_write_between_two_transactions(place):
    place.run()
    pauses = []

    prune(place.data, NOW, clock=later(DAY_S), sleep=pauses.append)

    assert len(pauses) > 3
    assert min(pauses) >= 0.01


def test_a_claim_is_answered_the_same_after_a_prune(place):
    place.run()
    running = place.begin()
    again = place.store.write(
        lambda c: c.exec_driver_sql(
            "SELECT claim_id FROM attempts WHERE status = 'running'"
        ).scalar_one()
    )
    run(place, NOW)

    assert place.store.claim(claim_id=again) == running
    place.end(running)


def test_the_command_removes_what_it_says(place, tmp_path):
    place.run("one")

    done = CliRunner().invoke(
        main,
        [
            *("prune", "--data-dir", str(place.data.path), "--json"),
            *("--older-than", "0s", "--grace", "0s"),
        ],
    )

    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["batches"] == 1
    assert (place.store.batch_ids(), place.list_blobs()) == ([], set())
