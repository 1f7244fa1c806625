import subprocess
import sys

from wtb_core.sandbox.ownership import Owner

HOLD = """
import sys
from pathlib import Path
from wtb_core.sandbox.ownership import Owner

owner = Owner(Path(sys.argv[1]))
owner.make(Path(sys.argv[2]))
print(flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_owned_is_removed_and_nothing_else(tmp_path):
    owners, theirs = tmp_path / "owners", tmp_path / "runs" / "one" / "1"
    mine, kept = tmp_path / "runs" / "two" / "1", tmp_path / "runs" / "three" / "1"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(owners), str(theirs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    other.stdout.readline()
    owner = Owner(owners)
    owner.make(mine)
    kept.mkdir(parents=True)

    alive = owner.sweep([theirs, mine, kept])
    other.kill()
    other.communicate()
    dead = owner.sweep([theirs, mine, kept])

    assert (alive, dead) == (0, 1)
    assert [path.exists() for path in (theirs, theirs.parent, mine, kept)] == [
        *(False, False, True, True)
    ]
    assert [lock.name for lock in owners.iterdir()] == [owner.name]
    owner.close()
    assert list(owners.iterdir()) == []


def test_a_mark_with_a_path_in_it_is_no_owner(tmp_path):
    owner = Owner(tmp_path / "owners")
    owner.make(tmp_path / "run")
    (tmp_path / "run" / "owner").write_text("../../elsewhere")

    assert owner.sweep([tmp_path / "run"]) == 0
    owner.close()
