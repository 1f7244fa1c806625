import itertools
import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from wtb_core import matrix, specs
from wtb_core.matrix import Position, Shape

shapes = st.builds(Shape, st.integers(1, 7), st.integers(1, 7), st.integers(1, 7))


def make(**fields):
    fields.setdefault("cases", [{"input": None}])
    return specs.parse({"project": "p", **fields})


def names(spec):
    return [variant.name for variant in matrix.expand(spec)]


def problems(spec):
    return {problem.path: problem.message for problem in matrix.find_problems(spec)}


@given(shapes)
def test_every_position_is_one_execution_and_the_other_way_round(shape):
    positions = [shape.position(number) for number in range(shape.executions)]

    assert (
        len(set(positions)) == shape.executions == shape.variants * shape.cases * shape.repetitions
    )
    assert [shape.number(position) for position in positions] == list(range(shape.executions))
    assert set(positions) == {
        Position(*indices) for indices in itertools.product(*(range(size) for size in shape))
    }


@given(shapes)
def test_the_variants_of_one_case_stand_next_to_each_other(shape):
    first = [shape.position(number) for number in range(shape.variants)]

    assert first == [Position(variant, 0, 0) for variant in range(shape.variants)]


@given(shapes, st.integers())
def test_a_batch_has_no_other_executions(shape, number):
    assume(not 0 <= number < shape.executions)

    with pytest.raises(IndexError):
        shape.position(number)


def test_an_execution_id_names_its_batch_and_number():
    assert matrix.execution_id("b-12", 7) == "b-12-7"


def test_the_variants_are_the_listed_ones_the_product_and_the_includes():
    spec = make(
        variants=[{"name": "baseline"}],
        matrix={
            "nodes": {"propose": ["flip", "shift"]},
            "config": {"max": [10, 50]},
            "exclude": [{"nodes": {"propose": "shift"}, "config": {"max": 50}}],
            "include": [{"name": "wild", "nodes": {"propose": "random_walk"}}],
        },
    )

    variants = matrix.expand(spec)

    assert names(spec) == ["baseline", "flip-10", "flip-50", "shift-10", "wild"]
    assert variants[2].model_dump() == {
        "name": "flip-50",
        "graph": "default",
        "nodes": {"propose": "flip"},
        "config": {"max": 50},
        "context": {},
        "files": {},
        "recursion_limit": None,
    }
    assert problems(spec) == {}


def test_a_matrix_may_vary_the_graph_and_the_context():
    spec = make(matrix={"graph": ["default", "react"], "context": {"user": ["a"]}})

    assert [(v.name, v.graph, v.context) for v in matrix.expand(spec)] == [
        ("default-a", "default", {"user": "a"}),
        ("react-a", "react", {"user": "a"}),
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a", "b c", ""], ["a", "1", "2"]),
        ([True, None, False], ["true", "null", "false"]),
        ([0.5, 10, 1e300], ["0.5", "10", "2"]),
        ([{"a": 1}, [1]], ["0", "1"]),
        (["x" * 64, "x" * 65], ["x" * 64, "1"]),
        ([5, -5, ".hidden"], ["5", "1", "2"]),
    ],
)
def test_a_value_that_does_not_fit_a_name_is_there_by_its_index(values, expected):
    assert names(make(matrix={"config": {"x": values}})) == expected


def test_a_negative_number_fits_where_it_does_not_come_first():
    spec = make(matrix={"nodes": {"n": ["a"]}, "config": {"x": [-5]}})

    assert names(spec) == ["a--5"]
    assert problems(spec) == {}


