import os
import socket
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wtb_core.files.blobs import BlobStore
from wtb_core.files.manifests import Entry, iterate_stamps, materialise, scan


def skip_nothing(_path):
    return False


@pytest.fixture
def blobs(tmp_path):
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    return root


names = st.sampled_from(["a", "b", "a-b", "a.b", "ä", "x y", ".hidden", "-", "Z"])
files = st.tuples(st.binary(max_size=20), st.booleans())
links = st.sampled_from(["../outside", "a", "/etc/passwd", "no/such/thing"])
trees = st.recursive(
    st.dictionaries(names, files | links, max_size=4),
    lambda inner: st.dictionaries(names, files | links | inner, max_size=4),
    max_leaves=12,
)


def build(tree, directory):
    directory.mkdir()
    for name, node in tree.items():
        path = directory / name
        if isinstance(node, dict):
            build(node, path)
        elif isinstance(node, str):
            path.symlink_to(node)
        else:
            content, executable = node
            path.write_bytes(content)
            path.chmod(0o755 if executable else 0o644)


def look(directory):
    """A tree in the shape it was built from, without our code."""
    found = {}
    for path in directory.iterdir():
        if path.is_symlink():
            found[path.name] = str(path.readlink())
        elif path.is_dir():
            found[path.name] = look(path)
        else:
            found[path.name] = (path.read_bytes(), bool(path.stat().st_mode & stat.S_IXUSR))
    return found


@settings(max_examples=50)
@given(tree=trees)
def test_a_tree_made_again_is_the_same_tree(tmp_path_factory, tree):
    place = tmp_path_factory.mktemp("trees")
    blobs = BlobStore(place / "blobs")
    build(tree, place / "one")

    manifest = scan(place / "one", blobs, skip_nothing)
    materialise(manifest, blobs, place / "two")

    assert look(place / "two") == tree
    assert scan(place / "two", blobs, skip_nothing) == manifest
    assert list(manifest) == list(scan(place / "two", blobs, skip_nothing))
    # Written as JSON with sorted keys, parents still come before what is in them.
    materialise(dict(sorted(manifest.items())), blobs, place / "three")
    assert look(place / "three") == tree


def test_a_manifest_says_what_is_at_each_path(root, blobs):
    (root / "bin").mkdir()
    (root / "bin" / "tool").write_text("#!")
    (root / "bin" / "tool").chmod(0o700)
    (root / "note").write_text("hello")
    (root / "link").symlink_to("bin/tool")

    assert scan(root, blobs, skip_nothing) == {
        "bin": Entry(kind="directory"),
        "bin/tool": Entry(kind="file", blob=blobs.put(b"#!"), executable=True),
        "link": Entry(kind="link", target="bin/tool"),
        "note": Entry(kind="file", blob=blobs.put(b"hello"), executable=False),
    }


def test_a_link_is_kept_as_a_link_and_nothing_behind_it_is_read(root, blobs, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("s3cret")
    (root / "directory").symlink_to(secret)
    (root / "file").symlink_to(secret / "key")
    (root / "loop").symlink_to(root)

    manifest = scan(root, blobs, skip_nothing)
    materialise(manifest, blobs, tmp_path / "copy")

    assert {entry.kind for entry in manifest.values()} == {"link"}
    assert not blobs.root.exists()
    assert (tmp_path / "copy" / "loop").readlink() == root


@pytest.mark.parametrize(
    ("mode", "expected"), [(0o644, 0o644), (0o600, 0o644), (0o755, 0o755), (0o700, 0o755)]
)
def test_of_a_files_mode_only_the_owners_executable_bit_is_kept(
    root, blobs, tmp_path, mode, expected
):
    (root / "file").write_text("")
    (root / "file").chmod(mode)
    before = os.umask(0o077)
    try:
        materialise(scan(root, blobs, skip_nothing), blobs, tmp_path / "copy")
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "copy" / "file").stat().st_mode) == expected


def test_a_skipped_directory_is_left_out_with_all_below_it(root, blobs):
    (root / "kept").mkdir()
    (root / "cache" / "deep").mkdir(parents=True)
    (root / "cache" / "deep" / "file").write_text("")

    assert list(scan(root, blobs, lambda path: path.name == "cache")) == ["kept"]
    assert [item.path for item in iterate_stamps(root, lambda path: path.name == "cache")] == [
        "kept"
    ]


def test_a_socket_cannot_be_stored(root, blobs, monkeypatch):
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("here")
        with pytest.raises(OSError, match="here is neither a file, a directory nor a link"):
            scan(root, blobs, skip_nothing)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_name_that_is_not_utf_8_is_refused_in_words_that_are(root, blobs, kind):
    if kind == "file":
        (root / os.fsdecode(b"caf\xe9")).write_text("")
    else:
        (root / "link").symlink_to(os.fsdecode(b"caf\xe9"))

    with pytest.raises(OSError, match="not UTF-8") as caught:
        scan(root, blobs, skip_nothing)
    str(caught.value).encode()


def test_the_stamp_of_a_tree_changes_with_each_write(root):
    def look():
        return list(iterate_stamps(root, skip_nothing))

    seen = [look()]
    (root / "a").write_text("1")
    seen.append(look())
    os.utime(root / "a", ns=(1, 1))
    seen.append(look())
    (root / "b").symlink_to("a")
    seen.append(look())
    (root / "a").rename(root / "c")
    seen.append(look())

    assert all(one != other for i, one in enumerate(seen) for other in seen[i + 1 :])
    assert look() == look()
