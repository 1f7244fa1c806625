import asyncio
import shutil
import sys
from pathlib import Path

import pytest

from wtb_core.errors import NotFound, ProjectError
from wtb_core.files.blobs import BlobStore
from wtb_core.projects import ProjectVersions, Registry, read_project_file
from wtb_core.projects import versions as module

PATTERNS = "a reference is `module:attr` or `./file.py:attr`; a name is letters, digits, . _ -"
MINIMAL = "name: p\ngraph: ./graph.py:build\n"


@pytest.fixture
def versions(tmp_path):
    return ProjectVersions(BlobStore(tmp_path / "blobs"), tmp_path / "bases")


@pytest.fixture
def project(tmp_path):
    """The file of a project with code and a workspace."""
    return make_project(tmp_path / "p", MINIMAL + "workspace: ./workspace\n")


def make_project(directory, text):
    (directory / "workspace").mkdir(parents=True)
    (directory / "workspace" / "data.txt").write_text("data")
    (directory / "graph.py").write_text("build = 1\n")
    (directory / "project.yaml").write_text(text)
    return directory / "project.yaml"


def prepare(versions, version):
    return asyncio.run(versions.prepare(version))


def look(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_text()
        for path in directory.rglob("*")
        if path.is_file()
    }


class Describer:
    """Describes each project at once and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    async def __call__(self, setup):
        self.asked.append(setup)
        return {
            "graphs": {name: {"kind": "state_graph", "nodes": []} for name in setup.graphs},
            "nodes": {},
            "evaluators": {},
            "problems": [],
            "start": setup.start,
            "start_reason": None,
        }


@pytest.fixture
def describer():
    return Describer()


def make_registry(tmp_path, versions, describer, *patterns):
    return Registry(tmp_path, patterns or ("*/project.yaml",), versions, describer)


def refresh(registry):
    asyncio.run(registry.refresh())
    return {item["source"]: item for item in registry.summaries()}


# -- the file ------------------------------------------------------------------------------------


def test_a_project_file_may_say_everything_in_the_contract(tmp_path):
    path = make_project(
        tmp_path / "p",
        """
