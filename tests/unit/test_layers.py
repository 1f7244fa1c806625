# The plain calls of the kernel, which pathlib would normalise.
# ruff: noqa: PTH115, PTH208

import fcntl
import os
import signal
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
        layer = cache.hold(item, base).path
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

    first = cache.hold(item, base).path
    second = cache.hold(commit({"tool": run}), base).path

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

    one = cache.hold(commit({"a": item}), base).path
    other = cache.hold(commit({"b": item}), base).path

    assert (one / "a").stat().st_ino == (other / "b").stat().st_ino
    assert (one / "a").stat().st_ino != blobs.path(item.blob).stat().st_ino


def test_a_blob_that_is_not_durable_yet_is_in_a_layer_with_the_right_mode(cache, base, blobs):
    layer = cache.hold(commit({"a": make_file(blobs, b"quick", sync=False)}), base).path

    assert (layer / "a").read_bytes() == b"quick"
    assert get_mode(layer / "a") == 0o644


def test_a_layer_is_made_once(cache, base, blobs, tmp_path):
    item = commit({"a": make_file(blobs)})

    layer = cache.hold(item, base).path
    inode = layer.stat().st_ino

    assert cache.hold(item, base).path == layer
    assert LayerCache(tmp_path / "cache", blobs).hold(item, base).path.stat().st_ino == inode
    assert find_layers(cache) == [item.id]


def test_many_makers_of_one_layer_leave_one(base, blobs, tmp_path):
    item = commit({f"f{number}": make_file(blobs, b"%d" % number) for number in range(50)})
    caches = [LayerCache(tmp_path / "cache", blobs) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        made = set(threads.map(lambda cache: cache.hold(item, base).path, caches))

    assert len(made) == 1
    assert find_layers(caches[0]) == [item.id]
    assert len(list(made.pop().iterdir())) == 50


def test_layers_of_an_earlier_boot_are_gone(cache, base, blobs, tmp_path, monkeypatch):
    layer = cache.hold(commit({"d": FileEntry("directory", 0)}), base).path
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
        cache.hold(gone, base)
    with pytest.raises(OSError, match="not as long as it was"):
        cache.hold(damaged, base)
    assert find_layers(cache) == []


def test_where_no_whiteout_can_be_made_the_error_says_so(cache, base, monkeypatch):
    def refuse(*_args):
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(module.os, "mknod", refuse)

    with pytest.raises(OSError, match="no whiteout can be made here: not permitted"):
        cache.hold(commit(deleted=["note"]), base)
    assert find_layers(cache) == []


def test_where_nothing_can_be_linked_files_are_copied(cache, base, blobs, monkeypatch):
    def refuse(*_args):
        raise OSError(18, "another file system")

    monkeypatch.setattr(module.os, "link", refuse)
    item = make_file(blobs)
    layer = cache.hold(commit({"a": item}), base).path

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
        cache.hold(item, base)
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


def age(layer):
    long_ago = time.time() - module.UNUSED_S - 10
    os.utime(layer, (long_ago, long_ago))


def test_a_layer_is_removed_once_nobody_has_used_it_for_long(cache, base, blobs, tmp_path):
    item = commit({"a": make_file(blobs, b"#!", 0o755), "d": FileEntry("directory", 0)}, ["note"])
    held, other = cache.hold(item, base), LayerCache(tmp_path / "cache", blobs)
    held.close()
    assert other.trim() == 0

    again = other.hold(item, base)
    age(held.path)
    assert cache.trim() == 0
    again.close()
    assert cache.trim() == 0
    assert find_layers(cache) == [item.id]

    age(held.path)
    assert cache.trim() == 1
    assert find_layers(cache) == []
    assert blobs.get(item.entries["a"].blob) == b"#!"
    assert cache.hold(item, base).path == held.path


def test_a_layer_of_a_process_that_was_killed_is_nobodys(cache, base, blobs):
    item = commit({"a": make_file(blobs)})
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        cache.hold(item, base)
        os.write(told, b"x")
        signal.pause()
    os.read(ready, 1)
    layer = cache._layers / item.id
    age(layer)
    held = cache.trim()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(ready)
    os.close(told)

    assert (held, cache.trim(), layer.exists()) == (0, 1, False)


def test_what_a_killed_maker_left_is_removed(cache, base, blobs, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*_args):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(module.os, "link", die)
        cache.hold(commit({"a": make_file(blobs)}), base)
    (left,) = find_layers(cache)
    assert cache.trim() == 0
    age(cache._layers / left)
    assert cache.trim() == 1
    assert find_layers(cache) == []


def test_copies_in_the_pool_go_with_the_last_layer_that_uses_them(cache, base, blobs):
    held = cache.hold(commit({"a": make_file(blobs, b"#!", 0o755)}), base)
    held.close()
    (pooled,) = cache._pool.iterdir()
    age(pooled)
    cache.trim()
    assert pooled.exists()
    age(held.path)
    cache.trim()
    assert not pooled.exists()


def test_a_copy_that_left_the_pool_meanwhile_is_copied(cache, base, blobs, monkeypatch):
    find = LayerCache._find_in_pool

    def find_and_remove(self, entry, blob):
        source = find(self, entry, blob)
        Path(source).unlink()
        return source

    monkeypatch.setattr(LayerCache, "_find_in_pool", find_and_remove)
    held = cache.hold(commit({"a": make_file(blobs, b"#!", 0o755)}), base)
    assert (held.path / "a").read_bytes() == b"#!"
    assert get_mode(held.path / "a") == 0o755


def test_a_layer_that_is_removed_while_one_waits_for_it_is_made_again(cache, base, blobs):
    item = commit({"a": make_file(blobs)})
    held = cache.hold(item, base)
    held.close()
    removing = os.open(held.path, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(removing, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(cache.hold, item, base)
        held.path.rename(held.path.with_name("old-x"))
        os.close(removing)
        found = waiting.result()

    assert (found.path / "a").read_bytes() == b"new"
    age(found.path)
    assert cache.trim() == 0
