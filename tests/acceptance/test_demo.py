"""The demonstration and the command line, as a user runs them: real processes, real signals."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
WTB = Path(sys.executable).parent / "wtb"
SPEC = {
    "project": "failing",
    "variants": [{"name": "one"}, {"name": "two"}],
    "cases": [{"id": name, "input": {"do": name}} for name in ("fine", "good", "well")],
}


def find_processes(folder: Path) -> list[str]:
    """Commands of processes that have anything to do with `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            told = [*process.cmdline(), process.cwd(), *process.environ().values()]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if process.pid != os.getpid() and any(str(folder) in text for text in told):
            found.append(" ".join(process.cmdline()))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A user's folder: a config whose port is taken, a project, a spec."""
    with socket.socket() as occupant:
        occupant.bind(("127.0.0.1", 0))
        occupant.listen()
        config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
        config["http_options"]["port"] = occupant.getsockname()[1]
        config["applications"][0]["args"]["projects"] = [
            str(ROOT / "tests/projects/failing/*.yaml")
        ]
        (tmp_path / "serve_config.yaml").write_text(yaml.safe_dump(config))
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPEC))
        yield tmp_path


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [WTB, "demo", "--spec", "spec.yaml", *arguments],
        cwd=folder,
        env=os.environ | {"WTB_TEST_FOLDER": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until(process: subprocess.Popen[str], is_there: Callable[[str], bool]) -> list[str]:
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if is_there(line):
            return lines
    raise AssertionError("it ended early:\n" + "\n".join(lines))


def wait_until_gone(folder: Path) -> None:
    deadline = time.monotonic() + 10
    while left := find_processes(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_the_demo_shows_a_comparison_and_leaves_nothing_behind(folder: Path) -> None:
    process = start(folder)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "is taken; using port" in output
    assert "started: 6 executions of failing (2 variants x 3 cases x 1 repetitions)" in output
    assert re.search(r"^[1-6]/6 ended, \d running, 0 failed", output, re.MULTILINE), output
    rows = [line for line in output.splitlines() if "│" in line]
    assert any("one" in row and "2.000 (n 3)" in row for row in rows), output
    assert "Where to look" in output
    wait_until_gone(folder)


def test_a_kept_demo_serves_the_command_line_until_interrupted(folder: Path) -> None:
    process = start(folder, "--keep")
    try:
        lines = read_until(process, lambda line: "stays up" in line)
        url = next(line.split()[-1] for line in lines if line.startswith("ready after"))
        environment = os.environ | {"WTB_URL": url}

        def wtb(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [WTB, *arguments],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )

        listed = json.loads(wtb("batch", "list", "--json").stdout)["items"]
        assert [item["status"] for item in listed] == ["completed"]
        again = wtb("batch", "submit", "spec.yaml", "--watch")
        assert again.returncode == 0, again.stderr
        assert "Comparison" in again.stdout
        (folder / "failing.yaml").write_text(
            yaml.safe_dump(SPEC | {"cases": [{"id": "bad", "input": {"do": "raise"}}]})
        )
        assert wtb("batch", "submit", "failing.yaml", "--watch").returncode == 1
        (folder / "bad.yaml").write_text(yaml.safe_dump(SPEC | {"surprise": 1}))
        refused = wtb("batch", "submit", "bad.yaml")
        assert refused.returncode == 2
        assert "surprise: unknown key" in refused.stderr
        assert wtb("batch", "show", "nosuch").returncode == 2
        assert "failing" in wtb("project", "list").stdout
        compared = wtb("batch", "compare", listed[0]["batch_id"])
        assert "2.000 (n 3)" in compared.stdout
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=90) == 0
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=90)
    wait_until_gone(folder)


def test_a_demo_that_is_terminated_while_it_runs_leaves_nothing_behind(folder: Path) -> None:
    slow = SPEC | {"cases": [{"id": "slow", "input": {"do": "slow"}}], "repetitions": 20}
    (folder / "spec.yaml").write_text(yaml.safe_dump(slow))
    process = start(folder)
    read_until(process, lambda line: line.startswith("started:"))
    process.terminate()
    assert process.wait(timeout=120) == 130
    wait_until_gone(folder)


def test_nobody_at_the_url_is_exit_code_3(folder: Path) -> None:
    done = subprocess.run(
        [WTB, "batch", "submit", "spec.yaml", "--url", "http://127.0.0.1:1"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert "does not answer" in done.stderr
