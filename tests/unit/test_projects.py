import asyncio
import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from wtb_core.errors import NotFound, ProjectError
from wtb_core.files.blobs import BlobStore
from wtb_core.projects import ProjectVersions, Registry, interpreters, read_project_file
from wtb_core.projects import sources as sources_module
from wtb_core.projects import versions as module

REFERENCE = "a reference is `module:attr` or `./file.py:attr`"
NAME = "a name is letters, digits, . _ - and starts with a letter or a digit"
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


def ingest(versions, path):
    return asyncio.run(versions.ingest(versions.find(path)))


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

    definition = read_project_file(path).definition

    assert definition.graphs["react"] == "some.module:make.graph"
    assert definition.environment.pass_ == ["OPENAI_API_KEY"]
    assert definition.scores["tests_pass"].model_dump() == {
        "weight": 1.0,
        "higher_is_better": True,
        "failure_score": 0.0,
    }


def test_what_a_project_file_leaves_out_has_defaults(tmp_path):
    path = make_project(tmp_path / "p", MINIMAL + "scores: {m: {}}\n")

    definition = read_project_file(path).definition

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
        ("", ["is not YAML: line 1, column 1: there is nothing in it"]),
        ("- a\n- b\n", ["a project file is a mapping with at least `name` and `graph`"]),
        ("name: p\n", ["give `graph` for one graph or `graphs` for several"]),
        (
            MINIMAL + "graphs: {a: ./graph.py:b}\n",
            ["give `graph` for one graph or `graphs` for several"],
        ),
        (
            "name: two words\ngraph: graph.py\ncolour: red\nstart: slow\n",
            [
                f"name: {NAME}",
                f"graph: {REFERENCE}",
                "start: Input should be 'fork' or 'fresh'",
                "colour: unknown key",
            ],
        ),
        (
            MINIMAL + "scores: {m: {weight: 0}}\nenvironment: {path: x}\n",
            ["scores.m.weight: Input should be greater than 0", "environment.path: unknown key"],
        ),
        (
            MINIMAL + "evaluators: {a: ./e.py:a, a.b: ./e.py:b}\n",
            ["evaluators.a.b: its name is that of a metric of 'a'; take another one"],
        ),
        (
            MINIMAL + "variant_files: [/etc/*, ../x, prompts/**, 'a//b']\n",
            [
                f"variant_files[{index}]: {pattern!r} must be relative to the workspace, without "
                "empty, '.' or '..' parts"
                for index, pattern in [(0, "/etc/*"), (1, "../x"), (3, "a//b")]
            ],
        ),
        (
            MINIMAL + "nodes: {a: {b c: ./g.py:x}}\nenvironment: {pass: [A=B], set: {N: 8}}\n",
            [
                f'nodes.a["b c"]: {NAME}',
                "environment.pass[0]: the name of a variable is letters, digits and _",
                "environment.set.N: give text; numbers, dates, true and false are text in quotes",
            ],
        ),
        (
            MINIMAL + "build: corpus.py\nevaluators: []\n",
            [f"build: {REFERENCE}", "evaluators: give a mapping"],
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
    [
        (b"a: [", "is not YAML: line 2, column 1: "),
        (b"\xff\xfe\xff", "is not YAML"),
        (b"[" * 5000, "nested more than 100 levels deep"),
        (b"name: a\nname: b", "the key 'name' is given twice"),
        (b"", "is not YAML: line 1, column 1: there is nothing in it"),
        (b"#" * (1024**2 + 1), "is larger than 1048576 bytes"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_says_why(tmp_path, content, words):
    path = tmp_path / "project.yaml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ProjectError, match=words):
        read_project_file(path)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "project.yaml")

    with pytest.raises(ProjectError, match="is not a file"):
        read_project_file(tmp_path / "project.yaml")


def test_a_score_of_no_evaluator_is_told_and_the_project_is_used(tmp_path, versions, describer):
    make_project(
        tmp_path / "p",
        MINIMAL + "evaluators: {e: ./e.py:e}\nscores: {e: {}, e.x: {}, ef: {}}\n",
    )
    [item] = refresh(make_registry(tmp_path, versions, describer)).values()

    assert item["version"] is not None
    assert item["problems"] == [
        (
            "scores.ef: no evaluator has this metric; a metric is the name of an evaluator or "
            "`evaluator.metric`, and the evaluators are: e"
        )
    ]


# -- langgraph.json ------------------------------------------------------------------------------


def make_langgraph(directory, content):
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "langgraph.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_langgraph_json_is_a_project_and_what_has_no_meaning_here_is_told(tmp_path):
    path = make_langgraph(
        tmp_path / "my agent!",
        {
            "dependencies": ["."],
            "graphs": {
                "agent": "./src/agent.py:graph",
                "other": "src/other.py:make",
                "third": {"path": "package.module:graph", "description": "d"},
            },
            "env": ".env",
            "store": {"index": {}},
            "something": 1,
        },
    )

    definition, ignored = read_project_file(path)

    assert definition.name == "my-agent-"
    assert definition.named_graphs == {
        "agent": "./src/agent.py:graph",
        "other": "./src/other.py:make",
        "third": "package.module:graph",
    }
    assert definition.environment.file == ".env"
    assert ignored == [
        "dependencies: are not installed; the interpreter that runs the project must have them",
        "graphs.third.description: has no meaning here",
        "something: has no meaning here",
        "store: is a part of LangGraph's server, which is not used here",
    ]


def test_env_of_a_langgraph_json_may_be_a_mapping(tmp_path):
    path = make_langgraph(
        tmp_path, {"graphs": {"a": "./a.py:g"}, "env": {"A": "x", "N": 3, "T": True}}
    )

    assert read_project_file(path).definition.environment.set == {"A": "x", "N": "3", "T": "true"}


@pytest.mark.parametrize(
    ("content", "problems"),
    [
        (
            "{",
            ["is not JSON: line 1, column 2: expecting property name enclosed in double quotes"],
        ),
        (
            "[" * 100_000,
            ["is not JSON: line 1, column 101: this is nested more than 100 levels deep"],
        ),
        (
            '{"env": "a", "env": "b"}',
            [
                "is not JSON: line 1, column 24: the key 'env' is given twice, in the mapping ending here"
            ],
        ),
        ({"graphs": {}}, ["it names no graphs; give `graphs`, a mapping of names to references"]),
        (["graphs"], ["it names no graphs; give `graphs`, a mapping of names to references"]),
        (
            {"graphs": {"a": 1}, "env": {"X": []}},
            ["graphs.a: give a reference such as `./agent.py:graph`", "env.X: give text"],
        ),
        ({"graphs": {"a": "./a.ts:graph"}}, [f"graphs.a: {REFERENCE}"]),
        (
            {"graphs": {"a": "./a.py:g"}, "env": 5},
            ["env: give the path of a file, or a mapping of names to texts"],
        ),
    ],
)
def test_every_problem_of_a_langgraph_json_is_told(tmp_path, content, problems):
    with pytest.raises(ProjectError) as caught:
        read_project_file(make_langgraph(tmp_path, content))

    assert caught.value.problems == problems


@pytest.mark.parametrize("name", ["project.yaml", "langgraph.json"])
def test_an_only_graph_is_the_default_one_too(tmp_path, name):
    path = tmp_path / name
    path.write_text(
        json.dumps(
            {"graphs": {"agent": "./a.py:g"}} | ({"name": "p"} if name == "project.yaml" else {})
        )
    )

    assert read_project_file(path).definition.named_graphs == {
        "default": "./a.py:g",
        "agent": "./a.py:g",
    }


def test_a_project_yaml_wins_over_a_langgraph_json_beside_it(
    project, tmp_path, versions, describer
):
    make_langgraph(project.parent, {"graphs": {"agent": "./graph.py:build"}})
    alone = make_langgraph(
        tmp_path / "alone", {"graphs": {"agent": "./graph.py:build"}, "auth": {}}
    )
    registry = make_registry(tmp_path, versions, describer, "*/langgraph.json", "*/project.yaml")

    items = refresh(registry)

    assert set(items) == {str(project), str(alone)}
    assert items[str(alone)]["name"] == "alone"
    assert items[str(alone)]["ignored"] == [
        "auth: is a part of LangGraph's server, which is not used here"
    ]


def test_the_env_file_of_a_langgraph_json_must_be_there(tmp_path, versions):
    path = make_langgraph(tmp_path, {"graphs": {"a": "./a.py:g"}, "env": ".env"})

    with pytest.raises(ProjectError) as caught:
        versions.find(path)

    assert caught.value.problems == ["env: .env is not a file in the project's directory"]


# -- versions ------------------------------------------------------------------------------------


def test_a_version_is_the_same_until_the_content_changes(project, versions):
    first = ingest(versions, project)
    assert ingest(versions, project) == first

    seen = {first}
    for path, text in [
        ("graph.py", "build = 2\n"),
        ("workspace/data.txt", "other"),
        ("new.py", ""),
        ("project.yaml", MINIMAL + "workspace: ./workspace\nstart: fresh\n"),
    ]:
        (project.parent / path).write_text(text)
        seen.add(ingest(versions, project))

    assert len(seen) == 5
    (project.parent / "new.py").unlink()
    (project.parent / "graph.py").write_text("build = 1\n")
    (project.parent / "workspace/data.txt").write_text("data")
    project.write_text(MINIMAL + "workspace: ./workspace\n")
    assert ingest(versions, project) == first


@pytest.mark.parametrize(
    "ignored", ["__pycache__", ".git", ".wtb", "node_modules", ".venv", "sub/__pycache__"]
)
def test_caches_and_environments_are_no_part_of_a_version(project, versions, ignored):
    (project.parent / "sub").mkdir()
    before = ingest(versions, project)
    directory = project.parent / ignored
    directory.mkdir(parents=True)
    (directory / "pyvenv.cfg").write_text("")
    (directory / "file").write_text("")

    assert ingest(versions, project) == before


def test_what_is_prepared_is_what_was_ingested_whatever_happens_to_the_directory(project, versions):
    version = ingest(versions, project)
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
    old = ingest(versions, project)
    (project.parent / "graph.py").write_text("build = 2\n")
    new = ingest(versions, project)

    assert look(prepare(versions, old).code)["graph.py"] == "build = 1\n"
    assert look(prepare(versions, new).code)["graph.py"] == "build = 2\n"


def test_a_workspace_outside_of_the_project_is_ingested_too(tmp_path, versions):
    path = make_project(tmp_path / "p", MINIMAL + "workspace: ../shared\n")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "file").write_text("shared")

    setup = prepare(versions, ingest(versions, path))

    assert look(setup.workspace) == {"file": "shared"}
    assert "shared" not in look(setup.code)
    assert "workspace/data.txt" in look(setup.code)


def test_a_project_may_do_without_a_workspace(tmp_path, versions):
    path = make_project(tmp_path / "p", MINIMAL)

    assert prepare(versions, ingest(versions, path)).workspace is None


def test_preparing_again_or_at_the_same_time_makes_one_copy(project, versions, tmp_path):
    version = ingest(versions, project)
    other_node = ProjectVersions(BlobStore(tmp_path / "blobs"), tmp_path / "bases")

    async def both():
        return await asyncio.gather(
            *(node.prepare(version) for node in (versions, other_node, versions))
        )

    setups = asyncio.run(both())

    assert setups[0] == setups[1] == setups[2]
    assert [path.name for path in (tmp_path / "bases").iterdir()] == [version]


def test_a_version_that_was_changed_on_this_node_is_made_again(project, versions, tmp_path):
    version = ingest(versions, project)
    setup = prepare(versions, version)
    (setup.workspace / "data.txt").write_text("damaged")

    asyncio.run(versions.discard(version))
    asyncio.run(versions.discard(version))

    assert look(prepare(versions, version).workspace) == {"data.txt": "data"}
    assert [path.name for path in (tmp_path / "bases").iterdir()] == [version]


def test_a_version_that_is_there_is_not_copied_again(project, versions, monkeypatch):
    version = ingest(versions, project)
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
        (
            "environment: {file: link.env}\n",
            "environment.file: link.env is not a file in the project's directory",
        ),
        (
            "environment: {file: loop}\n",
            "environment.file: loop is not a file in the project's directory",
        ),
        (
            "environment: {file: pipe}\n",
            "environment.file: pipe is not a file in the project's directory",
        ),
        ("environment: {file: latin.env}\n", "environment.file: latin.env is not UTF-8 text"),
        (
            "environment: {file: node_modules/.env}\n",
            (
                "environment.file: node_modules/.env lies in a directory that is no part of a "
                "project's version"
            ),
        ),
        (
            "workspace: ./workspace\nenvironment: {file: workspace/data.txt}\n",
            (
                "environment.file: workspace/data.txt lies in the workspace, where the graph's tools "
                "would see it"
            ),
        ),
        ("workspace: ./loop\n", "workspace: ./loop is a link that leads to itself"),
        (
            "workspace: /\n",
            "workspace: / is or holds the home directory; name a smaller directory",
        ),
        (
            "workspace: ..\n",
            "workspace: .. holds the project's own directory; name a smaller directory",
        ),
        (
            "workspace: ../data\n",
            "workspace: ../data holds the service's data directory; name another directory",
        ),
    ],
)
def test_what_a_project_names_must_be_there(tmp_path, lines, problem):
    (tmp_path / "secret.env").write_text("KEY=1")
    path = make_project(tmp_path / "p", MINIMAL + lines)
    (path.parent / "link.env").symlink_to("../secret.env")
    (path.parent / "loop").symlink_to("loop")
    (path.parent / "latin.env").write_bytes(b"A=\xff")
    (path.parent / "node_modules").mkdir()
    (path.parent / "node_modules" / ".env").write_text("A=1")
    if "pipe" in lines:
        os.mkfifo(path.parent / "pipe")
    versions = ProjectVersions(BlobStore(tmp_path / "data/blobs"), tmp_path / "data/bases")
    (tmp_path / "data/blobs").mkdir(parents=True)

    with pytest.raises(ProjectError) as caught:
        versions.find(path)

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

    assert prepare(versions, ingest(versions, path)).environment == {
        "PATH": "/bin",
        "LANG": "C",
        "FROM_FILE": "a b",
        "EMPTY": "",
        "PASSED": "from the replica",
        "BOTH": "from the replica",
        "MODE": "test",
        "ALSO": "set",
    }


