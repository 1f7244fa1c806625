import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtb_core.errors import NotFound
from wtb_core.files import blobs
from wtb_core.files.blobs import BlobStore


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


def test_a_blob_and_every_directory_that_names_it_are_synced_before_it_is_named(store, monkeypatch):
    synced = []
    monkeypatch.setattr(
        blobs.os, "fsync", lambda fd: synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
    )

    digest = store.put(b"data")

    directory = store.root / digest[:2]
    assert synced[0] == str(store.root)
    assert synced[1].startswith(f"{directory}/{digest}.")
    assert synced[2] == str(directory)
