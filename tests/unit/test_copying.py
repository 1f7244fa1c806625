# The plain calls of the kernel, which pathlib would normalise.
# ruff: noqa: PTH115, PTH208

import errno
import os
import stat
import threading

import pytest

from wtb_core.errors import SetupError
from wtb_core.files import copying
from wtb_core.files.copying import can_reflink, copy_file, copy_tree


@pytest.fixture
def source(tmp_path):
    source = tmp_path / "source"
    (source / "empty").mkdir(parents=True)
    (source / "empty").chmod(0o700)
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "file").write_bytes(b"content")
    (source / "deep" / "er" / "file").chmod(0o4750)
    os.utime(source / "deep" / "er" / "file", ns=(1, 2))
    (source / "deep" / "er").chmod(0o555)
    (source / "link").symlink_to("deep")
    (source / "nowhere").symlink_to("/no/such/thing")
    (source / os.fsdecode(b"\xff\n")).write_bytes(b"odd")
    os.mkfifo(source / "pipe")
    source.chmod(0o750)
    return source


def test_a_copy_has_the_files_modes_links_and_empty_directories(source, tmp_path):
    before = os.umask(0o077)
    try:
        copy_tree(source, tmp_path / "made" / "copy", reflink=False)
    finally:
        os.umask(before)
    copy = tmp_path / "made" / "copy"

    def get_mode(path):
        return stat.S_IMODE((copy / path).lstat().st_mode)

    assert sorted(os.listdir(copy)) == sorted(set(os.listdir(source)) - {"pipe"})
    assert [get_mode(path) for path in ("", "empty", "deep/er")] == [0o750, 0o700, 0o555]
    file = copy / "deep" / "er" / "file"
    assert (file.read_bytes(), get_mode("deep/er/file")) == (b"content", 0o4750)
    assert file.stat().st_mtime_ns == 2
    assert os.readlink(copy / "link") == "deep"
    assert os.readlink(copy / "nowhere") == "/no/such/thing"
    assert (copy / os.fsdecode(b"\xff\n")).read_bytes() == b"odd"


def test_a_copy_is_a_tree_of_its_own(source, tmp_path):
    copy_tree(source, tmp_path / "copy", reflink=False)

    with (tmp_path / "copy" / "deep" / "er" / "file").open("r+b") as file:
        file.write(b"CHANGED")

    assert (source / "deep" / "er" / "file").read_bytes() == b"content"


def test_without_a_source_the_copy_is_empty(tmp_path):
    copy_tree(None, tmp_path / "made" / "copy", reflink=True)

    assert os.listdir(tmp_path / "made" / "copy") == []


def test_a_large_tree_is_copied_whole_by_several_threads(tmp_path, monkeypatch):
    for number in range(600):
        path = tmp_path / "source" / str(number % 7) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(number))
    threads = set()
    copy_one = copying.copy_file

    def copy(*args, **options):
        threads.add(threading.get_ident())
        copy_one(*args, **options)

    monkeypatch.setattr(copying, "copy_file", copy)
    copy_tree(tmp_path / "source", tmp_path / "copy", reflink=False)

    for number in range(600):
        assert (tmp_path / "copy" / str(number % 7) / str(number)).read_text() == str(number)
    assert threading.get_ident() not in threads


def test_a_copy_that_fails_names_the_first_file_and_counts_the_others(
    source, tmp_path, monkeypatch
):
    def refuse(*_args):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(copying.os, "copy_file_range", refuse)

    with pytest.raises(SetupError, match=r"cannot be copied: no space left and 1 more$") as caught:
        copy_tree(source, tmp_path / "copy", reflink=False)
    assert f"workspace: {source}/" in str(caught.value)


def test_a_source_or_target_that_is_not_as_expected_is_a_setup_error(source, tmp_path):
    with pytest.raises(SetupError, match="nothing cannot be copied: No such file"):
        copy_tree(tmp_path / "nothing", tmp_path / "copy", reflink=False)
    with pytest.raises(SetupError, match="File exists"):
        copy_tree(source, tmp_path / "copy", reflink=False)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_the_kernel_does_not_copy_the_bytes_are_read_and_written(
    tmp_path, monkeypatch, number
):
    (tmp_path / "one").write_bytes(b"x" * 300_000)

    def refuse(*_args):
        raise OSError(number, "not here")

    monkeypatch.setattr(copying.os, "copy_file_range", refuse)
    copy_file(tmp_path / "one", tmp_path / "two", 0o640, reflink=False)

    assert (tmp_path / "two").read_bytes() == b"x" * 300_000


def test_a_file_is_not_copied_through_a_link_nor_over_another(tmp_path):
    (tmp_path / "secret").write_text("")
    (tmp_path / "link").symlink_to("secret")

    with pytest.raises(OSError, match="symbolic links"):
        copy_file(tmp_path / "link", tmp_path / "copy", 0o644, reflink=False)
    with pytest.raises(FileExistsError):
        copy_file(tmp_path / "secret", tmp_path / "link", 0o644, reflink=False)


def test_a_directory_says_whether_its_files_share_blocks_and_is_left_clean(tmp_path, monkeypatch):
    def refuse(_source, _target):
        raise OSError(errno.EOPNOTSUPP, "not here")

    with monkeypatch.context() as patched:
        patched.setattr(copying, "clone", lambda _source, _target: None)
        assert can_reflink(tmp_path) is None
        patched.setattr(copying, "clone", refuse)
        assert can_reflink(tmp_path).errno == errno.EOPNOTSUPP
    assert can_reflink(tmp_path / "nothing").errno == errno.ENOENT
    assert os.listdir(tmp_path) == []


def test_sharing_blocks_is_what_the_copy_does_when_asked(source, tmp_path):
    refused = can_reflink(tmp_path)
    if refused is None:
        copy_tree(source, tmp_path / "copy", reflink=True)
        assert (tmp_path / "copy" / "deep" / "er" / "file").read_bytes() == b"content"
    else:
        with pytest.raises(SetupError, match="cannot be copied"):
            copy_tree(source, tmp_path / "copy", reflink=True)
