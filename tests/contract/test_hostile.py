"""Hostile code in a node, at every rung: what is refused, what is contained, what gets out.

The sets say what is `allowed`; the table of docs/isolation.md is held against them.
"""

import io
import json
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from wtb_core import doctor
from wtb_core.cli import main
from wtb_core.sandbox import kernel
from wtb_core.sandbox.auditing import Audit
from wtb_core.sandbox.probes import PROBES, Finding

ROOT = Path(__file__).parents[2]
BENCH = Path(__file__).parent / "hostile_bench.py"
IS_ROOT = os.geteuid() == 0

# Whether there is something to reach depends on the machine: interfaces, devices, mounts, modules.
MACHINE = {
    *("route", "interfaces", "cgroup_leave", "sysfs_write", "disk_read"),
    *("run_sockets", "memory_device", "base_setxattr", "trace", "memory_read", "memory_open"),
    *("descriptors_taken", "nested_namespace", "nested_namespace_read", "root_of_others"),
    *("environment_read", "environment_secret", "kernel_log", "namespaces_of_others"),
}
NOTHING: set[str] = set()
NETWORK = {"tcp_connect", "udp_send", "route", "interfaces"}
UNLIMITED = {
    *("fork_bomb", "memory_bomb_together", "memory_bomb_files", "disk_fill_deleted"),
}
LANDLOCK = {
    *("base_chmod", "base_utime", "base_setxattr", "processes_list", "descriptors_of_others"),
    *("replica_limits", "path_socket", "system_v_memory"),
    *(NETWORK | UNLIMITED),
}
NONE = LANDLOCK | {
    *("base_write", "base_append", "base_truncate", "base_map", "base_reopen", "base_rename"),
    *("base_replace", "base_delete", "base_create", "base_hard_link", "base_symbolic_link"),
    *("code_write", "code_create", "sibling_list", "sibling_read", "sibling_write"),
    *("sibling_create", "sibling_symbolic_link", "sibling_relative", "store_list", "store_read"),
    *("store_write", "store_create", "store_database_read", "store_database_write", "blob_read"),
    *("blob_write", "home_read", "home_list", "home_ssh_key", "home_write", "home_create"),
    *("shared_read", "shared_write", "abstract_socket", "replica_signal", "processes_signal"),
    *("disk_fill_tmp", "disk_fill_shared_memory"),
}
# Root owns the machine's files; of its processes, those with capabilities are out of reach.
NONE_AS_ROOT = {"etc_passwd_write", "etc_shadow_read", "kernel_settings"}
NONE_AS_USER = {"replica_priority"} | {
    *("trace", "memory_read", "memory_open", "descriptors_taken", "nested_namespace"),
    *("nested_namespace_read", "root_of_others", "environment_read", "environment_secret"),
}
LANDLOCK_AS_USER = {"replica_priority"}

ALLOWED = {
    "A": NOTHING,
    "A'": NOTHING,
    "A without Landlock": NOTHING,
    "namespaces": NOTHING,
    "landlock": LANDLOCK | (set() if IS_ROOT else LANDLOCK_AS_USER),
    "none": NONE | (NONE_AS_ROOT if IS_ROOT else NONE_AS_USER),
}


