"""`wtb prune` as a command: which data it takes, what it says, how it ends."""

import json

import pytest
import yaml
from click.testing import CliRunner

from wtb_core import retention
from wtb_core.cli import main
from wtb_core.commands import pruning
from wtb_core.errors import InvalidRequest, Unavailable
from wtb_core.retention import Policy, Report

APPLICATION = {"name": "wtb", "import_path": "deployments.app:build_app"}


class Fake:
    """Says what it was asked for, and removes nothing."""

    def __init__(self):
        self.calls = []
        self.report = {}
        self.error = None

    def __call__(self, data, policy, *, dry_run=False):
        self.calls.append((data, policy, dry_run))
        if self.error is not None:
            raise self.error
        return Report(data_dir=str(data.path), dry_run=dry_run, **self.report)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    fake = Fake()
    monkeypatch.setattr(retention, "prune", fake)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WTB_ROOT", raising=False)
    return fake


def run(*arguments, **options):
    return CliRunner().invoke(main, ["prune", *arguments], **options)


def write_config(path, **args):
    content = {"applications": [{**APPLICATION, "args": args}]}
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_alone_it_takes_the_folders_config_and_its_defaults(fake, tmp_path):
    done = run()

    assert done.exit_code == 0, done.output
    [(data, policy, dry_run)] = fake.calls
    assert (data.path, data.blobs, data.cache) == (
        tmp_path / ".wtb",
        tmp_path / ".wtb" / "blobs",
        tmp_path / ".wtb",
    )
    assert (policy, dry_run) == (Policy(), False)


def test_every_option_arrives(fake):
    done = run(
        *("--older-than", "12h", "--status", "failed, cancelled", "--project", "p"),
        *("--keep-last", "3", "--grace", "90m", "--dry-run"),
    )

    assert done.exit_code == 0, done.output
    [(_, policy, dry_run)] = fake.calls
    assert policy == Policy(12 * 3600.0, frozenset({"failed", "cancelled"}), 3, "p", 5400.0)
    assert dry_run
    assert "would be removed" in done.output


def test_a_config_says_where_blobs_and_cache_are(fake, tmp_path):
    config = write_config(
        tmp_path / "c.yaml", root=str(tmp_path / "r"), data_dir="d", blob_dir="b", cache_dir="/c"
    )

    assert run(config).exit_code == 0

    [(data, _, _)] = fake.calls
    assert (data.path, data.blobs) == (tmp_path / "r" / "d", tmp_path / "r" / "b")
    assert str(data.cache) == "/c"


def test_a_data_directory_is_taken_alone_whatever_the_folders_config_says(fake, tmp_path):
    """Else the blobs of a service would be swept by what another store names."""
    write_config(tmp_path / "serve_config.yaml", blob_dir="b", cache_dir="c")
    (tmp_path / "local").mkdir()

    assert run("--data-dir", "local").exit_code == 0

    [(data, _, _)] = fake.calls
    assert data.path == data.cache == tmp_path / "local"
    assert data.blobs == tmp_path / "local" / "blobs"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--older-than", "soon"), "give a duration"),
        (("--older-than", "-1d"), "give a duration"),
        (("--status", "running"), "'running' is none of cancelled,completed,failed"),
        (("--status", ""), "is none of"),
        (("--keep-last", "-1"), "-1"),
        (("--data-dir", "nowhere"), "does not exist"),
        (("serve_config.yaml", "--data-dir", "."), "not both"),
    ],
)
def test_wrong_usage(fake, tmp_path, arguments, said):
    write_config(tmp_path / "serve_config.yaml")

    done = run(*arguments)

    assert (done.exit_code, fake.calls) == (2, [])
    assert said in done.output


def test_json_is_the_report_and_nothing_else(fake, tmp_path):
    fake.report = {"batches": 2, "blobs": 3, "blobs_bytes": 4096, "workspaces_bytes": 10}

    done = run("--json")

    assert done.exit_code == 0
    report = json.loads(done.output)
    assert report["size_bytes"] == 4106
    assert (report["batches"], report["blobs"], report["dry_run"]) == (2, 3, False)
    assert report["data_dir"] == str(tmp_path / ".wtb")


def test_what_it_says(fake):
    fake.report = {
        "batches": 2,
        "executions": 30,
        "events": 400,
        "text_bytes": 5_000,
        "blobs": 3,
        "blobs_bytes": 3 * 1024**2,
        "held": 4,
        "young_blobs": 5,
        "problems": ["blobs: [red]not\x1b[2J readable"],
    }

    done = run()

    assert done.exit_code == 1
    assert "2 batches removed from" in done.output
    assert "with 30 executions, 400 events, about 4.9 KiB in the database" in done.output
    assert "3 blobs removed: 3.0 MiB" in done.output
    assert "4 batches stay" in done.output
    assert "5 blobs stay" in done.output
    assert "problem: blobs: [red]not readable" in done.output


@pytest.mark.parametrize(
    ("error", "code"),
    [(InvalidRequest("--data-dir", "there is no wtb.db"), 2), (Unavailable("another prune"), 3)],
)
def test_errors_end_it_as_they_end_other_commands(fake, error, code):
    fake.error = error
    done = run()
    assert done.exit_code == code
    assert done.output.startswith("error: ")


@pytest.fixture
def _terminal(monkeypatch):
    """Standard input that says it is a terminal; the runner's own never does."""
    isatty = type("Sys", (), {"stdin": type("In", (), {"isatty": staticmethod(lambda: True)})})
    monkeypatch.setattr(pruning, "sys", isatty)


@pytest.mark.usefixtures("_terminal")
@pytest.mark.parametrize(("answer", "dry_runs"), [("y\n", [True, False]), ("n\n", [True])])
def test_in_a_terminal_it_shows_what_would_go_and_asks(fake, answer, dry_runs):
    done = run(input=answer)

    assert [dry_run for _, _, dry_run in fake.calls] == dry_runs
    assert "Remove this?" in done.output
    assert done.exit_code == (0 if len(dry_runs) == 2 else 1)


@pytest.mark.usefixtures("_terminal")
@pytest.mark.parametrize("option", ["--yes", "-y", "--json", "--dry-run"])
def test_it_does_not_ask_who_has_said(fake, option):
    assert run(option).exit_code == 0
    assert len(fake.calls) == 1


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (5 * 1024**3, "5.0 GiB"),
        (2 * 1024**4, "2.0 TiB"),
    ],
)
def test_sizes_for_people(count, text):
    assert pruning._size(count) == text
