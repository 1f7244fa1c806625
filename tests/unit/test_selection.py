import pytest

from wtb_core import specs
from wtb_core.errors import InvalidRequest, InvalidSpec
from wtb_core.matrix import expand
from wtb_core.selection import Selection

SPEC = {
    "project": "p",
    "variants": [{"name": "base"}, {"name": "wild", "config": {"n": 1}}],
    "matrix": {"nodes": {"propose": ["flip", "shift"]}, "config": {"n": [10, 50]}},
    "cases": [{"id": "a/1", "input": 1}, {"input": 2}, {"id": "a/3", "input": 3}],
    "baseline": "base",
}


def names(spec):
    return [variant.name for variant in expand(specs.parse(spec))]


def test_nothing_chosen_changes_nothing():
    assert Selection().apply(SPEC) == SPEC


def test_variants_of_the_list_and_of_the_matrix_are_chosen_by_name():
    part = Selection(variants=["base", "flip-*"]).apply(SPEC)

    assert names(part) == ["base", "flip-10", "flip-50"]
    whole = {variant.name: variant for variant in expand(specs.parse(SPEC))}
    assert all(variant == whole[variant.name] for variant in expand(specs.parse(part)))
    assert part["baseline"] == "base"


def test_a_baseline_that_is_left_out_is_none_any_more():
    assert specs.parse(Selection(variants=["shift-10"]).apply(SPEC)).baseline is None


def test_cases_keep_the_ids_that_they_have_in_the_whole():
    assert Selection(cases=["2", "a/3"]).apply(SPEC)["cases"] == [
        {"id": 2, "input": 2},
        {"id": "a/3", "input": 3},
    ]
    assert Selection(cases=["a/*"], first=1).apply(SPEC)["cases"] == [{"id": "a/1", "input": 1}]
    assert len(Selection(first=9).apply(SPEC)["cases"]) == 3


def test_labels_are_added_and_the_name_and_repetitions_replaced():
    spec = {**SPEC, "labels": {"a": "1", "b": "2"}, "name": "old", "repetitions": 9}

    part = Selection(name="new", repetitions=2, labels={"b": "3"}).apply(spec)

    assert (part["name"], part["repetitions"]) == ("new", 2)
    assert part["labels"] == {"a": "1", "b": "3"}
    assert spec["labels"] == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("selection", "option"),
    [
        (Selection(variants=["base", "nix"]), "--variant"),
        (Selection(cases=["a/1", "nix"]), "--case"),
    ],
)
def test_each_pattern_must_match_something(selection, option):
    with pytest.raises(InvalidRequest, match="nothing matches 'nix'; there is: ") as caught:
        selection.apply(SPEC)
    assert caught.value.parameter == option


def test_a_spec_that_is_none_is_refused_where_its_variants_are_needed():
    with pytest.raises(InvalidSpec, match="colour: unknown key"):
        Selection(variants=["base"]).apply({**SPEC, "colour": "red"})
    with pytest.raises(InvalidSpec, match="is also the name of"):
        Selection(variants=["base"]).apply({**SPEC, "variants": [{"name": "base"}] * 2})


@pytest.mark.parametrize("cases", [None, "file://cases.jsonl", [1, "two"]])
def test_cases_that_are_none_are_left_for_the_check_of_the_spec(cases):
    part = Selection(first=2).apply({**SPEC, "cases": cases})

    assert part["cases"] == cases
