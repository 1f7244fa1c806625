"""Versions of projects in real processes: dotted packages, builds, interpreters, edits, secrets."""

import asyncio
import json
import shutil
import sys
import textwrap
import venv
from functools import partial
from pathlib import Path

import pytest

from tests.gates import WAIT, Gate
from wtb_core.errors import ProjectError
from wtb_core.files.blobs import BlobStore
from wtb_core.projects import ProjectVersions, Registry
from wtb_core.sandbox.building import build_workspace
from wtb_core.sandbox.ladder import Sandbox
from wtb_core.sandbox.supervisor import describe
from wtb_core.testbench import TestBench

GRAPH = """
import os, sys
from pathlib import Path
from typing import Any, TypedDict
from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    given: Any
    said: Any


def tell(state):
    return {"said": TELL}


def build():
    builder = StateGraph(State)
    builder.add_node("tell", tell)
    builder.add_edge(START, "tell")
    builder.add_edge("tell", END)
    return builder
"""


def graph(tell):
    return GRAPH.replace("TELL", tell)


def write(directory, **files):
    for name, text in files.items():
        path = directory / name.replace("__", ".").replace("_SLASH_", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return directory


def make_sandbox(root):
    return Sandbox(root / "data/runs", hidden=[root / "data"])


def make_versions(root, build=build_workspace):
    data = root / "data"
    return ProjectVersions(BlobStore(data / "blobs"), data / "bases", make_sandbox(root), build)


def make_registry(root, versions):
    patterns = ["*/project.yaml", "*/langgraph.json"]
    return Registry(root, patterns, versions, partial(describe, make_sandbox(root)))


class Place:
    """A registry over directories below `root`, and local benches over the same."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.versions = make_versions(root)
        self.registry = make_registry(root, self.versions)

    def get(self, name):
        return asyncio.run(self.registry.get(name))

    def find_problems(self, name):
        asyncio.run(self.registry.refresh())
        return next(item for item in self.registry.summaries() if item["name"] == name)["problems"]

    def bench(self):
        return TestBench.local(
            self.root / "local", root=self.root, projects=["*/project.yaml", "*/langgraph.json"]
        )

    def run(self, project, given=None, **fields):
        spec = {
            "project": project,
            "variants": [{"name": "v"}],
            "cases": [{"input": {"given": given}}],
        }
        with self.bench() as bench:
            [execution] = bench.run_batch({**spec, **fields}).executions
        return execution


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


# -- interpreters and dotted packages ------------------------------------------------------------


@pytest.fixture(scope="module")
def other_python(tmp_path_factory):
    """A second virtual environment with the packages of this one, and an editable install."""
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory / "env", with_pip=False, symlinks=True)
    [site] = (directory / "env").glob("lib/python*/site-packages")
    ours = next(entry for entry in sys.path if entry.endswith("site-packages"))
    (directory / "editable").mkdir()
    (site / "others.pth").write_text(f"{ours}\n{directory / 'editable'}\n")
    return directory


WHERE = '{"prefix": sys.prefix, "mode": os.environ.get("MODE")}'


def test_everything_of_a_project_runs_under_its_own_interpreter(place, other_python):
    python = other_python / "env/bin/python"
    write(
        place.root / "p",
        project__yaml=f"""
            name: p
            graphs: {{default: ./graph.py:build}}
            build: ./corpus.py:build
            evaluators: {{same: ./evaluators.py:same}}
            environment: {{python: {python}, set: {{MODE: other}}}}
        """,
        graph__py=graph(WHERE),
        corpus__py="import sys\ndef build(path): (path / 'prefix').write_text(sys.prefix)",
        evaluators__py="""
            import sys
            from pathlib import Path
            def same(output, workspace):
                seen = {sys.prefix, output["said"]["prefix"], (workspace / "prefix").read_text()}
                return {"score": len(seen), "comment": sys.prefix}
        """,
    )
    for start in ("fork", "fresh"):
        with (place.root / "p/project.yaml").open("a") as file:
            file.write("start: fresh\n" if start == "fresh" else "")

        execution = place.run("p")

        assert execution["output"]["said"] == {"prefix": str(other_python / "env"), "mode": "other"}
        assert execution["scores"] == {"same": 1.0}
        assert execution["score_comments"] == {"same": str(other_python / "env")}
    assert place.get("p").description["problems"] == []


def test_an_environment_without_langgraph_is_told_before_anything_runs(place, tmp_path):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    write(
        place.root / "p",
        project__yaml="{name: p, graph: './graph.py:build', environment: {python: ../bare/bin/python}}",
        graph__py=graph("1"),
    )

    [problem] = place.find_problems("p")

    assert problem.startswith("environment.python: ")
    assert "has no langgraph; run `" in problem


def test_an_editable_package_is_a_part_of_the_version_and_imported_from_it(place, other_python):
    package = other_python / "editable" / "wtb_editable"
    shutil.rmtree(package, ignore_errors=True)
    write(package, __init__="")
    (package / "__init__.py").write_text("")
    write(package / "inner", graphs__py=graph("[__file__, VALUE]") + "\nVALUE = 'old'\n")
    (package / "__pycache__").mkdir()
    python = other_python / "env/bin/python"
    write(
        place.root / "p",
        project__yaml=f"{{name: p, graph: 'wtb_editable.inner.graphs:build', environment: {{python: {python}}}}}",
    )
    old = place.get("p")
    assert old.problems == []

    file, value = place.run("p")["output"]["said"]
    assert value == "old"
    assert Path(file).is_relative_to(place.root / "local" / "bases")

    (package / "inner" / "graphs.py").write_text(graph("VALUE") + "\nVALUE = 'new'\n")

    assert place.get("p").version != old.version
    assert place.run("p")["output"]["said"] == "new"
    setup = asyncio.run(place.versions.prepare(old.version))
    assert "old" in (setup.packages / "wtb_editable/inner/graphs.py").read_text()
    assert not (setup.packages / "wtb_editable/__pycache__").exists()

    (package / "inner" / "graphs.py").write_text("import nothing_there\n")
    [problem] = place.find_problems("p")
    assert problem.startswith(
        "wtb_editable.inner.graphs:build: ModuleNotFoundError at wtb_editable/inner/graphs.py:1: "
    )


def test_an_editable_install_of_the_projects_own_src_is_imported_from_the_version(
    place, other_python
):
    python = other_python / "env/bin/python"
    source = place.root / "app" / "src"
    write(
        source,
        helper_own__py="VALUE = 'old'",
        agent_own__py="from helper_own import VALUE\n"
        + graph("[VALUE, sys.modules['helper_own'].__file__]"),
    )
    [site] = (other_python / "env").glob("lib/python*/site-packages")
    (site / "own.pth").write_text(f"{source}\n")
    for name, reference in (
        ("by_file", "./src/agent_own.py:build"),
        ("by_name", "agent_own:build"),
    ):
        (place.root / "app/project.yaml").write_text(
            f"{{name: {name}, graph: '{reference}', environment: {{python: {python}}}}}"
        )

        value, file = place.run(name)["output"]["said"]

        assert value == "old"
        assert Path(file).is_relative_to(place.root / "local" / "bases")


def test_a_package_that_is_installed_is_imported_from_where_it_is(place):
    write(
        place.root / "p",
        project__yaml="{name: p, graph: './graph.py:build', evaluators: {e: 'langgraph.graph:StateGraph', s: 'os.path:join'}}",
        graph__py=graph("1"),
    )

    sources = place.versions.find(place.root / "p/project.yaml")

    assert sources.packages == {}


# -- build ---------------------------------------------------------------------------------------

BUILT = {
    "project__yaml": """
        name: built
        graph: ./graph.py:build
        workspace: ./base
        build: ./corpus.py:build
    """,
    "graph__py": graph("sorted(f'{p}={p.read_text()}' for p in Path().iterdir())"),
    "base_SLASH_seed__txt": "seed",
    "corpus__py": """
        import os
        from pathlib import Path
        def build(workspace):
            assert isinstance(workspace, Path) and Path.cwd() == workspace
            (workspace / "made.txt").write_text((workspace / "seed.txt").read_text() + " grown")
            print("built")
    """,
}


def test_what_a_build_leaves_is_the_workspace(place):
    write(place.root / "built", **BUILT)
    first = place.get("built")
    setup = asyncio.run(place.versions.prepare(first.version))

    assert place.run("built")["output"]["said"] == ["made.txt=seed grown", "seed.txt=seed"]
    assert setup.workspace == setup.code / "base"
    assert not (place.root / "built/base/made.txt").exists()
    assert [p.name for p in (place.root / "data/bases").iterdir()] == [first.version]

    (place.root / "built/base/seed.txt").write_text("bean")

    assert place.get("built").version != first.version
    assert place.run("built")["output"]["said"] == ["made.txt=bean grown", "seed.txt=bean"]


def test_a_build_without_a_workspace_starts_empty(place):
    files = {
        **BUILT,
        "project__yaml": "{name: built, graph: './graph.py:build', build: './corpus.py:build'}",
    }
    files["corpus__py"] = "def build(path): (path / 'n').write_text(str(len(list(path.iterdir()))))"
    write(place.root / "built", **files)

    assert place.run("built")["output"]["said"] == ["n=0"]


class Counting:
    """The real build, counted."""

    def __init__(self):
        self.count = 0

    async def __call__(self, *arguments):
        self.count += 1
        return await build_workspace(*arguments)


def test_a_build_runs_once_for_what_it_is_made_of_also_when_it_fails(tmp_path):
    counting = Counting()
    registry = make_registry(tmp_path, make_versions(tmp_path, counting))
    write(tmp_path / "built", **BUILT)
    found = {asyncio.run(registry.get("built")).version for _ in range(2)}
    assert (len(found), counting.count) == (1, 1)

    (tmp_path / "built/corpus.py").write_text(
        "def build(path):\n    raise ValueError('no corpus')\n"
    )
    for _ in range(2):
        with pytest.raises(ProjectError) as caught:
            asyncio.run(registry.get("built"))
    assert caught.value.problems == [
        "build: ./corpus.py:build: ValueError at corpus.py:2: no corpus"
    ]
    assert counting.count == 2

    (tmp_path / "built/corpus.py").touch()
    with pytest.raises(ProjectError):
        asyncio.run(registry.get("built"))
    assert counting.count == 3


def test_two_processes_that_build_at_the_same_time_get_the_same_version(tmp_path):
    write(tmp_path / "built", **BUILT)
    registries = [make_registry(tmp_path, make_versions(tmp_path)) for _ in range(2)]

    async def both():
        return await asyncio.gather(*(registry.get("built") for registry in registries))

    one, other = asyncio.run(both())

    assert one.version == other.version
    assert [path.name for path in (tmp_path / "data/bases").iterdir()] == [one.version]


@pytest.mark.parametrize(
    ("corpus", "problem"),
    [
        ("", "build: ./corpus.py:build: ./corpus.py has no 'build'"),
        ("import nothing_there", "build: ./corpus.py:build: ModuleNotFoundError at corpus.py:1: "),
        ("def build(): pass", "build: ./corpus.py:build: TypeError: build() takes 0 positional"),
        (
            "async def build(path): pass",
            "build: ./corpus.py:build: an async build is not supported",
        ),
        (
            "import sys\ndef build(path): sys.exit(3)",
            "build: ./corpus.py:build: SystemExit at corpus.py:2",
        ),
        (
            "import os\ndef build(path):\n    print('so far', flush=True); os._exit(3)",
            "build: its process ended with exit code 3; it last said:\nso far",
        ),
        (
            "import os\ndef build(path): os.mkfifo('pipe')",
            "build: what it made cannot be ingested: pipe is neither",
        ),
    ],
)
def test_a_build_that_fails_is_a_problem_in_plain_words(place, corpus, problem):
    write(place.root / "built", **{**BUILT, "corpus__py": corpus})
    write(
        place.root / "fine",
        project__yaml="{name: fine, graph: './graph.py:build'}",
        graph__py=graph("1"),
    )

    [found] = place.find_problems("built")

    assert found.startswith(problem)
    assert place.find_problems("fine") == []
    assert place.get("fine").version


def test_a_build_that_does_not_end_is_killed(tmp_path):
    async def impatient(*arguments):
        return await build_workspace(*arguments, timeout_s=1.0)

    versions = make_versions(tmp_path, impatient)
    hanging = "import time\ndef build(path):\n    print('reading'); time.sleep(1000)"
    write(tmp_path / "built", **{**BUILT, "corpus__py": hanging})
    sources = versions.find(tmp_path / "built/project.yaml")

    with pytest.raises(ProjectError) as caught:
        asyncio.run(versions.ingest(sources))

    assert caught.value.problems == [
        "build: it took longer than 1 s and was killed; it last said:\nreading"
    ]


# -- edits under a running batch -----------------------------------------------------------------


@pytest.fixture
def gate():
    with Gate() as gate:
        yield gate


def test_a_running_batch_keeps_its_code_files_and_packages(place, other_python, gate):
    package = other_python / "editable" / "wtb_edited.py"
    package.write_text("VALUE = 'old package'\nNODE = None\ndef look(output): return 1\n")
    directory = write(
        place.root / "edited",
        project__yaml=f"""
            name: edited
            graph: ./graph.py:build
            workspace: ./base
            evaluators: {{old: 'wtb_edited:look'}}
            environment: {{python: {other_python / "env/bin/python"}}}
            start: fresh
        """,
        gate_code__py=WAIT,
        graph__py="from gate_code import wait\n"
        + graph(
            f"[wait({gate.port}), __import__('late').VALUE, Path('file.txt').read_text(), __import__('wtb_edited').VALUE]"
        ),
        late__py="VALUE = 'old code'",
        base_SLASH_file__txt="old file",
    )
    spec = {
        "project": "edited",
        "variants": [{"name": "v"}],
        "cases": [{"input": {"given": number}} for number in range(2)],
    }

    with place.bench() as bench:
        batch_id = bench.submit(spec)
        gate.wait_until_reached()
        (directory / "late.py").write_text("VALUE = 'new code'")
        (directory / "base/file.txt").write_text("new file")
        package.write_text("VALUE = 'new package'\ndef look(output): return 2\n")
        gate.open()
        list(bench.events(batch_id))
        before = bench.read(batch_id)
        after = bench.run_batch(spec)

    assert [e["output"]["said"][1:] for e in before.executions] == [
        ["old code", "old file", "old package"]
    ] * 2
    assert [e["scores"] for e in before.executions] == [{"old": 1.0}] * 2
    assert [e["output"]["said"][1:] for e in after.executions] == [
        ["new code", "new file", "new package"]
    ] * 2
    assert [e["scores"] for e in after.executions] == [{"old": 2.0}] * 2
    assert before.batch["project_version"] != after.batch["project_version"]


# -- secrets -------------------------------------------------------------------------------------


def test_no_secret_leaves_in_logs_answers_or_problems(place, monkeypatch):
    secret = 'pass"word\\of mine'
    monkeypatch.setenv("PASSED_ON", secret)
    write(
        place.root / "p",
        project__yaml="""
            name: p
            graphs: {default: ./graph.py:build, failing: ./failing.py:build, broken: ./broken.py:x}
            evaluators: {look: ./evaluators.py:look, fails: ./evaluators.py:fails}
            environment: {pass: [PASSED_ON], file: .env, set: {MY_TOKEN: token-12345, MODE: production-mode}}
        """,
        graph__py=graph(
            "[dict(os.environ), print(os.environ), sys.stderr.write(os.environ['PASSED_ON'])]"
        ),
        failing__py=graph("[][0] if sys.stdout.write(os.environ['FROM_FILE']) < 0 else fail()")
        + "\ndef fail(): raise ValueError(f\"no {os.environ['PASSED_ON']} and {os.environ['FROM_FILE']}\")\n",
        broken__py="import os\nraise ValueError(os.environ['PASSED_ON'] + os.environ['FROM_FILE'])\n",
        evaluators__py="""
            import os
            def look(output):
                seen = output["said"][0]
                return {"score": seen["PASSED_ON"] == os.environ["PASSED_ON"], "comment": str(seen)}
            def fails(output):
                raise ValueError(os.environ["MY_TOKEN"])
        """,
    )
    (place.root / "p/.env").write_text("FROM_FILE=file-secret-1\n")
    secrets = [secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], "file-secret-1", "token-12345"]

    problems = place.find_problems("p")
    with place.bench() as bench:
        spec = {
            "project": "p",
            "variants": [{"name": "v"}, {"name": "f", "graph": "failing"}],
            "cases": [{"input": {}}],
        }
        result = bench.run_batch(spec)
        events = list(bench.events(result.batch_id))
        projects = list(result.executions)
    fine, failed = result.executions

    assert problems == [
        "./broken.py:x: ValueError at broken.py:2: [redacted PASSED_ON][redacted FROM_FILE]"
    ]
    assert fine["scores"] == {"look": 1.0, "fails": None}
    assert fine["score_errors"] == {"fails": "ValueError: [redacted MY_TOKEN]"}
    assert fine["output"]["said"][0]["MODE"] == "production-mode"
    assert fine["output"]["said"][0]["PASSED_ON"] == "[redacted PASSED_ON]"
    assert failed["failure"]["message"] == "no [redacted PASSED_ON] and [redacted FROM_FILE]"
    shown = json.dumps([problems, projects, events, result.batch, result.comparison])
    # Blobs of the run: logs and outputs. The version's own files hold what the user put there.
    logs = [
        path.read_text(errors="replace")
        for path in (place.root / "local/blobs").rglob("*")
        if path.is_file() and "environ({" in path.read_text(errors="replace")
    ]
    assert len(logs) == 1
    for text in (shown, *logs):
        for value in secrets:
            assert value not in text
