"""What a workspace costs by the size of its tree: fork, change ten files, track, delete.

Compared, interleaved in one run: an attempt's workspace as the engine makes it (with the slot that
user code would run in), `shutil.copytree`, and a tree of hard links, which is fast for small trees
and wrong: an in-place write changes the base. Files have 1 KiB to 40 KiB, most of them little.

    python benchmarks/forks.py --files 50 5000 50000 --rounds 15
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from wtb_core.files.blobs import BlobStore
from wtb_core.files.commits import BaseTree
from wtb_core.files.layers import LayerCache
from wtb_core.files.manifests import scan
from wtb_core.sandbox.ladder import Sandbox
from wtb_core.sandbox.leftovers import remove_tree
from wtb_core.sandbox.processes import Layout, Nursery, Place, start_nursery
from wtb_core.sandbox.workspaces import Materials, Workspace

CHANGED = 10
SEED = 4

Round = Callable[[Path], Awaitable[None]]


def make_tree(root: Path, files: int) -> None:
    """A tree of `files` files, up to fifty in a directory; the same for the same number."""
    numbers = random.Random(SEED)
    for index in range(files):
        directory = root / f"part-{index // 2500}" / f"d{index // 50}"
        directory.mkdir(parents=True, exist_ok=True)
        size = min(40_960, round(1_024 * numbers.paretovariate(1.5)))
        (directory / f"f{index}.txt").write_bytes(numbers.randbytes(size))


def find_changed(root: Path) -> list[str]:
    """Ten paths in one directory, so that trees of all sizes are changed alike."""
    paths = sorted((root / "part-0" / "d0").iterdir())
    return [str(path.relative_to(root)) for path in paths[:CHANGED]]


async def start(root: Path, base: Path) -> tuple[Sandbox, Nursery]:
    """A sandbox for attempts below `root`, and a process without a project to fork from."""
    sandbox = Sandbox(root / "runs")
    grade = await sandbox.find_grade()
    layout = Layout(root / "runs", [base])
    nursery = await start_nursery(
        "prober", sys.executable, dict(os.environ), root / "nursery", layout, grade.confinement
    )
    await nursery.session.send({})
    await nursery.session.receive()
    return sandbox, nursery


def overlay_round(
    sandbox: Sandbox, nursery: Nursery, materials: Materials, changes: dict[str, str]
) -> Round:
    """A round of the engine's own steps."""

    async def run(directory: Path) -> None:
        grade = await sandbox.find_grade()
        workspace = Workspace(materials, grade, directory)
        for name in ("home", "tmp"):
            (directory / name).mkdir(parents=True)
        workspace.make(changes, None)
        output = directory / "output"
        place = Place(directory / "home", directory / "tmp", output, output)
        process = await nursery.fork(workspace.put_into(place))
        commit = workspace.track()
        if len(commit.entries) != CHANGED:
            raise RuntimeError(f"{len(commit.entries)} files were tracked")
        await process.close()
        remove_tree(directory)

    return run


def plain_round(base: Path, changes: dict[str, str], copy: Callable[[Path, Path], None]) -> Round:
    """A round with a tree of its own, scanned for what changed by its times and sizes."""

    def run(directory: Path) -> None:
        copy(base, directory)
        began = time.time_ns()
        for path, text in changes.items():
            file = directory / path
            file.unlink()  # or a hard link's write would change the base
            file.write_text(text)
        found = [path for path in directory.rglob("*") if path.lstat().st_mtime_ns >= began]
        if sum(path.is_file() for path in found) < CHANGED:
            raise RuntimeError(f"{len(found)} paths were found")
        shutil.rmtree(directory)

    async def run_in_thread(directory: Path) -> None:
        await asyncio.to_thread(run, directory)

    return run_in_thread


def copy_plainly(source: Path, target: Path) -> None:
    """Every file copied."""
    shutil.copytree(source, target, symlinks=True)


def copy_links(source: Path, target: Path) -> None:
    """Every file a hard link."""
    shutil.copytree(source, target, symlinks=True, copy_function=os.link)


async def measure(root: Path, sizes: list[int], rounds: int) -> dict[str, dict[int, float]]:
    """The median of each way and size, in milliseconds; the rounds go through all of them."""
    ways: dict[tuple[str, int], Round] = {}
    nurseries: list[Nursery] = []
    for files in sizes:
        place = root / str(files)
        base = place / "base"
        make_tree(base, files)
        blobs = BlobStore(place / "blobs")
        manifest = await asyncio.to_thread(scan, base, blobs, lambda _: False)
        changes = {path: f"changed {path}\n" for path in find_changed(base)}
        sandbox, nursery = await start(place, base)
        nurseries.append(nursery)
        grade = await sandbox.find_grade()
        materials = Materials(
            blobs, LayerCache(place / "layers", blobs), BaseTree("v1", manifest), base
        )
        ways[f"level {grade.workspace}", files] = overlay_round(
            sandbox, nursery, materials, changes
        )
        ways["copytree", files] = plain_round(base, changes, copy_plainly)
        ways["hard links", files] = plain_round(base, changes, copy_links)
    times: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
    for number in range(-1, rounds):  # the first round warms up
        for (name, files), run in ways.items():
            if name != "level A" and files > 1_000 and number >= max(1, rounds // 5):
                continue  # seconds each, and steady
            directory = root / str(files) / "runs" / f"attempt-{number}"
            began = time.perf_counter()
            await run(directory)
            if number >= 0:
                times[name, files].append((time.perf_counter() - began) * 1000)
    for nursery in nurseries:
        await nursery.close()
    result: dict[str, dict[int, float]] = {}
    for (name, files), taken in times.items():
        result.setdefault(name, {})[files] = statistics.median(taken)
    return result


def show(result: dict[str, dict[int, float]], sizes: list[int]) -> None:
    """Ratios only: what travels from machine to machine."""
    unit = result[next(iter(result))][sizes[0]]
    sys.stdout.write(
        f"{'way':<12}" + "".join(f"{files:>10,}" for files in sizes) + "  large/small\n"
    )
    for name, medians in result.items():
        cells = "".join(f"{medians[files] / unit:>10.2f}" for files in sizes)
        growth = medians[sizes[-1]] / medians[sizes[0]]
        sys.stdout.write(f"{name:<12}{cells}  {growth:.2f}\n")


def main() -> None:
    """Measure and print; `--json FILE` keeps the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--files", type=int, nargs="+", default=[50, 5_000, 50_000])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where to work")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix=".forks-", dir=options.dir) as folder:
        result = asyncio.run(measure(Path(folder), options.files, options.rounds))
    show(result, options.files)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