@pytest.mark.parametrize(
    ("value", "entry", "excluded"),
    [
        (1, 1, True),
        (1, 1.0, True),
        (1, True, False),
        (True, True, True),
        (0, False, False),
        ("1", 1, False),
        (None, None, True),
        ([1, {"a": 2}], [1.0, {"a": 2}], True),
        ([1, {"a": 2}], [1.0, {"a": True}], False),
        ([1], [1, 2], False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({}, [], False),
    ],
)
def test_an_exclude_entry_agrees_as_json_values_do(value, entry, excluded):
    spec = make(
        variants=[{"name": "other"}],
        matrix={"config": {"x": [value]}, "exclude": [{"config": {"x": entry}}]},
    )

    assert (len(matrix.expand(spec)) == 1) == excluded


axes = st.dictionaries(
    st.sampled_from("abc"),
    st.lists(st.sampled_from(["u", "v", "w"]), min_size=1, max_size=3, unique=True),
    max_size=3,
)
entries = st.dictionaries(st.sampled_from("abc"), st.sampled_from(["u", "v", "w"]), max_size=2)
excludes = st.lists(st.tuples(entries, entries), max_size=3)


@given(axes, axes, excludes, st.integers(0, 3))
def test_the_product_is_what_a_plain_loop_makes_of_it(nodes, config, exclude, included):
    assume(nodes or config)
    spec = make(
        variants=[{"name": "listed"}],
        matrix={
            "nodes": nodes,
            "config": config,
            "exclude": [{"nodes": n, "config": c} for n, c in exclude],
            "include": [{"name": f"include{i}"} for i in range(included)],
        },
    )
    expected = []
    keys = [("nodes", k) for k in nodes] + [("config", k) for k in config]
    for values in itertools.product(*nodes.values(), *config.values()):
        chosen = dict(zip(keys, values, strict=True))
        for n, c in exclude:
            wanted = {("nodes", k): v for k, v in n.items()}
            wanted |= {("config", k): v for k, v in c.items()}
            if wanted.items() <= chosen.items():
                break
        else:
            expected.append(chosen)

    made = matrix.expand(spec)

    assert made[0].name == "listed"
    assert [variant.name for variant in made[len(expected) + 1 :]] == [
        f"include{i}" for i in range(included)
    ]
    assert [
        {("nodes", k): v for k, v in variant.nodes.items()}
        | {("config", k): v for k, v in variant.config.items()}
        for variant in made[1 : len(expected) + 1]
    ] == expected


scalars = st.none() | st.booleans() | st.sampled_from([0, 1, 1.0, 2.5, "0", "1", "true", "a b"])
free = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.sampled_from("uv"), scalars)
free_axes = st.dictionaries(
    st.sampled_from("abc"), st.lists(free, min_size=1, max_size=3, unique_by=json.dumps), max_size=2
)


def agrees(entry, chosen):
    """The naive model: an exclude entry agrees when each thing it says is so, as JSON compares."""

    def same(one, other):
        if type(one) in (int, float) and type(other) in (int, float):
            return one == other
        if type(one) is not type(other):
            return False
        if isinstance(one, list):
            return len(one) == len(other) and all(
                same(a, b) for a, b in zip(one, other, strict=True)
            )
        if isinstance(one, dict):
            return sorted(one) == sorted(other) and all(same(one[k], other[k]) for k in one)
        return one == other

    return (
        all(
            section in chosen and key in chosen[section] and same(chosen[section][key], value)
            for section, values in entry.items()
            if section != "graph"
            for key, value in values.items()
        )
        and entry.get("graph", chosen["graph"]) == chosen["graph"]
    )


@given(st.data())
def test_every_combination_is_a_variant_unless_an_entry_agrees_with_it(data):
    graphs = data.draw(
        st.none() | st.lists(st.sampled_from(["default", "react"]), min_size=1, unique=True)
    )
    config, context = data.draw(free_axes), data.draw(free_axes)
    assume(graphs or config or context)
    combinations = [
        {
            "graph": graph,
            "config": dict(zip(config, one, strict=True)),
            "context": dict(zip(context, other, strict=True)),
        }
        for graph in graphs or ["default"]
        for one in itertools.product(*config.values())
        for other in itertools.product(*context.values())
    ]
    exclude = []
    for _ in range(data.draw(st.integers(0, 3))):
        source = data.draw(st.sampled_from(combinations))
        entry = {
            section: {k: source[section][k] for k in source[section] if data.draw(st.booleans())}
            for section in ("config", "context")
        }
        exclude.append(entry | ({"graph": source["graph"]} if data.draw(st.booleans()) else {}))
    fields = {"config": config, "context": context, "exclude": exclude}
    spec = make(
        variants=[{"name": "listed"}],
        matrix=fields | ({"graph": graphs} if graphs else {}),
    )
    expected = [c for c in combinations if not any(agrees(entry, c) for entry in exclude)]

    made = matrix.expand(spec)

    assert [
        json.dumps({"graph": v.graph, "config": v.config, "context": v.context}) for v in made[1:]
    ] == [json.dumps(c) for c in expected]
    assert matrix.expand(spec) == made
    found = matrix.find_problems(spec)
    assert (not found) == (len({v.name for v in made}) == len(made))


values = st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3)


@given(
    st.dictionaries(st.sampled_from("abc"), st.lists(values, min_size=1, max_size=3), min_size=1),
    st.lists(st.sampled_from(["0", "1", "true", "x"]), max_size=2),
)
def test_the_names_of_accepted_variants_are_names_and_unique(config, listed):
    spec = make(variants=[{"name": name} for name in listed], matrix={"config": config})

    found = matrix.find_problems(spec)

    made = names(spec)
    assert (not found) == (len(set(made)) == len(made))
    json.dumps(found, ensure_ascii=False).encode()
    for name in made:
        specs.Variant(name=name)


def test_a_clash_names_both_places():
    spec = make(
        variants=[{"name": "10"}, {"name": "a"}, {"name": "a"}],
        matrix={"config": {"x": [10]}, "include": [{"name": "a"}]},
    )

    assert problems(spec) == {
        "variants[2].name": "'a' is also the name of variants[1]",
        "matrix (10).name": "'10' is also the name of variants[0]",
        "matrix.include[0].name": "'a' is also the name of variants[1]",
    }


