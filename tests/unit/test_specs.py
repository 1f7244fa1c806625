import copy
import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wtb_core import specs
from wtb_core.errors import InvalidSpec, Problem

MINIMAL = {"project": "p", "variants": [{"name": "a"}], "cases": [{"input": 1}]}


def find(raw):
    """The problems of a spec by path."""
    return {problem.path: problem.message for problem in specs.find_problems(raw)}


def test_what_is_left_out_has_the_defaults_of_the_contract():
    spec = specs.parse(MINIMAL).model_dump()

    assert spec == {
        "project": "p",
        "name": None,
        "variants": [
            {
                "name": "a",
                "graph": "default",
                "nodes": {},
                "config": {},
                "context": {},
                "files": {},
                "recursion_limit": None,
            }
        ],
        "matrix": None,
        "cases": [{"id": "1", "input": 1}],
        "repetitions": 1,
        "evaluators": None,
        "baseline": None,
        "limits": {
            "timeout": 600.0,
            "evaluator_timeout": 120.0,
            "batch_timeout": None,
            "memory": 2147483648,
            "processes": 256,
            "output": 10485760,
            "file_size": 1073741824,
            "max_failures": None,
            "concurrency": None,
        },
        "retry": {"max_attempts": 3, "backoff": 1.0, "on": ["crash", "lost"]},
        "workspace": {"network": True, "keep": "failed"},
        "priority": 0,
        "labels": {},
    }


def test_every_key_of_the_contract_is_taken():
    raw = {
        "project": "code_repair",
        "name": "nightly",
        "variants": [
            {
                "name": "flip",
                "graph": "react",
                "nodes": {"propose": "flip_operators"},
                "config": {"max_candidates": 50},
                "context": {"user": "a"},
                "files": {"prompts/system.md": "be brief"},
                "recursion_limit": 50,
            }
        ],
        "matrix": {
            "graph": ["default", "react"],
            "nodes": {"propose": ["flip_operators", "shift_constants"]},
            "config": {"max_candidates": [10, 50]},
            "context": {"user": ["a", None]},
            "exclude": [
                {"nodes": {"propose": "shift_constants"}, "config": {"max_candidates": 50}}
            ],
            "include": [{"name": "wild", "nodes": {"propose": "random_walk"}}],
        },
        "cases": [
            {
                "id": "HumanEval/12",
                "input": {"module": "gcd.py"},
                "reference": {"tests": 7},
                "tags": ["math"],
                "files": {"a/b.txt": ""},
                "resume": ["yes", True],
            }
        ],
        "repetitions": 2,
        "evaluators": ["tests_pass"],
        "baseline": "flip",
        "limits": {"batch_timeout": "1h", "max_failures": 0.5, "concurrency": 4},
        "retry": {"on": ["timeout", "out_of_memory", "error", "crash", "lost"]},
        "workspace": {"network": False, "keep": "never"},
        "labels": {"team": "search"},
    }

    spec = specs.parse(raw).model_dump()

    assert spec["cases"] == raw["cases"]
    assert spec["variants"] == raw["variants"]
    assert spec["limits"]["batch_timeout"] == 3600
    assert spec["limits"]["max_failures"] == 0.5
    assert spec["labels"] == {"team": "search"}