def test_another_python_is_found_from_the_projects_directory(tmp_path, versions):
    for given in ("env/bin/python", sys.executable):
        path = make_project(
            tmp_path / given.replace("/", "-"),
            MINIMAL + f"start: fresh\nenvironment: {{python: {given}}}\n",
        )
        (path.parent / "env" / "bin").mkdir(parents=True)
        (path.parent / "env" / "pyvenv.cfg").write_text("")
        make_executable(path.parent / "env/bin/python", f'exec {sys.executable} "$@"')

        setup = prepare(versions, ingest(versions, path))

        assert setup.python == str(path.parent / given)
        assert setup.start == "fresh"
        assert not (setup.code / "env").exists()


def make_executable(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (None, "there is no interpreter {python}; make the environment first"),
        ("echo no python >&2; exit 3", "{python} is no Python 3 that can be used: no python"),
        (
            """echo '{"version": [3, 9, 1], "langgraph": null, "path": [], "packages": {}}'""",
            "{python} is Python 3.9.1; use 3.12 or newer",
        ),
        (
            """echo '{"version": [3, 12, 1], "langgraph": null, "path": [], "packages": {}}'""",
            "{python} has no langgraph; run `{python} -m pip install langgraph`",
        ),
        (
            """echo '{"version": [3, 12, 1], "langgraph": "0.6.7", "path": [], "packages": {}}'""",
            (
                "{python} has langgraph 0.6.7; use 1.0 or newer: run `{python} -m pip install "
                "--upgrade langgraph`"
            ),
        ),
    ],
)
def test_an_interpreter_that_cannot_be_used_says_what_to_do(tmp_path, versions, script, words):
    path = make_project(tmp_path / "p", MINIMAL + "environment: {python: ./py}\n")
    if script is not None:
        make_executable(path.parent / "py", script)

    with pytest.raises(ProjectError) as caught:
        versions.find(path)

    python = path.parent / "py"
    assert caught.value.problems == ["environment.python: " + words.format(python=python)]


