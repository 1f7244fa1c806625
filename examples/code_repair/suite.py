"""Run a module's tests in an interpreter of their own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

PACKAGE = "toolbox"
TIMEOUT_S = 10


class TestRun(TypedDict):
    """One test: whether it passed, and the lines of the module it executed."""

    name: str
    passed: bool
    lines: list[int]


def run_suite(module: str) -> list[TestRun]:
    """Run the tests of a module of the package in the current directory.

    Returns:
        The tests in the order of their file; none if the module could not be imported or
        the run did not end within `TIMEOUT_S` seconds.

    Raises:
        subprocess.CalledProcessError: the run itself broke down.
    """
    traced = Path(__file__).with_name("traced.py")
    source = Path.cwd() / PACKAGE / module
    # Without site-packages, which the package does not need, and without .pyc files: patches
    # follow one another faster than a .pyc's one-second clock can tell.
    command = [sys.executable, "-I", "-S", "-B", traced, source, f"tests.test_{source.stem}"]
    try:
        run = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=True
        )
    except subprocess.TimeoutExpired:
        return []
    return json.loads(run.stdout)
