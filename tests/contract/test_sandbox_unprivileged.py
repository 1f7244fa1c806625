"""The contract of the best isolation level, held to a user without any privilege."""

import re
from pathlib import Path

import pytest
from levels import LEVELS, find_obstacle
from unprivileged import run_unprivileged

TESTS = Path(__file__).parent
MODULES = ["test_sandbox_levels.py", "test_sandbox_processes.py"]
CHOSEN = "best_level or (overlay and not root_overlay and not fresh)"


def test_level_a_is_kept_for_a_user_without_privileges(tmp_path):
    obstacle = find_obstacle(LEVELS["overlay"], tmp_path / "check")
    if obstacle is not None:
        pytest.skip(obstacle)
    options = ["-q", "-p", "no:cacheprovider", "--timeout", "120", "--basetemp"]
    directory = tmp_path / "nobody"
    directory.mkdir()
    ended = run_unprivileged(
        [
            *("-m", "pytest", *options, str(directory / "tests"), "-k", CHOSEN),
            *(str(TESTS / module) for module in MODULES),
        ],
        directory,
        timeout_s=280,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    last = ended.stdout.strip().splitlines()[-1]
    assert int(re.search(r"(\d+) passed", last)[1]) >= 20
    assert "skipped" not in last