def test_several_faults_are_reported_at_once_each_with_its_path():
    raw = {
        "project": "no spaces",
        "variants": [
            {"name": "-a", "recursion_limit": 0, "nodes": {"n": 1}},
            {"name": "b", "files": {"../up": "", "a//b": "", "/etc/passwd": ""}},
        ],
        "matrix": {"nodes": {"n": []}, "include": [{"name": "c", "files": {"..": ""}}]},
        "cases": [
            {"id": "x"},
            {"id": "x", "input": 1, "extra": 2},
            {"id": "a\nb", "input": 1, "files": {"../x": ""}},
        ],
        "repetitions": 0,
        "evaluators": ["e", "f", "e"],
        "limits": {"timeout": "soon", "memory": "2 pounds", "max_failures": 1.5, "speed": 1},
        "retry": {"on": ["bad_luck"]},
        "workspace": {"keep": "sometimes"},
        "labels": {"a": 1},
        "colour": "red",
    }

    problems = find(raw)

    assert set(problems) == {
        "project",
        "variants[0].name",
        "variants[0].recursion_limit",
        "variants[0].nodes.n",
        'variants[1].files["../up"]',
        'variants[1].files["a//b"]',
        'variants[1].files["/etc/passwd"]',
        "matrix.nodes.n",
        'matrix.include[0].files[".."]',
        "cases[0].input",
        "cases[1].extra",
        "cases[1].id",
        "cases[2].id",
        'cases[2].files["../x"]',
        "repetitions",
        "evaluators[2]",
        "limits.timeout",
        "limits.memory",
        "limits.max_failures",
        "limits.speed",
        "retry.on[0]",
        "workspace.keep",
        "labels.a",
        "colour",
    }
    assert problems["colour"] == "unknown key"
    assert problems["limits.speed"] == "unknown key"
    assert problems["cases[0].input"] == "required"
    assert problems["cases[1].id"] == "'x' is also the id of cases[0]"
    assert problems["evaluators[2]"] == "'e' is listed twice"
    assert problems["limits.timeout"] == "give a duration such as 30, 30s, 10m or 2h"
    assert "'lost'" in problems["retry.on[0]"]