def test_two_values_that_read_alike_are_one_name_too_many():
    assert problems(make(matrix={"config": {"x": [1, "1"]}})) == {
        "matrix (1)": "two combinations are named '1'; leave one out, or list it with its own name"
    }


def test_a_matrix_without_values_is_no_variant():
    assert problems(make(matrix={"exclude": [{}]})) == {
        "matrix": "it has no list of values; no variant is left"
    }


def test_variants_that_would_be_too_large_together_are_not_made(monkeypatch):
    config = {"a": ["x" * 7_000], "b": list(range(10_000))}
    monkeypatch.setattr(matrix, "_product", None)

    (message,) = problems(make(matrix={"config": config})).values()
    assert "keep large values in the workspace" in message


def test_more_axes_than_fit_a_name_are_a_problem():
    config = {f"k{i}": [1] for i in range(40)}

    assert problems(make(matrix={"config": config, "context": config})) == {
        "matrix": "it varies 80 things; 64 is the most"
    }


def test_no_more_than_a_hundred_problems_are_found():
    assert (
        len(
            matrix.find_problems(
                make(
                    matrix={
                        "config": {
                            "x": ["a"],
                            "y": list(range(200)),
                            "z": ["y" * 64],
                            "w": ["y" * 64],
                        }
                    }
                )
            )
        )
        == 100
    )


def test_a_name_that_grows_too_long_is_a_problem():
    spec = make(matrix={"config": {key: ["x" * 60] for key in "abc"}})

    (message,) = problems(spec).values()
    assert "is no name; list this variant" in message


def test_too_many_variants_are_counted_without_being_made(monkeypatch):
    spec = make(matrix={"config": {f"k{i}": list(range(100)) for i in range(9)}})
    monkeypatch.setattr(matrix, "_product", None)

    assert problems(spec) == {
        "matrix": f"{100**9} variants are more than {matrix.MAX_VARIANTS}; split the batch"
    }


def test_the_limit_itself_is_allowed():
    config = {"a": list(range(100)), "b": list(range(100))}

    assert problems(make(matrix={"config": config})) == {}
    assert "matrix" in problems(make(matrix={"config": config, "include": [{"name": "one"}]}))


def test_excluding_everything_is_a_problem():
    assert problems(make(matrix={"config": {"a": [1]}, "exclude": [{}]})) == {
        "matrix": "every combination is excluded; no variant is left"
    }


@pytest.mark.parametrize("baseline", ["listed", "1", "included"])
def test_the_baseline_may_be_any_variant(baseline):
    fields = {
        "variants": [{"name": "listed"}],
        "matrix": {"config": {"a": [1]}, "include": [{"name": "included"}]},
    }

    assert problems(make(**fields, baseline=baseline)) == {}
    assert problems(make(**fields, baseline="other")) == {"baseline": "there is no variant 'other'"}
    assert problems(make(**fields, baseline="includde")) == {
        "baseline": "there is no variant 'includde'; did you mean 'included'?"
    }


def test_an_exclude_that_can_exclude_nothing_is_a_problem():
    """A typo would run what was meant to be left out."""
    spec = make(
        matrix={
            "nodes": {"propose": ["flip", "shift"]},
            "config": {"max": [1, 2]},
            "exclude": [
                {"nodes": {"propose": "flipp"}, "config": {"max": 1}},
                {"nodes": {"prop": "flip"}},
                {"config": {"max": True}},
                {"graph": "other"},
                {"graph": "default", "nodes": {"propose": "flip"}},
            ],
        }
    )

    value, name = "no list of the matrix has this value", "the matrix has no list of this name"
    assert problems(spec) == {
        "matrix.exclude[0].nodes.propose": f"{value}, so nothing is excluded",
        "matrix.exclude[1].nodes.prop": f"{name}, so nothing is excluded",
        "matrix.exclude[2].config.max": f"{value}, so nothing is excluded",
        "matrix.exclude[3].graph": f"{value}, so nothing is excluded",
    }


@pytest.mark.timeout(20)
def test_many_excludes_of_long_values_are_looked_up_not_compared():
    long = ["x"] * 100
    spec = make(
        matrix={
            "config": {"a": [[*long, i] for i in range(3_000)], "b": [0, 1]},
            "exclude": [{"config": {"a": [*long, i]}} for i in range(1_000)],
        }
    )

    assert matrix.find_problems(spec) == []
    assert len(matrix.expand(spec)) == 4_000


def test_variants_that_would_fill_the_memory_are_refused_with_their_size():
    spec = make(matrix={"config": {"a": list(range(10_000)), "b": [[[]] * 1_500]}})

    assert "characters in all" in problems(spec)["matrix"]
    listed = make(variants=[{"name": "a", "config": {"x": ["y" * 100] * 100_000}}])
    assert "characters in all" in problems(listed)["variants"]
