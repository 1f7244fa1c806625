"""Checkpoints and files of an attempt, from blobs alone."""

import json

import pytest

from tests.left_behind import AFTER, BEFORE, MIDDLE, ODD, LeftBehind
from wtb_core import filehistory
from wtb_core.errors import InvalidRequest, NotAFile, NotForkable, NotFound
from wtb_core.files.commits import FileEntry
from wtb_core.files.paths import show_path
from wtb_core.store.records import Trace

SHOWN = "out/\\xff \x1b[2J.bin"


@pytest.fixture
def left(tmp_path):
    return LeftBehind(tmp_path)


@pytest.fixture
def trace(left):
    return Trace("b-1-0", 2, left.version, True, left.history, left.start, left.final)


def changes(page):
    return {item["path"]: item["change"] for item in page["items"]}


def test_checkpoints_come_in_their_order_with_what_can_be_forked(left, trace):
    page = left.files.list_checkpoints(trace)

    assert (page["attempt"], page["next_cursor"]) == (2, None)
    found = [(item["checkpoint_id"], item["forkable"]) for item in page["items"]]
    assert found == [
        ("c-0", True),
        ("c-1", True),
        ("c-2", True),
        ("sub", False),
        ("lost", False),
        ("c-3", True),
    ]
    assert page["items"][-1]["state"] == {"tries": 3}


def test_checkpoints_come_in_pages_of_a_number_and_of_a_size(left, trace, monkeypatch):
    first = left.files.list_checkpoints(trace, 4)
    rest = left.files.list_checkpoints(trace, 4, first["next_cursor"])
    assert [len(first["items"]), len(rest["items"]), rest["next_cursor"]] == [4, 2, None]

    monkeypatch.setattr(filehistory, "MAX_PAGE_STATE_BYTES", 1)
    seen, cursor = [], None
    for _ in range(6):
        page = left.files.list_checkpoints(trace, 4, cursor)
        seen += [item["checkpoint_id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert (seen, cursor) == (["c-0", "c-1", "c-2", "sub", "lost", "c-3"], None)


def test_an_attempt_without_a_history_has_no_checkpoints(left):
    page = left.files.list_checkpoints(Trace("b-1-0", 1, left.version))
    assert page == {"attempt": 1, "items": [], "next_cursor": None}


@pytest.mark.parametrize(
    ("name", "error"), [("sub", NotForkable), ("lost", NotForkable), ("nosuch", NotFound)]
)
def test_a_fork_starts_from_a_root_checkpoint_with_files(left, trace, name, error):
    assert left.files.find_checkpoint(trace, "c-2").file_commit_id == left.middle
    with pytest.raises(error):
        left.files.find_checkpoint(trace, name)


def test_changes_are_those_of_user_code_by_default(left, trace):
    page = left.files.list_changes(trace)

    assert changes(page) == {
        "etc": "modified",
        "old.txt": "deleted",
        "out": "created",
        SHOWN: "created",
        "src/gcd.py": "modified",
    }
    assert page["counts"] == {"created": 2, "modified": 2, "deleted": 1}
    assert (page["from"], page["to"], page["attempt"]) == ("start", "final", 2)
    by_path = {item["path"]: item for item in page["items"]}
    assert by_path["src/gcd.py"] == {
        "path": "src/gcd.py",
        "change": "modified",
        "kind": "file",
        "size_before": len(BEFORE),
        "size_after": len(AFTER),
        "mode_before": "0644",
        "mode_after": "0600",
        "binary": None,
        "diff": None,
        "diff_truncated": False,
    }
    assert by_path["old.txt"]["mode_after"] is None
    assert by_path["etc"]["kind"] == "link"
    json.dumps(page).encode()


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("start", "c-1", {}),
        ("base", "start", {"case.json": "created"}),
        ("c-1", "c-2", {"src/gcd.py": "modified"}),
        ("c-2", "start", {"src/gcd.py": "modified"}),
        ("c-3", "final", {}),
        ("base", "base", {}),
    ],
)
def test_any_two_points_are_compared(left, trace, start, end, expected):
    assert changes(left.files.list_changes(trace, start, end)) == expected


def test_a_point_is_a_checkpoint_of_the_root(left, trace):
    rows = [left.checkpoint("x", None, ns="inner:1"), left.checkpoint("x", left.middle)]
    shadowed = trace._replace(history=left.keep(*rows))
    assert changes(left.files.list_changes(shadowed, "start", "x")) == {"src/gcd.py": "modified"}


def test_a_diff_is_text_where_there_is_text(left, trace):
    page = left.files.list_changes(trace, diff=True)

    items = {item["path"]: item for item in page["items"]}
    assert "-    return b\n+    return a if b == 0" in items["src/gcd.py"]["diff"]
    assert items["old.txt"]["diff"].endswith("@@ -1 +0,0 @@\n-old\n")
    assert (items[SHOWN]["binary"], items[SHOWN]["diff"]) == (True, None)
    assert "+/root/.ssh" in items["etc"]["diff"]