def test_what_is_installed_later_is_looked_at_again(tmp_path, versions, describer):
    path = make_project(tmp_path / "p", MINIMAL + "environment: {python: ./py}\n")
    answer = {"version": [3, 12, 1], "langgraph": "1.2.22", "path": [str(tmp_path / "site")]}
    make_executable(path.parent / "py", f"echo '{json.dumps({**answer, 'packages': {}})}'")
    (tmp_path / "site").mkdir()
    registry = make_registry(tmp_path, versions, describer)
    for _ in range(2):
        asyncio.run(registry.get("p"))
    assert len(describer.asked) == 1

    (tmp_path / "site" / "new_package").mkdir()

    asyncio.run(registry.get("p"))
    assert len(describer.asked) == 2


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
        "graphs": {},
        "nodes": {},
        "evaluators": [],
        "scores": {},
        "start": None,
        "start_reason": None,
        "ignored": [],
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


def test_a_version_is_never_made_of_files_that_changed_meanwhile(
    project, tmp_path, versions, describer
):
    ingest = versions.ingest
    edits = []

    async def edit_meanwhile(sources):
        version = await ingest(sources)
        if len(edits) < 2:
            edits.append(version)
            (project.parent / "graph.py").write_text(f"build = {len(edits)}0\n")
        return version

    versions.ingest = edit_meanwhile
    found = asyncio.run(make_registry(tmp_path, versions, describer).get("p"))

    assert found.version not in edits
    assert look(prepare(versions, found.version).code)["graph.py"] == "build = 20\n"
    assert len(describer.asked) == 1


