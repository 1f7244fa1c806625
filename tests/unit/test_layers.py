# The plain calls of the kernel, which pathlib would normalise.
# ruff: noqa: PTH115, PTH208

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from wtb_core.errors import NotFound
from wtb_core.files import layers as module
from wtb_core.files.blobs import BlobStore
from wtb_core.files.commits import BaseTree, Commit, FileEntry
from wtb_core.files.layers import LayerCache, restore
from wtb_core.files.manifests import Entry, materialise

VERSION = "e" * 64


@pytest.fixture
def blobs(tmp_path):
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def manifest(blobs):
    return {
        "src": Entry(kind="directory"),
        "src/deep": Entry(kind="directory"),
        "src/deep/file": Entry(kind="file", blob=blobs.put(b"base")),
        "note": Entry(kind="file", blob=blobs.put(b"note")),
        "link": Entry(kind="link", target="src"),
    }


@pytest.fixture
def base(manifest):
    return BaseTree(VERSION, manifest)


@pytest.fixture
def cache(tmp_path, blobs):
    return LayerCache(tmp_path / "cache", blobs)


def make_file(blobs, data=b"new", mode=0o644, sync=True):
    return FileEntry("file", mode, blobs.put(data, sync=sync), len(data))


def commit(entries=None, deleted=()):
    return Commit(VERSION, entries or {}, tuple(deleted))


def get_mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def find_layers(cache):
    return sorted(path.name for path in cache._layers.iterdir())


def test_a_layer_has_the_entries_whiteouts_and_the_parents_they_need(cache, base, blobs):
    item = commit(
        {
            "src/deep/new": make_file(blobs),
            "src/run": make_file(blobs, b"#!", 0o755),
            "own": FileEntry("directory", 0o1711),
            "own/secret": make_file(blobs, b"s", 0o400),
            "own/link": FileEntry("link", 0o777, target="../note"),
        },
        ["note", "src/deep/file"],
    )
    before = os.umask(0o077)
    try:
        layer = cache.layer(item, base)
    finally:
        os.umask(before)

    found = {str(path.relative_to(layer)) for path in layer.rglob("*")}
    assert found == {*item.entries, *item.deleted, "src", "src/deep"}
    for path in item.deleted:
        info = (layer / path).lstat()
        assert stat.S_ISCHR(info.st_mode)
        assert info.st_rdev == 0
    modes = {path: get_mode(layer / path) for path in ("", "src", "src/deep", "own")}
    assert modes == {"": 0o755, "src": 0o755, "src/deep": 0o755, "own": 0o1711}
    assert (layer / "src/deep/new").read_bytes() == b"new"
    assert get_mode(layer / "src/deep/new") == 0o644
    assert get_mode(layer / "src/run") == 0o755
    assert get_mode(layer / "own/secret") == 0o400
    assert os.readlink(layer / "own/link") == "../note"


def test_files_of_the_common_modes_are_links_and_no_two_paths_are_one_file(cache, base, blobs):
    plain, run = make_file(blobs), make_file(blobs, mode=0o755)
    item = commit({"one": plain, "two": plain, "tool": run, "odd": make_file(blobs, mode=0o600)})

    first = cache.layer(item, base)
    second = cache.layer(commit({"tool": run}), base)

    blob = blobs.path(plain.blob).stat()
    inodes = [(first / name).stat().st_ino for name in ("one", "two", "tool", "odd")]
    assert len(set(inodes)) == 4
    assert inodes[0] == blob.st_ino
    assert (first / "odd").stat().st_nlink == 1
    assert get_mode(blobs.path(plain.blob)) == 0o644
    assert get_mode(second / "tool") == 0o755
    assert (first / "tool").read_bytes() == (second / "tool").read_bytes() == b"new"


def test_an_executable_of_its_own_is_linked_from_the_nodes_pool(cache, base, blobs):
    item = make_file(blobs, b"#!", 0o755)

    one = cache.layer(commit({"a": item}), base)
    other = cache.layer(commit({"b": item}), base)

    assert (one / "a").stat().st_ino == (other / "b").stat().st_ino
    assert (one / "a").stat().st_ino != blobs.path(item.blob).stat().st_ino


def test_a_blob_that_is_not_durable_yet_is_in_a_layer_with_the_right_mode(cache, base, blobs):
    layer = cache.layer(commit({"a": make_file(blobs, b"quick", sync=False)}), base)

    assert (layer / "a").read_bytes() == b"quick"
    assert get_mode(layer / "a") == 0o644


