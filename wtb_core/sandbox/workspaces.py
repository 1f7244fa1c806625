"""The files of one attempt: made for its process, committed while it runs, shown to evaluators.

On an overlay, user code changes an upper directory and the base stays as it is; elsewhere it has a
copy. What it changed is found from outside either way.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from wtb_core.errors import NotFound, SetupError, TrackingError
from wtb_core.files.blobs import BlobStore
from wtb_core.files.commits import BaseTree, Commit, encode
from wtb_core.files.copying import copy_tree
from wtb_core.files.layers import HeldLayer, LayerCache, restore
from wtb_core.files.tracking import OverlayTracker, Tracker, TreeTracker
from wtb_core.sandbox.ladder import Grade
from wtb_core.sandbox.leftovers import count_blocks
from wtb_core.sandbox.processes import Place
from wtb_core.sandbox.slots import Overlay
from wtb_core.sandbox.writing import write_files


class Materials(NamedTuple):
    """What workspaces are made of: blobs, layers made of them, and one project version's base.

    `source` is where the base lies on this node, null when there is none.
    """

    blobs: BlobStore
    layers: LayerCache
    base: BaseTree
    source: Path | None


class View(NamedTuple):
    """A throwaway view of a finished workspace. `copied_from` is null when it is an overlay."""

    place: Place
    copied_from: Path | None
    reflink: bool

    def fill(self) -> Path:
        """Where it is seen; a copy is made now.

        Raises:
            SetupError: when something cannot be copied.
        """
        assert self.place.workspace is not None
        if self.copied_from is None:
            return self.place.workspace
        target = self.place.workspace / "workspace"
        copy_tree(self.copied_from, target, reflink=self.reflink)
        return target


class Workspace:
    """One attempt's workspace below `directory`. Methods are called from threads, one at a time."""

    def __init__(self, materials: Materials, grade: Grade, directory: Path) -> None:
        self._materials = materials
        self._grade = grade
        self._directory = directory
        self._path = directory / "workspace"
        self._lower: list[Path] = []
        self._layer: HeldLayer | None = None
        self._files: Mapping[str, str] = {}
        self._tracker: Tracker | None = None
        self._commit_ids: set[str] = set()
        self._digests: set[str] = set()

    def make(self, files: Mapping[str, str], below: Commit | None) -> None:
        """Make the directories: the base, on it the commit `below`, on it `files`.

        Raises:
            SetupError: when something cannot be made; says what.
        """
        materials = self._materials
        self._path.mkdir(parents=True)
        if self._grade.has_overlay:
            for name in ("upper", "work"):
                (self._directory / name).mkdir()
            self._lower = [self._find_source()]
            if below is not None and (below.entries or below.deleted):
                self._layer = self._hold_layer(below)
                self._lower.insert(0, self._layer.path)
            self._files = files
            upper = self._directory / "upper"
            self._tracker = OverlayTracker(materials.blobs, materials.base, upper, below)
            return
        self._path.rmdir()
        reflink = self._grade.workspace == "B"
        copy_tree(materials.source, self._path, reflink=reflink)
        if below is not None:
            try:
                restore(below, materials.base, materials.blobs, self._path, reflink=reflink)
            except (OSError, NotFound) as error:
                raise SetupError("workspace", f"a commit cannot be restored: {error}") from error
        tracker = TreeTracker(materials.blobs, materials.base, self._path, below)
        tracker.prime()
        write_files(self._path, files)
        self._tracker = tracker

    def put_into(self, place: Place) -> Place:
        """The place with this workspace in it."""
        overlay = self._overlay(self._lower, self._directory) if self._lower else None
        return place._replace(
            workspace=self._path, overlay=overlay, base=self._materials.source, files=self._files
        )

    @property
    def base(self) -> BaseTree:
        """What its commits are differences to."""
        return self._materials.base

    def track(self) -> Commit:
        """Commit the files as they are now; the blobs are durable after `sync`.

        Raises:
            TrackingError: when that is not possible; says what.
        """
        assert self._tracker is not None
        commit = self._tracker.track()
        if commit.id not in self._commit_ids:
            try:
                self._materials.blobs.put(encode(commit), sync=False)
            except OSError as error:
                message = f"the blob store cannot take the commit: {error.strerror}"
                raise TrackingError([], message) from error
            self._commit_ids.add(commit.id)
            entries = commit.entries.values()
            self._digests.update(entry.blob for entry in entries if entry.blob is not None)
        return commit

    def sync(self) -> None:
        """Make all commits durable, their files first.

        Raises:
            OSError: when the disk does not take them.
            NotFound: when something of them is gone.
        """
        self._materials.blobs.sync(self._digests)
        self._materials.blobs.sync(self._commit_ids)

    def view(self, name: str, place: Place) -> View:
        """A view of the finished workspace in a new directory, for a process at `place`.

        HOME and TMPDIR are new as well: what the graph left there must not influence its score.
        """
        directory = self._directory / name
        seen = directory / "workspace"
        place = place._replace(home=directory / "home", tmp=directory / "tmp")
        for path in (seen, place.home, place.tmp):
            path.mkdir(parents=True)
        if not self._lower:
            reflink = self._grade.workspace == "B"
            return View(place._replace(workspace=seen), self._path, reflink)
        for part in ("upper", "work"):
            (directory / part).mkdir()
        lower = [self._directory / "upper", *self._lower]
        overlay = self._overlay(lower, directory)
        return View(place._replace(workspace=seen, overlay=overlay), None, reflink=False)

    def close(self) -> None:
        """Give free what it was made of, once nothing has it mounted."""
        if self._layer is not None:
            self._layer.close()
            self._layer = None

    def count_bytes(self) -> int:
        """What the attempt has on disk: output, what it wrote, and its copy if it is no overlay."""
        return count_blocks(str(self._directory))

    def _find_source(self) -> Path:
        if self._materials.source is not None:
            return self._materials.source
        empty = self._directory / "empty"
        empty.mkdir()
        return empty

    def _hold_layer(self, commit: Commit) -> HeldLayer:
        try:
            return self._materials.layers.hold(commit, self._materials.base)
        except (OSError, NotFound) as error:
            raise SetupError("workspace", f"a commit cannot be restored: {error}") from error

    def _overlay(self, lower: list[Path], directory: Path) -> Overlay:
        return {
            "lower": [str(path) for path in lower],
            "upper": str(directory / "upper"),
            "work": str(directory / "work"),
        }
