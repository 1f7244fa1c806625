import json
import os
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from click.testing import CliRunner
from test_display import make_console

from wtb_core import doctor
from wtb_core.cli import main
from wtb_core.doctor import Finding
from wtb_core.errors import Unavailable
from wtb_core.serving import read_config

TRIVIAL = Path(__file__).parents[1] / "projects" / "trivial" / "project.yaml"
APPLICATION = {"name": "wtb", "import_path": "deployments.app:build_app"}
READY = {"ready": True, "problems": [], "project_problems": []}
GIB = 1024**3


def states(findings):
    return [finding.state for finding in findings]


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WTB_ROOT", raising=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    content = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [{**APPLICATION, "args": {"projects": [str(TRIVIAL)]}}],
    }
    (tmp_path / "serve_config.yaml").write_text(yaml.safe_dump(content))
    return read_config()


def test_the_service_runs_on_linux():
    assert states(doctor.check_system("Linux")) == ["ok"]
    (finding,) = doctor.check_system("Darwin")
    assert (finding.state, "not on Darwin" in finding.message) == ("problem", True)


@pytest.mark.parametrize(
    ("python", "state"), [((3, 11), "problem"), ((3, 12), "ok"), ((3, 13), "warning")]
)
def test_python_is_compared_with_what_is_tested(python, state):
    assert states(doctor.check_versions(python)) == [state, "ok", "ok"]


@pytest.mark.parametrize(
    ("installed", "words"),
    [("2.59.0", "2.59.0 is installed; supported is"), (None, "not installed")],
)
def test_ray_and_langgraph_are_compared_with_the_supported_ranges(monkeypatch, installed, words):
    metadata = doctor.importlib.metadata

    def version(name):
        if installed is None:
            raise metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(metadata, "version", version)
    _, ray, langgraph = doctor.check_versions((3, 12))
    assert (ray.check, ray.state, langgraph.state) == ("ray", "problem", "problem")
    assert words in ray.message


@pytest.mark.parametrize(
    ("soft", "state"), [(1024, "warning"), (4096, "ok"), (-1, "ok"), (None, None)]
)
def test_open_files(soft, state):
    (finding,) = doctor.check_limits(soft)
    assert state is None or finding.state == state


@pytest.mark.parametrize(("free", "state"), [(GIB, "ok"), (64 * 1024**2, "warning")])
def test_shared_memory(monkeypatch, free, state):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert states(doctor.check_shared_memory()) == [state]


def test_no_shared_memory_at_all(tmp_path):
    assert states(doctor.check_shared_memory(tmp_path / "none")) == ["warning"]


def test_what_isolation_misses_is_said_in_plain_words():
    missed = [{"level": "A", "step": "s", "errno": 1, "meaning": "no network namespace"}]
    kept = {"workspace": "A", "confinement": "full", "missed": []}

    (finding,) = doctor.check_isolation({**kept, "missed": missed})
    assert (finding.state, "no network namespace" in finding.message) == ("warning", True)
    assert states(doctor.check_isolation(kept)) == ["ok"]


def test_the_arguments_are_checked_by_a_child(config, monkeypatch):
    asked = []

    def run(command, **options):
        asked.append((command, options["timeout"]))
        return subprocess.CompletedProcess(command, 0, stdout=out, stderr="x\nImportError: ray")

    monkeypatch.setattr(doctor.subprocess, "run", run)
    out = "noise\n[]\n"
    assert states(doctor.check_config(config)) == ["ok"]
    out = '["args.slots: no"]\n'
    (finding,) = doctor.check_config(config)
    assert (finding.state, finding.message) == ("problem", "serve_config.yaml: args.slots: no")
    assert json.loads(asked[0][0][-1]) == {"projects": [str(TRIVIAL)]}

    def fail(command, **_):
        return subprocess.CompletedProcess(command, 1, stdout="", stderr="x\nImportError: ray")

    monkeypatch.setattr(doctor.subprocess, "run", fail)
    assert "cannot be imported: ImportError: ray" in next(doctor.check_config(config)).message


@pytest.mark.parametrize(
    ("kind", "free", "state"),
    [
        ("ext4", 50 * GIB, "ok"),
        ("ext4", GIB, "warning"),
        ("ext4", 1024, "problem"),
        ("tmpfs", 50 * GIB, "warning"),
        ("nfs4", 50 * GIB, "problem"),
    ],
)
def test_where_data_lies(tmp_path, monkeypatch, kind, free, state):
    monkeypatch.setattr(doctor, "find_file_system", lambda _: kind)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    (finding,) = doctor.check_data_dir(tmp_path / "not" / "yet")

    assert (finding.state, kind in finding.message) == (state, True)
    assert list(tmp_path.iterdir()) == []  # nothing is made