def test_files_that_never_rest_are_told(project, tmp_path, versions, describer):
    ingest = versions.ingest
    counter = iter(range(1000))

    async def edit_meanwhile(sources):
        version = await ingest(sources)
        (project.parent / "graph.py").write_text(f"build = {next(counter)}\n")
        return version

    versions.ingest = edit_meanwhile
    with pytest.raises(ProjectError, match="its files changed while they were read"):
        asyncio.run(make_registry(tmp_path, versions, describer).get("p"))


def test_a_file_that_disappears_while_it_is_read_is_no_problem(
    project, tmp_path, versions, describer
):
    (project.parent / "gone.py").write_text("x = 1")
    find = versions.find
    looks = []

    def remove_after_first_look(path):
        found = find(path)
        looks.append(found)
        if len(looks) == 1:
            (project.parent / "gone.py").unlink()
        return found

    versions.find = remove_after_first_look
    found = asyncio.run(make_registry(tmp_path, versions, describer).get("p"))

    assert "gone.py" not in look(prepare(versions, found.version).code)


def test_many_that_ask_at_once_during_a_change_get_one_whole_version(
    project, tmp_path, versions, describer
):
    registry = make_registry(tmp_path, versions, describer)

    async def ask():
        first = await asyncio.gather(*(registry.get("p") for _ in range(5)))
        (project.parent / "graph.py").write_text("build = 2\n")
        return first, await asyncio.gather(*(registry.get("p") for _ in range(5)))

    first, second = asyncio.run(ask())

    assert len({item.version for item in first}) == len({item.version for item in second}) == 1
    assert first[0].version != second[0].version
    assert len(describer.asked) == 2


