"""Disks that fill up at any point: nothing acknowledged is lost, nothing is half-stored, all goes on."""

import asyncio
import errno
import os
import shutil
import sqlite3
from contextlib import closing, contextmanager

import pytest
from file_systems import Impossible, mounted
from store_bench import Store, check_store, make_template, succeed

from wtb_core.checkpoint_store import CheckpointStore, Scope
from wtb_core.errors import DiskFull, Unavailable
from wtb_core.files.blobs import BlobStore
from wtb_core.space import DiskSpace, is_full
from wtb_core.store import acceptance, claims, endings
from wtb_core.store.database import open_engine, sqlite_url
from wtb_core.store.ledger import Ledger
from wtb_core.store.records import Claimant, Lookup
from wtb_core.store.writer import Writer

KIB = 1024
SIZE_BYTES = 48 * 1024**2


@pytest.fixture(scope="module", params=["tmpfs", "ext4"])
def disk(request, tmp_path_factory):
    """A small disk of its own."""
    try:
        with mounted(request.param, tmp_path_factory.mktemp("disk"), SIZE_BYTES) as place:
            yield place
    except Impossible as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make_template(tmp_path_factory.mktemp("template") / "wtb.db")


@contextmanager
def filled(disk, left_bytes):
    """The disk with only so much free; all of it again afterwards."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 1024 * KIB)
        except OSError as error:
            assert error.errno == errno.ENOSPC
        room = os.statvfs(disk)
        size = file.tell() - max(0, left_bytes - room.f_bavail * room.f_frsize)
        file.truncate(max(0, size))
        os.fsync(file.fileno())
    try:
        yield
    finally:
        ballast.unlink()


class Service:
    """The writer of a store, as the collector has it, and what it has acknowledged."""

    def __init__(self, store):
        self.store = store
        self.engine = open_engine(sqlite_url(store.raw_path))
        self.ledger = Ledger(producer="test", admission=10_000, clock=lambda: store.now)
        self.writer = Writer(self.engine, self.ledger)
        self.accepted = []
        self.given = []
        self.ended = []
        self.number = 0

    async def work(self, output_bytes):
        """Submit, claim and finish until the disk is full; true when it was."""
        try:
            for _ in range(6):
                self.number += 1
                batch = self.store.make(cases=3, labels={"n": str(self.number)})
                receipt = await self.writer.write(
                    lambda c, b=batch: acceptance.accept(self.ledger, c, b)
                )
                self.accepted.append(receipt.batch_id)
                for _ in range(2):
                    await self.step(output_bytes)
        except DiskFull as error:
            assert str(self.store.raw_path.parent) in str(error)
            return True
        return False

    async def step(self, output_bytes):
        claimant = Claimant(self.store.new_id("k"), "r1", "actor-r1")
        assignment = await self.writer.write(lambda c: claims.claim(self.ledger, c, claimant))
        if assignment is None:
            return False
        assert not isinstance(assignment, Lookup)
        self.given.append((assignment.execution_id, assignment.attempt))
        finish = self.store.make_finish(assignment, succeed(output='"' + "x" * output_bytes + '"'))
        self.held = finish
        answer = await self.writer.write(lambda c: endings.finish(self.ledger, c, finish))
        assert answer == "accepted"
        self.held = None
        self.ended.append(assignment.execution_id)
        return True

    held = None

    async def report_held(self):
        """What a replica does with an end that could not be recorded: it says it again."""
        if self.held is None:
            return
        finish = self.held
        answer = await self.writer.write(lambda c: endings.finish(self.ledger, c, finish))
        assert answer in {"accepted", "duplicate"}
        self.ended.append(finish.execution_id)
        self.held = None

    async def close(self):
        await self.writer.close()
        self.engine.dispose()


def check_acknowledged(service):
    store = service.store
    assert store.batch_ids() == service.accepted
    attempts = store.select("SELECT batch_id, number, attempt, status FROM attempts")
    names = [(f"{row.batch_id}-{row.number}", row.attempt) for row in attempts]
    assert sorted(names) == sorted(service.given)
    done = [f"{row.batch_id}-{row.number}" for row in attempts if row.status == "succeeded"]
    assert sorted(done) == sorted(service.ended)


@pytest.mark.parametrize("output_bytes", [10, 30_000])
def test_the_store_survives_a_full_disk_at_any_point(disk, template, output_bytes):
    full = 0
    for left_kib in [0, 12, 28, 52, 76, 100, 180, 400]:
        path = disk / f"{left_kib}" / "wtb.db"
        path.parent.mkdir()
        store = Store(template, path, admission=10_000)
        store.raw_path = path
        try:
            full += asyncio.run(fill_and_go_on(store, disk, left_kib, output_bytes))
            check_store(store)
            assert store.select("PRAGMA integrity_check")[0].integrity_check == "ok"
            states = {store.view(batch_id)["status"] for batch_id in store.batch_ids()}
            assert states <= {"completed"}
        finally:
            store.close()
            shutil.rmtree(path.parent)
    assert full > 4


async def fill_and_go_on(store, disk, left_kib, output_bytes):
    service = Service(store)
    try:
        if left_kib % 8:
            assert not await service.work(10)
        with filled(disk, left_kib * KIB):
            was_full = await service.work(output_bytes)
            for _ in range(2):
                await service.work(output_bytes)
            assert store.batch_ids() == service.accepted
            with closing(sqlite3.connect(store.raw_path)) as reader:
                count = reader.execute("SELECT count(*) FROM batches").fetchone()
            assert count == (len(service.accepted),)
        await service.report_held()
        check_acknowledged(service)
        while await service.step(10):
            pass
        check_acknowledged(service)
    finally:
        await service.close()
    return was_full


async def put(session, number, size):
    header = {
        "op": "put",
        "thread_id": "b-1-0",
        "ns": "",
        "id": f"{number:06}",
        "parent": f"{number - 1:06}" if number else None,
        "source": "loop",
        "step": number,
        "type": "msgpack",
        "metadata_type": "json",
        "versions": {"a": str(number), "b": "1"},
        "channels": [["a", str(number), "msgpack"]],
        "shown": None,
    }
    await session.handle(header, [b"body", b"{}", bytes([number % 256]) * size])


async def put_writes(session, number, size):
    header = {
        "op": "put_writes",
        "thread_id": "b-1-0",
        "ns": "",
        "id": f"{number:06}",
        "task_path": "",
        "task_id": "t",
        "writes": [[0, "a", "msgpack"], [1, "b", "msgpack"]],
    }
    await session.handle(header, [bytes([number % 256]) * size] * 2)
    await session.settle()


@pytest.mark.parametrize("size", [100, 20_000])
def test_the_checkpoint_store_survives_a_full_disk_at_any_point(disk, size):
    full = 0

    async def run(left_kib):
        nonlocal full
        path = disk / "checkpoints.db"
        done, wrote = [], []
        with closing(CheckpointStore(path)) as store:
            scope = Scope("b-1-0", 1)
            await store.raise_fence(*scope)
            session = store.session(scope)
            with filled(disk, left_kib * KIB):
                number = 0
                for _ in range(4):
                    try:
                        while number < 40:
                            await put(session, number, size)
                            done.append(number)
                            await put_writes(session, number, size)
                            wrote.append(number)
                            number += 1
                    except DiskFull as error:
                        full += 1
                        assert str(disk) in str(error)
                        number += 1
                        session = store.session(scope)
                past = await store.export(scope)
            check(past, done, wrote, size)
            await put(session, 900, size)
            check(await store.export(scope), [*done, 900], wrote, size)
        with closing(sqlite3.connect(path)) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        with closing(CheckpointStore(path)) as store:
            check(await store.export(scope), [*done, 900], wrote, size)
        for left in disk.glob("checkpoints.db*"):
            left.unlink()

    for left_kib in [0, 4, 36, 60, 120, 250, 500]:
        asyncio.run(run(left_kib))
    assert full > 5


def check(past, done, wrote, size):
    """Every checkpoint that was acknowledged is whole, and no other is there."""
    assert [row.checkpoint_id for row in past.checkpoints] == [f"{number:06}" for number in done]
    values = {(row.channel, row.version): row.body for row in past.values}
    for number in done:
        assert values["a", str(number)] == bytes([number % 256]) * size
    assert len(values) == len(done)
    assert sorted({row.checkpoint_id for row in past.writes}) == [f"{n:06}" for n in wrote]
    assert len(past.writes) == 2 * len(wrote)


@pytest.mark.parametrize("sync", [True, False])
def test_a_blob_that_does_not_fit_leaves_nothing(disk, sync, tmp_path):
    root = disk / "blobs"
    store = BlobStore(root)
    kept = [store.put(bytes([number]) * 1000) for number in range(20)]
    large = tmp_path / "large"
    large.write_bytes(os.urandom(3 * 1024**2))
    for left_kib in (0, 4, 8, 64):
        with filled(disk, left_kib * KIB):
            for number in range(64):
                try:
                    kept.append(store.put(os.urandom(1 + number * 400), sync=sync))
                except OSError as error:
                    assert is_full(error)
            with pytest.raises(OSError) as caught:
                store.put_file(large, sync=sync)
            assert is_full(caught.value)
            assert [path.name for path in root.iterdir() if path.is_file()] == []
            assert all(BlobStore(root).get(digest) for digest in kept)
    found = {path.name for path in root.rglob("*") if path.is_file()}
    assert found == set(kept)
    digest = store.put_file(large, sync=sync)
    assert store.get(digest) == large.read_bytes()
    for path in root.rglob("*"):
        if path.is_file():
            path.unlink()


def test_the_floor_is_that_of_the_disk_that_has_least(disk, tmp_path):
    room = DiskSpace([tmp_path, disk / "not" / "yet" / "there"], 2 * 1024**2)
    assert room.find_full() is None
    room.check()
    with filled(disk, 1024**2):
        error = room.find_full()
        assert isinstance(error, Unavailable)
        assert str(disk) in str(error)
        assert "2097152" in str(error)
        with pytest.raises(DiskFull):
            room.check()
    room.check()
    assert DiskSpace([disk], 0).find_full() is None


def test_a_disk_without_files_left_is_full_too(disk, monkeypatch):
    real = os.statvfs(disk)

    class Room:
        f_bavail, f_frsize, f_blocks, f_files = real.f_bavail, real.f_frsize, real.f_blocks, 5_000
        f_favail = 999

    monkeypatch.setattr("wtb_core.space.os.statvfs", lambda _: Room)
    assert "999 more files" in str(DiskSpace([disk], 0).find_full())
    Room.f_files = 0
    assert DiskSpace([disk], 0).find_full() is None
    Room.f_blocks = Room.f_bavail = 0
    assert DiskSpace([disk], 10**9).find_full() is None