def test_a_layer_is_made_once(cache, base, blobs, tmp_path):
    item = commit({"a": make_file(blobs)})

    layer = cache.layer(item, base)
    inode = layer.stat().st_ino

    assert cache.layer(item, base) == layer
    assert LayerCache(tmp_path / "cache", blobs).layer(item, base).stat().st_ino == inode
    assert find_layers(cache) == [item.id]


def test_many_makers_of_one_layer_leave_one(base, blobs, tmp_path):
    item = commit({f"f{number}": make_file(blobs, b"%d" % number) for number in range(50)})
    caches = [LayerCache(tmp_path / "cache", blobs) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        made = set(threads.map(lambda cache: cache.layer(item, base), caches))

    assert len(made) == 1
    assert find_layers(caches[0]) == [item.id]
    assert len(list(made.pop().iterdir())) == 50


def test_layers_of_an_earlier_boot_are_gone(cache, base, blobs, tmp_path, monkeypatch):
    layer = cache.layer(commit({"d": FileEntry("directory", 0)}), base)
    (tmp_path / "boot_id").write_text("another\n")
    monkeypatch.setattr(module, "_BOOT_ID", tmp_path / "boot_id")

    LayerCache(tmp_path / "cache", blobs)

    assert not layer.exists()
    assert os.listdir(tmp_path / "cache") == []


@pytest.mark.parametrize("mode", [0o644, 0o755, 0o600])
def test_a_blob_that_is_gone_or_damaged_leaves_no_layer(cache, base, blobs, mode):
    gone = commit({"a": FileEntry("file", mode, "a" * 64, 1)})
    damaged = commit({"a": make_file(blobs, b"long", mode)._replace(size=9)})

    with pytest.raises(NotFound):
        cache.layer(gone, base)
    with pytest.raises(OSError, match="not as long as it was"):
        cache.layer(damaged, base)
    assert find_layers(cache) == []


def test_where_no_whiteout_can_be_made_the_error_says_so(cache, base, monkeypatch):
    def refuse(*_args):
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(module.os, "mknod", refuse)

    with pytest.raises(OSError, match="no whiteout can be made here: not permitted"):
        cache.layer(commit(deleted=["note"]), base)
    assert find_layers(cache) == []


def test_where_nothing_can_be_linked_files_are_copied(cache, base, blobs, monkeypatch):
    def refuse(*_args):
        raise OSError(18, "another file system")

    monkeypatch.setattr(module.os, "link", refuse)
    item = make_file(blobs)
    layer = cache.layer(commit({"a": item}), base)

    assert (layer / "a").read_bytes() == b"new"
    assert (layer / "a").stat().st_ino != blobs.path(item.blob).stat().st_ino


def test_a_commit_of_another_base_writes_through_no_link(cache, base, manifest, blobs, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    manifest["link"] = Entry(kind="link", target=str(outside))
    materialise(manifest, blobs, tmp_path / "copy")
    item = commit({"link/a": make_file(blobs)})

    with pytest.raises(NotADirectoryError):
        restore(item, base, blobs, tmp_path / "copy", reflink=False)
    with pytest.raises(NotADirectoryError):
        cache.layer(item, base)
    assert os.listdir(outside) == []


def test_a_copy_of_the_base_is_made_the_tree_of_a_commit(base, manifest, blobs, tmp_path):
    root = tmp_path / "copy"
    materialise(manifest, blobs, root)
    item = commit(
        {
            "src": make_file(blobs, b"was a directory", 0o4755),
            "note": FileEntry("directory", 0o500),
            "note/inner": make_file(blobs, b"inner"),
            "link": FileEntry("link", 0o777, target="note"),
        }
    )

    restore(item, base, blobs, root, reflink=False)

    assert sorted(os.listdir(root)) == ["link", "note", "src"]
    assert ((root / "src").read_bytes(), get_mode(root / "src")) == (b"was a directory", 0o4755)
    assert (get_mode(root / "note"), (root / "note/inner").read_bytes()) == (0o500, b"inner")
    assert os.readlink(root / "link") == "note"


def test_a_copy_whose_blob_is_gone_is_refused(base, manifest, blobs, tmp_path):
    materialise(manifest, blobs, tmp_path / "copy")
    item = commit({"a": FileEntry("file", 0o644, "a" * 64, 1)})

    with pytest.raises(NotFound):
        restore(item, base, blobs, tmp_path / "copy", reflink=False)
