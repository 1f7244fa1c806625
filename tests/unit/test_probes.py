"""Unconfined, every probe must find the hole that it looks for."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from wtb_core.sandbox import probes
from wtb_core.sandbox.probes.findings import MARK, PROBES, Finding, Probe, Seen

ATTACKS = Path(__file__).parents[1] / "projects" / "attacks"
SECRET = "a-secret-of-the-replica"
LIMITS = {
    "disk_bytes": 8 * 1024**2,
    "memory_bytes": 48 * 1024**2,
    "file_bytes": 1024**2,
    "processes": 8,
    "open_files": 64,
}
NOBODY = 65534
_SYS_ADMIN = 21
IS_ROOT = os.geteuid() == 0

RUN = """
import json, os, sys, time
from wtb_core.sandbox import probes

given = json.loads(sys.argv[1])
uid = given.pop("uid")
if uid is not None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
names = given.pop("names")
found = probes.run(probes.Surroundings.read(given), names)
print(json.dumps(found))
"""

# What anyone can do to what is his own.
ALWAYS = {
    *("base_write", "base_append", "base_truncate", "base_map", "base_reopen", "base_chmod"),
    *("base_utime", "base_rename", "base_replace", "base_delete", "base_create"),
    *("base_hard_link", "base_symbolic_link", "code_write", "code_create", "sibling_list"),
    *("sibling_read", "sibling_write", "sibling_create", "sibling_symbolic_link"),
    *("sibling_relative", "store_list", "store_read", "store_write", "store_create"),
    *("store_database_read", "store_database_write", "blob_read", "blob_write", "home_read"),
    *("home_list", "home_ssh_key", "home_write", "home_create", "shared_read", "shared_write"),
    *("processes_list", "replica_signal", "processes_signal", "environment_secret"),
    *("environment_read", "descriptors_of_others", "root_of_others", "replica_limits"),
    *("replica_priority", "daemon", "tcp_connect", "udp_send", "abstract_socket"),
    *("path_socket", "system_v_memory", "fork_bomb", "memory_bomb", "memory_bomb_together"),
    *("memory_bomb_files", "disk_fill", "disk_fill_tmp", "disk_fill_deleted"),
    "disk_fill_shared_memory",
    *("file_size", "open_files", "new_privileges"),
}
# What takes the capabilities of root, and no container around it.
ROOT = {
    *("etc_passwd_write", "etc_shadow_read", "mount_tmpfs", "mount_bind", "remount"),
    *("remount_attributes", "tree_clone", "unmount", "root_change", "root_pivot", "raw_socket"),
    *("capabilities", "user_change", "group_change", "priority_raise", "host_name"),
    *("file_handle", "namespaces_of_others", "kernel_settings", "base_setxattr"),
}
# Yama and user namespaces are settings of the machine.
SETTINGS = {
    *("trace", "memory_read", "memory_open", "descriptors_taken", "nested_namespace"),
    "nested_namespace_read",
}
# What depends on the machine: devices, modules, interfaces, sockets, the terminal.
MACHINE = {
    *("disk_read", "memory_device", "disk_node", "sysfs_write", "cgroup_leave", "route"),
    *("interfaces", "hypervisor_socket", "run_sockets", "system_calls", "limits_raise"),
    *("memory_pressure_immunity", "kernel_module", "kernel_log", "terminal", "kernel_surface"),
    "session_keyring",
}
# What is not allowed even here.
CONTAINED = {"workspace_write", "descriptors_inherited"}


def has_capabilities(*numbers):
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return all(effective >> number & 1 for number in numbers)


@pytest.fixture
def make_surroundings():
    """Temporary directories in the place of the service's, and a process in that of the replica.

    Other users cannot reach the directories of pytest.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wtb-probes-")))
        yield lambda uid=None: _surroundings(stack, directory, uid)


