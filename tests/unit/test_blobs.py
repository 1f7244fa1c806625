import errno
import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtb_core.errors import NotFound
from wtb_core.files import blobs
from wtb_core.files.blobs import BlobStore, SourceError


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "blobs")


def find_files(store):
    return sorted(path.name for path in store.root.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return BlobStore(tmp_path_factory.mktemp("blobs"))


@given(st.binary(max_size=200))
def test_a_blob_is_named_by_its_content_and_comes_back_as_it_was(shared, data):
    digest = shared.put(data)

    assert digest == hashlib.sha256(data).hexdigest()
    assert shared.get(digest) == data
    assert shared.put(data) == digest


def test_a_file_is_stored_under_the_digest_of_its_content(store, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"content")

    digest = store.put_file(source)

    source.write_bytes(b"changed later")
    assert store.get(digest) == b"content"
    assert store.put(b"content") == digest
    assert find_files(store) == [digest]


@pytest.mark.parametrize(
    "digest", ["", "ab", "../../etc/passwd", "A" * 64, "g" * 64, "a" * 65, f"{'a' * 64}\n"]
)
def test_what_is_no_digest_names_no_blob_and_no_path(store, digest):
    with pytest.raises(NotFound):
        store.path(digest)


def test_a_blob_that_was_never_stored_is_not_found(store):
    with pytest.raises(NotFound):
        store.get("a" * 64)


def test_many_writers_of_one_blob_leave_one_file(store):
    data = b"x" * 100_000
    with ThreadPoolExecutor(8) as threads:
        digests = set(threads.map(lambda _: store.put(data), range(32)))

    assert find_files(store) == list(digests)
    assert store.get(digests.pop()) == data


def test_a_write_that_fails_leaves_nothing_behind(store, monkeypatch):
    def refuse(_descriptor):
        raise OSError(28, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr(blobs.os, "fsync", refuse)
        patched.setattr(blobs, "_sync_directory", lambda _: None)
        with pytest.raises(OSError, match="no space left"):
            store.put(b"data")

    assert find_files(store) == []
    assert store.get(store.put(b"data")) == b"data"


@pytest.fixture
def synced(monkeypatch):
    """The paths that are synced, in order."""
    paths = []
    monkeypatch.setattr(
        blobs.os, "fsync", lambda fd: paths.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
    )
    return paths


def get_mode(store, digest):
    return stat.S_IMODE(store.path(digest).stat().st_mode)


def test_a_blob_and_every_directory_that_names_it_are_synced_before_it_counts(store, synced):
    digest = store.put(b"data")

    assert synced[0].endswith(".tmp")
    assert synced[1:] == [str(store.root), str(store.root / digest[:2])]
    assert get_mode(store, digest) == 0o644


def test_a_blob_is_made_durable_later_and_once(store, synced):
    digests = [store.put(b"one", sync=False), store.put(b"two", sync=False)]
    del synced[:]
    before = [get_mode(store, digest) for digest in digests]

    store.sync([*digests, *digests])

    paths = [str(store.path(digest)) for digest in digests]
    directories = [str(store.path(digest).parent) for digest in digests]
    assert before == [0o600, 0o600]
    assert sorted(synced[:2]) == sorted(paths)
    assert sorted(synced[2:]) == sorted(directories)
    assert [get_mode(store, digest) for digest in digests] == [0o644, 0o644]
    del synced[:]
    store.sync(digests)
    assert store.put(b"one") == digests[0]
    assert synced == []


def test_storing_durably_what_was_not_makes_it_so(store, synced):
    digest = store.put(b"data", sync=False)
    inode = store.path(digest).stat().st_ino
    del synced[:]

    assert store.put(b"data") == digest

    assert synced == [str(store.path(digest)), str(store.path(digest).parent)]
    assert (store.path(digest).stat().st_ino, get_mode(store, digest)) == (inode, 0o644)


def test_what_a_power_loss_left_of_a_blob_is_not_taken_for_it(store):
    digest = store.put(b"data", sync=False)
    store.path(digest).write_bytes(b"")
    after = BlobStore(store.root)

    with pytest.raises(OSError, match="not what its name says"):
        after.sync([digest])
    assert after.put(b"data", sync=False) == digest
    after.sync([digest])
    assert after.get(digest) == b"data"


def test_another_process_may_sync_what_is_whole(store):
    digest = store.put(b"data", sync=False)

    BlobStore(store.root).sync([digest])

    assert get_mode(store, digest) == 0o644


def test_a_blob_that_is_not_there_cannot_be_synced_or_measured(store):
    with pytest.raises(NotFound):
        store.sync(["a" * 64])
    with pytest.raises(NotFound):
        store.size("a" * 64)
    assert store.size(store.put(b"four")) == 4


@pytest.fixture(params=["clone", "stream"])
def _way(request, monkeypatch):
    """With and without a file system that shares blocks; the first is played."""

    def clone(source, target):
        if request.param == "stream":
            raise OSError(errno.EOPNOTSUPP, "not here")
        os.write(target, os.pread(source, 2**30, 0))
        os.lseek(target, 0, os.SEEK_SET)

    monkeypatch.setattr(blobs, "clone", clone)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("size", [2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20 + 7])
@pytest.mark.parametrize("sync", [True, False])
def test_a_file_of_any_size_is_stored_as_it_is(store, tmp_path, size, sync):
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    (tmp_path / "source").write_bytes(data)

    digest = store.put_file(tmp_path / "source", sync=sync)

    assert digest == hashlib.sha256(data).hexdigest()
    assert store.get(digest) == data
    assert store.put_file(tmp_path / "source", sync=sync) == digest
    assert find_files(store) == [digest]


@pytest.mark.usefixtures("_way")
def test_a_file_that_changes_while_it_is_stored_is_named_by_what_was_stored(
    store, tmp_path, monkeypatch
):
    source = tmp_path / "source"
    source.write_bytes(b"a" * 3 * 2**20)
    read = os.read

    def meddle(descriptor, size):
        data = read(descriptor, size)
        with source.open("r+b") as file:
            file.write(b"b" * 3 * 2**20)
            file.seek(0, 2)
            file.write(b"more")
        return data

    with monkeypatch.context() as patched:
        patched.setattr(blobs.os, "read", meddle)
        digest = store.put_file(source)

    assert hashlib.sha256(store.get(digest)).hexdigest() == digest
    assert store.size(digest) == 3 * 2**20


@pytest.mark.parametrize("size", [10, 2 * 2**20])
def test_a_source_that_cannot_be_read_is_told_from_a_store_that_cannot_be_written(
    store, tmp_path, monkeypatch, size
):
    source = tmp_path / "source"
    source.write_bytes(b"x" * size)

    def refuse(*_args):
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patched:
        patched.setattr(blobs.os, "read", refuse)
        with pytest.raises(SourceError, match="broken"):
            store.put_file(source)
    with monkeypatch.context() as patched:
        patched.setattr(blobs.os, "write", refuse)
        with pytest.raises(OSError, match="broken") as caught:
            store.put_file(source)

    assert not isinstance(caught.value, SourceError)
    assert find_files(store) == []
    with pytest.raises(SourceError):
        store.put_file(tmp_path / "nothing")
