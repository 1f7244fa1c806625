"""Collecting blobs beside writers: whoever was told that a blob is stored has it."""

import itertools
import os
import random
import threading
import time
from pathlib import Path

import pytest

from wtb_core.errors import NotFound
from wtb_core.files import blobs
from wtb_core.files.blobs import ASIDE, BlobStore
from wtb_core.files.handouts import HandOuts
from wtb_core.files.sweeping import sweep

DAY_S = 86_400.0
DATA = b"the content"


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "blobs")


def age(path, seconds=DAY_S):
    then = time.time() - seconds
    os.utime(path, (then, then))


def put_old(store, data=DATA, *, sync=True):
    digest = store.put(data, sync=sync)
    age(store.path(digest))
    return digest


def an_hour_ago():
    return time.time() - 3600


def nothing(_digest):
    return False


def files(store):
    return sorted(path.name for path in store.root.rglob("*") if path.is_file())


def test_old_blobs_go_that_nothing_names(store):
    kept, young = put_old(store, b"named"), store.put(b"young")
    size = store.path(put_old(store, b"x" * 10_000)).stat().st_blocks * 512
    put_old(store, b"y", sync=False)

    swept = sweep(store, {kept}.__contains__, an_hour_ago())

    assert swept == (2, size + 4096, 1)
    assert files(store) == sorted([kept, young])


def test_a_dry_run_counts_the_same_and_removes_nothing(store):
    digests = [put_old(store, b"1"), put_old(store, b"2")]

    assert sweep(store, nothing, an_hour_ago(), dry_run=True)[0] == 2
    assert files(store) == sorted(digests)
    assert sweep(store, nothing, an_hour_ago())[0] == 2


def test_a_store_that_is_not_there_has_nothing_to_sweep(tmp_path):
    assert sweep(BlobStore(tmp_path / "none"), nothing, time.time()) == (0, 0, 0)


def test_what_is_no_blob_stays(store):
    digest = put_old(store)
    other = store.root / digest[:2] / "README"
    for path in (other, store.root / "stores" / "note", store.root / "versions" / digest):
        path.parent.mkdir(exist_ok=True)
        path.touch()
        age(path)

    sweep(store, nothing, an_hour_ago())

    assert files(store) == sorted(["README", "note", digest])


def test_storing_what_is_there_makes_an_old_blob_new_once(store, monkeypatch):
    digest = put_old(store)
    touched = []
    utime = os.utime
    monkeypatch.setattr(blobs.os, "utime", lambda *a: (touched.append(a), utime(*a)))

    for _ in range(3):
        assert store.put(DATA) == digest
    store.use(digest)

    assert len(touched) == 1
    assert sweep(store, nothing, an_hour_ago())[0] == 0


def test_what_this_process_has_not_synced_is_renewed_as_well(store):
    digest = put_old(store, sync=False)
    store.put(DATA, sync=False)

    assert sweep(store, nothing, an_hour_ago())[0] == 0
    assert store.get(digest) == DATA


def test_what_a_power_loss_left_is_not_renewed_by_who_stores_it_again(store):
    digest = put_old(store, sync=False)
    store.path(digest).write_bytes(b"")
    age(store.path(digest))

    assert BlobStore(store.root).put(DATA) == digest
    assert store.get(digest) == DATA


def test_using_what_is_gone_says_so(store):
    digest = put_old(store)
    sweep(store, nothing, an_hour_ago())
    with pytest.raises(NotFound):
        store.use(digest)


class Between:
    """Calls `act` once, right before the n-th call of one of the methods that are watched."""

    def __init__(self, monkeypatch, n, act):
        self.left, self.act, self.acting = n, act, False
        self.monkeypatch = monkeypatch

    def watch(self, owner, name):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            if not self.acting:
                self.left -= 1
                if self.left == 0:
                    self.acting = True
                    self.act()
                    self.acting = False
            return real(*args, **kwargs)

        self.monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("action", ["put", "put unsynced", "use", "get", "look"])
