# The plain calls of the kernel, which pathlib would normalise.
# ruff: noqa: PTH102

import errno
import os
import socket
import stat

import pytest

from wtb_core.errors import TrackingError
from wtb_core.files import tracking
from wtb_core.files.blobs import BlobStore
from wtb_core.files.commits import BaseTree, Commit, FileEntry
from wtb_core.files.manifests import Entry, materialise
from wtb_core.files.tracking import OverlayTracker, TreeTracker

VERSION = "e" * 64


@pytest.fixture
def blobs(tmp_path):
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def manifest(blobs):
    return {
        "src": Entry(kind="directory"),
        "src/a": Entry(kind="file", blob=blobs.put(b"a")),
        "src/run": Entry(kind="file", blob=blobs.put(b"#!"), executable=True),
        "link": Entry(kind="link", target="src"),
        "note": Entry(kind="file", blob=blobs.put(b"note")),
    }


@pytest.fixture
def base(manifest):
    return BaseTree(VERSION, manifest)


@pytest.fixture
def root(tmp_path, manifest, blobs):
    materialise(manifest, blobs, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def upper(tmp_path):
    upper = tmp_path / "upper"
    upper.mkdir()
    return upper


@pytest.fixture
def reads(monkeypatch):
    """The sizes of the files that are read."""
    sizes = []
    put = BlobStore.put_descriptor

    def count(self, source, *, sync=True):
        sizes.append(os.fstat(source).st_size)
        return put(self, source, sync=sync)

    monkeypatch.setattr(BlobStore, "put_descriptor", count)
    return sizes


@pytest.fixture
def later(monkeypatch):
    """All that was written so far was written long ago."""
    now = tracking.time_ns
    monkeypatch.setattr(tracking, "time_ns", lambda: now() + 10**9)


def file(blobs, data, mode=0o644):
    return FileEntry("file", mode, blobs.put(data), len(data))


def commit(entries=None, deleted=()):
    return Commit(VERSION, entries or {}, tuple(deleted))


def make_whiteout(path):
    os.mknod(path, stat.S_IFCHR, 0)


def make_opaque(path):
    path.mkdir()
    os.setxattr(path, "user.overlay.opaque", b"y")


def test_an_untouched_workspace_has_the_commit_it_began_with(blobs, base, root, upper, tmp_path):
    below = commit({"new": file(blobs, b"new")})
    (root / "new").write_bytes(b"new")

    assert TreeTracker(blobs, base, root, below).track() is below
    assert OverlayTracker(blobs, base, upper, below).track() is below
    (tmp_path / "empty").mkdir()
    nothing = TreeTracker(blobs, BaseTree(VERSION, None), tmp_path / "empty")
    assert nothing.track() == Commit(None)


def test_a_primed_tree_is_not_read(blobs, base, root, reads, later):
    tracker = TreeTracker(blobs, base, root)

    tracker.prime()
    assert tracker.track() == commit()
    assert reads == []

    (root / "src" / "a").write_bytes(b"longer")
    assert tracker.track() == commit({"src/a": file(blobs, b"longer")})
    assert reads == [6]


def test_what_a_fresh_tree_has_besides_is_read_when_it_is_primed(blobs, base, root, reads, later):
    (root / "note").chmod(0o600)
    (root / "more").write_bytes(b"more")
    tracker = TreeTracker(blobs, base, root)

    tracker.prime()
    expected = {"note": file(blobs, b"note", 0o600), "more": file(blobs, b"more")}
    assert tracker.track() == commit(expected)


def test_a_file_is_read_again_when_it_was_written_just_before_the_last_look(
    blobs, base, upper, reads, monkeypatch
):
    (upper / "new").write_bytes(b"new")
    written_ns = (upper / "new").stat().st_ctime_ns
    tracker = OverlayTracker(blobs, base, upper)

    looks = []
    for after_ms in (1, 9, 11, 12):
        monkeypatch.setattr(tracking, "time_ns", lambda ms=after_ms: written_ns + ms * 10**6)
        looks.append(tracker.track())

    assert reads == [3, 3, 3]
    assert all(item is looks[0] for item in looks)


def test_a_mode_that_changes_is_tracked(blobs, base, root, later):
    tracker = TreeTracker(blobs, base, root)
    tracker.prime()
    (root / "src").chmod(0o1700)
    (root / "note").chmod(0o4711)

    assert tracker.track() == commit(
        {"src": FileEntry("directory", 0o1700), "note": file(blobs, b"note", 0o4711)}
    )
    (root / "src").chmod(0o755)
    (root / "note").chmod(0o644)
    assert tracker.track() == commit()


def test_sockets_pipes_and_devices_are_left_out_and_hide_what_was_there(
    blobs, base, root, upper, monkeypatch
):
    for place in (root, upper):
        monkeypatch.chdir(place)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")
        (place / "note").unlink(missing_ok=True)
        os.mkfifo("note")

    assert TreeTracker(blobs, base, root).track() == commit(deleted=["note"])
    assert OverlayTracker(blobs, base, upper).track() == commit(deleted=["note"])


def test_a_whiteout_is_a_deletion_of_what_the_base_has_and_of_nothing_else(blobs, base, upper):
    make_whiteout(upper / "src")
    make_whiteout(upper / "never")

    assert OverlayTracker(blobs, base, upper).track() == commit(deleted=["src"])


@pytest.mark.skipif(os.geteuid() != 0, reason="trusted attributes need root")
def test_an_opaque_directory_of_a_root_mount_is_opaque_too(blobs, base, upper):
    (upper / "src").mkdir()
    os.setxattr(upper / "src", "trusted.overlay.opaque", b"y")

    assert OverlayTracker(blobs, base, upper).track() == commit(deleted=["src/a", "src/run"])


def test_an_opaque_directory_has_lost_what_is_not_in_it(blobs, base, upper):
    make_opaque(upper / "src")
    (upper / "src" / "a").write_bytes(b"a")

    assert OverlayTracker(blobs, base, upper).track() == commit(deleted=["src/run"])


def test_what_lies_above_replaces_what_the_commit_below_says(blobs, base, upper):
    below = commit(
        {
            "d": FileEntry("directory", 0o755),
            "d/keep": file(blobs, b"keep"),
            "d/lose": file(blobs, b"lose"),
            "gone": FileEntry("directory", 0o755),
            "gone/x": file(blobs, b"x"),
            "note": file(blobs, b"other"),
            "src": FileEntry("directory", 0o700),
        },
        ["link", "src/a", "src/run"],
    )
    (upper / "d").mkdir()
    make_whiteout(upper / "d" / "lose")
    make_whiteout(upper / "gone")
    (upper / "note").write_bytes(b"note")
    (upper / "src").mkdir()
    (upper / "src" / "a").write_bytes(b"a")

    assert OverlayTracker(blobs, base, upper, below).track() == commit(
        {"d": FileEntry("directory", 0o755), "d/keep": file(blobs, b"keep")}, ["link", "src/run"]
    )


def test_intermediate_blobs_are_there_but_not_yet_durable(blobs, base, upper):
    (upper / "new").write_bytes(b"new")

    entry = OverlayTracker(blobs, base, upper).track().entries["new"]

    assert blobs.get(entry.blob) == b"new"
    assert stat.S_IMODE(blobs.path(entry.blob).stat().st_mode) == 0o600


def test_no_link_is_followed(blobs, base, root, tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_bytes(b"s3cret")
    (root / "file").symlink_to(tmp_path / "secret" / "key")
    (root / "directory").symlink_to(tmp_path / "secret")

    found = TreeTracker(blobs, base, root).track()

    assert {path: item.kind for path, item in found.entries.items()} == {
        "file": "link",
        "directory": "link",
    }


class Meddling:
    """Does something once, between the look at a name and its opening."""

    def __init__(self, monkeypatch, name, act, times=1):
        self.open, self.name, self.act, self.times = os.open, name, act, times
        monkeypatch.setattr(tracking.os, "open", self)

    def __call__(self, path, *args, **options):
        if path == self.name and self.times:
            self.times -= 1
            self.act()
        return self.open(path, *args, **options)


def test_a_file_swapped_for_a_link_is_taken_for_the_link(blobs, base, root, tmp_path, monkeypatch):
    (tmp_path / "secret").write_bytes(b"s3cret")
    (root / "new").write_bytes(b"new")

    def swap():
        (root / "new").unlink()
        (root / "new").symlink_to(tmp_path / "secret")

    Meddling(monkeypatch, "new", swap)
    found = TreeTracker(blobs, base, root).track()

    assert found == commit({"new": FileEntry("link", 0o777, target=str(tmp_path / "secret"))})


def test_a_directory_swapped_for_a_link_is_taken_for_the_link(
    blobs, base, root, tmp_path, monkeypatch
):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_bytes(b"s3cret")
    (root / "new").mkdir()

    def swap():
        (root / "new").rmdir()
        (root / "new").symlink_to(tmp_path / "secret")

    Meddling(monkeypatch, "new", swap)

    assert TreeTracker(blobs, base, root).track().entries["new"].kind == "link"


@pytest.mark.parametrize("become", ["nothing", "directory", "pipe"])
def test_a_file_that_becomes_something_else_is_taken_as_it_is_later(
    blobs, base, root, monkeypatch, become
):
    def change():
        (root / "note").unlink()
        if become == "directory":
            (root / "note").mkdir()
            (root / "note").chmod(0o755)
        elif become == "pipe":
            os.mkfifo(root / "note")

    Meddling(monkeypatch, "note", change)
    found = TreeTracker(blobs, base, root).track()

    if become == "directory":
        assert found == commit({"note": FileEntry("directory", 0o755)})
    else:
        assert found == commit(deleted=["note"])


def test_what_never_stays_the_same_is_a_failed_file(blobs, base, root, monkeypatch):
    def change():
        if (root / "note").is_symlink():
            (root / "note").unlink()
            (root / "note").write_bytes(b"")
        else:
            (root / "note").unlink()
            (root / "note").symlink_to("src")
            real = os.stat

            def stat_it(name, **options):
                if name == "note":
                    (root / "note").unlink()
                    (root / "note").write_bytes(b"")
                return real(name, **options)

            monkeypatch.setattr(tracking.os, "stat", stat_it)

    Meddling(monkeypatch, "note", change, times=100)

    with pytest.raises(TrackingError, match="keeps changing") as caught:
        TreeTracker(blobs, base, root).track()
    assert caught.value.failed_files == ["note"]


def test_files_that_cannot_be_read_are_all_named_and_the_next_look_may_succeed(
    blobs, base, root, monkeypatch
):
    tracker = TreeTracker(blobs, base, root)

    def refuse():
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        Meddling(patched, "a", refuse)
        Meddling(patched, "note", refuse)
        with pytest.raises(TrackingError, match="cannot be read: Permission denied, 1 more") as e:
            tracker.track()
    assert sorted(e.value.failed_files) == ["note", "src/a"]
    assert tracker.track() == commit()


def test_a_name_that_cannot_be_printed_is_told_in_ascii(blobs, base, root, monkeypatch):
    name = os.fsdecode(b"\xff")
    (root / name).write_bytes(b"")

    def refuse():
        raise PermissionError(errno.EACCES, "Permission denied")

    Meddling(monkeypatch, name, refuse)
    with pytest.raises(TrackingError, match=r"'\\udcff' cannot be read"):
        TreeTracker(blobs, base, root).track()


def test_too_many_open_files_is_no_deletion(blobs, base, root, monkeypatch):
    def refuse():
        raise OSError(errno.EMFILE, "Too many open files")

    Meddling(monkeypatch, "src", refuse)

    with pytest.raises(TrackingError, match="Too many open files"):
        TreeTracker(blobs, base, root).track()


def test_a_workspace_that_is_gone_is_an_error(blobs, base, tmp_path):
    with pytest.raises(TrackingError, match="the workspace cannot be read: No such file"):
        OverlayTracker(blobs, base, tmp_path / "nothing").track()


@pytest.mark.parametrize("size", [10, 2 * 2**20])
def test_a_full_blob_store_names_the_file_that_did_not_fit(blobs, base, root, monkeypatch, size):
    (root / "new").write_bytes(b"x" * size)
    tracker = TreeTracker(blobs, base, root)
    tracker.prime()
    (root / "new").write_bytes(b"y" * size)

    def refuse(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("wtb_core.files.blobs.os.write", refuse)
        with pytest.raises(TrackingError, match="cannot take more: No space left") as caught:
            tracker.track()
    assert caught.value.failed_files == ["new"]
    assert tracker.track().entries.keys() == {"new"}


def test_more_paths_than_allowed_are_refused(blobs, base, root, upper):
    for place in (root, upper):
        for number in range(3):
            (place / f"new{number}").write_bytes(b"")
    for cls, place in ((TreeTracker, root), (OverlayTracker, upper)):
        assert len(cls(blobs, base, place, max_files=3).track().entries) == 3
        with pytest.raises(TrackingError, match="more than 2 paths have changed"):
            cls(blobs, base, place, max_files=2).track()


def test_the_paths_of_the_commit_below_and_what_is_left_out_count(blobs, base, upper):
    below = commit({"a": file(blobs, b"a"), "b": file(blobs, b"b")})
    os.mkfifo(upper / "pipe")

    assert OverlayTracker(blobs, base, upper, below, max_files=3).track() is below
    with pytest.raises(TrackingError, match="more than 2 paths"):
        OverlayTracker(blobs, base, upper, below, max_files=2).track()


def test_more_content_than_allowed_is_not_even_read(blobs, base, root, upper, reads):
    for place in (root, upper):
        (place / "small").write_bytes(b"12345")
        with (place / "sparse").open("wb") as sparse:
            sparse.truncate(2**40)
    for cls, place in ((TreeTracker, root), (OverlayTracker, upper)):
        with pytest.raises(TrackingError, match="bytes of content have changed") as caught:
            cls(blobs, base, place).track()
        assert caught.value.failed_files == ["sparse"]
    assert 2**40 not in reads


def test_content_of_the_commit_below_counts(blobs, base, upper):
    below = commit({"a": file(blobs, b"12345")})
    (upper / "b").write_bytes(b"12345")

    assert len(OverlayTracker(blobs, base, upper, below, max_bytes=10).track().entries) == 2
    with pytest.raises(TrackingError, match="more than 9 bytes"):
        OverlayTracker(blobs, base, upper, below, max_bytes=9).track()


def test_directories_nested_without_end_are_refused(blobs, base, root, monkeypatch):
    monkeypatch.chdir(root)
    for _ in range(300):
        os.mkdir("d")
        os.chdir("d")

    with pytest.raises(TrackingError, match="nested more than 200 deep"):
        TreeTracker(blobs, base, root).track()


@pytest.mark.parametrize("cls", [TreeTracker, OverlayTracker])
def test_a_link_at_the_root_is_not_followed(blobs, base, root, tmp_path, cls):
    (tmp_path / "link").symlink_to(root)

    with pytest.raises(TrackingError, match="the workspace cannot be read"):
        cls(blobs, base, tmp_path / "link").track()
