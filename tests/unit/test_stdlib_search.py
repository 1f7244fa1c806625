"""The example `stdlib_search`: its corpus, its nodes, its questions, its batch."""

import ast
import dataclasses
import importlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from wtb_core import matrix, specs
from wtb_core.testbench import TestBench

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "stdlib_search"
SPEC = ROOT / "configs" / "batches" / "stdlib_search.yaml"
MODULES = ("text", "corpus", "retrieve", "rerank", "evaluators", "graph")


@dataclasses.dataclass
class Example:
    text: ModuleType
    corpus: ModuleType
    retrieve: ModuleType
    rerank: ModuleType
    evaluators: ModuleType
    graph: ModuleType


@pytest.fixture(scope="module")
def example():
    """Its modules, imported as its own process would, and forgotten afterwards."""
    before = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    sys.path.insert(0, str(EXAMPLE))
    yield Example(**{name: importlib.import_module(name) for name in MODULES})
    sys.path.remove(str(EXAMPLE))
    for name in MODULES:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """Built as the service does it: in a process of its own, in the directory."""
    directory = tmp_path_factory.mktemp("workspace")
    subprocess.run(
        [sys.executable, "-c", "import corpus, pathlib; corpus.build(pathlib.Path.cwd())"],
        env={**os.environ, "PYTHONPATH": str(EXAMPLE), "PYTHONHASHSEED": "1"},
        cwd=directory,
        check=True,
    )
    return directory


@pytest.fixture(scope="module")
def documents(workspace) -> list[dict]:
    return [json.loads(line) for line in (workspace / "corpus.jsonl").read_text().splitlines()]


@pytest.fixture
def inside(workspace, monkeypatch) -> Path:
    monkeypatch.chdir(workspace)
    return workspace


def read_cases() -> list[dict]:
    """The cases that the spec names, relative to the spec."""
    path = SPEC.parent / yaml.safe_load(SPEC.read_text())["cases"].removeprefix("file://")
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_spec() -> dict:
    return {**yaml.safe_load(SPEC.read_text()), "cases": read_cases()}


def config(**configurable) -> dict:
    return {"configurable": configurable}


def names(answer: dict) -> list[str]:
    return [result["name"] for result in answer["ranking"]]


def ask(example, question: str, implementations=(), **configurable) -> dict:
    """Run the graph, with some nodes replaced, in the current directory."""
    builder = example.graph.build_graph()
    for node, implementation in implementations:
        builder.nodes[node] = dataclasses.replace(
            builder.nodes[node],
            runnable=type(builder.nodes[node].runnable)(implementation),
        )
    return builder.compile().invoke({"question": question}, config(**configurable))


def test_equal_interpreters_build_equal_files(workspace, tmp_path) -> None:
    """Whatever the hash seed, and as a script too."""
    subprocess.run(
        [sys.executable, EXAMPLE / "corpus.py", tmp_path / "made"],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        check=True,
    )

    made = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    assert made == {path.name: path.read_bytes() for path in workspace.iterdir()}
    assert made.keys() == {"corpus.jsonl", "words.json", "trigrams.json"}


def test_the_corpus_is_the_public_library_and_small(workspace, documents) -> None:
    found = [document["name"] for document in documents]

    assert found == sorted(set(found))
    assert 3_000 < len(found) < 10_000
    assert sum(path.stat().st_size for path in workspace.iterdir()) < 8_000_000
    assert not [name for name in found if any(part.startswith("_") for part in name.split("."))]
    assert {name.partition(".")[0] for name in found} <= sys.stdlib_module_names
    assert all(document["doc"].strip() for document in documents)
    kinds = {document["name"]: document["kind"] for document in documents}
    assert kinds["csv"] == "module"
    assert kinds["collections.Counter"] == "class"
    assert kinds["collections.Counter.most_common"] == "method"
    assert kinds["csv.writer"] == kinds["math.gcd"] == kinds["os.listdir"] == "function"


def test_the_index_has_every_term_of_every_document(example, workspace, documents) -> None:
    index = json.loads((workspace / "words.json").read_text())

    number = next(i for i, d in enumerate(documents) if d["name"] == "functools.lru_cache")
    text = f"functools.lru_cache {documents[number]['doc']}"
    terms = Counter(example.text.words(text))
    found = {
        term: count
        for term, postings in index["postings"].items()
        for document, count in postings
        if document == number
    }
    assert found == terms
    assert index["lengths"][number] == terms.total()


def test_words_are_split_and_made_singular(example) -> None:
    assert example.text.words("How do I writeRows of libraries in os.path?") == [
        *("writerow", "write", "row", "library", "os", "path"),
    ]
    assert example.text.trigrams("a cat") == [" ca", "at ", "cat"]


