import os

import pytest

from wtb_core.errors import NotFound
from wtb_core.files.blobs import BlobStore
from wtb_core.files.commits import BaseTree, Commit, FileEntry, FileTree
from wtb_core.files.diffs import compare, find_entry, unified
from wtb_core.files.manifests import Entry


@pytest.fixture
def blobs(tmp_path):
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def base(blobs):
    manifest = {
        "keep": Entry(kind="file", blob=blobs.put(b"kept\n")),
        "src": Entry(kind="directory"),
        "src/a.py": Entry(kind="file", blob=blobs.put(b"one\ntwo\nthree\n")),
        "src/b.py": Entry(kind="file", blob=blobs.put(b"bb")),
    }
    return BaseTree("f" * 64, manifest)


def commit(entries=None, deleted=()):
    return Commit("f" * 64, entries or {}, tuple(deleted))


def make_file(blobs, data, mode=0o644):
    return FileEntry("file", mode, blobs.put(data), len(data))


def look(changes):
    return [(item.path, item.change, item.size_before, item.size_after) for item in changes]


def test_equal_trees_have_no_changes(blobs, base):
    one = commit({"new": make_file(blobs, b"x")}, ["keep"])

    assert compare(one, one, base, blobs) == []
    assert compare(commit(), commit(), base, blobs) == []
    assert compare(one, commit(dict(one.entries), ["keep"]), base, blobs) == []


def test_changes_come_in_the_order_of_paths_with_sizes_of_both_sides(blobs, base):
    after = commit(
        {
            "src/a.py": make_file(blobs, b"one\n"),
            "new": make_file(blobs, b"new"),
            "empty": FileEntry("directory", 0o700),
        },
        ["keep"],
    )

    assert look(compare(commit(), after, base, blobs)) == [
        ("empty", "created", None, None),
        ("keep", "deleted", 5, None),
        ("new", "created", None, 3),
        ("src/a.py", "modified", 14, 4),
    ]
    assert look(compare(after, commit(), base, blobs)) == [
        ("empty", "deleted", None, None),
        ("keep", "created", None, 5),
        ("new", "deleted", 3, None),
        ("src/a.py", "modified", 4, 14),
    ]


def test_a_deleted_directory_is_listed_with_all_that_was_in_it(blobs, base):
    before = commit({"src/new": make_file(blobs, b"n"), "src/b.py": make_file(blobs, b"longer")})

    changes = compare(before, commit(deleted=["src"]), base, blobs)

    assert look(changes) == [
        ("src", "deleted", None, None),
        ("src/a.py", "deleted", 14, None),
        ("src/b.py", "deleted", 6, None),
        ("src/new", "deleted", 1, None),
    ]


def test_a_directory_that_became_a_link_is_modified_and_what_was_in_it_deleted(blobs, base):
    after = commit({"src": FileEntry("link", 0o777, target="keep")})

    first, *rest = compare(commit(), after, base, blobs)

    assert (first.path, first.change) == ("src", "modified")
    assert (first.kind_before, first.kind_after) == ("directory", "link")
    assert (first.target_before, first.target_after) == (None, "keep")
    assert look(rest) == [("src/a.py", "deleted", 14, None), ("src/b.py", "deleted", 2, None)]


def test_a_change_of_mode_alone_is_a_change(blobs, base):
    entry = FileEntry("file", 0o600, base.entries["keep"].blob, 5)

    [change] = compare(commit(), commit({"keep": entry}), base, blobs)

    assert (change.mode_before, change.mode_after) == (0o644, 0o600)
    assert (change.blob_before, change.size_before) == (change.blob_after, change.size_after)


def diff(blobs, base, before, after, limit_bytes=10_000):
    entries = [{} if data is None else {"x": make_file(blobs, data)} for data in (before, after)]
    [change] = compare(commit(entries[0]), commit(entries[1]), base, blobs)
    return unified(change, blobs, limit_bytes)


def test_a_text_is_compared_line_by_line(blobs, base):
    text, binary, truncated = diff(blobs, base, b"one\ntwo\nthree\n", b"one\n2\nthree\n")

    assert text == "--- a/x\n+++ b/x\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n"
    assert (binary, truncated) == (False, False)


def test_only_a_line_feed_ends_a_line_and_its_lack_is_said(blobs, base):
    assert diff(blobs, base, None, b"a\r\nb\x0bc\xe2\x80\xa8d").text == (
        "--- /dev/null\n+++ b/x\n@@ -0,0 +1,2 @@\n+a\r\n+b\x0bc\u2028d\n"
        "\\ No newline at end of file\n"
    )
    assert diff(blobs, base, b"a", b"a\n").text == (
        "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+a\n"
    )


def test_an_empty_file_that_appears_has_no_lines(blobs, base):
    assert diff(blobs, base, None, b"") == ("", False, False)


@pytest.mark.parametrize("data", [b"\0", b"\xff", b"text\nand \0"])
def test_what_is_no_text_is_binary_on_either_side(blobs, base, data):
    assert diff(blobs, base, b"text\n", data) == (None, True, False)
    assert diff(blobs, base, data, None) == (None, True, False)


def test_a_side_beyond_the_limit_is_not_compared(blobs, base):
    assert diff(blobs, base, b"x" * 101, b"", 100) == (None, False, True)
    assert diff(blobs, base, b"", b"\0" * 101, 100) == (None, False, True)


def test_a_long_diff_is_cut_after_a_line(blobs, base):
    found = diff(blobs, base, b"a\n" * 40, b"b\n" * 40, 100)

    assert found.truncated
    assert 90 < len(found.text) <= 100
    assert found.text.endswith("-a\n")


def test_a_link_is_its_target(blobs, base):
    before = commit({"x": FileEntry("link", 0o777, target="old")})
    after = commit({"x": FileEntry("link", 0o777, target=os.fsdecode(b"\xff"))})
    [change] = compare(before, commit({"x": make_file(blobs, b"text\n")}), base, blobs)
    [odd] = compare(before, after, base, blobs)

    assert unified(change, blobs, 1000).text == (
        "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-old\n\\ No newline at end of file\n+text\n"
    )
    assert unified(odd, blobs, 1000).binary


def test_a_directory_has_no_lines(blobs, base):
    [change] = compare(commit(), commit({"d": FileEntry("directory", 0o755)}), base, blobs)

    assert unified(change, blobs, 1000) == ("", False, False)


def test_an_odd_name_cannot_forge_lines(blobs, base):
    name = os.fsdecode(b"a\n+++ b/\xff")
    [change] = compare(commit(), commit({name: make_file(blobs, b"x\n")}), base, blobs)

    text = unified(change, blobs, 1000).text

    assert text.splitlines()[1] == '+++ b/"a\\n+++ b/\\udcff"'
    text.encode()


def test_one_file_is_found_where_the_tree_has_it(blobs, base):
    new = make_file(blobs, b"new")
    tree = commit({"src/new": new}, ["src/a.py"])

    assert find_entry(tree, base, "src/new") == new
    assert find_entry(tree, base, "src/b.py") == base.entries["src/b.py"]
    assert [path for path, _ in FileTree(tree, base)] == ["keep", "src", "src/b.py", "src/new"]
    for path in ("src/a.py", "nothing", "", "src/", "../keep", "/keep"):
        with pytest.raises(NotFound):
            find_entry(tree, base, path)


@pytest.mark.parametrize(
    "tree", [commit(deleted=["src"]), commit({"src": FileEntry("link", 0o777, target="/etc")})]
)
def test_below_what_is_gone_or_replaced_nothing_is_found(base, tree):
    with pytest.raises(NotFound):
        find_entry(tree, base, "src/b.py")