def test_a_large_file_has_no_diff_and_says_so(left, trace):
    large = left.commit({"large.txt": left.file(b"x\n" * 50_000)})

    (item,) = left.files.list_changes(
        trace._replace(start_commit_id=left.commit({}), file_commit_id=large), diff=True
    )["items"]

    assert (item["diff"], item["diff_truncated"], item["binary"]) == (None, True, False)
    assert item["size_after"] == 100_000


def test_changes_come_in_pages_of_a_number_and_of_a_size(left, trace, monkeypatch):
    first = left.files.list_changes(trace, limit=2)
    rest = left.files.list_changes(trace, limit=3, cursor=first["next_cursor"])
    assert changes(first) | changes(rest) == changes(left.files.list_changes(trace))
    assert (len(first["items"]), len(rest["items"]), rest["next_cursor"]) == (2, 3, None)
    assert first["counts"] == rest["counts"]

    monkeypatch.setattr(filehistory, "MAX_PAGE_DIFF_BYTES", 1)
    seen, cursor = [], "0"
    while cursor is not None:
        page = left.files.list_changes(trace, diff=True, cursor=cursor)
        seen += page["items"]
        cursor = page["next_cursor"]
    assert [item["path"] for item in seen] == list(changes(first) | changes(rest))
    monkeypatch.undo()
    monkeypatch.setattr(filehistory, "MAX_PAGE_DIFF_S", -1.0)
    assert len(left.files.list_changes(trace, diff=True)["items"]) == 1


@pytest.mark.parametrize("point", ["lost", "sub", "nosuch", "start", "final"])
def test_a_point_without_files_is_not_found(left, trace, point):
    bare = trace._replace(start_commit_id=None, file_commit_id=None)
    with pytest.raises(NotFound):
        left.files.list_changes(bare, "base", point)


@pytest.mark.parametrize(
    ("path", "at", "data"),
    [
        ("src/gcd.py", "final", AFTER),
        ("src/gcd.py", "c-2", MIDDLE),
        ("src/gcd.py", "start", BEFORE),
        ("src/gcd.py", "base", BEFORE),
        ("run.sh", "final", b"#!/bin/sh\n"),
        (ODD, "final", b"\0\1\2"),
        ("old.txt", "start", b"old\n"),
    ],
)
def test_a_file_is_read_as_it_was(left, trace, path, at, data):
    found = left.files.read_file(trace, path, at)

    assert found["data"] == data
    assert found["size_bytes"] == len(data)
    assert found["path"] == show_path(path)


def test_a_file_has_its_mode(left, trace):
    modes = [left.files.read_file(trace, path)["mode"] for path in ("run.sh", "src/gcd.py")]
    assert modes == ["0755", "0600"]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        ".",
        "..",
        "../blobs",
        "/etc/passwd",
        "src/../src/gcd.py",
        "src//gcd.py",
        "src/gcd.py/x",
        "old.txt",
        "out/\udcfe",
        "a\0b",
        "etc/passwd",
        "src/",
    ],
)
def test_no_other_path_is_read(left, trace, path):
    with pytest.raises(NotFound):
        left.files.read_file(trace, path)


def test_a_blob_cannot_be_read_by_its_name(left, trace):
    for path in (
        left.secret,
        f"{left.secret[:2]}/{left.secret}",
        str(left.blobs.path(left.secret)),
    ):
        with pytest.raises(NotFound):
            left.files.read_file(trace, path)


def test_a_directory_and_a_link_are_no_files_and_no_link_is_followed(left, trace):
    with pytest.raises(NotAFile, match="'src' is no file: it is a directory"):
        left.files.read_file(trace, "src")
    with pytest.raises(NotAFile, match=r"a link to '/root/\.ssh'"):
        left.files.read_file(trace, "etc")


def test_only_so_much_is_handed_over_at_once(left, trace, monkeypatch):
    monkeypatch.setattr(filehistory, "MAX_READ_BYTES", len(AFTER) - 1)
    with pytest.raises(InvalidRequest, match="over HTTP"):
        left.files.read_file(trace, "src/gcd.py")
    assert left.files.find_file(trace, "src/gcd.py").size_bytes == len(AFTER)


def test_a_missing_blob_is_not_found(left, trace):
    left.blobs.path(left.file(AFTER).blob).unlink()
    with pytest.raises(NotFound):
        left.files.find_file(trace, "src/gcd.py")


def test_a_base_is_read_once(left, trace, monkeypatch):
    reads = []
    read = left.versions.read
    monkeypatch.setattr(left.versions, "read", lambda v: reads.append(v) or read(v))

    for _ in range(3):
        left.files.list_changes(trace)

    assert reads == [left.version]


@pytest.mark.parametrize(
    ("path", "shown"),
    [("a b", "a b"), ("\udcff", "\\xff"), ("é\udc80", "é\\x80"), ("\ud800", "\\ud800")],
)
def test_a_shown_path_is_text(path, shown):
    assert show_path(path) == shown
    shown.encode()


def test_a_link_that_leads_to_odd_bytes_is_told(left, trace):
    commit = left.commit({"l": FileEntry("link", 0o777, target="\udcff")})
    with pytest.raises(NotAFile) as caught:
        left.files.find_file(trace._replace(file_commit_id=commit), "l")
    str(caught.value).encode()