def test_the_questions_are_many_and_have_known_answers(documents) -> None:
    cases = read_cases()
    known = {document["name"] for document in documents}

    assert len(cases) >= 40
    assert len({case["input"]["question"] for case in cases}) == len(cases)
    for case in cases:
        assert case["reference"]["targets"], case["id"]
        assert set(case["reference"]["targets"]) <= known, case["id"]
        assert len(case["tags"]) == 1


def test_the_batch_is_a_spec_of_implementations_that_exist(example) -> None:
    spec = specs.parse(read_spec())
    project = yaml.safe_load((EXAMPLE / "project.yaml").read_text())

    assert matrix.find_problems(spec) == []
    variants = matrix.expand(spec)
    assert len({variant.name for variant in variants}) == len(variants) == 13
    for variant in variants:
        assert variant.nodes.keys() == project["nodes"].keys()
        for node, implementation in variant.nodes.items():
            assert implementation in project["nodes"][node]
        assert "bm25" in variant.nodes["retrieve"] or variant.config["b"] == 0.75
    for references in (*project["nodes"].values(), project["evaluators"], {"": project["build"]}):
        for reference in references.values():
            module, _, attribute = reference.removeprefix("./").partition(".py:")
            assert callable(getattr(getattr(example, module), attribute))


def test_it_needs_the_standard_library_and_langgraph_only() -> None:
    for path in EXAMPLE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in found:
                top = name.partition(".")[0]
                known = {*sys.stdlib_module_names, *MODULES, "langgraph", "langchain_core"}
                assert top in known, f"{path.name} imports {name}"


@pytest.mark.parametrize("retrieve", ["bm25", "tf_idf", "fuzzy"])
@pytest.mark.parametrize("rerank", ["keep_order", "by_name", "diverse"])
def test_every_pair_finds_what_is_easy(example, inside, retrieve, rerank) -> None:
    chosen = [
        ("retrieve", getattr(example.retrieve, retrieve)),
        ("rerank", getattr(example.rerank, rerank)),
    ]
    question = "permutations of the elements in an iterable"
    answer = ask(example, question, chosen, top_k=4)

    assert names(answer)[0] == "itertools.permutations"
    assert answer.keys() == {"ranking"}
    assert len(names(answer)) == len(set(names(answer))) == 4
    scores = [result["score"] for result in answer["ranking"]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("question", ["", "how do I", "日本語 ???"])
def test_a_question_without_a_known_term_has_no_answer(example, inside, question) -> None:
    for retrieve in (example.retrieve.bm25, example.retrieve.tf_idf, example.retrieve.fuzzy):
        for rerank in (example.rerank.keep_order, example.rerank.by_name, example.rerank.diverse):
            chosen = [("retrieve", retrieve), ("rerank", rerank)]
            assert ask(example, question, chosen) == {"ranking": []}


@pytest.fixture
def small(example, tmp_path, monkeypatch) -> list[list[str]]:
    """A workspace of four documents; gives their terms."""
    texts = ["sort list", "sort sort the big list of item", "read file", "write file file"]
    lines = [{"name": f"m.f{i}", "kind": "function", "doc": t} for i, t in enumerate(texts)]
    terms = [example.text.words(text) for text in texts]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    example.corpus._write_index(tmp_path / "words.json", terms)
    monkeypatch.chdir(tmp_path)
    return terms


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.5, 0.3), (2.0, 0.0)])
def test_bm25_is_its_formula(example, small, k1, b) -> None:
    mean_length = sum(map(len, small)) / 4

    def score(document: list[str]) -> float:
        total = 0.0
        for term in ("sort", "file"):
            tf, n = document.count(term), sum(term in other for other in small)
            idf = math.log(1 + (4 - n + 0.5) / (n + 0.5))
            total += tf / (k1 * (1 - b + b * len(document) / mean_length) + tf) * idf
        return total

    found = example.retrieve.bm25({"question": "Sort files"}, config(k1=k1, b=b))["candidates"]

    expected = {f"m.f{i}": score(document) for i, document in enumerate(small)}
    assert {c["name"]: c["score"] for c in found} == pytest.approx(expected)


