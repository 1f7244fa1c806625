import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wtb_core import specs
from wtb_core.errors import InvalidRequest, InvalidSpec
from wtb_core.files.blobs import BlobStore
from wtb_core.projects import ProjectVersions, Registry
from wtb_core.submission import expand, prepare

PROJECT = """
name: p
graphs: {default: ./graph.py:build, other: ./graph.py:other, plain: ./graph.py:plain}
nodes:
  propose: {flip: ./graph.py:flip, shift: ./graph.py:shift}
  accept: {}
evaluators: {tests_pass: ./e.py:tests_pass, size: ./e.py:size, many: ./e.py:many}
scores:
  tests_pass: {weight: 1}
  many.a: {higher_is_better: false}
  manyfold: {weight: 9}
variant_files: ["prompts/**/*.md", "top.txt"]
"""
DESCRIPTION = {
    "graphs": {
        "default": {"kind": "state_graph", "nodes": ["propose", "accept"], "subgraphs": {}},
        "other": {
            "kind": "state_graph",
            "nodes": ["answer"],
            "subgraphs": {"answer": ["think"]},
        },
        "plain": {"kind": "functional", "nodes": []},
    },
    "nodes": {"propose": ["flip", "shift"], "accept": []},
    "evaluators": {"tests_pass": {}, "size": {}, "many": {}},
    "problems": [],
    "start": "fork",
    "start_reason": None,
}
MINIMAL = {"project": "p", "variants": [{"name": "a"}], "cases": [{"input": 1}]}


async def describe(_setup):
    return DESCRIPTION


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    root = tmp_path_factory.mktemp("projects")
    for name, text in {"p": PROJECT, "broken": "name: broken\n"}.items():
        (root / name).mkdir()
        (root / name / "project.yaml").write_text(text)
    versions = ProjectVersions(BlobStore(root / "blobs"), root / "bases")
    return Registry(root, ["*/project.yaml"], versions, describe)


def make(registry, *, admission=1_000, key=None, user=None, **fields):
    raw = {**MINIMAL, **fields}
    return asyncio.run(
        prepare(raw, registry, admission=admission, idempotency_key=key, submitted_by=user)
    )


def plan(registry, *, admission=1_000, **fields):
    return asyncio.run(expand({**MINIMAL, **fields}, registry, admission=admission))


def find(registry, **fields):
    """The problems by path; a dry run has the same."""
    with pytest.raises(InvalidSpec) as caught:
        make(registry, **fields)
    with pytest.raises(InvalidSpec) as planned:
        plan(registry, **fields)
    assert planned.value.problems == caught.value.problems
    return {problem.path: problem.message for problem in caught.value.problems}


def test_a_dry_run_shows_what_would_be_stored(registry):
    fields = {
        "variants": [{"name": "a"}],
        "matrix": {"nodes": {"propose": ["flip", "shift"]}},
        "cases": [{"input": 1}, {"id": 7, "input": 2}],
        "repetitions": 3,
        "limits": {"timeout": "1m"},
    }
    batch = make(registry, **fields)

    shown = plan(registry, **fields)

    assert shown == {
        "dry_run": True,
        "project": "p",
        "project_version": batch.project_version,
        "executions": 18,
        "cases": 2,
        "repetitions": 3,
        "evaluators": ["tests_pass", "size", "many"],
        "baseline": "a",
        "variants": batch.variants,
        "spec": batch.spec,
    }
    assert [variant["name"] for variant in shown["variants"]] == ["a", "flip", "shift"]
    assert shown["spec"]["limits"]["timeout"] == 60
    json.dumps(shown)
    assert plan(registry, **fields, baseline="shift", evaluators=[])["baseline"] == "shift"


def test_who_submitted_and_with_which_key_stays_with_the_batch(registry):
    batch = make(registry, key="k", user="alice")

    assert (batch.idempotency_key, batch.submitted_by) == ("k", "alice")
    assert make(registry).submitted_by is None


def test_problems_are_no_more_than_a_hundred(registry):
    fields = {
        "evaluators": [f"no{i}" for i in range(90)],
        "limits": {f"no{i}": 1 for i in range(90)},
    }
    with pytest.raises(InvalidSpec) as caught:
        make(registry, **fields)

    assert len(caught.value.problems) == 100


