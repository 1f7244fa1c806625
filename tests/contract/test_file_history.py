"""What is tracked, restored and forked against a naive model, at each isolation level."""

# The plain calls of the kernel, which pathlib would normalise.
# ruff: noqa: PTH101, PTH114, PTH120

import contextlib
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from overlays import Overlay, do, look

from wtb_core.files.blobs import BlobStore
from wtb_core.files.commits import BaseTree, Commit, FileEntry, FileTree, decode, encode
from wtb_core.files.copying import copy_tree
from wtb_core.files.diffs import compare
from wtb_core.files.layers import LayerCache, restore
from wtb_core.files.manifests import Entry, materialise
from wtb_core.files.tracking import OverlayTracker, TreeTracker

VERSION = "e" * 64
ODD = os.fsdecode(b"\xff \n\xe9")
NAMES = ["a", "b", "x y", "new\nline", ODD, ".h", "ä", "a.b"]
BASE = {
    "a": None,
    "a/a": None,
    "a/a/b": b"deep",
    "a/b": b"inner",
    "a/ä": "b",
    "b": b"",
    ".h": None,
    "x y": b"executable",
    "a.b": "a",
    "ä": None,
    "ä/a": b"same",
    "ä/b": b"same",
}

names = st.sampled_from(NAMES)
paths = st.lists(names, min_size=1, max_size=3).map("/".join) | st.sampled_from(sorted(BASE))
contents = st.sampled_from([b"", b"same", b"deep", b"inner", b"executable"]) | st.binary(max_size=9)
targets = st.sampled_from(["a", "b", ".", "x y", "/nothing/there", ODD, "a/b"])
modes = st.integers(0, 0o777) | st.sampled_from([0o644, 0o755, 0o000])
operations = st.one_of(
    st.tuples(st.just("write"), paths, contents),
    st.tuples(st.just("append"), paths, contents),
    st.tuples(st.just("truncate"), paths, st.integers(0, 5)),
    st.tuples(st.just("chmod"), paths, modes),
    st.tuples(st.just("symlink"), paths, targets),
    st.tuples(st.just("mkdir"), paths, modes),
    st.tuples(st.just("rmdir"), paths),
    st.tuples(st.just("remove"), paths),
    st.tuples(st.just("move"), paths, paths),
    st.tuples(st.just("replace"), paths, paths),
    st.tuples(st.just("become_file"), paths, contents),
    st.tuples(st.just("become_directory"), paths),
    st.tuples(st.just("become_link"), paths, targets),
    st.tuples(st.just("mkfifo"), paths),
)
batches = st.lists(st.lists(operations, min_size=1, max_size=6), min_size=1, max_size=3)


@pytest.fixture(scope="module", autouse=True)
def _plain_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(scope="module")
def _overlays():
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "lower").mkdir()
        try:
            Overlay(Path(place) / "one", [Path(place) / "lower"]).close()
        except OSError as error:
            pytest.skip(f"no overlay in a user namespace here: {error}")
        finally:
            unlock(place)


def unlock(place):
    """Overlay leaves a directory that an unprivileged user must open before removing it."""
    for directory, names, _ in os.walk(place):
        for name in names:
            with contextlib.suppress(OSError):
                if not os.path.islink(f"{directory}/{name}"):
                    os.chmod(f"{directory}/{name}", 0o700)


class Bench:
    """A base and what the trackers are made of; `place` is for one example."""

    def __init__(self, place):
        self.place = place
        self.blobs = BlobStore(place / "blobs")
        manifest = {path: self._entry(path, value) for path, value in BASE.items()}
        self.base = BaseTree(VERSION, manifest)
        self.directory = place / "base"
        materialise(manifest, self.blobs, self.directory)
        self.layers = LayerCache(place / "cache", self.blobs)
        self.tree = look(self.directory)

    def _entry(self, path, value):
        if value is None:
            return Entry(kind="directory")
        if isinstance(value, str):
            return Entry(kind="link", target=value)
        return Entry(kind="file", blob=self.blobs.put(value), executable=path == "x y")

    def copy(self, name):
        copy_tree(self.directory, self.place / name, reflink=False)
        return self.place / name

    def expect(self, tree):
        """The commit of a tree, from nothing but the tree and the base's."""
        entries = {
            path: as_entry(item) for path, item in tree.items() if self.tree.get(path) != item
        }
        whole = {"": ("directory", 0o755, None), **tree}
        deleted = [
            path
            for path in self.tree
            if path not in tree and whole.get(os.path.dirname(path), ("nothing",))[0] == "directory"
        ]
        return Commit(VERSION, entries, tuple(sorted(deleted)))

    def check_diff(self, before, after, old, new):
        changes = {item.path: item for item in compare(before, after, self.base, self.blobs)}
        paths = old.keys() | new.keys()
        assert list(changes) == sorted(path for path in paths if old.get(path) != new.get(path))
        for path, change in changes.items():
            expected = "created" if path not in old else "modified" if path in new else "deleted"
            assert change.change == expected
            assert change.size_before == size(old.get(path))
            assert change.size_after == size(new.get(path))