name: code_repair
graphs: {default: ./graph.py:build_graph, react: some.module:make.graph}
workspace: ./workspace
nodes: {propose: {flip_operators: ./graph.py:flip_operators}}
evaluators: {tests_pass: ./evaluators.py:tests_pass}
scores: {tests_pass: {weight: 1, higher_is_better: true, failure_score: 0}}
variant_files: ["prompts/**"]
environment: {pass: [OPENAI_API_KEY], set: {MODE: test}, file: .env, python: .venv/bin/python}
start: fork
""",
    )

    definition = read_project_file(path)

    assert definition.graphs["react"] == "some.module:make.graph"
    assert definition.environment.pass_ == ["OPENAI_API_KEY"]
    assert definition.scores["tests_pass"].model_dump() == {
        "weight": 1.0,
        "higher_is_better": True,
        "failure_score": 0.0,
    }


def test_what_a_project_file_leaves_out_has_defaults(tmp_path):
    path = make_project(tmp_path / "p", MINIMAL + "scores: {m: {}}\n")

    definition = read_project_file(path)

    assert definition.start == "fork"
    assert definition.workspace is None
    assert definition.scores["m"].model_dump() == {
        "weight": None,
        "higher_is_better": True,
        "failure_score": 0.0,
    }


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["a project file is a mapping with at least `name` and `graph`"]),
        ("- a\n- b\n", ["a project file is a mapping with at least `name` and `graph`"]),
        ("name: p\n", ["give `graph` for one graph or `graphs` for several"]),
        (
            MINIMAL + "graphs: {a: ./graph.py:b}\n",
            ["give `graph` for one graph or `graphs` for several"],
        ),
        (
            "name: two words\ngraph: graph.py\ncolour: red\nstart: slow\n",
            [
                f"name: {PATTERNS}",
                f"graph: {PATTERNS}",
                "start: Input should be 'fork' or 'fresh'",
                "colour: unknown key",
            ],
        ),
        (
            MINIMAL + "scores: {m: {weight: 0}}\nenvironment: {path: x}\n",
            ["scores.m.weight: Input should be greater than 0", "environment.path: unknown key"],
        ),
    ],
)
def test_every_problem_of_a_file_is_told_in_plain_words(tmp_path, text, problems):
    path = make_project(tmp_path / "p", text)

    with pytest.raises(ProjectError) as caught:
        read_project_file(path)

    assert caught.value.problems == problems
    assert caught.value.source == str(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a: [", "is not YAML"), (b"\xff\xfe\xff", "is not YAML"), (None, "cannot be read")],
)
def test_a_file_that_cannot_be_read_at_all_says_why(tmp_path, content, words):
    path = tmp_path / "project.yaml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ProjectError, match=words):
        read_project_file(path)


# -- versions ------------------------------------------------------------------------------------


def test_a_version_is_the_same_until_the_content_changes(project, versions):
    first = versions.ingest(project)
    assert versions.ingest(project) == first

    seen = {first}
    for path, text in [
        ("graph.py", "build = 2\n"),
        ("workspace/data.txt", "other"),
        ("new.py", ""),
        ("project.yaml", MINIMAL + "workspace: ./workspace\nstart: fresh\n"),
    ]:
        (project.parent / path).write_text(text)
        seen.add(versions.ingest(project))

    assert len(seen) == 5
    (project.parent / "new.py").unlink()
    (project.parent / "graph.py").write_text("build = 1\n")
    (project.parent / "workspace/data.txt").write_text("data")
    project.write_text(MINIMAL + "workspace: ./workspace\n")
    assert versions.ingest(project) == first


@pytest.mark.parametrize(
    "ignored", ["__pycache__", ".git", ".wtb", "node_modules", ".venv", "sub/__pycache__"]
)
def test_caches_and_environments_are_no_part_of_a_version(project, versions, ignored):
    (project.parent / "sub").mkdir()
    before = versions.ingest(project)
    directory = project.parent / ignored
    directory.mkdir(parents=True)
    (directory / "pyvenv.cfg").write_text("")
    (directory / "file").write_text("")

    assert versions.ingest(project) == before


def test_what_is_prepared_is_what_was_ingested_whatever_happens_to_the_directory(project, versions):
    version = versions.ingest(project)
    shutil.rmtree(project.parent)

    setup = prepare(versions, version)

    assert look(setup.code) == {
        "graph.py": "build = 1\n",
        "project.yaml": MINIMAL + "workspace: ./workspace\n",
        "workspace/data.txt": "data",
    }
    assert look(setup.workspace) == {"data.txt": "data"}
    assert setup.workspace == setup.code / "workspace"
    assert (setup.project, setup.version, setup.graphs) == (
        "p",
        version,
        {"default": "./graph.py:build"},
    )
    assert (setup.python, setup.start) == (sys.executable, "fork")


def test_an_edit_after_ingestion_reaches_only_a_new_version(project, versions):
    old = versions.ingest(project)
    (project.parent / "graph.py").write_text("build = 2\n")
    new = versions.ingest(project)

    assert look(prepare(versions, old).code)["graph.py"] == "build = 1\n"
    assert look(prepare(versions, new).code)["graph.py"] == "build = 2\n"


def test_a_workspace_outside_of_the_project_is_ingested_too(tmp_path, versions):
    path = make_project(tmp_path / "p", MINIMAL + "workspace: ../shared\n")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "file").write_text("shared")

    setup = prepare(versions, versions.ingest(path))

    assert look(setup.workspace) == {"file": "shared"}
    assert "shared" not in look(setup.code)
    assert "workspace/data.txt" in look(setup.code)


def test_a_project_may_do_without_a_workspace(tmp_path, versions):
    path = make_project(tmp_path / "p", MINIMAL)

    assert prepare(versions, versions.ingest(path)).workspace is None


def test_preparing_again_or_at_the_same_time_makes_one_copy(project, versions, tmp_path):
    version = versions.ingest(project)
    other_node = ProjectVersions(BlobStore(tmp_path / "blobs"), tmp_path / "bases")

    async def both():
        return await asyncio.gather(
            *(node.prepare(version) for node in (versions, other_node, versions))
        )

    setups = asyncio.run(both())

    assert setups[0] == setups[1] == setups[2]
    assert [path.name for path in (tmp_path / "bases").iterdir()] == [version]


def test_a_version_that_is_there_is_not_copied_again(project, versions, monkeypatch):
    version = versions.ingest(project)
    first = prepare(versions, version)
    monkeypatch.setattr(module, "materialise", None)

    assert prepare(versions, version) == first


def test_a_version_that_was_never_ingested_is_not_found(versions):
    with pytest.raises(NotFound):
        prepare(versions, "0" * 64)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("workspace: ./nowhere\n", "workspace: ./nowhere is not a directory"),
        ("workspace: ./graph.py\n", "workspace: ./graph.py is not a directory"),
        (
            "environment: {file: .env}\n",
            "environment.file: .env is not a file in the project's directory",
        ),
        (
            "environment: {file: ../secret.env}\n",
            "environment.file: ../secret.env is not a file in the project's directory",
        ),
    ],
)
def test_what_a_project_names_must_be_there(tmp_path, versions, lines, problem):
    (tmp_path / "secret.env").write_text("KEY=1")
    path = make_project(tmp_path / "p", MINIMAL + lines)

    with pytest.raises(ProjectError) as caught:
        versions.ingest(path)

    assert caught.value.problems == [problem]


def test_user_code_sees_path_lang_tz_and_what_the_project_says_of_its_environment(
    tmp_path, versions, monkeypatch
):
    for name, value in {
        "PATH": "/bin",
        "LANG": "C",
        "SECRET": "replica",
        "PASSED": "from the replica",
        "BOTH": "from the replica",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TZ", raising=False)
    monkeypatch.delenv("ABSENT", raising=False)
    path = make_project(
        tmp_path / "p",
        MINIMAL
        + "environment: {pass: [PASSED, BOTH, ABSENT], set: {MODE: test, ALSO: set}, file: .env}\n",
    )
    (path.parent / ".env").write_text(
        "FROM_FILE='a b'\nBOTH=from the file\nALSO=file\nEMPTY=\nBARE\n"
    )

    assert prepare(versions, versions.ingest(path)).environment == {
        "PATH": "/bin",
        "LANG": "C",
        "FROM_FILE": "a b",
        "EMPTY": "",
        "PASSED": "from the replica",
        "BOTH": "from the replica",
        "MODE": "test",
        "ALSO": "set",
    }


@pytest.mark.parametrize(
    ("given", "expected"), [(".venv/bin/python", None), ("/opt/py", "/opt/py")]
)
def test_another_python_is_found_from_the_projects_directory(tmp_path, versions, given, expected):
    path = make_project(
        tmp_path / "p", MINIMAL + f"start: fresh\nenvironment: {{python: {given}}}\n"
    )

    setup = prepare(versions, versions.ingest(path))

    assert setup.python == (expected or str(path.parent / given))
    assert setup.start == "fresh"


# -- the registry --------------------------------------------------------------------------------


def test_a_project_is_described_once_for_each_version(project, tmp_path, versions, describer):
    registry = make_registry(tmp_path, versions, describer)
    found = [asyncio.run(registry.get("p")) for _ in range(2)]
    project.touch()
    found.append(asyncio.run(registry.get("p")))
    assert {item.version for item in found} == {describer.asked[0].version}
    assert len(describer.asked) == 1

    (project.parent / "graph.py").write_text("build = 2\n")

    changed = asyncio.run(registry.get("p"))
    assert changed.version != found[0].version
    assert [setup.version for setup in describer.asked] == [found[0].version, changed.version]


def test_a_project_that_appears_later_is_found_and_one_that_is_gone_is_not(
    project, tmp_path, versions, describer
):
    registry = make_registry(tmp_path, versions, describer)
    refresh(registry)
    late = make_project(tmp_path / "late", MINIMAL.replace("name: p", "name: late"))

    assert asyncio.run(registry.get("late")).source == late
    shutil.rmtree(late.parent)
    with pytest.raises(NotFound):
        asyncio.run(registry.get("late"))
    assert set(refresh(registry)) == {str(project)}


def test_a_name_that_two_projects_have_is_refused_for_both(tmp_path, versions, describer):
    paths = [make_project(tmp_path / name, MINIMAL) for name in ("one", "two")]
    registry = make_registry(tmp_path, versions, describer)

    with pytest.raises(ProjectError) as caught:
        asyncio.run(registry.get("p"))

    assert caught.value.problems == [f"the name 'p' is also that of {paths[1]}"]
    assert set(refresh(registry)) == {str(path) for path in paths}


def test_a_project_that_cannot_be_used_is_listed_and_hinders_no_other(
    project, tmp_path, versions, describer
):
    broken = make_project(tmp_path / "broken", "name: broken\n")
    items = refresh(make_registry(tmp_path, versions, describer))

    assert items[str(broken)] == {
        "name": "broken",
        "version": None,
        "source": str(broken),
        "problems": ["give `graph` for one graph or `graphs` for several"],
    }
    assert items[str(project)]["problems"] == []
    assert items[str(project)]["graphs"] == {"default": {"kind": "state_graph", "nodes": []}}


def test_a_project_that_breaks_and_is_mended_comes_back(project, tmp_path, versions, describer):
    registry = make_registry(tmp_path, versions, describer)
    before = asyncio.run(registry.get("p"))
    text = project.read_text()
    project.write_text(text + "workspace: ./nowhere\n".replace("workspace", "colour"))
    assert refresh(registry)[str(project)]["version"] is None

    project.write_text(text)

    assert asyncio.run(registry.get("p")).version == before.version


def test_a_file_that_several_patterns_find_is_one_project(project, tmp_path, versions, describer):
    registry = make_registry(
        tmp_path, versions, describer, "p/project.yaml", "*/project.yaml", str(project)
    )

    assert len(refresh(registry)) == 1
    assert asyncio.run(registry.get("p")).source == Path(project)
