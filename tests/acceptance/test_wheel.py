"""The wheel in an empty folder: a user's own project, served, submitted, watched, compared."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
GRAPH = """
from typing import TypedDict
from langgraph.graph import END, START, StateGraph

class Ticket(TypedDict, total=False):
    text: str
    queue: str

def by_first_word(state: Ticket) -> Ticket:
    return {"queue": "billing" if state["text"].startswith("Invoice") else "support"}

def by_keyword(state: Ticket) -> Ticket:
    return {"queue": "billing" if "invoice" in state["text"].lower() else "support"}

def build_graph() -> StateGraph:
    graph = StateGraph(Ticket)
    graph.add_node("classify", by_first_word)
    graph.add_edge(START, "classify")
    graph.add_edge("classify", END)
    return graph

def right_queue(output: dict, reference: str) -> bool:
    return output["queue"] == reference
"""
PROJECT = {
    "name": "triage",
    "graph": "./graph.py:build_graph",
    "nodes": {"classify": {"keyword": "./graph.py:by_keyword"}},
    "evaluators": {"right_queue": "./graph.py:right_queue"},
}
SPEC = {
    "project": "triage",
    "variants": [{"name": "first-word"}, {"name": "keyword", "nodes": {"classify": "keyword"}}],
    "cases": [
        {"id": "first", "input": {"text": "Invoice 12"}, "reference": "billing"},
        {"id": "later", "input": {"text": "An invoice"}, "reference": "billing"},
    ],
}


@pytest.fixture(scope="module")
def wtb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of a wheel in a venv of its own, with the dependencies of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"  # a copy, because building leaves files in the tree
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "serve_config.yaml"):
        shutil.copy(ROOT / name, tree)
    for name in ("wtb_core", "deployments"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder)]
    run([*pip, *build, str(tree)], folder)
    run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], folder)
    python = folder / "venv/bin/python"
    (wheel,) = folder.glob("*.whl")
    run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], folder)
    packages = run(
        [str(python), "-c", "import sysconfig as s; print(s.get_path('purelib'))"], folder
    )
    pth = Path(packages.strip()) / "dependencies.pth"
    pth.write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv/bin/wtb"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder: a project below it and a spec, and no config."""
    (tmp_path / "triage").mkdir()
    (tmp_path / "triage/graph.py").write_text(GRAPH)
    (tmp_path / "triage/project.yaml").write_text(yaml.safe_dump(PROJECT))
    (tmp_path / "batch.yaml").write_text(yaml.safe_dump(SPEC))
    return tmp_path


def make_environment(**more: str) -> dict[str, str]:
    hidden = {"PYTHONPATH", "RAY_ADDRESS", "WTB_ROOT", "WTB_URL", "WTB_TOKEN"}
    return {k: v for k, v in os.environ.items() if k not in hidden} | more


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=make_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while not is_so():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.3)


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
            return json.load(answer)["ready"]
    except OSError:
        return False


@pytest.fixture
def service(wtb: Path, folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [wtb, "serve", "--port", str(port)],
            cwd=folder,
            env=make_environment(PYTHONUNBUFFERED="1"),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is sent to it alone
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: is_ready(url), process, log)
        yield url, process, log
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=90)


def test_a_users_own_project_is_served_from_an_empty_folder(wtb, folder, service) -> None:
    url, process, log = service

    def ask(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [wtb, *arguments],
            cwd=folder,
            env=make_environment(WTB_URL=url),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        return done

    said = log.read_text()
    assert f"API       {url}/v1" in said
    assert f"data      {folder}/.wtb\n" in said
    assert f"project   {folder}/triage/project.yaml (triage)\n" in said

    batch_id = json.loads(ask("batch", "submit", "batch.yaml", "--json").stdout)["batch_id"]
    assert "Comparison" in ask("batch", "watch", batch_id).stdout
    compared = ask("batch", "compare", batch_id, "--format", "csv").stdout
    assert "keyword,2,2,0,0,1.0,2,1.0,2" in compared
    assert (
        "1 variants x 2 cases"
        in ask("batch", "submit", "batch.yaml", "--watch", "--variant", "first*").stdout
    )
    assert len(ask("batch").stdout.splitlines()) == 2
    ask("batch", "export", batch_id, "--format", "junit", "-o", "out.xml")
    assert (folder / "out.xml").read_text().count("<testcase") == 4
    assert "triage" in ask("project").stdout
    port = url.rpartition(":")[2]
    assert "is taken, by a WTB service" in ask("serve", "--port", port, code=1).stderr
    assert f"{url} is a WTB service that is ready" in ask("doctor").stdout

    process.send_signal(signal.SIGINT)
    process.wait(timeout=90)
    ask("batch", "show", batch_id, code=3)


def test_the_demonstration_says_that_it_needs_a_clone(wtb, folder) -> None:
    done = subprocess.run(
        [wtb, "demo"],
        cwd=folder,
        env=make_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "run `wtb demo` in a clone" in done.stderr


def test_a_batch_runs_without_a_server(wtb, folder) -> None:
    said = run([str(wtb), "run", "batch.yaml"], folder)
    assert "* keyword" in said
