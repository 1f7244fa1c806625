import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

from wtb_core import serving
from wtb_core.data import DataDir, hold
from wtb_core.errors import InvalidRequest, Unavailable
from wtb_core.serving import find_shadow, is_free, read_config, serve_command
from wtb_core.testbench import DEFAULT_PROJECTS

ROOT = Path(__file__).parents[2]
APPLICATION = {"name": "wtb", "import_path": "deployments.app:build_app"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WTB_ROOT", raising=False)
    return tmp_path


def write(path, content):
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_a_folder_without_a_config_has_the_packaged_one_with_the_projects_there(folder):
    config = read_config()

    assert config.patterns == list(DEFAULT_PROJECTS)
    assert (config.host, config.port, config.url) == ("127.0.0.1", 8000, "http://127.0.0.1:8000")
    assert (config.root, config.data_dir) == (folder, folder / ".wtb")
    for name in ("project.yaml", "a/project.yaml", "b/langgraph.json", "examples/c/project.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "a/b").mkdir()
    (folder / "a/b/project.yaml").touch()
    found = [str(path.relative_to(folder)) for path in config.find_projects()]
    assert found == [
        "project.yaml",
        "a/project.yaml",
        "b/langgraph.json",
        "examples/c/project.yaml",
    ]


def test_the_packaged_config_is_that_of_the_repository(folder):
    assert read_config().path == ROOT / "serve_config.yaml"
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    included = wheel["targets"]["wheel"]["force-include"]
    assert included == {"serve_config.yaml": "wtb_core/serve_config.yaml"}


def test_the_folders_config_comes_before_the_packaged_and_a_named_one_before_both(folder):
    write(folder / "serve_config.yaml", {"applications": [APPLICATION]})
    named = write(folder / "named.yaml", {"applications": [APPLICATION]})

    assert read_config().path == Path("serve_config.yaml")
    assert read_config(named).path == named
    assert read_config().patterns == ["examples/*/project.yaml"]
    assert (read_config().host, read_config().url) == ("0.0.0.0", "http://127.0.0.1:8000")


def test_a_config_that_was_not_changed_is_used_where_it_lies_and_a_changed_one_is_written(folder):
    named = write(
        folder / "named.yaml",
        {"http_options": {"port": 9000, "keep": 1}, "applications": [{"name": "x"}, APPLICATION]},
    )
    config = read_config(named)
    assert config.write(folder / "data") == named

    changed = config.change(host="127.0.0.1", port=9001, projects=["p/*"], data_dir="data")

    written = yaml.safe_load(changed.write(folder / "data").read_text())
    assert written["http_options"] == {"port": 9001, "keep": 1, "host": "127.0.0.1"}
    assert written["applications"][1]["args"] == {
        "projects": ["p/*"],
        "data_dir": str(folder / "data"),
    }
    assert written["applications"][0] == {"name": "x"}
    assert (config.port, config.args) == (9000, {})
    assert (folder / "data").stat().st_mode & 0o777 == 0o700


def test_paths_start_where_the_application_will_start_them(folder, monkeypatch):
    config = write(folder / "c.yaml", {"applications": [APPLICATION]})
    assert read_config(config).root == folder
    monkeypatch.setenv("WTB_ROOT", "/elsewhere")
    assert read_config(config).data_dir == Path("/elsewhere/.wtb")
    with_root = {**APPLICATION, "args": {"root": "/named", "data_dir": "d"}}
    write(config, {"applications": [with_root]})
    assert read_config(config).data_dir == Path("/named/d")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [", "is not YAML"),
        ("- a", "is a mapping"),
        ({}, "none has the import_path deployments.app:build_app"),
        ({"applications": [{"import_path": "my:app"}, 3]}, "none has the import_path"),
        ({"applications": [APPLICATION], "http_options": 3}, "http_options"),
        ({"applications": [APPLICATION], "http_options": {"port": "x"}}, "port: a number"),
        ({"applications": [{**APPLICATION, "args": 3}]}, "args: a mapping"),
    ],
)
def test_a_file_that_is_no_config_of_ours_is_refused_with_its_name(folder, content, words):
    path = write(folder / "c.yaml", content)

    with pytest.raises(InvalidRequest, match=words) as caught:
        read_config(path)
    assert caught.value.parameter == str(path)


def test_a_port_is_free_until_somebody_listens():
    with socket.socket() as occupant:
        occupant.bind(("127.0.0.1", 0))
        port = occupant.getsockname()[1]
        occupant.listen()
        assert not is_free("127.0.0.1", port)
        assert not is_free("0.0.0.0", port)
    assert is_free("127.0.0.1", port)
    with pytest.raises(InvalidRequest, match="no address"):
        is_free("no such host", 1)


def test_serve_is_that_of_this_interpreter(folder, monkeypatch):
    python = folder / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda _: object())
    arguments = ["run", "--address", "local", "c.yaml"]

    assert serve_command(Path("c.yaml")) == [
        *[str(python), "-m", "ray.serve.scripts", *arguments],
    ]
    (folder / "serve").touch()
    assert serve_command(Path("c.yaml")) == [str(folder / "serve"), *arguments]
    (folder / "serve").unlink()
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(Unavailable, match="Ray Serve is not installed"):
        serve_command(Path("c.yaml"))


def test_a_package_of_the_users_that_hides_ours_is_found(folder):
    assert find_shadow(ROOT) is None
    (folder / "deployments").mkdir()  # without an `__init__.py` it hides nothing
    assert find_shadow(folder) is None
    (folder / "deployments/__init__.py").touch()
    assert find_shadow(folder) == folder / "deployments/__init__.py"


def test_a_data_directory_has_one_service_at_a_time(tmp_path):
    with hold(tmp_path / "serve.lock", "service"), pytest.raises(Unavailable, match="service uses"):
        hold(tmp_path / "serve.lock", "service")
    hold(tmp_path / "serve.lock", "service").close()


def test_a_lock_that_is_inherited_lasts_as_long_as_the_heir(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from wtb_core.data import hold; "
        "lock = hold(Path(sys.argv[1]), 'service', inheritable=True); "
        "os.execv(sys.executable, [sys.executable, '-c', 'input()'])"
    )
    lock = tmp_path / "serve.lock"
    with subprocess.Popen([sys.executable, "-c", script, lock], stdin=subprocess.PIPE) as heir:
        deadline = time.monotonic() + 30
        while b"-c\0input()\0" not in Path(f"/proc/{heir.pid}/cmdline").read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(Unavailable):
            hold(lock, "service")
        heir.communicate(b"\n")
    hold(lock, "service").close()


def test_every_directory_that_is_made_is_private(tmp_path):
    data = DataDir(tmp_path / "a" / "b", cache_dir=tmp_path / "c" / "d").create()

    made = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert data.bases in made
    assert {path.stat().st_mode & 0o777 for path in made} == {0o700}
