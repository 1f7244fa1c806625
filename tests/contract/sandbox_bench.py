"""An engine on a uvloop in a thread of its own, as in a Ray replica, and a look at /proc."""

import asyncio
import itertools
import json
import os
import sys
import textwrap
import threading
import time
from pathlib import Path

import uvloop
from levels import Graded

from wtb_core.attempts import Assignment
from wtb_core.checkpoint_store import CheckpointStore
from wtb_core.engine import Engine
from wtb_core.files.blobs import BlobStore
from wtb_core.files.manifests import scan
from wtb_core.sandbox.ladder import Grade, Isolation, Sandbox
from wtb_core.sandbox.setup import ProjectSetup
from wtb_core.specs import Limits, Variant, Workspace

PROJECTS = Path(__file__).parents[1] / "projects"


class Bench:
    """Runs single executions of the projects beside the tests.

    `grade` forces an isolation level instead of the best one here. `blobs` are shared with another
    bench, as nodes share them.
    """

    def __init__(
        self,
        root: Path,
        isolation: Isolation = "auto",
        grade: Grade | None = None,
        blobs: Path | None = None,
    ) -> None:
        self.root = root
        self.setups: dict[str, ProjectSetup] = {}
        self.versions: dict[tuple[str, str], ProjectSetup] = {}
        self.blobs = BlobStore(blobs or root / "blobs")
        self.store = CheckpointStore(root / "checkpoints.db")
        self.sandbox = (
            Sandbox(root / "runs", hidden=[root], isolation=isolation)
            if grade is None
            else Graded(root / "runs", [root], grade)
        )
        self.engine = Engine(
            *(root / "runs", self.blobs, self.store, self.find_setup, self.sandbox), self.discard
        )
        self.discarded: list[str] = []
        self.loop = uvloop.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self._ids = itertools.count(1)

    async def discard(self, version: str) -> None:
        self.discarded.append(version)

    async def find_setup(self, project: str, version: str) -> ProjectSetup:
        return self.versions[project, version]

    def add(self, name: str, directory: str, graphs: dict[str, str], **fields) -> ProjectSetup:
        fields.setdefault("python", sys.executable)
        workspace = fields.pop("workspace", None)
        files = None if workspace is None else scan(workspace, self.blobs, lambda _: False)
        version = fields.pop("version", "v1")
        self.setups[name] = self.versions[name, version] = ProjectSetup(
            project=name,
            version=version,
            code=PROJECTS / directory,
            workspace=workspace,
            files=files,
            graphs=graphs,
            **fields,
        )
        return self.setups[name]

    def call(self, coroutine, timeout_s: float = 60):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout_s)

    def assign(self, project: str, graph: str = "default", given=None, **options) -> Assignment:
        case = {"id": "case", "input": given, "resume": options.pop("resume", [])}
        case["files"] = options.pop("case_files", {})
        if "reference" in options:
            case["reference"] = options.pop("reference")
        return Assignment(
            execution_id=options.pop("execution_id", f"execution-{next(self._ids)}"),
            batch_id="batch",
            attempt=options.pop("attempt", 1),
            project=project,
            project_version=options.pop("version", "v1"),
            variant=Variant(name="variant", graph=graph, **options.pop("variant", {})),
            case=case,
            repetition=0,
            evaluators=options.pop("evaluators", []),
            limits=Limits(**{"timeout": 30, **options.pop("limits", {})}),
            workspace=Workspace(
                keep=options.pop("keep", "never"), network=options.pop("network", True)
            ),
        )

    def run(self, project: str, graph: str = "default", given=None, **options):
        return self.call(self.engine.execute(self.assign(project, graph, given, **options)))

    def add_scripted(self, start: str = "fork", **fields) -> None:
        """The project whose node runs the code that it is given; `start` is its name too."""
        fields.setdefault("environment", {"PATH": os.environ["PATH"]})
        self.add(
            start,
            "scripted",
            {"default": "./graphs.py:builder"},
            evaluators={name: f"./evaluators.py:{name}" for name in ("run", "spoil")},
            start=start,
            **fields,
        )

    def script(self, code: str, project: str = "fork", **options):
        """The outcome of an execution whose node runs `code`."""
        return self.run(project, given={"code": textwrap.dedent(code)}, **options)

    def find_value(self, code: str, project: str = "fork", **options):
        """What `code` calls `value`, when it has succeeded."""
        outcome = self.script(code, project, **options)
        assert outcome.failure is None, outcome.failure
        return json.loads(outcome.output)["value"]

    def close(self) -> None:
        try:
            self.call(self.engine.close())
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
            self.loop.close()
            self.store.close()


async def until_first_checkpoint(store, execution_id):
    while not await store.list_checkpoints(execution_id, 1):
        await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, deadline_s: float = 20.0):
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, "the deadline has passed"
        time.sleep(0.005)
    return found


def find_processes_of(directory: Path) -> list[int]:
    """Processes whose environment names `directory`, as all of a bench's do by HOME."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(directory).encode() in environment and is_alive(int(entry.name)):
                found.append(int(entry.name))
    return found


def find_children(pid: int) -> list[int]:
    """The children of a process by its threads, the oldest first."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]