def test_a_node_with_an_odd_name_has_a_path_that_can_be_shown(registry):
    problems = find(registry, variants=[{"name": "a", "nodes": {"a b\n": "flip"}}])

    assert set(problems) == {'variants[0].nodes["a b\\n"]'}


def test_repetitions_beyond_what_can_be_admitted_are_answered_with_numbers(registry):
    (message,) = find(registry, repetitions=1_000_000).values()
    assert "1 variants x 1 cases x 1000000 repetitions are 1000000 executions" in message


def test_a_batch_holds_all_that_its_executions_need(registry):
    batch = make(
        registry,
        variants=[],
        matrix={"nodes": {"propose": ["flip", "shift"]}},
        cases=[{"input": 1}, {"id": 7, "input": 2, "reference": 3}],
        key="k",
    )

    assert batch.batch_id.startswith("b-")
    assert [variant["name"] for variant in batch.variants] == ["flip", "shift"]
    assert batch.cases == [{"id": "1", "input": 1}, {"id": "7", "input": 2, "reference": 3}]
    assert batch.evaluators == ["tests_pass", "size", "many"]
    assert "cases" not in batch.spec
    assert batch.spec["limits"]["timeout"] == 600.0
    assert batch.idempotency_key == "k"
    assert json.loads(json.dumps(batch)) == list(batch)


def test_rules_are_kept_of_the_metrics_that_the_batch_computes(registry):
    assert set(make(registry).scores) == {"tests_pass", "many.a"}
    assert set(make(registry, evaluators=["many"]).scores) == {"many.a"}
    assert set(make(registry, evaluators=["size"]).scores) == set()
    assert make(registry, evaluators=["tests_pass"]).scores == {
        "tests_pass": {"weight": 1.0, "higher_is_better": True, "failure_score": 0.0}
    }
    assert make(registry, evaluators=[]).evaluators == []


def test_a_name_that_the_project_does_not_have_is_answered_with_those_it_has(registry):
    problems = find(
        registry,
        variants=[
            {"name": "a", "graph": "no"},
            {"name": "b", "nodes": {"no": "flip", "propose": "no", "accept": "flip"}},
            {"name": "c", "graph": "other", "nodes": {"propose": "flip"}},
            {"name": "d", "graph": "plain", "nodes": {"propose": "flip"}},
            {"name": "e", "graph": "other", "nodes": {"think": "flip"}},
        ],
        evaluators=["tests_pass", "no"],
    )

    assert problems == {
        "variants[0].graph": "there is no graph 'no'; there is: default, other, plain",
        "variants[1].nodes.no": (
            "there is no node in the graph 'default' 'no'; there is: accept, propose"
        ),
        "variants[1].nodes.propose": (
            "there is no implementation of 'propose' 'no'; there is: flip, shift"
        ),
        "variants[1].nodes.accept": (
            "there is no implementation of 'accept' 'flip'; there is: none"
        ),
        "variants[2].nodes.propose": (
            "there is no node in the graph 'other' 'propose'; there is: answer"
        ),
        "variants[3].nodes.propose": (
            "the graph 'plain' is not a StateGraph; its nodes cannot be swapped"
        ),
        "variants[4].nodes.think": (
            "'think' is a node of the subgraph 'answer'; only the own nodes of the graph 'other' "
            "can be swapped: answer"
        ),
        "evaluators[1]": "there is no evaluator 'no'; there is: many, size, tests_pass",
    }


def test_a_matrix_is_checked_like_the_variants_it_makes(registry):
    problems = find(
        registry,
        matrix={
            "graph": ["default", "no"],
            "nodes": {"propose": ["flip", "no"]},
            "include": [{"name": "x", "graph": "nope", "files": {"a.md": ""}}],
        },
    )

    assert set(problems) == {
        "matrix.graph[1]",
        "matrix.nodes.propose[1]",
        "matrix.include[0].graph",
        'matrix.include[0].files["a.md"]',
    }


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("prompts/system.md", True),
        ("prompts/a/b/c.md", True),
        ("top.txt", True),
        ("prompts/system.txt", False),
        ("prompts", False),
        ("sub/top.txt", False),
        ("other/prompts/system.md", False),
        ("prompts/../../escape.md", False),
    ],
)
def test_a_variant_replaces_only_the_files_that_the_project_allows(registry, path, allowed):
    variants = [{"name": "a", "files": {path: "text"}}]
    if allowed:
        assert make(registry, variants=variants).variants[0]["files"] == {path: "text"}
    else:
        assert set(find(registry, variants=variants)) == {
            specs.format_path(("variants", 0, "files", path))
        }