def test_tf_idf_is_the_cosine(example, small) -> None:
    vocabulary = sorted({term for document in small for term in document})
    idf = {term: math.log(4 / sum(term in d for d in small)) for term in vocabulary}

    def cosine(one: list[float], other: list[float]) -> float:
        return math.sumprod(one, other) / (math.hypot(*one) * math.hypot(*other))

    asked = Counter(["sort", "list", "list"])
    query = [(0.5 + 0.5 * asked[t] / 2) * idf[t] if t in asked else 0.0 for t in vocabulary]
    expected = {
        f"m.f{i}": pytest.approx(cosine([d.count(t) * idf[t] for t in vocabulary], query))
        for i, d in enumerate(small[:2])
    }

    state = {"question": "sort lists list unheard-of"}
    found = example.retrieve.tf_idf(state, config())["candidates"]

    assert {c["name"]: c["score"] for c in found} == expected


def test_retrieval_stops_at_its_depth(example, small) -> None:
    found = example.retrieve.bm25({"question": "sort file"}, config(depth=2))["candidates"]

    assert len(found) == 2


def test_trigrams_forgive_misspelling(example, inside) -> None:
    state = {"question": "depcopy of an object"}

    assert example.retrieve.fuzzy(state, config())["candidates"][0]["name"] == "copy.deepcopy"


CANDIDATES = [
    {"name": "a.first", "doc": "sorts a list", "kind": "function", "score": 2.0},
    {"name": "a.twin", "doc": "sorts a list", "kind": "function", "score": 1.9},
    {"name": "b.other", "doc": "reads the file", "kind": "function", "score": 1.5},
]


def test_diverse_takes_the_unlike_before_the_twin(example) -> None:
    state = {"question": "sort", "candidates": CANDIDATES}

    diverse = example.rerank.diverse(state, config(relevance=0.5))
    relevant = example.rerank.diverse(state, config(relevance=1.0))

    assert names(diverse) == ["a.first", "b.other", "a.twin"]
    assert names(relevant) == ["a.first", "a.twin", "b.other"]
    # Of the terms {first, sort, list} and {twin, sort, list} two are common.
    assert [result["score"] for result in diverse["ranking"]] == pytest.approx(
        [0.5, 0.5 * 0.75, 0.5 * 0.95 - 0.5 * 2 / 3], abs=1e-6
    )


def test_by_name_prefers_a_name_that_was_asked_for(example) -> None:
    state = {"question": "the other", "candidates": CANDIDATES}

    assert names(example.rerank.by_name(state, config())) == ["b.other", "a.first", "a.twin"]
    unweighted = example.rerank.by_name(state, config(name_weight=0))
    assert unweighted == example.rerank.keep_order(state, config())


@pytest.mark.parametrize(
    ("ranking", "reciprocal_rank", "recall"),
    [
        (["t", "a", "b", "c", "d", "u"], 1.0, 0.5),
        (["a", "u", "t"], 0.5, 1.0),
        (["a", "b", "c", "d", "e", "t"], 1 / 6, 0.0),
        (["a"], 0.0, 0.0),
        ([], 0.0, 0.0),
    ],
)
def test_the_scores_are_their_definitions(example, ranking, reciprocal_rank, recall) -> None:
    output = {"ranking": [{"name": name, "score": 1.0} for name in ranking]}
    reference = {"targets": ["t", "u"]}

    assert example.evaluators.reciprocal_rank(output, reference) == reciprocal_rank
    assert example.evaluators.recall_at_5(output, reference)["score"] == recall


def test_a_bench_gives_what_the_graph_gives(example, inside, tmp_path) -> None:
    """Through a project without `build`, on a workspace that was built before."""
    directory = tmp_path / "project"
    shutil.copytree(EXAMPLE, directory, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(inside, directory / "built")
    project = yaml.safe_load((directory / "project.yaml").read_text())
    del project["build"]
    (directory / "project.yaml").write_text(yaml.safe_dump({**project, "workspace": "./built"}))
    cases = [case for case in read_cases() if case["id"] in {"gunzip", "typo-deepcopy"}]
    spec = {**read_spec(), "cases": cases}

    with TestBench.local(tmp_path / "data", root=directory, projects=["project.yaml"]) as bench:
        result = bench.run_batch(spec)

    assert result.succeeded, [execution["failure"] for execution in result.executions]
    assert result.comparison["baseline"] == "bm25-keep_order-0.75"
    outputs = {(e["variant"], e["case_id"]): e["output"] for e in result.executions}
    for case in cases:
        question = case["input"]["question"]
        assert outputs["bm25-keep_order-0.75", case["id"]] == ask(example, question)
        assert outputs["bm25-saturated", case["id"]] == ask(
            example, question, [("rerank", example.rerank.by_name)], k1=0.5, b=0.3
        )
    means = {row["variant"]: row["overall_score"]["mean"] for row in result.comparison["variants"]}
    assert means["fuzzy-keep_order-0.75"] == 1.0
    assert means["bm25-keep_order-0.75"] == 0.5
