"""The files of an execution: where it works, what is written for it, what is kept."""

import json
import tempfile
from pathlib import Path

import pytest
from sandbox_bench import Bench, wait_until

from wtb_core.errors import SetupError
from wtb_core.sandbox.writing import write_files


def test_an_attempt_sees_its_own_directories_and_environment_only(shaped):
    files = {"notes/hello.txt": "from the variant", "new/deep.txt": "x"}
    assignment = shaped.assign(
        "shapes",
        "look",
        {"seen": {}},
        variant={"files": files},
        case_files={"notes/hello.txt": "from the case"},
        keep="always",
    )
    outcome = shaped.call(shaped.engine.execute(assignment))
    seen = json.loads(outcome.output)["seen"]
    directory = shaped.engine.attempt_directory(assignment)
    assert seen["cwd"] == str(directory / "workspace")
    assert seen["home"] == str(directory / "home")
    assert seen["tmp"] == str(directory / "tmp")
    assert seen["text"] == "from the case"
    assert seen["link"] == "/etc/hostname"
    assert seen["stdin"] == ""
    assert "TOKEN" in seen["environment"]
    assert "USER" not in seen["environment"]
    assert shaped.blobs.get(outcome.stdout) == b"said on stdout\n"
    assert shaped.blobs.get(outcome.stderr) == b"said on stderr\n"
    wait_until(lambda: [entry.name for entry in directory.iterdir()] == ["workspace"])
    assert (directory / "workspace" / "made.txt").read_text() == "made"
    assert (directory / "workspace" / "new" / "deep.txt").read_text() == "x"
    base = shaped.setups["shapes"].workspace
    assert (base / "notes" / "hello.txt").read_text() == "from the base"
    assert not (base / "made.txt").exists()


@pytest.mark.parametrize("path", ["../out", "/etc/out", "notes/../../out", "", "a\0b"])
def test_a_path_that_leads_out_is_refused_whoever_asks(tmp_path, path):
    """A spec with such a path is refused before; the workspace does not rely on it."""
    with pytest.raises(SetupError, match="is not a path inside the workspace"):
        write_files(tmp_path, {path: "x"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["link/out", "link"])
def test_no_file_is_written_out_of_the_workspace(shaped, path):
    outcome = shaped.run("shapes", "sync", {"x": 1}, case_files={path: "x"})
    assert outcome.failure.kind == "setup"
    assert outcome.failure.reason.startswith("workspace: ")


@pytest.mark.parametrize(("keep", "kept"), [("always", 2), ("failed", 1), ("never", 0)])
def test_the_workspace_is_kept_as_asked(hostile, keep, kept):
    directories = []
    for graph in ("leave_threads_graph", "fail_graph"):
        assignment = hostile.assign("hostile", graph, {}, keep=keep)
        hostile.call(hostile.engine.execute(assignment))
        directories.append(hostile.engine.attempt_directory(assignment))

    def count():
        names = [{e.name for e in d.iterdir()} if d.exists() else set() for d in directories]
        return names.count({"workspace"}) if all(n <= {"workspace"} for n in names) else -1

    wait_until(lambda: count() == kept)


@pytest.mark.parametrize("place", ["/dev/shm", "/tmp"])
def test_the_data_may_lie_where_slots_have_directories_of_their_own(place):
    """A slot's /tmp and /dev/shm do not cover the workspace when the data lies below the host's."""
    with tempfile.TemporaryDirectory(prefix="wtb-", dir=place) as folder:
        bench = Bench(Path(folder))
        try:
            bench.add_scripted()
            code = """
                from pathlib import Path
                Path("made").write_text("x")
                Path("/dev/shm/own").write_text("x")
                value = sorted(str(path) for path in Path("/dev/shm").iterdir())
            """
            value = bench.find_value(code)
            grade = bench.call(bench.sandbox.find_grade())
        finally:
            bench.close()
    assert grade.workspace == "A"
    assert "/dev/shm/own" in value
    assert not Path("/dev/shm/own").exists()