def test_a_data_directory_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert states(doctor.check_data_dir(tmp_path / "file" / "data")) == ["problem"]
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert states(doctor.check_data_dir(tmp_path)) == ["problem"]


def test_the_file_system_is_that_of_the_nearest_mount(monkeypatch):
    kinds = {"/": "ext4", "/mnt": "nfs", "/mn": "odd"}
    mounts = [SimpleNamespace(mountpoint=path, fstype=kind) for path, kind in kinds.items()]
    monkeypatch.setattr(doctor.psutil, "disk_partitions", lambda **_: mounts)

    assert doctor.find_file_system(Path("/mnt/a/b")) == "nfs"
    assert doctor.find_file_system(Path("/elsewhere")) == "ext4"


def test_the_port_is_free_or_whose_it_is(config, monkeypatch):
    assert states(doctor.check_port(config)) == ["ok"]
    monkeypatch.setattr(doctor, "is_free", lambda *_: False)
    monkeypatch.setattr(doctor, "ask_service", lambda _: READY)
    assert states(doctor.check_port(config)) == ["ok"]
    starting = {**READY, "ready": False, "problems": ["no replica"]}
    monkeypatch.setattr(doctor, "ask_service", lambda _: starting)
    (finding,) = doctor.check_port(config)
    assert (finding.state, "not ready: no replica" in finding.message) == ("warning", True)

    def refuse(url):
        raise Unavailable(f"what answers at {url} is not WTB Serve")

    monkeypatch.setattr(doctor, "ask_service", refuse)
    (finding,) = doctor.check_port(config)
    assert (finding.state, "is taken: what answers" in finding.message) == ("problem", True)
    assert "not by WTB Serve" in doctor.describe_service("http://x")


def test_a_folder_that_hides_our_packages_is_a_problem(config, tmp_path):
    (tmp_path / "wtb_core.py").touch()
    assert [f.state for f in doctor.check_port(config) if f.check == "folder"] == ["problem"]


def test_projects_are_described_and_leave_nothing_behind(config, tmp_path):
    assert states(doctor.check_projects(config)) == ["ok"]
    (tmp_path / "project.yaml").write_text("name: broken\ngraph: ./none.py:graph\n")
    (finding,) = doctor.check_projects(config.change(projects=["project.yaml"]))
    assert finding.state == "problem"
    assert "project.yaml: " in finding.message
    assert states(doctor.check_projects(config.change(projects=["none/*.yaml"]))) == ["warning"]
    assert not (tmp_path / ".wtb").exists()


def test_findings_are_lines_and_text_of_users_is_harmless():
    console = make_console()
    doctor.print_findings(
        [Finding("a", "ok", "fine"), Finding("b", "problem", "\x1b[2J[x]")], console
    )

    assert console.file.getvalue().splitlines() == [
        "ok       a              fine",
        "problem  b              [x]",
        "1 problems, 0 warnings",
    ]


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warning", 0), ("problem", 1)])
def test_the_command_exits_by_what_was_found(config, monkeypatch, state, code):
    asked = []

    def diagnose(*arguments):
        asked.append(arguments)
        return [Finding("a", state, "b")]

    monkeypatch.setattr(doctor, "diagnose", diagnose)
    done = CliRunner().invoke(main, ["doctor", "--json", "--data-dir", "d", "--url", "http://x"])

    assert done.exit_code == code
    assert json.loads(done.stdout) == {"checks": [{"check": "a", "state": state, "message": "b"}]}
    assert asked == [(None, "d", "http://x")]


def test_all_checks_are_made_and_a_bad_config_is_one_more_finding(config, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "check_config", lambda _: [Finding("config", "ok", "")])
    found = {finding.check for finding in doctor.diagnose(None, None, config.url)}
    assert found == {
        *["system", "python", "ray", "langgraph", "open files", "shared memory", "isolation"],
        *["config", "data", "port", "projects"],
    }
    assert "service" in {f.check for f in doctor.diagnose(None, None, "http://127.0.0.1:1")}
    bad = tmp_path / "bad.yaml"
    bad.write_text("- no")
    assert doctor.diagnose(bad, None, config.url)[-1].check == "config"