def size(item):
    return len(item[2]) if item and item[0] == "file" else None


def as_entry(item):
    kind, mode, content = item
    if kind == "file":
        return FileEntry(kind, mode, hashlib.sha256(content).hexdigest(), len(content))
    return FileEntry(kind, mode, target=content)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("history"))


@contextlib.contextmanager
def example_of(bench):
    place = bench.place = Path(tempfile.mkdtemp())
    try:
        yield
    finally:
        unlock(place)
        shutil.rmtree(place)


def check_contents(bench, commit, tree):
    """The commit's listing is the tree, and its blobs have the content."""
    assert decode(encode(commit)) == commit
    listed = dict(FileTree(commit, bench.base))
    assert listed.keys() == tree.keys()
    for path, entry in listed.items():
        kind, mode, content = tree[path]
        assert (entry.kind, entry.mode) == (kind, mode)
        if kind == "file":
            assert bench.blobs.get(entry.blob) == content
        else:
            assert entry.target == content


@settings(max_examples=100)
@given(batches=batches, later=st.lists(operations, max_size=5))
def test_a_copied_workspace_has_the_commit_of_its_tree_and_is_made_again(bench, batches, later):
    with example_of(bench):
        root = bench.copy("one")
        tracker = TreeTracker(bench.blobs, bench.base, root)
        tracker.prime()
        before, old = tracker.track(), look(root)
        assert before == Commit(VERSION)
        for batch in batches:
            for operation in batch:
                do(root, operation)
            tree = look(root)
            commit = tracker.track()
            assert commit == bench.expect(tree)
            assert tracker.track() is commit
            bench.check_diff(before, commit, old, tree)
            before, old = commit, tree
        check_contents(bench, commit, tree)

        fork = bench.copy("two")
        restore(commit, bench.base, bench.blobs, fork, reflink=False)
        assert look(fork) == tree
        tracker = TreeTracker(bench.blobs, bench.base, fork, commit)
        tracker.prime()
        assert tracker.track() is commit
        for operation in later:
            do(fork, operation)
        assert tracker.track() == bench.expect(look(fork))


@pytest.mark.usefixtures("_overlays")
@settings(max_examples=100)
@given(batches=batches, later=st.lists(operations, max_size=5))
def test_an_overlay_has_the_same_commit_as_a_copy_and_is_made_again(bench, batches, later):
    with example_of(bench), contextlib.ExitStack() as stack:
        root = bench.copy("one")
        overlay = Overlay(bench.place / "overlay", [bench.directory])
        stack.callback(overlay.close)
        tracker = OverlayTracker(bench.blobs, bench.base, overlay.upper)
        assert tracker.track() == Commit(VERSION)
        for batch in batches:
            for operation in batch:
                do(root, operation)
            tree = overlay.do(batch)
            assert tree == look(root)
            commit = tracker.track()
            assert commit == bench.expect(tree)
            assert tracker.track() is commit
        check_contents(bench, commit, tree)

        layer = bench.layers.hold(commit, bench.base)
        stack.callback(layer.close)
        fork = Overlay(bench.place / "fork", [layer.path, bench.directory])
        stack.callback(fork.close)
        assert fork.look() == tree
        tracker = OverlayTracker(bench.blobs, bench.base, fork.upper, commit)
        assert tracker.track() is commit
        changed = fork.do(later)
        assert tracker.track() == bench.expect(changed)
        assert look(bench.directory) == bench.tree
        assert overlay.look() == tree
        check_contents(bench, commit, tree)
