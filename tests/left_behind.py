"""What an attempt leaves, without running one: blobs of commits and of a history of checkpoints."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

from wtb_core import history
from wtb_core.attempts import Outcome, TrackedFiles, TrackingFailure
from wtb_core.errors import NotFound
from wtb_core.filehistory import FileHistory
from wtb_core.files.blobs import BlobStore
from wtb_core.files.commits import BaseTree, Commit, FileEntry, encode
from wtb_core.files.manifests import Entry
from wtb_core.history import CheckpointRow, History
from wtb_core.projects import ProjectFile, ProjectVersions
from wtb_core.projects.versions import Ingested

BEFORE = b"def gcd(a, b):\n    return b\n"
MIDDLE = b"def gcd(a, b):\n    return a\n"
AFTER = b"def gcd(a, b):\n    return a if b == 0 else gcd(b, a % b)\n"
ODD = os.fsdecode(b"out/\xff \x1b[2J.bin")
SECRET = b"not of this execution"


class LeftBehind:
    """A project version with a workspace, and an attempt of it that changed files.

    Checkpoints: `c-0` (input) and `c-1` have the files of the start, `c-2` a first change, `sub` is
    a subgraph's, `lost` has files that could not be committed, `c-3` the final files.
    """

    def __init__(self, root: Path) -> None:
        self.blobs = BlobStore(root / "blobs")
        self.versions = ProjectVersions(self.blobs, root / "bases")
        self.files = FileHistory(self.blobs, self.versions)
        self.secret = self.blobs.put(SECRET)
        manifest = {
            "src": Entry(kind="directory"),
            "src/gcd.py": Entry(kind="file", blob=self.blobs.put(BEFORE)),
            "run.sh": Entry(kind="file", blob=self.blobs.put(b"#!/bin/sh\n"), executable=True),
            "old.txt": Entry(kind="file", blob=self.blobs.put(b"old\n")),
            "etc": Entry(kind="link", target="/etc"),
        }
        ingested = Ingested(
            definition=ProjectFile.model_validate({"name": "p", "graph": "m:a"}),
            directory="/p",
            code={},
            workspace=manifest,
            workspace_in_code=None,
        )
        self.version = self.blobs.put(json.dumps(ingested.model_dump(by_alias=True)).encode())
        self.base = BaseTree(self.version, manifest)
        case = {"case.json": self.file(b"{}\n")}
        self.start = self.commit(case)
        self.middle = self.commit({**case, "src/gcd.py": self.file(MIDDLE)})
        self.final = self.commit(
            {
                **case,
                "src/gcd.py": self.file(AFTER, 0o600),
                "out": FileEntry("directory", 0o755),
                ODD: self.file(b"\0\1\2"),
                "etc": FileEntry("link", 0o777, target="/root/.ssh"),
            },
            "old.txt",
        )
        self.history = self.keep(
            self.checkpoint("c-0", self.start, source="input", step=-1),
            self.checkpoint("c-1", self.start, step=0),
            self.checkpoint("c-2", self.middle),
            self.checkpoint("sub", None, ns="inner:1"),
            self.checkpoint("lost", None),
            self.checkpoint("c-3", self.final, step=2, shown=json.dumps({"tries": 3})),
        )

    def file(self, data: bytes, mode: int = 0o644) -> FileEntry:
        return FileEntry("file", mode, self.blobs.put(data), len(data))

    def commit(self, entries: dict[str, FileEntry], *deleted: str) -> str:
        return self.blobs.put(encode(Commit(self.version, entries, deleted)))

    def keep(self, *checkpoints: CheckpointRow) -> str:
        rows = History(checkpoints=list(checkpoints), values=[], writes=[])
        return self.blobs.put(history.encode(rows))

    def checkpoint(self, name, commit, *, ns="", source="loop", step=1, shown="{}"):
        return CheckpointRow(
            ns=ns,
            checkpoint_id=name,
            parent_id=None,
            source=source,
            step=step,
            type="msgpack",
            metadata_type="json",
            versions={},
            stored_at="2030-01-02T03:04:05.678Z",
            file_commit=commit,
            shown=None if ns else shown,
            body=b"state",
            metadata=b"{}",
        )

    def outcome(self, **fields) -> Outcome:
        """How the engine would say it; what is given goes over it."""
        files = TrackedFiles(
            file_commit_id=self.final,
            checkpoint_id="c-3",
            created=2,
            modified=2,
            deleted=1,
            size_bytes=len(AFTER) + 3,
            paths=["etc", "old.txt", "out", ODD, "src/gcd.py"],
        )
        known = {
            "status": "succeeded",
            "output": "1",
            "history": self.history,
            "start_commit_id": self.start,
            "files": files,
            "tracking_failures": [failure("lost")],
        }
        return Outcome(**(known | fields))


class Projects:
    """A registry of one project with one graph of the nodes `propose` and `check`."""

    def __init__(self, version: str) -> None:
        self.version = version

    async def get(self, name: str):
        if name != "p":
            raise NotFound("project", name)
        graph = {"kind": "state_graph", "nodes": ["propose", "check"], "subgraphs": {}}
        return SimpleNamespace(
            version=self.version,
            description={"graphs": {"default": graph}, "nodes": {"propose": ["flip"]}},
            definition=SimpleNamespace(variant_files=[]),
        )


def failure(checkpoint_id: str | None = None, message: str = "no space left") -> TrackingFailure:
    return TrackingFailure(checkpoint_id=checkpoint_id, failed_files=[ODD], error_message=message)