def test_no_more_than_a_hundred_problems_are_reported():
    raw = {**MINIMAL, "cases": [{} for _ in range(1000)]}

    assert len(specs.find_problems(raw)) == specs.MAX_PROBLEMS == 100


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        ({"cases": "file://cases.jsonl"}, "cases", "the server reads no files"),
        ({"cases": "cases.jsonl"}, "cases", "give a list of at least 1 case"),
        ({"cases": []}, "cases", "at least 1"),
        ({"cases": {"input": 1}}, "cases", "give a list"),
        ({"cases": None}, "cases", "give a list"),
        ({"cases": ["x"]}, "cases[0]", "give a mapping"),
        ({"variants": []}, "variants", "give variants, a matrix, or both"),
        ({"variants": None}, "variants", "give a list"),
        ({"variants": [], "matrix": {}}, "variants", "give variants, a matrix, or both"),
        ({"variants": [{}] * 10_001}, "variants", "give at most 10000, not 10001"),
        ({"variants": ["a"]}, "variants[0]", "give a mapping"),
        ({"matrix": {"exclude": [{}] * 1_001}}, "matrix.exclude", "give at most 1000"),
        ({"matrix": []}, "matrix", "give a mapping"),
        ({"cases": [{"id": "", "input": 1}]}, "cases[0].id", "at least 1"),
        ({"cases": [{"id": "x" * 257, "input": 1}]}, "cases[0].id", "at most 256"),
        ({"cases": [{"id": True, "input": 1}]}, "cases[0].id", "text"),
        ({"cases": [{"id": 1.5, "input": 1}]}, "cases[0].id", "text"),
        ({"cases": [{"id": 10**5000, "input": 1}]}, "cases[0].id", "64 bits"),
        ({"cases": [{"id": "a\x00", "input": 1}]}, "cases[0].id", "printable"),
        ({"cases": [{"id": "2", "input": 1}, {"input": 1}]}, "cases[1].id", "also the id"),
        ({"cases": [{"id": 7, "input": 1}, {"id": "7", "input": 1}]}, "cases[1].id", "also the id"),
        ({"cases": [{"input": 1, "tags": ["a", "b\n"]}]}, "cases[0].tags[1]", "printable"),
        ({"cases": [{"input": 1, "tags": "a"}]}, "cases[0].tags", "give a list"),
        ({"cases": [{"input": 1, "tags": [""]}]}, "cases[0].tags[0]", "at least 1"),
        ({"cases": [{"input": 1, "files": {"a": "", "a/b": ""}}]}, "cases[0].files", "'a' cannot"),
        ({"cases": [{"input": 1, "files": {"x" * 256: ""}}]}, f"cases[0].files.{'x' * 256}", "255"),
        ({"cases": [{"input": 1, "files": {"a": 1}}]}, "cases[0].files.a", "give text"),
        ({"cases": [{"input": {"a": [1, float("nan")]}}]}, "cases[0].input.a[1]", "NaN"),
        ({"cases": [{"input": ["\ud800"]}]}, "cases[0].input[0]", "Unicode"),
        ({"cases": [{"input": {"\ud800": 1}}]}, 'cases[0].input["\\ud800"]', "Unicode"),
        ({"cases": [{"input": 10**30}]}, "cases[0].input", "64 bits"),
        ({"cases": [{"input": {1, 2}}]}, "cases[0].input", "a set is no JSON value"),
        ({"variants": [{"name": "a", "config": {"x": {1: 1}}}]}, "variants[0].config.x.1", "quote"),
        ({"variants": [{"name": "a\n"}]}, "variants[0].name", "use letters"),
        ({"variants": [{"name": "x" * 129}]}, "variants[0].name", "use letters"),
        ({"variants": [{"name": "a", "config": {"thread_id": 1}}]}, "variants[0].config.thread_id", "choose another"),
        ({"matrix": {"config": {"checkpoint_ns": [1]}}}, "matrix.config.checkpoint_ns", "choose another"),
        ({"matrix": {"include": [{"name": "a", "config": {"__pregel_send": 1}}]}}, "matrix.include[0].config.__pregel_send", "choose another"),
        ({"variants": [{"name": "a", "context": {f"k{i}": 1 for i in range(1001)}}]}, "variants[0].context", "at most 1000 entries"),
        ({"matrix": {"config": {f"k{i}": [1] for i in range(65)}}}, "matrix.config", "at most 64 entries"),
        ({"variants": [{"name": "a", "recursion_limit": True}]}, "variants[0].recursion_limit", "whole number"),
        ({"name": "a\x00b"}, "name", "printable"),
        ({"name": ""}, "name", "at least 1"),
        ({"repetitions": "3"}, "repetitions", "whole number"),
        ({"repetitions": -1}, "repetitions", "at least 1"),
        ({"repetitions": 10**5000}, "repetitions", "at most 1000000"),
        ({"evaluators": "all"}, "evaluators", "give a list"),
        ({"evaluators": [1]}, "evaluators[0]", "give text"),
        ({"limits": {"timeout": 0}}, "limits.timeout", "from 1ms to 30d"),
        ({"limits": {"timeout": "31d"}}, "limits.timeout", "from 1ms to 30d"),
        ({"limits": {"timeout": -5}}, "limits.timeout", "from 1ms to 30d"),
        ({"limits": {"timeout": 10**400}}, "limits.timeout", "too large"),
        ({"limits": {"timeout": "9" * 400}}, "limits.timeout", "too large"),
        ({"limits": {"timeout": "9" * 308 + "d"}}, "limits.timeout", "too large"),
        ({"limits": {"memory": "9" * 400 + "G"}}, "limits.memory", "too large"),
        ({"limits": {"memory": -1}}, "limits.memory", "from 1 byte"),
        ({"limits": {"processes": 0}}, "limits.processes", "at least 1"),
        ({"limits": {"concurrency": 2**31}}, "limits.concurrency", "at most 2147483647"),
        ({"limits": {"max_failures": -1}}, "limits.max_failures", "from 0 to"),
        ({"limits": {"max_failures": 2**31}}, "limits.max_failures", "from 0 to"),
        ({"limits": {"max_failures": 1.1}}, "limits.max_failures", "between 0.0 and 1.0"),
        ({"limits": {"max_failures": float("nan")}}, "limits.max_failures", "between 0.0 and 1.0"),
        ({"limits": {"max_failures": True}}, "limits.max_failures", "give a count"),
        ({"limits": {"max_failures": "1"}}, "limits.max_failures", "give a count"),
        ({"limits": []}, "limits", "give a mapping"),
        ({"retry": {"on": ["interrupted"]}}, "retry.on[0]", "'crash'"),
        ({"retry": {"on": ["setup"]}}, "retry.on[0]", "'crash'"),
        ({"retry": {"max_attempts": 0}}, "retry.max_attempts", "at least 1"),
        ({"retry": {"backoff": "2d"}}, "retry.backoff", "from 0 to 1d"),
        ({"workspace": {"network": "yes"}}, "workspace.network", "true or false"),
        ({"labels": {"a=b": "c"}}, 'labels["a=b"]', "no '='"),
        ({"labels": {"": "c"}}, 'labels[""]', "at least 1"),
        ({"labels": {"a": "b\x00"}}, "labels.a", "printable"),
        ({"labels": {"a": "b" * 1025}}, "labels.a", "at most 1024"),
        ({"labels": {"k" * 257: "b"}}, f"labels.{'k' * 257}", "at most 256"),
        ({"labels": {str(i): "" for i in range(101)}}, "labels", "at most 100 entries"),
    ],
)  # fmt: skip
def test_a_fault_is_explained_where_it_is(change, path, message):
    problems = find({**MINIMAL, **change})

    assert message in problems[path]