def _surroundings(stack, tmp_path, uid):
    for name in ("base", "code", "store", "sibling", "home"):
        probes.put_marks(tmp_path / name)
    shutil.copytree(tmp_path / "base", tmp_path / "workspace")
    (tmp_path / "store" / "wtb.db").write_bytes(b"SQLite format 3\0")
    (tmp_path / "store" / "blob").write_bytes(b"a blob")
    (tmp_path / "store" / "blob").chmod(0o444)
    (tmp_path / "home" / ".ssh").mkdir()
    (tmp_path / "home" / ".ssh" / "id_mark").write_bytes(MARK)
    targets = stack.enter_context(probes.targets())
    apart = ["unshare", "-i"] if uid is None and has_capabilities(_SYS_ADMIN) else []
    replica = subprocess.Popen(
        [*apart, "sh", "-c", "echo; exec sleep 300"],
        env={"SECRET": SECRET, "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        **({} if uid is None else {"user": uid, "group": uid, "extra_groups": []}),
    )
    stack.callback(_kill, replica)
    replica.stdout.readline()
    if uid is not None:
        given = [tmp_path, *tmp_path.rglob("*"), *map(Path, targets["marks"])]
        given += [Path(targets["socket"]).parent, Path(targets["socket"])]
        for path in given:
            os.lchown(path, uid, uid)
    return probes.Surroundings(
        workspace=str(tmp_path / "workspace"),
        **{name: str(tmp_path / name) for name in ("base", "code", "store", "sibling", "home")},
        blob=str(tmp_path / "store" / "blob"),
        replica_pid=replica.pid,
        pid_namespace=Path("/proc/self/ns/pid").stat().st_ino,
        secret=SECRET,
        **LIMITS,
        **targets,
    )


def _kill(process):
    process.kill()
    process.wait()
    process.stdout.close()


def run(surroundings, names=None, uid=None, kept=(), limits=()):
    """In a process of its own, which has no descriptors but `kept`."""
    given = {**surroundings._asdict(), "names": names, "uid": uid}
    limited = ["prlimit", *limits] if limits else []
    done = subprocess.run(
        [*limited, sys.executable, "-c", RUN, json.dumps(given)],
        capture_output=True,
        text=True,
        timeout=100,
        pass_fds=kept,
        check=True,
    )
    return [Finding(*found[:3], tuple(found[3])) for found in json.loads(done.stdout)]


def run_and_verify(surroundings, names=None, uid=None):
    before = probes.look(surroundings)
    findings = run(surroundings, names, uid)
    return {found.name: found for found in probes.verify(findings, surroundings, before)}


def missed(found, names):
    return {name: found[name] for name in names if found[name].verdict != "allowed"}


def test_unconfined_the_probes_find_every_hole(make_surroundings):
    surroundings = make_surroundings()

    found = run_and_verify(surroundings)

    assert set(found) == set(PROBES), "each probe ran, and nothing changed unexplained"
    assert not missed(found, ALWAYS)
    assert {found[name].verdict for name in CONTAINED} == {"contained"}
    assert not [each for each in found.values() if "broke" in each.detail]
    assert not [each for each in found.values() if "not tried" in each.detail]


@pytest.mark.skipif(
    not (IS_ROOT and has_capabilities(1, 2, 6, 7, 13, 18, 19, 21, 23)),
    reason="takes root with its capabilities",
)
def test_root_is_found_to_do_what_root_can(make_surroundings):
    surroundings = make_surroundings()

    found = run_and_verify(surroundings, sorted(ROOT | SETTINGS))

    assert not missed(found, ROOT | SETTINGS)


@pytest.mark.skipif(not IS_ROOT, reason="takes root, to become another user")
def test_an_unprivileged_user_is_found_to_do_less(make_surroundings):
    surroundings = make_surroundings(NOBODY)

    found = run_and_verify(surroundings, uid=NOBODY)

    assert not missed(found, ALWAYS)
    taken = {name: found[name] for name in ROOT - {"base_setxattr", "namespaces_of_others"}}
    assert {name: each for name, each in taken.items() if each.verdict != "refused"} == {
        "capabilities": found["capabilities"]
    }
    assert not [each for each in found.values() if "broke" in each.detail]


def test_every_probe_is_expected_to_do_something_unconfined():
    groups = (ALWAYS, ROOT, SETTINGS, MACHINE, CONTAINED)

    assert sum(map(len, groups)) == len(set().union(*groups))
    assert set().union(*groups) == set(PROBES)


def test_a_refusal_of_the_kernel_is_told_as_such(make_surroundings):
    surroundings = make_surroundings()
    for name in ("base", "sibling"):
        shutil.rmtree(getattr(surroundings, name))

    found = run(surroundings, ["base_write", "sibling_read"])

    assert [each.verdict for each in found] == ["refused", "refused"]
    assert found[0].detail == f"ENOENT {surroundings.base}/marks/write"


def test_without_a_workspace_nothing_is_said_to_be_refused(tmp_path):
    (found,) = probes.run(probes.Surroundings(str(tmp_path / "none")), ["mount_tmpfs"])

    assert (found.verdict, found.detail.partition(",")[0]) == (
        "allowed",
        "not tried: the workspace cannot be written",
    )


def test_a_hard_linked_workspace_is_caught_from_outside(make_surroundings):
    surroundings = make_surroundings()
    own = Path(surroundings.workspace, "marks", "workspace")
    own.unlink()
    own.hardlink_to(Path(surroundings.base, "marks", "workspace"))

    found = run_and_verify(surroundings, ["workspace_write"])

    assert found["workspace_write"].verdict == "allowed"


def test_what_only_the_inside_saw_stays_contained(make_surroundings):
    surroundings = make_surroundings()
    before = probes.look(surroundings)
    path = f"{surroundings.base}/marks/write"
    written = Finding("base_write", "contained", "wrote it", (path,))

    assert probes.verify([written], surroundings, before) == [written]


def test_a_change_that_no_probe_answers_for_is_a_finding(make_surroundings):
    surroundings = make_surroundings()
    before = probes.look(surroundings)
    Path(surroundings.base, "marks", "read").write_bytes(MARK)

    (found,) = probes.verify([], surroundings, before)

    assert (found.name, found.verdict) == ("unexplained_changes", "allowed")
    assert found.detail == f"{surroundings.base}/marks/read"


def test_what_the_probes_leave_outside_is_removed(make_surroundings):
    surroundings = make_surroundings()

    found = run_and_verify(surroundings, ["daemon", "shared_write", "base_create"])

    left = [what for each in found.values() for what in each.touched]
    assert len(left) >= 3
    assert not [path for path in left if os.path.lexists(path)]
    (daemon,) = found["daemon"].touched
    assert probes.verify([found["daemon"]], surroundings, probes.look(surroundings))
    deadline = time.monotonic() + 10
    while _named(daemon.partition(":")[2]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _named(daemon.partition(":")[2])


def _named(name):
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text().strip() == name:
                return True
    return False


def test_an_inherited_descriptor_that_leads_out_is_found(make_surroundings, tmp_path):
    surroundings = make_surroundings()
    outside = os.open(tmp_path, os.O_RDONLY)
    try:
        (found,) = run(surroundings, ["descriptors_inherited"], kept=(outside,))
    finally:
        os.close(outside)

    assert (found.verdict, found.detail) == ("allowed", f"open: {outside} {tmp_path}")


def test_an_inherited_network_socket_is_found(make_surroundings):
    surroundings = make_surroundings()
    with socket.socket(socket.AF_INET) as sock:
        (found,) = run(surroundings, ["descriptors_inherited"], kept=(sock.fileno(),))

    assert found.verdict == "allowed"


@pytest.mark.skipif(not (IS_ROOT and has_capabilities(_SYS_ADMIN)), reason="takes CAP_SYS_ADMIN")
@pytest.mark.parametrize(("others", "verdict"), [("true", "contained"), ("sleep 60 &", "allowed")])
def test_in_a_process_namespace_all_but_its_init_are_others(make_surroundings, others, verdict):
    surroundings = make_surroundings()
    names = ["processes_list", "processes_signal", "environment_read", "trace", "memory_open"]
    given = {**surroundings._asdict(), "names": names, "uid": None}
    script = f'{others}\n"$0" -c "$1" "$2"; true'

    done = subprocess.run(
        [
            *("unshare", "-pf", "--mount-proc", "sh", "-c", script),
            *(sys.executable, RUN, json.dumps(given)),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )

    assert {found[1] for found in json.loads(done.stdout)} == {verdict}


def test_processes_of_others_are_left_alone_in_the_outside_namespace(make_surroundings):
    surroundings = make_surroundings()._replace(replica_pid=None)
    names = ["trace", "memory_read", "environment_read", "descriptors_taken", "processes_signal"]

    found = run(surroundings, names)

    assert {each.verdict for each in found} == {"allowed"}
    assert {each.detail.split(":")[0] for each in found} == {"not tried"}


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("file_size", f"--fsize={LIMITS['file_bytes']}"),
        ("disk_fill", f"--fsize={LIMITS['file_bytes'] // 2}"),
        ("open_files", f"--nofile={LIMITS['open_files']}"),
        ("memory_bomb", f"--as={LIMITS['memory_bytes']}"),
        ("fork_bomb", f"--nproc={LIMITS['processes']}"),
    ],
)
def test_a_limit_that_holds_is_a_refusal(make_surroundings, name, limit):
    uid = NOBODY if IS_ROOT else None
    if uid is None and name == "fork_bomb":
        pytest.skip("the user's other processes count")
    surroundings = make_surroundings(uid)

    (found,) = run(surroundings, [name], uid, limits=[limit])

    assert found.verdict == "refused"


def _break(surroundings):
    raise ValueError("a mistake")


def _hang(surroundings):
    time.sleep(100)


def _fall(surroundings):
    os.kill(os.getpid(), signal.SIGKILL)


def _is_filtered(surroundings):
    os.kill(os.getpid(), signal.SIGSYS)


@pytest.mark.parametrize(
    ("attack", "deadly", "verdict", "detail"),
    [
        (_break, False, "allowed", "the probe broke: ValueError('a mistake')"),
        (_hang, False, "allowed", "did not end in 0.5 s"),
        (_fall, False, "allowed", "the probe broke: it ended by SIGKILL"),
        (_fall, True, "contained", "ended by SIGKILL"),
        (_is_filtered, False, "refused", "ended by SIGSYS"),
    ],
)
def test_a_probe_that_tells_nothing_is_one_finding(
    monkeypatch, tmp_path, attack, deadly, verdict, detail
):
    monkeypatch.setitem(PROBES, "odd", Probe("odd", attack, (), 0.5, deadly))
    monkeypatch.setitem(
        PROBES, "after", Probe("after", lambda _: Seen("refused", "no"), (), 5, deadly)
    )

    first, second = probes.run(probes.Surroundings(str(tmp_path)), ["odd", "after"])

    assert first[:3] == ("odd", verdict, detail)
    assert second[:3] == ("after", "refused", "no")


def test_probes_without_their_target_are_left_out_and_deadly_ones_come_last(tmp_path):
    chosen = probes.select_probes(probes.Surroundings(str(tmp_path), processes=8, memory_bytes=1))

    names = [probe.name for probe in chosen]
    assert {"fork_bomb", "memory_bomb", "capabilities"} <= set(names)
    assert not {name for name in names if name.startswith(("base_", "replica_", "disk_fill"))}
    assert [probe.deadly for probe in chosen] == sorted(probe.deadly for probe in chosen)


def test_surroundings_survive_json(make_surroundings):
    surroundings = make_surroundings()

    again = probes.Surroundings.read(json.loads(json.dumps(surroundings._asdict())))

    assert again == surroundings


def test_the_probes_load_only_the_standard_library():
    script = (
        "import sys; before = set(sys.modules); import wtb_core.sandbox.probes; "
        "names = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(names - set(sys.stdlib_module_names)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert (done.stdout, done.stderr) == ("['wtb_core']\n", "")


@pytest.mark.parametrize("directory", [ATTACKS, ATTACKS / "workspace"])
def test_the_project_of_attacks_has_the_marks(directory, tmp_path):
    probes.put_marks(tmp_path)

    expected = {path.name: path.read_bytes() for path in (tmp_path / "marks").iterdir()}
    assert {path.name: path.read_bytes() for path in (directory / "marks").iterdir()} == expected


def test_the_project_of_attacks_attacks(make_surroundings):
    surroundings = make_surroundings()
    script = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import graph; "
        "print(json.dumps(graph.build_graph().compile().invoke(json.loads(sys.argv[2]))))"
    )
    target = f"{surroundings.base}/marks/write"
    raw = [["write", target], ["read", "/nowhere"], ["link", f"{surroundings.base}/marks/read"]]
    inputs = [
        {"probes": ["base_write", "capabilities"], "surroundings": {"base": surroundings.base}},
        {"raw": [*raw, ["signal", surroundings.replica_pid], ["connect", *surroundings.listener]]},
    ]

    outputs = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", script, str(ATTACKS), json.dumps(given)],
                capture_output=True,
                text=True,
                cwd=surroundings.workspace,
                check=True,
            ).stdout.splitlines()[-1]
        )
        for given in inputs
    ]

    assert [found[0] for found in outputs[0]["findings"]] == ["base_write", "capabilities"]
    assert outputs[0]["findings"][0][1:] == ["contained", f"wrote {target}", [target]]
    assert outputs[1]["outcomes"] == ["done", "ENOENT", "done", "done", "done"]
    assert Path(target).read_bytes().startswith(b"PROBE")


def test_the_docs_have_a_row_for_each_probe():
    lines = (Path(__file__).parents[2] / "docs" / "isolation.md").read_text().splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| `")]

    told = {row[0].strip("| `"): row[1] for row in rows if row[0].strip("| `") in PROBES}

    assert told == {name: probe.title for name, probe in PROBES.items()}
