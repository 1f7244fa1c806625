import hashlib
import json
import os

import pytest

from wtb_core.errors import InvalidDocument
from wtb_core.files.commits import (
    BaseTree,
    Commit,
    FileEntry,
    FileTree,
    commit_id,
    decode,
    encode,
)
from wtb_core.files.manifests import Entry

A, B = "a" * 64, "b" * 64
MANIFEST = {
    "bin": Entry(kind="directory"),
    "bin/tool": Entry(kind="file", blob=A, executable=True),
    "bin/deep": Entry(kind="directory"),
    "bin/deep/file": Entry(kind="file", blob=B),
    "link": Entry(kind="link", target="bin"),
}
ODD = os.fsdecode(b"caf\xe9 \n\xff")


def make(entries=None, deleted=(), base=None):
    return Commit(base, entries or {}, tuple(deleted))


def file(blob=A, mode=0o644, size=1):
    return FileEntry("file", mode, blob, size)


def test_a_commit_comes_back_from_its_bytes_whatever_its_names_are():
    commit = make(
        {
            ODD: FileEntry("directory", 0o700),
            f"{ODD}/\U0001f600": file(mode=0o6755, size=0),
            "link": FileEntry("link", 0o777, target=ODD),
        },
        ["bin", "x y"],
        base=B,
    )

    data = encode(commit)

    data.decode("ascii")
    assert decode(data) == commit
    assert encode(decode(data)) == data
    assert commit_id(commit) == hashlib.sha256(data).hexdigest()


def test_the_order_in_which_entries_were_found_is_no_part_of_a_commit():
    one = make({"a": file(), "b": file(B)})
    other = make({"b": file(B), "a": file()})

    assert encode(one) == encode(other)
    assert commit_id(one) == commit_id(other)
    assert commit_id(one) != commit_id(make({"a": file(), "b": file(A)}))


def test_the_encoding_says_what_each_kind_has_and_no_more():
    commit = make(
        {"d": FileEntry("directory", 0o755), "f": file(), "l": FileEntry("link", 0o777, target="x")}
    )

    assert json.loads(encode(commit)) == {
        "base": None,
        "deleted": [],
        "entries": {
            "d": {"kind": "directory", "mode": 0o755},
            "f": {"kind": "file", "mode": 0o644, "blob": A, "size": 1},
            "l": {"kind": "link", "mode": 0o777, "target": "x"},
        },
    }


FILE = {"kind": "file", "mode": 420, "blob": A, "size": 1}
LINK = {"kind": "link", "mode": 511, "target": "/etc"}


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"base": None, "entries": {}},
        {"base": None, "entries": {}, "deleted": [], "more": 1},
        {"base": "x", "entries": {}, "deleted": []},
        {"base": None, "entries": [], "deleted": []},
        {"base": None, "entries": {}, "deleted": {}},
        {"base": None, "entries": {}, "deleted": [1]},
        {"base": None, "entries": {}, "deleted": ["b", "a"]},
        {"base": None, "entries": {}, "deleted": ["a", "a"]},
        {"base": None, "entries": {"a": None}, "deleted": []},
        {"base": None, "entries": {"a": {"kind": "socket", "mode": 1}}, "deleted": []},
        {"base": None, "entries": {"a": {"kind": "directory"}}, "deleted": []},
        {"base": None, "entries": {"a": {**FILE, "target": "x"}}, "deleted": []},
        {"base": None, "entries": {"a": {**FILE, "mode": 0o10000}}, "deleted": []},
        {"base": None, "entries": {"a": {**FILE, "mode": True}}, "deleted": []},
        {"base": None, "entries": {"a": {**FILE, "size": -1}}, "deleted": []},
        {"base": None, "entries": {"a": {**FILE, "blob": "../x"}}, "deleted": []},
        {"base": None, "entries": {"a": {**LINK, "target": ""}}, "deleted": []},
        {"base": None, "entries": {"a": {**LINK, "target": "\0"}}, "deleted": []},
        {"base": None, "entries": {"a": {**LINK, "target": "\ud800"}}, "deleted": []},
        {"base": None, "entries": {"\ud800": FILE}, "deleted": []},
        {"base": None, "entries": {"": FILE}, "deleted": []},
        {"base": None, "entries": {"/a": FILE}, "deleted": []},
        {"base": None, "entries": {"a/../../b": FILE}, "deleted": []},
        {"base": None, "entries": {"a//b": FILE}, "deleted": []},
        {"base": None, "entries": {"a/./b": FILE}, "deleted": []},
        {"base": None, "entries": {"a\0": FILE}, "deleted": []},
        {"base": None, "entries": {}, "deleted": ["../a"]},
        {"base": None, "entries": {"a": LINK, "a/b": FILE}, "deleted": []},
        {"base": None, "entries": {"a": LINK, "a/b/c": FILE}, "deleted": []},
        {"base": None, "entries": {"a": LINK}, "deleted": ["a/b"]},
        {"base": None, "entries": {"a/b": FILE}, "deleted": ["a"]},
        {"base": None, "entries": {"a": FILE}, "deleted": ["a"]},
        {"base": None, "entries": {}, "deleted": ["a", "a/b"]},
    ],
)
def test_what_is_no_commit_or_leads_astray_is_refused(document):
    with pytest.raises(InvalidDocument, match="a file commit"):
        decode(json.dumps(document).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_no_commit(data):
    with pytest.raises(InvalidDocument, match="a file commit"):
        decode(data)


def test_a_base_has_the_modes_it_is_materialised_with():
    base = BaseTree(A, MANIFEST)

    assert base.version == A
    assert base.entries == {
        "bin": FileEntry("directory", 0o755),
        "bin/tool": FileEntry("file", 0o755, A),
        "bin/deep": FileEntry("directory", 0o755),
        "bin/deep/file": FileEntry("file", 0o644, B),
        "link": FileEntry("link", 0o777, target="bin"),
    }
    assert base.children("") == {"bin", "link"}
    assert base.children("bin/tool") == set()
    assert set(base.below("bin")) == {"bin/tool", "bin/deep", "bin/deep/file"}


def test_a_project_without_a_workspace_has_no_base():
    base = BaseTree(A, None)

    assert (base.version, base.entries, base.children("")) == (None, {}, set())


@pytest.mark.parametrize(
    ("commit", "paths"),
    [
        (make(), ["bin", "bin/deep", "bin/deep/file", "bin/tool", "link"]),
        (make(deleted=["bin"]), ["link"]),
        (make(deleted=["bin/deep"]), ["bin", "bin/tool", "link"]),
        (make({"bin": file()}), ["bin", "link"]),
        (make({"bin": FileEntry("directory", 0)}, ["link"]), [*sorted(set(MANIFEST) - {"link"})]),
        (
            make({"link": FileEntry("directory", 0o755), "link/x": file()}, ["bin"]),
            ["link", "link/x"],
        ),
    ],
)
def test_a_tree_is_its_base_without_what_is_deleted_or_replaced(commit, paths):
    base = BaseTree(A, MANIFEST)
    tree = FileTree(commit, base)

    assert [path for path, _ in tree] == paths
    assert dict(tree) == {path: tree.find(path) for path in paths}
    assert all(tree.find(path) is None for path in set(MANIFEST) - set(paths))
    assert set(tree.gone()) == set(MANIFEST) - set(paths)