@pytest.mark.parametrize(
    ("change", "path", "meant"),
    [
        ({"case": []}, "case", "cases"),
        ({"Evaluators": []}, "Evaluators", "evaluators"),
        ({"variants": [{"name": "a", "node": {}}]}, "variants[0].node", "nodes"),
        ({"matrix": {"includes": []}}, "matrix.includes", "include"),
        ({"matrix": {"exclude": [{"confg": {}}]}}, "matrix.exclude[0].confg", "config"),
        ({"cases": [{"input": 1, "inptu": 1}]}, "cases[0].inptu", "input"),
        ({"limits": {"time_out": 1}}, "limits.time_out", "timeout"),
        ({"retry": {"attempts": 1}}, "retry.attempts", "max_attempts"),
        ({"workspace": {"keeps": "never"}}, "workspace.keeps", "keep"),
    ],
)
def test_an_unknown_key_is_answered_with_the_one_that_was_meant(change, path, meant):
    assert find({**MINIMAL, **change}) == {path: f"unknown key; did you mean `{meant}`?"}


def test_a_value_is_nested_no_deeper_than_a_document_may_be():
    value = 1
    for _ in range(97):
        value = [value]
    assert specs.find_problems({**MINIMAL, "cases": [{"input": value}]}) == []

    (problem,) = specs.find_problems({**MINIMAL, "cases": [{"input": [value]}]})
    assert "nested" in problem.message

    value = []
    value.append(value)
    (problem,) = specs.find_problems({**MINIMAL, "cases": [{"input": value}]})
    assert "nested" in problem.message


def test_a_hostile_spec_costs_no_more_than_a_long_one():
    begin = time.process_time()

    for raw in (
        {str(i): 1 for i in range(300_000)},
        {**MINIMAL, "cases": [{}] * 1_000_000},
        {**MINIMAL, "variants": [{}] * 1_000_000},
        {**MINIMAL, "evaluators": [1] * 1_000_000},
        {**MINIMAL, "labels": {str(i): 1 for i in range(300_000)}},
        {**MINIMAL, "limits": {str(i): 1 for i in range(300_000)}},
        {**MINIMAL, "variants": [{"name": "a", "nodes": {str(i): 1 for i in range(300_000)}}]},
        {**MINIMAL, "cases": [{"input": 1, "files": {str(i): 1 for i in range(300_000)}}]},
        {**MINIMAL, "cases": [{"input": 1, "tags": [1] * 1_000_000}]},
        {**MINIMAL, "retry": {"on": [1] * 1_000_000}},
        {"x" * 10_000_000: 1, **MINIMAL},
    ):
        assert 0 < len(specs.find_problems(raw)) <= specs.MAX_PROBLEMS

    assert time.process_time() - begin < 10


