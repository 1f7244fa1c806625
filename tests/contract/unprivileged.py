"""Runs a command as a user without any privilege, when the tests run as root.

The interpreter and the checkout may lie below directories that only root may enter. They are made
traversable in a mount namespace of the command, so that all paths stay what they are.
"""

import os
import subprocess
import sys
from pathlib import Path

from wtb_core.sandbox import kernel

ROOT = Path(__file__).parents[2]
USER = 65534


def run_unprivileged(
    command: list[str], directory: Path, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run an interpreter's arguments as another user, to whom `directory` is given."""
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(directory),
        "TMPDIR": str(directory),
    }
    if os.geteuid() == 0:
        os.chown(directory, USER, USER)
        command = [str(Path(__file__)), str(directory), *command]
    return subprocess.run(
        [sys.executable, *command],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def open_the_way(needed: list[Path]) -> None:
    """Show these directories on small file systems that anybody may enter."""
    kernel.make_mounts_private()
    blocked = {path: place for path in needed if (place := find_blocked(path)) is not None}
    trees = {path: kernel.clone_tree(str(path)) for path in blocked}
    for place in sorted(set(blocked.values())):
        kernel.mount("tmpfs", str(place), {"mode": "755", "size": "1m"})
    for path, tree in trees.items():
        path.mkdir(parents=True, exist_ok=True)
        kernel.attach(tree, str(path))


def find_blocked(path: Path) -> Path | None:
    """The topmost ancestor that others may not enter."""
    for place in reversed(path.parents):
        if not place.stat().st_mode & 0o001:
            return place
    return None


def main() -> None:
    directory, *command = sys.argv[1:]
    os.unshare(os.CLONE_NEWNS)
    prefixes = (sys.prefix, sys.base_prefix)
    found = [*(Path(prefix).resolve() for prefix in prefixes), Path(sys.prefix), ROOT]
    open_the_way(list(dict.fromkeys([*found, Path(directory)])))
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main()
