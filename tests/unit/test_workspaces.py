import gc
import weakref

from wtb_core.files.blobs import DURABLE_MODE, BlobStore
from wtb_core.files.commits import BaseTree
from wtb_core.files.layers import LayerCache
from wtb_core.sandbox.ladder import Grade
from wtb_core.sandbox.processes import Confinement
from wtb_core.sandbox.workspaces import Materials, Workspace

GRADE = Grade(workspace="C", confinement=Confinement("none", False), missed=[])


def test_no_commit_is_held_but_the_last_and_all_of_them_become_durable(tmp_path):
    blobs = BlobStore(tmp_path / "blobs")
    layers = LayerCache(tmp_path / "layers", blobs)
    directory = tmp_path / "attempt"
    directory.mkdir()
    workspace = Workspace(Materials(blobs, layers, BaseTree(None, None), None), GRADE, directory)
    workspace.make({}, None)
    commits, digests = [], set()
    for text in ("one", "two", "three"):
        (directory / "workspace" / "file").write_text(text)
        commit = workspace.track()
        digests |= {commit.id, commit.entries["file"].blob}
        commits.append(weakref.ref(commit))
    del commit
    gc.collect()
    assert [held() is None for held in commits] == [True, True, False]
    workspace.sync()
    assert len(digests) == 6
    assert {blobs.look(digest).st_mode & 0o777 for digest in digests} == {DURABLE_MODE}