@pytest.mark.parametrize("raw", [None, [], "spec", 7])
def test_what_is_no_mapping_is_one_problem(raw):
    with pytest.raises(InvalidSpec) as caught:
        specs.parse(raw)

    assert caught.value.problems == [
        Problem("", "a batch spec is a mapping with at least `project` and `cases`")
    ]


@pytest.mark.parametrize(
    ("given_", "seconds"),
    [
        (90, 90),
        (0.5, 0.5),
        ("90", 90),
        ("1.5s", 1.5),
        ("250ms", 0.25),
        ("10m", 600),
        (" 2 h ", 7200),
        ("1d", 86400),
    ],
)
def test_a_duration_is_seconds_or_a_number_with_a_unit(given_, seconds):
    assert specs.parse_duration_s(given_) == seconds


@pytest.mark.parametrize(
    ("given_", "size"),
    [
        (512, 512),
        ("512", 512),
        ("512B", 512),
        ("500k", 500_000),
        ("500K", 500_000),
        ("10MB", 10_000_000),
        ("2GiB", 2 * 1024**3),
        ("1.5Gi", 3 * 2**29),
        ("1T", 10**12),
    ],
)
def test_a_size_is_bytes_or_a_number_with_a_unit(given_, size):
    assert specs.parse_size_bytes(given_) == size


@pytest.mark.parametrize("given_", [True, None, "", "x", "-1", "1e3", "10 parsecs", [], "1 s s"])
def test_what_is_neither_a_duration_nor_a_size_is_refused(given_):
    with pytest.raises(ValueError, match="give a duration"):
        specs.parse_duration_s(given_)
    with pytest.raises(ValueError, match="give a size"):
        specs.parse_size_bytes(given_)


def test_case_ids_default_to_the_row_and_integers_become_text():
    raw = {**MINIMAL, "cases": [{"input": 1}, {"id": 40, "input": 1}, {"input": 1}]}

    assert [case["id"] for case in specs.parse(raw).cases] == ["1", "40", "3"]


def test_parsing_leaves_what_it_was_given_as_it_was():
    raw = copy.deepcopy(MINIMAL)

    specs.parse(raw)

    assert raw == MINIMAL


@pytest.mark.parametrize(
    ("location", "path"),
    [
        (("variants", 3, "nodes", "propose"), "variants[3].nodes.propose"),
        (("cases", 0, "files", "a b", "[key]"), 'cases[0].files["a b"]'),
        (("\ud800",), '["\\ud800"]'),
        ((), ""),
    ],
)
def test_a_path_reads_like_the_document(location, path):
    assert specs.format_path(location) == path


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(
    [
        *specs.BatchSpec.model_fields,
        *specs.Variant.model_fields,
        *specs.Matrix.model_fields,
        *specs.Limits.model_fields,
        *specs.Case.__annotations__,
        *("max_attempts", "on", "keep"),
    ]
)
spec_like = st.recursive(
    json_values | st.sampled_from(["10m", "2GiB", "default", "9" * 400, 10**400]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(keys | st.text(), inner, max_size=6)
    ),
    max_leaves=25,
)


@given(st.dictionaries(keys, spec_like) | spec_like)
@example({"\ud800": 1, "cases": [{"id": "\ud800", "input": "\ud800"}], "variants": "\ud800"})
@example({"cases": [{"id": 10**5000, "input": 1}]})
@example({"cases": [{"id": {"a": [1]}, "input": 1}], "variants": [[]], "matrix": {"include": [1]}})
def test_whatever_comes_parse_raises_nothing_but_invalid_spec(raw):
    try:
        spec = specs.parse(raw)
    except InvalidSpec as error:
        assert error.problems
        json.dumps(error.problems, ensure_ascii=False).encode()
    else:
        assert spec.cases


