"""Scores of a finished repair."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree as ET


def tests_pass(input: dict, reference: dict, workspace: Path) -> dict:  # noqa: A002
    """Run the module's tests with pytest in the finished workspace: 1 if all pass, else 0.

    All means as many as `reference["tests"]`: a repair that removes or skips tests scores 0.
    """
    passed = _passed(workspace, f"tests/test_{Path(input['module']).stem}.py")
    expected = reference["tests"]
    return {"score": int(passed == expected), "comment": f"{passed} of {expected} passed"}


def candidates_tried(output: dict) -> int:
    """Return how many patches were tried; the effort, whether it paid or not."""
    return output["tried"]


def _passed(workspace: Path, test_file: str) -> int:
    """Count the tests of a file that pass; none if they do not end within a minute."""
    with TemporaryDirectory() as directory:
        report = Path(directory, "report.xml")
        command = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        try:
            subprocess.run(
                [*command, f"--junitxml={report}", test_file],
                cwd=workspace,
                # Plugins that happen to be installed cost a second and could change the result.
                env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
                timeout=60,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return 0
        if not report.exists():
            raise RuntimeError("pytest wrote no report; is it installed for this interpreter?")
        cases = ET.parse(report).iter("testcase")  # noqa: S314 - pytest wrote it
        # A test that failed, broke or was skipped has a child element saying so.
        return sum(len(case) == 0 for case in cases)