def test_an_unknown_project_is_answered_with_those_there_are(registry):
    assert find(registry, project="q", colour="red") == {
        "project": "there is no project 'q'; there is: p",
        "colour": "unknown key",
    }


def test_problems_of_form_and_of_names_come_in_one_answer(registry):
    problems = find(
        registry,
        variants=[{"name": "a b"}, {"name": "c", "graph": "no"}],
        repetitions=0,
        evaluators=["no"],
        cases="file://cases.jsonl",
        colour="red",
    )

    assert set(problems) == {
        "variants[0].name",
        "variants[1].graph",
        "repetitions",
        "evaluators[0]",
        "cases",
        "colour",
    }


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"variants": [{"name": "a"}, {"name": "a"}]}, "variants[1].name"),
        ({"baseline": "b"}, "baseline"),
        ({"matrix": {"config": {"x": list(range(101)), "y": list(range(100))}}}, "matrix"),
    ],
)
def test_problems_of_the_variants_as_a_whole_are_found_too(registry, fields, path):
    assert path in find(registry, **fields)


def test_a_batch_that_could_never_be_admitted_is_refused_for_good(registry):
    cases = [{"input": i} for i in range(5)]
    assert make(registry, cases=cases, repetitions=2, admission=10)

    assert find(registry, cases=cases, repetitions=3, admission=10) == {
        "": "1 variants x 5 cases x 3 repetitions are 15 executions, more than "
        "max_pending_executions 10; split the batch"
    }


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "\x00"])
def test_an_unusable_idempotency_key_is_refused(registry, key):
    with pytest.raises(InvalidRequest) as caught:
        make(registry, key=key)

    assert caught.value.parameter == "Idempotency-Key"


def test_the_digest_is_that_of_the_spec_and_not_of_how_it_was_written(registry):
    plain = make(registry)
    written_out = make(
        registry,
        cases=[{"input": 1, "id": "1"}],
        variants=[{"graph": "default", "name": "a"}],
        limits={"timeout": "10m", "memory": "2GiB"},
    )

    assert written_out.spec_digest == plain.spec_digest
    assert written_out.batch_id != plain.batch_id
    digests = {plain.spec_digest}
    for change in (
        {"cases": [{"input": 2}]},
        {"cases": [{"input": 1}, {"input": 1}]},
        {"limits": {"timeout": "11m"}},
        {"variants": [{"name": "b"}]},
        {"labels": {"a": "b"}},
        {"repetitions": 2},
    ):
        digests.add(make(registry, **change).spec_digest)
    assert len(digests) == 7


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["a", "default"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
sections = ["variants", "matrix", "cases", "evaluators", "include", "nodes", "graph", "files"]
sections += ["propose", "name", "limits"]
documents = st.recursive(
    values,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sections), inner, max_size=4)
    ),
    max_leaves=15,
)


@settings(max_examples=60)
@given(
    raw=st.fixed_dictionaries(
        {"project": st.just("p")}, optional=dict.fromkeys(sections, documents)
    )
)
def test_whatever_comes_is_refused_as_a_spec_or_accepted(registry, raw):
    try:
        batch = asyncio.run(prepare(raw, registry, admission=100))
    except InvalidSpec as error:
        json.dumps(error.problems, ensure_ascii=False).encode()
    else:
        assert specs.parse(raw).project == batch.spec["project"]


@pytest.mark.timeout(30)
def test_the_nodes_of_a_large_matrix_are_looked_up_once_for_each_graph_that_exists(registry):
    """Graphs times implementations would be a hundred million look-ups."""
    matrix = {"graph": ["default"] * 10_000, "nodes": {"propose": ["flip"] * 10_000}}

    problems = find(registry, variants=[], matrix=matrix)

    assert any("variants" in message for message in problems.values())


def test_what_is_wrong_with_the_variants_as_a_whole_is_told_beside_faults_of_form(registry):
    problems = find(
        registry, variants=[{"name": "a"}, {"name": "a"}], baseline="zz", repetitions="3"
    )

    assert problems.keys() == {"repetitions", "variants[1].name", "baseline"}