names = st.text("aZ0", min_size=1, max_size=3) | st.just("a._-") | st.just("x" * 128)
plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
mappings = st.dictionaries(names, plain_values, max_size=3)
paths = st.lists(st.text("aZ0", min_size=1, max_size=3), min_size=2, max_size=2).map("/".join)
variants = st.fixed_dictionaries(
    {"name": names},
    optional={
        "graph": names,
        "nodes": st.dictionaries(names, names, max_size=2),
        "config": mappings,
        "context": mappings,
        "files": st.dictionaries(paths, names, max_size=2),
        "recursion_limit": st.integers(1, 100_000),
    },
)
cases = st.fixed_dictionaries(
    {"input": plain_values},
    optional={
        "reference": plain_values,
        "tags": st.lists(names, max_size=2),
        "files": st.dictionaries(paths, names, max_size=2),
        "resume": st.lists(plain_values, max_size=2),
    },
)
limits = st.fixed_dictionaries(
    {},
    optional={
        "timeout": st.sampled_from([1, 0.5, "10m", "250ms"]),
        "batch_timeout": st.sampled_from([None, "1d"]),
        "memory": st.sampled_from([1, "2GiB"]),
        "max_failures": st.none() | st.integers(0, 9) | st.floats(0, 1),
        "concurrency": st.none() | st.integers(1, 9),
    },
)
valid_specs = st.fixed_dictionaries(
    {
        "project": names,
        "variants": st.lists(variants, min_size=1, max_size=3),
        "cases": st.lists(cases, min_size=1, max_size=3),
    },
    optional={
        "name": names,
        "repetitions": st.integers(1, 1_000_000),
        "evaluators": st.lists(names, unique=True, max_size=3),
        "limits": limits,
        "labels": st.dictionaries(names, names, max_size=2),
        "matrix": st.fixed_dictionaries(
            {"config": st.dictionaries(names, st.lists(plain_values, min_size=1, max_size=2))},
            optional={
                "graph": st.lists(names, min_size=1, max_size=2),
                "exclude": st.lists(st.fixed_dictionaries({"config": mappings}), max_size=2),
                "include": st.lists(variants, max_size=2),
            },
        ),
        "workspace": st.fixed_dictionaries({"keep": st.sampled_from(["always", "never"])}),
    },
)


@settings(max_examples=50)
@given(valid_specs)
def test_a_valid_spec_written_out_with_its_defaults_is_the_same_spec(raw):
    spec = specs.parse(raw)

    again = specs.parse(json.loads(json.dumps(spec.model_dump(mode="json"))))

    assert again == spec
    assert [case["input"] for case in spec.cases] == [case["input"] for case in raw["cases"]]


@settings(max_examples=100)
@given(valid_specs, st.data())
def test_a_valid_spec_with_one_thing_changed_is_a_spec_or_refused(raw, data):
    raw = copy.deepcopy(raw)
    holder, key = raw, data.draw(st.sampled_from(sorted(raw)))
    while isinstance(holder[key], dict | list) and holder[key] and data.draw(st.booleans()):
        holder = holder[key]
        key = data.draw(
            st.sampled_from(range(len(holder)) if isinstance(holder, list) else sorted(holder))
        )
    holder[key] = data.draw(spec_like)

    try:
        spec = specs.parse(raw)
    except InvalidSpec as error:
        assert error.problems
        json.dumps(error.problems, ensure_ascii=False).encode()
    else:
        assert specs.parse(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


@given(st.floats(0.001, 30 * 86400), st.sampled_from(["s", "", " s"]))
def test_a_duration_written_as_text_is_the_number(seconds, unit):
    text = f"{seconds:f}"

    assert specs.parse_duration_s(text + unit) == specs.parse_duration_s(float(text))


@given(
    st.integers(1, 2**40),
    st.sampled_from([("", 1), ("B", 1), ("kB", 1000), ("KiB", 1024), ("GiB", 2**30)]),
)
def test_a_size_written_with_a_unit_is_that_many_bytes(count, unit):
    text, factor = unit

    assert specs.parse_size_bytes(f"{count}{text}") == count * factor
