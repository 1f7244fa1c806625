"""How far executions are isolated on this machine: found out by doing it, from the best level down.

The workspace and the confinement are graded apart. Workspace: A is an overlay in a user namespace,
A' one made by root without it, B a tree of reflinks, C a copy. Confinement: namespaces with
Landlock, namespaces alone, Landlock alone, none.
"""

import asyncio
import errno
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from wtb_core.errors import SetupError, WireError
from wtb_core.files.copying import can_reflink
from wtb_core.sandbox import kernel, probing
from wtb_core.sandbox.leftovers import remove_tree
from wtb_core.sandbox.processes import Confinement, Layout, Place, start_nursery
from wtb_core.sandbox.slots import can_limit_root

Isolation = Literal["auto", "overlay", "reflink", "copy"]
Workspace = Literal["A", "A'", "B", "C"]

PROBE_TIMEOUT_S = 30.0

_MEANINGS = {
    "user namespace": "this user may not make user namespaces",
    "id maps": "this user may not map its ids into a user namespace",
    "pid namespace": "this process may not make pid namespaces",
    "mount namespace": "this process may not make mount namespaces",
    "proc": "a new /proc may not be mounted, as in most containers",
    "overlay": "the file system of the data directory cannot carry an overlay's upper directory",
    "reflink": "the file system of the data directory cannot share blocks between files",
    "landlock": "the kernel has no Landlock that covers truncation (Linux 6.2)",
    "network namespace": "this user may not make network namespaces",
    "pid limit": "the number of root's processes cannot be bounded before Linux 6.14",
}
_HINTS = {
    errno.EPERM: "refused: a container's seccomp profile or the system's policy",
    errno.EACCES: "refused by a security policy such as AppArmor",
    errno.ENOSPC: "user.max_user_namespaces is used up or 0",
    errno.EINVAL: "not supported by this kernel or file system",
    errno.ENOSYS: "not supported by this kernel",
    errno.EOPNOTSUPP: "not supported by this kernel or file system",
    errno.ENODEV: "the kernel has no such file system",
}


class Missed(BaseModel):
    """A level that was not reached: the step that failed, its errno, and what that means."""

    model_config = ConfigDict(frozen=True)

    level: str
    step: str
    errno: int | None
    meaning: str


class Grade(BaseModel):
    """What this machine enforces for executions whose files lie in one directory."""

    model_config = ConfigDict(frozen=True)

    workspace: Workspace
    confinement: Confinement
    missed: list[Missed]

    @property
    def in_slots(self) -> bool:
        """Whether executions have namespaces of their own."""
        return self.confinement.namespaces != "none"

    @property
    def has_overlay(self) -> bool:
        """Whether workspaces are overlays of their base."""
        return self.workspace in {"A", "A'"}

    def describe(self) -> dict[str, Any]:
        """`{workspace, confinement, missed}` as events and records say it."""
        parts = ["namespaces"] * self.in_slots + ["landlock"] * self.confinement.landlock
        return {
            "workspace": self.workspace,
            "confinement": "+".join(parts) or "none",
            "missed": [missed.model_dump() for missed in self.missed],
        }


