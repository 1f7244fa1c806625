"""The probes in a node of the real engine, beside a sibling: `hostile_bench.py REQUEST`.

A process of its own, because its HOME is what must not be read and its environment has the secret
that must not be found. REQUEST is a JSON object: `root`, an empty directory; `rung`, a key of
RUNGS; `network`; `probes`, names or null for all but deadly ones. Prints `{findings, sibling,
isolation, failure}` as JSON.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from sandbox_bench import PROJECTS, Bench, wait_until

from wtb_core import attempt_run
from wtb_core.sandbox import probes
from wtb_core.sandbox.confinement import MAX_OPEN_FILES
from wtb_core.sandbox.ladder import Grade
from wtb_core.sandbox.probes import PROBES, Finding, Surroundings
from wtb_core.sandbox.probes.findings import MARK
from wtb_core.sandbox.processes import Confinement

SECRET_VARIABLE = "WTB_PROBE_SECRET"
RUNGS = {
    "A": ("A", Confinement("user", True)),
    "A'": ("A'", Confinement("root", True)),
    "A without Landlock": ("A", Confinement("user", False)),
    "namespaces": ("C", Confinement("user", True)),
    "landlock": ("C", Confinement("none", True)),
    "none": ("C", Confinement("none", False)),
}
MIB = 1024**2
LIMITS = {"memory": 192 * MIB, "processes": 40, "file_size": 24 * MIB, "timeout": 170}
DISK_BYTES = 640 * MIB


class HostileBench(Bench):
    """A bench whose data directory has marks, with the project `attacks` in its bases."""

    def __init__(self, root: Path, rung: str) -> None:
        for directory in (root, Path.home()):
            probes.put_marks(directory)
        Path.home().joinpath(".ssh").mkdir()
        Path.home().joinpath(".ssh", "id_mark").write_bytes(MARK)
        root.joinpath("wtb.db").write_bytes(b"SQLite format 3\0")
        workspace, confinement = RUNGS[rung]
        super().__init__(root, grade=Grade(workspace=workspace, confinement=confinement, missed=[]))
        attempt_run.MAX_DISK_BYTES = DISK_BYTES
        attempt_run.DISK_LOOK_S = 0.02
        attempt_run.DISK_LOOK_SHARE = 1.0
        base = root / "bases" / "version"
        shutil.copytree(PROJECTS / "attacks", base / "code", ignore=shutil.ignore_patterns("work*"))
        shutil.copytree(PROJECTS / "attacks" / "workspace", base / "workspace")
        graphs = {"default": "./graph.py:build_graph", "sibling": "./graph.py:build_sibling"}
        self.setup = self.add("attacks", str(base / "code"), graphs, workspace=base / "workspace")

    def surround(self, sibling: Path, targets: dict) -> Surroundings:
        blob = self.blobs.path(self.blobs.put(b"another execution's output"))
        return Surroundings(
            workspace="",
            base=str(self.setup.workspace),
            code=str(self.setup.code),
            store=str(self.root),
            sibling=str(sibling),
            home=str(Path.home()),
            blob=str(blob),
            replica_pid=os.getpid(),
            pid_namespace=Path("/proc/self/ns/pid").stat().st_ino,
            secret=os.environ[SECRET_VARIABLE],
            disk_bytes=DISK_BYTES,
            memory_bytes=LIMITS["memory"] + attempt_run.MEMORY_RESERVE_BYTES,
            file_bytes=LIMITS["file_size"],
            processes=LIMITS["processes"],
            open_files=MAX_OPEN_FILES,
            **targets,
        )

    def attack(self, surroundings: Surroundings, names, network: bool):
        """The findings that it told of while it ran, and its outcome."""
        given = {
            "probes": names,
            "surroundings": {**surroundings._asdict(), "network": network},
        }
        assignment = self.assign("attacks", "default", given, limits=LIMITS)
        workspace = assignment.workspace.model_copy(update={"network": network})
        assignment = assignment.model_copy(update={"workspace": workspace})
        outcome = self.call(self.engine.execute(assignment), 180)
        log = b"" if outcome.stdout is None else self.blobs.get(outcome.stdout)
        findings = [Finding(*json.loads(line)) for line in log.splitlines() if line[:1] == b"["]
        return [f._replace(touched=tuple(f.touched)) for f in findings], outcome


def attack(root: Path, rung: str, network: bool, names: list[str] | None) -> dict:
    bench = HostileBench(root, rung)
    try:
        return _attack(bench, network, names)
    finally:
        bench.close()


def _attack(bench: HostileBench, network: bool, names: list[str] | None) -> dict:
    import asyncio

    assignment = bench.assign("attacks", "sibling", {}, limits={"timeout": 300})
    directory = bench.engine.attempt_directory(assignment)
    running = asyncio.run_coroutine_threadsafe(bench.engine.execute(assignment), bench.loop)
    log = directory / "stdout"
    wait_until(lambda: running.done() or (log.exists() and b"here" in log.read_bytes()), 60)
    has_overlay = bench.sandbox.grade.has_overlay
    sibling = directory / ("upper" if has_overlay else "workspace")
    findings, failures = [], {}
    with probes.targets() as targets:
        surroundings = bench.surround(sibling, targets)
        deadly = [name for name in names or PROBES if PROBES[name].deadly]
        others = [name for name in names or PROBES if name not in deadly]
        for group in ([others] if others else []) + [[name] for name in deadly]:
            before = probes.look(surroundings)
            given = surroundings
            if group == ["disk_fill_shared_memory"]:  # it counts as memory
                given = given._replace(disk_bytes=given.memory_bytes)
            found, outcome = bench.attack(given, group, network)
            if outcome.failure is not None:
                failures[group[0]] = [outcome.failure.kind, outcome.failure.reason]
            if group == deadly[:1] * len(group) or len(group) == 1:
                found = found or [_silent(group[0], outcome)]
            findings += probes.verify(found, surroundings, before)
    (directory / "home" / "go").touch()
    ended = running.result(60)
    return {
        "findings": [[*finding] for finding in findings],
        "sibling": json.loads(ended.output or "null"),
        "isolation": ended.isolation,
        "failures": failures,
    }


def _silent(name: str, outcome) -> Finding:
    """An attack that the execution was ended for."""
    if outcome.failure is None:
        return Finding(name, "allowed", "it said nothing")
    return Finding(name, "contained", f"{outcome.failure.kind}: {outcome.failure.reason}")


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    answer = attack(
        Path(request["root"]), request["rung"], request["network"], request.get("probes")
    )
    print(json.dumps(answer))
