"""What user code leaves is read and removed, however it has made it hard."""

import os
from pathlib import Path

from sandbox_bench import wait_until
from unprivileged import run_unprivileged

from wtb_core import engine
from wtb_core.sandbox import leftovers
from wtb_core.sandbox.leftovers import remove_tree
from wtb_core.sandbox.ownership import MARK

DEPTH = 3000
UNREADABLE = """
import os, sys
from pathlib import Path
from wtb_core.redaction import Redactor
from wtb_core.sandbox.leftovers import read_head, remove_tree
from wtb_core.sandbox.supervisor import read_tail

os.chdir(sys.argv[1])
log = Path("log")
log.write_text("said")
log.chmod(0)
assert read_head(log, 100, Redactor({})).data == b"said"
log.chmod(0)
assert read_tail(log) == "said"
tree = Path("tree")
(tree / "closed" / "inner").mkdir(parents=True)
(tree / "closed" / "inner" / "file").write_text("x")
for mode, path in ((0, "closed/inner"), (0o500, "closed"), (0, "")):
    (tree / path).chmod(mode)
remove_tree(tree)
assert not tree.exists()
"""


def make_deep(path: Path) -> None:
    back = Path.cwd()
    path.mkdir()
    os.chdir(path)
    for _ in range(DEPTH):
        Path("file").write_text("x")
        Path("link").symlink_to(back)
        Path("d").mkdir()
        os.chdir("d")
    os.chdir(back)


def test_a_tree_deeper_than_any_path_is_removed_and_no_link_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("outside").write_text("stays")
    make_deep(tmp_path / "deep")
    remove_tree(tmp_path / "deep")
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]


def test_what_its_owner_must_not_read_is_read_and_removed(tmp_path):
    ended = run_unprivileged(["-c", UNREADABLE, str(tmp_path)], tmp_path, timeout_s=60)
    assert ended.returncode == 0, ended.stderr


def test_an_attempt_that_nests_directories_without_bound_leaves_nothing(bench):
    bench.add_scripted()
    code = f"""
        import os
        for top in (os.environ["HOME"], os.getcwd()):
            os.chdir(top)
            for _ in range({DEPTH}):
                os.mkdir("d")
                os.chdir("d")
    """
    assert bench.script(code, execution_id="deep").status == "succeeded"
    wait_until(lambda: not (bench.root / "runs" / "deep").exists())


def test_an_attempt_names_its_owner_until_all_else_is_removed(tmp_path, monkeypatch):
    names = {MARK, *(f"entry-{number}" for number in range(30))}
    for name in names:
        (tmp_path / name).mkdir()
    removed = []
    monkeypatch.setattr(leftovers, "remove_tree", lambda path: removed.append(path.name))
    engine._remove_attempt(tmp_path, keep_workspace=False)
    assert set(removed) == names
    assert removed[-1] == MARK