def test_nothing_of_an_unchanged_project_is_read_again(
    project, tmp_path, versions, describer, monkeypatch
):
    registry = make_registry(tmp_path, versions, describer)
    before = asyncio.run(registry.get("p"))
    monkeypatch.setattr(module, "scan", None)

    assert asyncio.run(registry.get("p")) == before


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: os.mkfifo(root / "pipe"), "cannot be ingested: pipe is neither a file"),
        (
            lambda root: (
                (root / "project.yaml").unlink()
                or (root / "project.yaml").symlink_to("project.yaml")
            ),
            "cannot be read: Too many levels of symbolic links",
        ),
        (
            lambda root: (root / "project.yaml").unlink() or (root / "project.yaml").mkdir(),
            "is not a file",
        ),
        (
            lambda root: [(root / f"{number}.txt").touch() for number in range(12)],
            "holds more than 10 files; keep what is no code or base file elsewhere",
        ),
        (
            lambda root: (root / "big").write_bytes(bytes(3 * 1024**2)),
            "holds more than 2 MiB; keep data elsewhere and name it by an absolute path",
        ),
    ],
)
def test_a_spoilt_directory_is_told_and_hinders_no_other(
    project, tmp_path, versions, describer, monkeypatch, spoil, words
):
    monkeypatch.setattr(sources_module, "MAX_FILES", 10)
    monkeypatch.setattr(sources_module, "MAX_TREE_BYTES", 2 * 1024**2)
    spoilt = make_project(tmp_path / "spoilt", MINIMAL.replace("name: p", "name: spoilt"))
    spoil(spoilt.parent)

    items = refresh(make_registry(tmp_path, versions, describer))

    [problem] = items[str(spoilt)]["problems"]
    assert words in problem
    assert items[str(project)]["problems"] == []


