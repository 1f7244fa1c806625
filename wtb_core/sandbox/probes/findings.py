"""What a probe is given, what it says, and how it is registered.

A probe tries one thing that an execution must not be able to do, and does no more harm than the
trying: it touches files named `marks/...`, files with a random name of its own, and processes only
in ways that they do not notice. What a probe cannot tell counts as allowed.
"""

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

Verdict = Literal["refused", "contained", "allowed"]
MARKS = "marks"
MARK = b"a mark of the outside\n"
PROCESS = "process:"


class Surroundings(NamedTuple):
    """Where the probes run and what they try to reach; a probe whose target is None is left out.

    Paths are absolute, as the outside sees them. `base`, `code`, `store`, `sibling` and `home` each
    hold the files of `outside.put_marks`. `blob` is a file of another execution in the blob store,
    `secret` a value in the environment of `replica_pid`, `listener` a TCP and UDP port that
    answers, `socket` and `abstract` Unix sockets that listen, `ipc_key` the key of a System V
    segment, `marks` files in directories that every process shares. The numbers are the limits of
    the execution.

    `pid_namespace` is the inode of the outside's process namespace: an execution in another one
    attacks all that it sees there. Otherwise only the replica is attacked, never a process of
    somebody else.
    """

    workspace: str
    base: str | None = None
    code: str | None = None
    store: str | None = None
    sibling: str | None = None
    home: str | None = None
    blob: str | None = None
    replica_pid: int | None = None
    pid_namespace: int | None = None
    secret: str | None = None
    network: bool = True
    listener: tuple[str, int] | None = None
    socket: str | None = None
    abstract: str | None = None
    ipc_key: int | None = None
    marks: tuple[str, ...] = ()
    disk_bytes: int | None = None
    memory_bytes: int | None = None
    file_bytes: int | None = None
    processes: int | None = None
    open_files: int | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "Surroundings":
        """From what JSON made of `_asdict()`."""
        known = dict(values)
        if known.get("listener") is not None:
            known["listener"] = tuple(known["listener"])
        known["marks"] = tuple(known.get("marks", ()))
        return cls(**known)


class Seen(NamedTuple):
    """What a probe saw from inside.

    `touched` are absolute paths that it wrote to outside of its workspace, and `process:NAME` for
    processes that it left behind: whether these exist or changed, only the outside can tell.
    """

    verdict: Verdict
    detail: str
    touched: tuple[str, ...] = ()


class Finding(NamedTuple):
    """The outcome of a probe: refused by the kernel, contained in the execution, or allowed."""

    name: str
    verdict: Verdict
    detail: str
    touched: tuple[str, ...] = ()


class Probe(NamedTuple):
    """An attack and how it is run.

    An attack that is `deadly` may be answered with the end of its process, or of the execution.
    """

    name: str
    attack: Callable[[Surroundings], Seen]
    needs: tuple[str, ...]
    time_limit_s: float
    deadly: bool

    @property
    def group(self) -> str:
        """What it attacks: the name of its module."""
        return self.attack.__module__.rpartition(".")[2]

    @property
    def title(self) -> str:
        """What the attack tries, in words."""
        return (self.attack.__doc__ or self.name).partition("\n")[0].rstrip(".")


PROBES: dict[str, Probe] = {}
Attack = Callable[[Surroundings], Seen]


def probe(
    *needs: str, time_limit_s: float = 10.0, deadly: bool = False
) -> Callable[[Attack], Attack]:
    """Register an attack that needs these fields of its surroundings. An OSError is a refusal."""

    def register(attack: Attack) -> Attack:
        name = attack.__name__
        PROBES[name] = Probe(name, attack, needs, time_limit_s, deadly)
        return attack

    return register


def refused(detail: str) -> Seen:
    """The kernel said no, or there is nothing there."""
    return Seen("refused", detail)


def contained(detail: str, *touched: str) -> Seen:
    """It went through in the execution's own view, as far as can be seen from inside."""
    return Seen("contained", detail, touched)


def allowed(detail: str) -> Seen:
    """It reached something outside."""
    return Seen("allowed", detail)


def describe(error: OSError) -> str:
    """`EROFS /path`."""
    name = errno.errorcode.get(error.errno or 0, str(error))
    return f"{name} {error.filename}" if error.filename else name


def place(s: Surroundings, field: str) -> str:
    """A path that the probe has declared it needs."""
    return str(getattr(s, field))


def mark(directory: str | None, name: str) -> str:
    """The path of a file that was put there for the attack `name`."""
    return f"{directory}/{MARKS}/{name}"


def new_path(directory: str) -> str:
    """A path that nobody else has."""
    return f"{directory}/probe-{os.urandom(6).hex()}"


def names_in(directory: str) -> list[str]:
    """The names in a directory, read at once.

    Raises:
        OSError: when it cannot be read.
    """
    return os.listdir(directory)  # noqa: PTH208 - iterdir does not read before 3.13


def read_mark(path: str) -> Seen:
    """Read a file that was put outside.

    Raises:
        OSError: when it cannot be opened.
    """
    with Path(path).open("rb") as file:
        data = file.read(len(MARK))
    if data != MARK:
        return contained(f"{path} is another file here")
    return allowed(f"read {path}")


def write(path: str, flags: int = os.O_WRONLY) -> None:
    """Write over the beginning of a file.

    Raises:
        OSError: when it cannot be opened or written.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, b"PROBE")
    finally:
        os.close(descriptor)


def wrote(path: str) -> Seen:
    """Written; whether the outside has it is for the outside to see."""
    return contained(f"wrote {path}", path)


def attempt(*steps: Callable[[], object]) -> tuple[int, list[str]]:
    """How many of the steps went through, and what the kernel said of the others."""
    errors: list[str] = []
    for step in steps:
        try:
            step()
        except OSError as error:
            errors.append(describe(error))
    return len(steps) - len(errors), errors