def attack(tmp_path, rung, *, network=False, names=None):
    """What `hostile_bench.py` prints, in a process with a secret and a home of its own."""
    for name in ("home", "data"):
        (tmp_path / name).mkdir()
    request = {"root": str(tmp_path / "data"), "rung": rung, "network": network, "probes": names}
    environment = {
        **os.environ,
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(BENCH.parent)]),
        "WTB_PROBE_SECRET": secrets.token_hex(16),
    }
    done = subprocess.run(
        [sys.executable, str(BENCH), json.dumps(request)],
        capture_output=True,
        text=True,
        timeout=280,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def find_allowed(answer):
    return {name: detail for name, verdict, detail, _ in answer["findings"] if verdict == "allowed"}


@pytest.fixture
def private_path(tmp_path_factory):
    """Below /tmp: the longest path of a Unix socket is short."""
    return tmp_path_factory.mktemp("hostile")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rung", ALLOWED)
def test_of_all_attacks_those_and_no_others_get_out(private_path, rung):
    if rung == "A'" and not kernel.has_capability(kernel.CAP_SYS_ADMIN):
        pytest.skip("A' takes root")
    answer = attack(private_path, rung)
    allowed = find_allowed(answer)
    told = {name for name, *_ in answer["findings"]}
    assert told == set(PROBES)
    if rung in {"landlock", "none"}:
        assert allowed.keys() - MACHINE == ALLOWED[rung] - MACHINE, allowed
        assert answer["sibling"]["before"] == answer["sibling"]["after"] or rung == "none"
    else:
        assert allowed.keys() <= ALLOWED[rung], allowed
        assert answer["isolation"]["base"]["changed"] is False
        assert answer["sibling"]["before"] == answer["sibling"]["after"]


@pytest.mark.timeout(300)
def test_with_a_network_nothing_more_gets_out_than_by_it(private_path):
    harmless = [name for name, probe in PROBES.items() if not probe.deadly]
    answer = attack(private_path, "A", network=True, names=harmless)
    allowed = find_allowed(answer)
    assert allowed.keys() - MACHINE == NETWORK - MACHINE, allowed
    assert allowed.keys() <= NETWORK


def test_the_table_in_the_docs_is_that_of_the_sets():
    text = (ROOT / "docs" / "isolation.md").read_text(encoding="utf-8")
    cells = {
        row[0]: row[1:]
        for row in re.findall(
            r"^\| `(\w+)` \|[^|]+" + r"\| (\w+) " * 5 + r"\|$", text, re.MULTILINE
        )
    }
    assert cells.keys() == PROBES.keys()
    columns = ("A", "A'", "namespaces", "landlock", "none")
    for index, rung in enumerate(columns):
        shown = {name for name, row in cells.items() if row[index] == "allowed"}
        as_user = {"landlock": LANDLOCK | LANDLOCK_AS_USER, "none": NONE | NONE_AS_USER}
        assert shown == as_user.get(rung, NOTHING), rung


@pytest.mark.timeout(120)
def test_an_audit_attacks_a_project_from_its_own_processes(private_path, monkeypatch):
    (private_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(private_path / "home"))
    arguments = ["--audit", str(ROOT / "tests" / "projects" / "trivial"), "--json"]
    given = [*arguments, "--data-dir", str(private_path / "data")]
    done = CliRunner().invoke(main, ["doctor", *given])
    report = json.loads(done.stdout)
    allowed = {found["name"] for found in report["findings"] if found["verdict"] == "allowed"}
    tried = {found["name"] for found in report["findings"]}
    assert tried | set(report["left_out"]) == set(PROBES)
    assert {"sibling_read", "home_ssh_key", "environment_secret", "memory_bomb"} <= tried
    assert (report["isolation"]["workspace"], report["network"]) == ("A", False)
    assert allowed == set()
    assert done.exit_code == (1 if allowed else 0)
    assert not list((private_path / "home").iterdir())
    assert not list(private_path.glob(".wtb-doctor-*"))


def test_an_audit_needs_a_project_without_problems(private_path):
    empty = CliRunner().invoke(main, ["doctor", "--audit", str(private_path)])
    assert (empty.exit_code, "there is no project.yaml" in empty.output) == (2, True)
    (private_path / "project.yaml").write_text("name: p\ngraph: ./gone.py:graph\n")
    broken = CliRunner().invoke(main, ["doctor", "--audit", str(private_path)])
    assert (broken.exit_code, "gone.py" in broken.output) == (2, True)


def test_the_table_of_an_audit_ends_with_what_got_out(report_of_two):
    shown = io.StringIO()
    console = Console(file=shown, width=120)
    doctor.print_audit(report_of_two, console)
    lines = shown.getvalue().splitlines()
    rows = [line for line in lines if line.startswith("│")]
    assert "Read another execution's file" in rows[-1]
    assert "[x]" in rows[0]
    assert "2 attacks without network: 1 refused, 0 contained, 1 allowed." in lines[-3]
    assert "overlay is refused" in lines[-2]
    assert lines[-1].endswith("disk_fill")


@pytest.fixture
def report_of_two():
    missed = [{"level": "A", "step": "overlay", "errno": 1, "meaning": "overlay is refused"}]
    isolation = {"workspace": "C", "confinement": "none", "missed": missed}
    findings = [
        Finding("sibling_read", "allowed", "read it"),
        Finding("base_write", "refused", "EROFS [x]"),
    ]
    return Audit(isolation, False, findings, ["disk_fill"])