def test_links_that_lead_to_themselves_or_away_are_kept_as_links(project, versions):
    (project.parent / "loop").symlink_to("loop")
    (project.parent / "up").symlink_to("..")

    setup = prepare(versions, ingest(versions, project))

    assert (setup.code / "loop").is_symlink()
    assert str((setup.code / "up").readlink()) == ".."


def test_the_data_directory_is_no_part_of_a_project_that_holds_it(tmp_path):
    path = make_project(tmp_path / "p", MINIMAL)
    data = path.parent / "data"
    versions = ProjectVersions(BlobStore(data / "blobs"), data / "bases")

    first = ingest(versions, path)

    assert ingest(versions, path) == first
    assert "data" not in {entry.name for entry in prepare(versions, first).code.iterdir()}


def test_a_project_in_the_home_directory_is_refused(tmp_path, versions, monkeypatch):
    path = make_project(tmp_path / "home", MINIMAL)
    monkeypatch.setenv("HOME", str(path.parent))

    with pytest.raises(ProjectError, match="is or holds the home directory"):
        versions.find(path)


def test_a_name_that_two_projects_have_is_a_problem_of_both(tmp_path, versions, describer):
    one, two = (make_project(tmp_path / name, MINIMAL) for name in ("one", "two"))

    items = refresh(make_registry(tmp_path, versions, describer))

    assert items[str(one)]["problems"] == [f"the name 'p' is also that of {two}"]
    assert items[str(two)]["problems"] == [f"the name 'p' is also that of {one}"]


def test_a_path_that_is_not_utf_8_is_the_problem_of_its_project_alone(
    project, tmp_path, versions, describer
):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/inv\xff"))
    make_project(odd, MINIMAL)

    items = refresh(make_registry(tmp_path, versions, describer))

    (broken,) = [item for source, item in items.items() if source != str(project)]
    assert broken["problems"] == ["its path is not UTF-8"]
    assert json.dumps(items).encode()
    assert items[str(project)]["problems"] == []


def test_an_interpreter_that_does_not_answer_is_killed_and_waited_for_once(tmp_path, monkeypatch):
    monkeypatch.setattr(interpreters, "PROBE_TIMEOUT_S", 0.5)
    slow = tmp_path / "slow.sh"
    slow.write_text(f"#!/bin/sh\nsleep 600 & echo $! > {tmp_path}/pid\nwait\n")
    slow.chmod(0o755)
    known = interpreters.Interpreters()

    for _ in range(2):
        with pytest.raises(ValueError, match="did not answer"):
            known.probe(str(slow), ())
        monkeypatch.setattr(interpreters, "PROBE_TIMEOUT_S", 0.0)

    child = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        for _ in range(200):
            os.kill(child, 0)
            time.sleep(0.01)