@pytest.mark.parametrize("step", range(1, 9))
def test_a_blob_stored_or_read_at_any_moment_of_a_sweep_is_there_afterwards(
    store, monkeypatch, step, action
):
    """A read may come too late, but is never half a success; a blob that was put is there."""
    digest = put_old(store)
    other = BlobStore(store.root)
    outcome = []

    def act():
        try:
            match action:
                case "put" | "put unsynced":
                    outcome.append(other.put(DATA, sync=action == "put") == digest)
                case "use":
                    outcome.append(other.use(digest) is None)
                case "get":
                    assert other.get(digest) == DATA
                case "look":
                    assert other.look(digest).st_size == len(DATA)
        except NotFound:
            assert action not in {"put", "put unsynced"}

    between = Between(monkeypatch, step, act)
    for name in ("rename", "stat", "unlink", "lstat"):
        between.watch(Path, name)
    sweep(store, nothing, an_hour_ago())
    monkeypatch.undo()
    if between.left > 0:
        assert step > 4, "the sweep has fewer steps than this test thinks"
        act()

    if outcome:
        assert outcome == [True]
        assert other.get(digest) == DATA
        sweep(store, nothing, an_hour_ago())
        assert other.get(digest) == DATA
    assert not [name for name in files(store) if name.endswith(ASIDE)]


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("step", range(1, 12))
def test_a_sweep_at_any_moment_of_a_put_leaves_what_was_put(store, monkeypatch, step, sync):
    digest = put_old(store)
    swept = []
    between = Between(
        monkeypatch,
        step,
        lambda: swept.append(sweep(BlobStore(store.root), nothing, an_hour_ago())),
    )
    for name in ("stat", "utime", "rename", "open", "write", "fsync", "chmod", "close"):
        between.watch(blobs.os, name)
    assert store.put(DATA, sync=sync) == digest
    monkeypatch.undo()

    assert store.get(digest) == DATA
    sweep(store, nothing, an_hour_ago())
    assert store.get(digest) == DATA
    assert swept or step > 1


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("young", [True, False])
def test_what_a_killed_sweep_left_aside_is_found_and_the_next_one_finishes_it(store, named, young):
    digest = put_old(store)
    aside = store.aside(digest)
    store.path(digest).rename(aside)
    if young:
        os.utime(aside)

    sweep(store, lambda _: named, an_hour_ago())

    assert files(store) == ([digest] if named or young else [])


def test_a_blob_left_aside_is_put_back_by_who_wants_it(store):
    digest = put_old(store)
    store.path(digest).rename(store.aside(digest))
    inode = store.aside(digest).stat().st_ino

    assert store.get(digest) == DATA
    assert store.path(digest).stat().st_ino == inode

    store.path(digest).rename(store.aside(digest))
    assert store.put(DATA) == digest
    assert store.path(digest).stat().st_ino == inode


def test_a_blob_left_aside_that_is_not_durable_never_replaces_a_good_one(store):
    digest = put_old(store, sync=False)
    store.path(digest).write_bytes(b"torn")
    store.path(digest).rename(store.aside(digest))
    other = BlobStore(store.root)
    with pytest.raises(NotFound):
        other.get(digest)

    other.put(DATA)
    sweep(store, lambda _: True, an_hour_ago())

    assert other.get(digest) == DATA


def test_files_of_writers_that_were_killed_go_when_they_are_old(store):
    store.put(DATA)
    old, new = store.root / "a.tmp", store.root / "b.tmp"
    old.touch()
    new.touch()
    age(old)

    sweep(store, lambda _: True, an_hour_ago())

    assert not old.exists()
    assert new.exists()


def test_many_writers_and_a_sweep_that_never_rests(store, monkeypatch):
    """A blob, or a writer's file, is old here after 0.3 s; who was slower than that may fail."""
    monkeypatch.setattr(blobs, "REFRESH_S", 0.02)
    store.put(b"make the directories")
    stop = threading.Event()
    failures, checked, swept = [], itertools.count(), 0

    def write(number):
        mine, chance = BlobStore(store.root), random.Random(number)
        while not stop.is_set():
            data = b"%d" % chance.randrange(200)
            started_at = time.monotonic()
            try:
                digest = mine.put(data, sync=chance.random() < 0.1)
                assert mine.get(digest) == data
                next(checked)
            except (NotFound, FileNotFoundError) as error:
                if time.monotonic() - started_at < 0.25:
                    failures.append(error)
            time.sleep(0.005)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        swept += sweep(store, nothing, time.time() - 0.3)[0]
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert swept > 10
    assert next(checked) > 100


@pytest.fixture
def handouts(tmp_path):
    return HandOuts(tmp_path / "versions")


def test_what_was_handed_out_lately_is_found_and_old_ones_are_withdrawn(handouts, tmp_path):
    assert handouts.find_recent(0) == set()
    assert not handouts.renew("a")
    for name in "abc":
        handouts.add(name)
        age(tmp_path / "versions" / name)
    assert handouts.renew("b")

    assert handouts.find_recent(an_hour_ago()) == {"b"}
    handouts.withdraw(an_hour_ago(), {"c"})

    assert handouts.find_recent(0) == {"b", "c"}
    assert not handouts.renew("a")
    assert not handouts.has("a")
    handouts.add("a")
    assert handouts.has("a")


@pytest.mark.parametrize("step", range(1, 7))
def test_a_hand_out_at_any_moment_of_a_withdrawal_stands_or_is_told(
    handouts, tmp_path, monkeypatch, step
):
    handouts.add("a")
    age(tmp_path / "versions" / "a")
    told = []
    between = Between(monkeypatch, step, lambda: told.append(handouts.renew("a")))
    for name in ("rename", "stat", "unlink", "iterdir"):
        between.watch(Path, name)
    handouts.withdraw(an_hour_ago(), set())
    monkeypatch.undo()

    if True in told:
        assert handouts.has("a")
    assert list((tmp_path / "versions").glob("*.old")) == []


def test_the_constants_fit():
    """A blob that a writer does not renew is younger than what a sweep may take."""
    from wtb_core.retention import GRACE_S

    assert GRACE_S >= 2 * blobs.REFRESH_S
