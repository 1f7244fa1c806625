"""Level B, on file systems that can share blocks, which the tests make for themselves."""

import asyncio
import json
import subprocess
import textwrap

import pytest
from file_systems import BLOCK_BYTES, Impossible, find_blocks, mounted
from sandbox_bench import Bench, wait_until

from wtb_core.attempts import Origin
from wtb_core.errors import SetupError
from wtb_core.history import decode
from wtb_core.sandbox.ladder import Sandbox

MIB = 1024**2
LARGE_BYTES = 8 * MIB
VERSION = "1" * 64


@pytest.fixture(scope="module", params=["xfs", "btrfs"])
def place(request, tmp_path_factory):
    """A directory on a file system that can share blocks."""
    directory = tmp_path_factory.mktemp("disk")
    try:
        with mounted(request.param, directory) as place:
            yield place
    except Impossible as error:
        pytest.skip(str(error))
    used = subprocess.run(["losetup", "--list"], capture_output=True, text=True, check=True)
    assert str(directory) not in used.stdout


@pytest.fixture(scope="module")
def reflinks(place):
    """A bench at level B; its base has a large file."""
    base = place / "base"
    base.mkdir()
    (base / "file.txt").write_text("of the base")
    (base / "large.bin").write_bytes(b"".join(b"%08x" % i for i in range(LARGE_BYTES // 8)))
    bench = Bench(place / "data", isolation="reflink")
    bench.add_scripted(workspace=base)
    graphs = {"default": "./graphs.py:builder"}
    bench.add("steps", "steps", graphs, workspace=base, version=VERSION)
    yield bench
    bench.close()


def read_commit(bench, digest):
    return json.loads(bench.blobs.get(digest))


def read_content(bench, commit):
    files = {path: entry["blob"] for path, entry in commit["entries"].items()}
    return {path: bench.blobs.get(blob) for path, blob in files.items()}


def test_the_level_is_b_and_processes_have_namespaces(reflinks):
    outcome = reflinks.script("value = 1")
    assert outcome.failure is None
    assert outcome.isolation["workspace"] == "B"
    assert "namespaces" in outcome.isolation["confinement"]


def test_blocks_are_shared_until_they_are_written_and_the_base_stays(reflinks):
    base = reflinks.setups["fork"].workspace
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    assignment = reflinks.assign(
        "fork",
        given={
            "code": textwrap.dedent(f"""
                with open("large.bin", "r+b") as file:
                    file.seek({LARGE_BYTES // 2})
                    file.write(b"written in place")
                with open("file.txt", "r+b") as file:
                    file.write(b"OF")
            """)
        },
        keep="always",
    )
    outcome = reflinks.call(reflinks.engine.execute(assignment))

    assert outcome.failure is None
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    assert outcome.isolation["base"]["changed"] is False
    assert (outcome.files.modified, outcome.files.created, outcome.files.deleted) == (2, 0, 0)
    found = read_content(reflinks, read_commit(reflinks, outcome.files.file_commit_id))
    half = LARGE_BYTES // 2
    changed = before["large.bin"][:half] + b"written in place" + before["large.bin"][half + 16 :]
    assert found == {"large.bin": changed, "file.txt": b"OF the base"}
    directory = reflinks.engine.attempt_directory(assignment)
    wait_until(lambda: [entry.name for entry in directory.iterdir()] == ["workspace"])
    kept = find_blocks(directory / "workspace" / "large.bin")
    shared = kept & find_blocks(base / "large.bin")
    assert len(kept) >= LARGE_BYTES // BLOCK_BYTES
    # Some file systems copy a few blocks around the one that is written.
    assert 0 < len(kept - shared) <= 64


def test_a_fork_has_the_files_of_its_checkpoint(reflinks):
    """As the engine does it: the commit is restored over a tree of reflinks."""
    steps = [
        "open('large.bin', 'r+b').write(b'first')",
        "import os; os.remove('file.txt')",
        "open('later.txt', 'x').write('later')",
    ]
    given = {"steps": steps, "values": []}
    first = reflinks.run("steps", given=given, version=VERSION)
    assert first.failure is None
    past = decode(reflinks.blobs.get(first.history))
    chosen = past.checkpoints[-2]  # after the second step
    origin = Origin(
        execution_id="execution",
        attempt=1,
        checkpoint_id=chosen.checkpoint_id,
        history=first.history,
        file_commit_id=chosen.file_commit,
        state={
            "steps": [
                *steps[:2],
                "import os; value = [*sorted(os.listdir()), open('large.bin').read(8)]",
            ]
        },
    )
    again = reflinks.assign("steps", given=given, version=VERSION, execution_id="fork")

    second = reflinks.call(reflinks.engine.execute(again.model_copy(update={"origin": origin})))

    assert second.failure is None
    assert json.loads(second.output)["values"] == [None, None, ["large.bin", "first000"]]
    assert second.start_commit_id == second.files.file_commit_id == chosen.file_commit
    commit = read_commit(reflinks, chosen.file_commit)
    assert commit["deleted"] == ["file.txt"]
    assert read_content(reflinks, commit)["large.bin"].startswith(b"first00000000001")


def test_an_overlay_is_preferred_where_its_changes_may_lie_here(place):
    grade = asyncio.run(Sandbox(place / "auto" / "runs", require="A").find_grade())
    assert grade.workspace in {"A", "A'"}
    assert not [missed for missed in grade.missed if missed.step.startswith("overlay")]


def test_reflinks_are_refused_where_blocks_cannot_be_shared(tmp_path):
    try:
        with mounted("ext4", tmp_path) as place:
            sandbox = Sandbox(place / "runs", isolation="reflink")
            with pytest.raises(SetupError) as caught:
                asyncio.run(sandbox.find_grade())
    except Impossible as error:
        pytest.skip(str(error))
    message = str(caught.value)
    assert "level B is required, this machine reaches C" in message
    assert "cannot share blocks between files" in message


@pytest.mark.parametrize(("isolation", "required"), [("copy", "A"), ("copy", "B")])
def test_a_level_that_is_ruled_out_and_required_is_refused(tmp_path, isolation, required):
    sandbox = Sandbox(tmp_path / "runs", isolation=isolation, require=required)
    with pytest.raises(SetupError, match=f"level {required} is required, .* reaches C"):
        asyncio.run(sandbox.find_grade())


def test_reflinks_are_refused_where_an_overlay_is_required(place):
    sandbox = Sandbox(place / "required" / "runs", isolation="reflink", require="A")
    with pytest.raises(SetupError, match="level A is required, this machine reaches B"):
        asyncio.run(sandbox.find_grade())