class Sandbox:
    """How processes of user code are confined here, and what they must never see.

    `scratch` is the directory below which executions have their places; `hidden` are the service's
    own directories. The machine is probed once, when the grade is first asked for.
    """

    def __init__(
        self,
        scratch: Path,
        *,
        hidden: Sequence[Path] = (),
        isolation: Isolation = "auto",
        require: Literal["A", "B"] | None = None,
    ) -> None:
        self.scratch = scratch.absolute()
        self.hidden = [path.absolute() for path in hidden]
        self._isolation: Isolation = isolation
        self._require = require
        self._grade: Grade | None = None
        self._lock = asyncio.Lock()

    async def find_grade(self) -> Grade:
        """The grade of this machine and directory.

        Raises:
            SetupError: when it is below what is required.
        """
        async with self._lock:
            if self._grade is None:
                grade = await self._probe()
                self._check(grade)
                self._grade = grade
        return self._grade

    def _check(self, grade: Grade) -> None:
        asked = {"overlay": "A", "reflink": "B"}.get(self._isolation)
        wanted = "A" if "A" in {asked, self._require} else asked or self._require
        allowed = {"A": {"A", "A'"}, "B": {"A", "A'", "B"}}.get(wanted or "", {grade.workspace})
        if grade.workspace not in allowed:
            missed = "; ".join(f"{one.level}: {one.meaning}" for one in grade.missed)
            message = (
                f"level {wanted} is required, this machine reaches {grade.workspace}: {missed}"
            )
            raise SetupError("isolation", message)

    async def _probe(self) -> Grade:
        missed: list[Missed] = []
        landlock = True
        try:
            kernel.landlock_abi()
        except OSError as error:
            landlock = False
            missed.append(_miss("landlock", "landlock", error.errno))
        namespaces: Literal["user", "root", "none"] = "none"
        overlay = self._isolation in {"auto", "overlay"}
        rungs: list[tuple[Literal["user", "root"], Workspace]] = [("user", "A"), ("root", "A'")]
        for kind, level in rungs:
            if kind == "root" and not kernel.has_capability(kernel.CAP_SYS_ADMIN):
                continue
            confinement = Confinement(kind, landlock)
            fault = await self._try(confinement, overlay=overlay)
            if fault is None and overlay:
                return self._make(level, confinement, missed)
            if fault is not None:
                missed.append(_miss(level, fault.step, fault.errno, fault.message))
                if overlay and fault.step.startswith("overlay"):
                    fault = await self._try(confinement, overlay=False)
            if fault is None and namespaces == "none":
                namespaces = kind
            if fault is None and not overlay:
                break
        workspace: Workspace = "C"
        if self._isolation != "copy":
            fault = can_reflink(self.scratch)
            workspace = "B" if fault is None else "C"
            if fault is not None:
                missed.append(_miss("B", "reflink", fault.errno))
        return self._make(workspace, Confinement(namespaces, landlock), missed)

    def _make(self, workspace: Any, confinement: Confinement, missed: list[Missed]) -> Grade:
        if confinement.namespaces == "none":
            for what in ("limits.processes", "workspace.network: false"):
                meaning = f"{what} is not enforced without namespaces"
                missed.append(Missed(level="A", step=what, errno=None, meaning=meaning))
        elif os.geteuid() == 0 and not can_limit_root():
            missed.append(_miss("A", "pid limit", None))
        return Grade(workspace=workspace, confinement=confinement, missed=missed)

    async def _try(self, confinement: Confinement, *, overlay: bool) -> SetupError | None:
        """Run the whole recipe in a throwaway process; what failed."""
        await asyncio.to_thread(self.scratch.mkdir, parents=True, exist_ok=True)
        directory = Path(await asyncio.to_thread(tempfile.mkdtemp, "", "probe-", self.scratch))
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await _run_probe(directory, confinement, self.hidden, overlay=overlay)
        except SetupError as error:
            return error
        except (EOFError, OSError, WireError, TimeoutError) as error:
            number = error.errno if isinstance(error, OSError) else None
            return SetupError("probe", f"{type(error).__name__}: {error}", number)
        finally:
            await asyncio.to_thread(remove_tree, directory)
        return None


async def _run_probe(
    directory: Path, confinement: Confinement, hidden: Sequence[Path], *, overlay: bool
) -> None:
    base, room, outside = directory / "base", directory / "room", directory / "outside"
    place = Place(
        home=room / "home",
        tmp=room / "tmp",
        stdout=directory / "output",
        stderr=directory / "output",
        workspace=room / "workspace",
        overlay={"lower": [str(base)], "upper": str(room / "upper"), "work": str(room / "work")}
        if overlay
        else None,
        base=base,
        network=False,
        processes=64,
        memory=1024**3,
    )
    for path in (base, place.home, place.tmp, room / "workspace", room / "upper", room / "work"):
        path.mkdir(parents=True)
    for path in (base / probing.FILE, outside):
        path.write_text(probing.BEFORE, encoding="ascii")
    layout = Layout(scratch=room, bases=[base], hidden=hidden)
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    nursery = await start_nursery(
        "prober", sys.executable, environment, directory / "process", layout, confinement
    )
    try:
        await nursery.session.send({})
        await nursery.session.receive()
        process = await nursery.fork(place)
        try:
            job = {
                "bounds": nursery.make_bounds(place),
                "workspace": str(place.workspace),
                "overlay": overlay,
                "outside": ["/etc/wtb-probe", str(outside)],
                "confined": confinement.namespaces != "none" or confinement.landlock,
            }
            await process.session.send(job)
            answer, _ = await process.session.receive()
        finally:
            await process.close()
    finally:
        await nursery.close()
    if answer["failed"] is not None:
        failed = answer["failed"]
        raise SetupError(failed["step"], failed["message"], failed["errno"])
    if (base / probing.FILE).read_text(encoding="ascii") != probing.BEFORE and overlay:
        raise SetupError("overlay", "a write to the workspace changed the base")


def _miss(level: str, step: str, number: int | None, message: str = "") -> Missed:
    said = _MEANINGS.get(step, _MEANINGS.get(step.split(":", maxsplit=1)[0], message or step))
    hint = _HINTS.get(number or 0, os.strerror(number) if number else "")
    return Missed(
        level=level, step=step, errno=number, meaning=f"{said} ({hint})" if hint else said
    )
