"""The isolation levels as grades that tests force, and what keeps this machine from one."""

import os
import subprocess
from pathlib import Path

from overlays import Overlay

from wtb_core.sandbox import kernel
from wtb_core.sandbox.ladder import Grade, Sandbox
from wtb_core.sandbox.processes import Confinement

LEVELS = {
    "overlay": Grade(workspace="A", confinement=Confinement("user", True), missed=[]),
    "root_overlay": Grade(workspace="A'", confinement=Confinement("root", True), missed=[]),
    "slots_copy": Grade(workspace="C", confinement=Confinement("user", True), missed=[]),
    "landlock_copy": Grade(workspace="C", confinement=Confinement("none", True), missed=[]),
    "bare_copy": Grade(workspace="C", confinement=Confinement("none", False), missed=[]),
}
IN_SLOTS = [name for name, grade in LEVELS.items() if grade.in_slots]

# Asked of util-linux, so that a fault of ours is no reason to skip.
_UNSHARE = ("unshare", "--pid", "--fork", "--mount", "--mount-proc")


class Graded(Sandbox):
    """A sandbox of a grade that is not probed."""

    def __init__(self, scratch: Path, hidden: list[Path], grade: Grade) -> None:
        super().__init__(scratch, hidden=hidden)
        self.grade = grade

    async def find_grade(self) -> Grade:
        return self.grade


def find_obstacle(grade: Grade, directory: Path) -> str | None:
    """Why this machine cannot have executions of this grade below `directory`."""
    kind = grade.confinement.namespaces
    if kind == "root" and os.geteuid() != 0:
        return "these namespaces are root's"
    if kind != "none":
        options = ("--user", "--map-current-user") if kind == "user" else ()
        try:
            command = (*_UNSHARE, *options, "true")
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            return "unshare(1) is not installed"
        except subprocess.CalledProcessError as error:
            return error.stderr
    if grade.confinement.landlock:
        try:
            kernel.landlock_abi()
        except OSError as error:
            return f"no Landlock: {error}"
    if grade.has_overlay:
        (directory / "lower").mkdir(parents=True)
        try:
            Overlay(directory / "overlay", [directory / "lower"]).close()
        except OSError as error:
            return f"no overlay: {error}"
    return None
