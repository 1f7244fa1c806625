import math
import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtb_core.report import BatchFold, format_mean, overall_score, render_markdown

RULES = {"score": {"weight": 1.0, "higher_is_better": True, "failure_score": 0.0}}


def number(events):
    return [
        {"seq": seq, "type": kind, "payload": payload}
        for seq, (kind, payload) in enumerate(events, start=1)
    ]


def started(variants=("a", "b"), executions=4, rules=RULES, evaluators=()):
    payload = {
        "variants": list(variants),
        "executions": executions,
        "scores": rules,
        "evaluators": list(evaluators),
        "baseline": variants[0],
    }
    return ("ray_batch_test_started", payload)


def begun(execution, variant="a"):
    return ("ray_variant_execution_started", {"execution_id": execution, "variant": variant})


def succeeded(execution, scores, overall, variant="a", duration_ms=10):
    payload = {
        "execution_id": execution,
        "variant": variant,
        "scores": scores,
        "overall_score": overall,
        "duration_ms": duration_ms,
    }
    return ("ray_variant_execution_completed", payload)


def failed(execution, kind="error", variant="a", will_retry=False):
    payload = {
        "execution_id": execution,
        "variant": variant,
        "kind": kind,
        "will_retry": will_retry,
    }
    return ("ray_variant_execution_failed", payload)


def cancelled(execution, variant="a"):
    return ("ray_variant_execution_cancelled", {"execution_id": execution, "variant": variant})


def fold(*events):
    result = BatchFold()
    for event in number(events):
        result.feed(event)
    return result


def compare(*events):
    return {row["variant"]: row for row in fold(*events).comparison()["variants"]}


def weigh(weight, **rule):
    return {"weight": weight, "higher_is_better": True, "failure_score": 0.0, **rule}


@pytest.mark.parametrize(
    ("scores", "rules", "expected"),
    [
        ({}, {}, None),
        ({"a": 0.5}, {}, 0.5),
        ({"a": None}, {}, None),
        ({"a": 0.5, "b": 0.25}, {}, None),
        ({"a": 0.5}, {"a": {"weight": None, "higher_is_better": False}}, 0.5),
        ({"a": 0.5, "b": 9.0}, {"a": weigh(2.0)}, 0.5),
        ({"a": 0.5, "b": 1.0}, {"a": weigh(1.0), "b": weigh(3.0)}, 0.875),
        ({"a": 0.5, "b": None}, {"a": weigh(1.0), "b": weigh(3.0)}, None),
        ({"a": 0.5}, {"a": weigh(1.0), "b": weigh(3.0)}, None),
        ({"a": 1.0, "b": 4.0}, {"a": weigh(1), "b": weigh(1, higher_is_better=False)}, -1.5),
        ({"a": 1.0, "b": 1.0}, {"a": weigh(0.1), "b": weigh(0.2)}, 1.0),
        ({"a": 1e308, "b": 1e308}, {"a": weigh(9.0), "b": weigh(9.0)}, 1e308),
    ],
)
def test_the_overall_score_is_the_weighted_mean_or_the_only_metric(scores, rules, expected):
    assert overall_score(scores, rules) == expected


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.lists(st.tuples(finite, st.floats(1e-9, 1e9), st.booleans()), min_size=1, max_size=5),
)
def test_the_overall_score_is_finite_and_between_the_scores(parts):
    scores = {str(i): value for i, (value, _, _) in enumerate(parts)}
    rules = {str(i): weigh(w, higher_is_better=up) for i, (_, w, up) in enumerate(parts)}

    overall = overall_score(scores, rules)

    entered = [value if up else -value for value, _, up in parts]
    assert math.isfinite(overall)
    assert min(entered) <= overall <= max(entered)


def test_the_variants_own_failures_count_as_the_failure_score():
    rules = {"score": weigh(1.0, failure_score=-1.0)}
    kinds = ["error", "timeout", "crash", "out_of_memory", "interrupted", "invalid_output"]
    events = [started(("a",), 7, rules), succeeded("s", {"score": 6.0}, 6.0)]

    row = compare(*events, *(failed(kind, kind) for kind in kinds))["a"]

    assert row["scores"] == {"score": {"mean": 0.0, "n": 7}}
    assert row["overall_score"] == {"mean": 0.0, "n": 7}
    assert row["failed"] == dict.fromkeys(sorted(kinds), 1)
    assert (row["n"], row["succeeded"], row["cancelled"]) == (7, 1, 0)


def test_failures_of_the_infrastructure_and_cancelled_executions_are_left_out_of_means():
    row = compare(
        started(),
        succeeded("1", {"score": 0.5}, 0.5),
        failed("2", "lost"),
        failed("3", "setup"),
        cancelled("4"),
    )["a"]

    assert row["scores"] == {"score": {"mean": 0.5, "n": 1}}
    assert row["overall_score"] == {"mean": 0.5, "n": 1}
    assert row["failed"] == {"lost": 1, "setup": 1}
    assert (row["n"], row["cancelled"]) == (4, 1)


def test_an_attempt_that_is_followed_by_another_counts_nowhere():
    result = fold(
        started(("a",), 1),
        begun("1"),
        failed("1", "crash", will_retry=True),
        begun("1"),
        succeeded("1", {"score": 1.0}, 1.0),
    )

    row = result.comparison()["variants"][0]
    assert (row["n"], row["failed"], row["scores"]) == (1, {}, {"score": {"mean": 1.0, "n": 1}})
    assert result.counts["failed"] == 0


def test_a_metric_that_could_not_be_computed_is_missing_from_its_own_mean_only():
    rules = {"x": weigh(None), "y": weigh(None)}
    row = compare(
        started(("a",), 2, rules),
        succeeded("1", {"x": 1.0, "y": None}, None),
        succeeded("2", {"x": 0.0, "y": 3.0}, None),
    )["a"]

    assert row["scores"] == {"x": {"mean": 0.5, "n": 2}, "y": {"mean": 3.0, "n": 1}}
    assert row["overall_score"] == {"mean": None, "n": 0}


def test_without_weights_and_with_one_metric_failures_enter_the_overall_score_too():
    row = compare(started(("a",), 2, {}), succeeded("1", {"m": 1.0}, 1.0), failed("2"))["a"]

    assert row["overall_score"] == {"mean": 0.5, "n": 2}


@pytest.mark.parametrize(
    ("evaluators", "rules", "seen", "metrics"),
    [
        (["m"], {}, {}, ["m"]),
        (["m"], {}, {"m": 1.0}, ["m"]),
        (["m"], {}, {"m.a": 1.0, "m.b": 1.0}, ["m.a", "m.b"]),
        (["m"], {"m.a": weigh(None)}, {}, ["m.a"]),
        (["m"], {}, {"m": None, "m.a": 1.0}, ["m", "m.a"]),
        (["v1.0"], {}, {"v1.0.a": 1.0}, ["v1.0.a"]),
        (["m", "n"], {}, {"m": 1.0}, ["m", "n"]),
        (["m"], {}, {"mm": 1.0}, ["m", "mm"]),
    ],
)
def test_an_evaluator_that_has_given_nothing_yet_counts_as_one_metric(
    evaluators, rules, seen, metrics
):
    events = [started(("a",), 2, rules, evaluators), failed("1")]
    if seen:
        events.append(succeeded("2", seen, None))

    comparison = fold(*events).comparison()

    assert comparison["metrics"] == metrics
    assert set(comparison["variants"][0]["scores"]) == set(metrics)


def test_a_variant_of_which_every_execution_failed_has_the_failure_score():
    row = compare(started(("a",), 1, {}, ["m"]), failed("1"))["a"]

    assert row["overall_score"] == row["scores"]["m"] == {"mean": 0.0, "n": 1}


def test_a_variant_of_which_nothing_ended_has_no_means():
    row = compare(started(), succeeded("1", {"score": 1.0}, 1.0))["b"]

    assert row["scores"] == {"score": {"mean": None, "n": 0}}
    assert row["overall_score"] == {"mean": None, "n": 0}
    assert row["mean_duration_ms"] is None


@pytest.mark.parametrize(
    ("rules", "scores", "best"),
    [
        (RULES, (0.1, 0.9), ("b", 0.9)),
        (RULES, (0.9, 0.9), ("a", 0.9)),
        ({"score": weigh(1.0, higher_is_better=False)}, (-0.1, -0.9), ("a", -0.1)),
        ({"score": weigh(None, higher_is_better=False)}, (0.1, 0.9), ("a", 0.1)),
        ({}, (0.1, 0.9), ("b", 0.9)),
        (RULES, (None, None), (None, None)),
    ],
)
def test_the_best_variant_has_the_best_mean_and_the_earlier_one_wins_a_tie(rules, scores, best):
    events = [
        succeeded(variant, {"score": score}, score, variant)
        for variant, score in zip("ab", scores, strict=True)
    ]

    comparison = fold(started(("a", "b"), 2, rules), *events).comparison()

    assert (comparison["best_variant"], comparison["best_score"]) == best
    assert comparison["baseline"] == "a"


endings = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.floats(allow_nan=False, allow_infinity=False)
        | st.sampled_from(["error", "lost", "cancelled"]),
    ),
    min_size=1,
    max_size=12,
)


@given(endings, st.randoms(use_true_random=False))
def test_the_comparison_does_not_depend_on_the_order_of_endings(ends, chance):
    def play(order):
        events = [started(("a", "b", "c"), len(ends))]
        for i in order:
            variant, end = ends[i]
            if isinstance(end, float):
                events.append(succeeded(str(i), {"score": end}, end, variant))
            else:
                ending = cancelled if end == "cancelled" else failed
                arguments = {} if end == "cancelled" else {"kind": end}
                events.append(ending(str(i), variant=variant, **arguments))
        return fold(*events)

    order = list(range(len(ends)))
    straight = play(order)
    chance.shuffle(order)
    shuffled = play(order)

    assert shuffled.comparison() == straight.comparison()
    assert shuffled.counts == straight.counts
    for row in straight.comparison()["variants"]:
        mine = [end for variant, end in ends if variant == row["variant"]]
        numbers = [end for end in mine if isinstance(end, float)] + [0.0] * mine.count("error")
        assert row["scores"]["score"]["n"] == len(numbers)
        if numbers:
            exact = sum(map(Fraction, numbers)) / len(numbers)
            assert row["scores"]["score"]["mean"] == float(exact)


lives = st.lists(
    st.lists(st.sampled_from(["retry"]), max_size=2).flatmap(
        lambda tries: st.sampled_from(["succeed", "fail", "cancel", "run", "wait"]).map(
            lambda last: [*tries, last]
        )
    ),
    min_size=1,
    max_size=6,
)


@given(lives, st.randoms(use_true_random=False), st.data())
def test_counts_add_up_after_every_event_however_often_it_comes(many, chance, data):
    queues = {
        str(i): [
            event
            for step in life
            for event in {
                "retry": [begun(str(i)), failed(str(i), "crash", will_retry=True)],
                "succeed": [begun(str(i)), succeeded(str(i), {}, None)],
                "fail": [begun(str(i)), failed(str(i))],
                "cancel": [begun(str(i)), cancelled(str(i))],
                "run": [begun(str(i))],
                "wait": [],
            }[step]
        ]
        for i, life in enumerate(many)
    }
    events = [started(("a",), len(many))]
    while left := [key for key, queue in queues.items() if queue]:
        events.append(queues[chance.choice(left)].pop(0))
    numbered = number(events)
    result = BatchFold()
    for position, event in enumerate(numbered):
        result.feed(event)
        result.feed(numbered[data.draw(st.integers(0, position))])
        counts = dict(result.counts)
        assert min(counts.values()) >= 0
        assert counts.pop("total") == sum(counts.values()) == len(many)

    ends = Counter(life[-1] for life in many)
    assert result.counts == {
        "pending": ends["wait"],
        "running": ends["run"],
        "succeeded": ends["succeed"],
        "failed": ends["fail"],
        "cancelled": ends["cancel"],
        "total": len(many),
    }


def test_a_batch_that_is_cancelled_before_it_starts_never_counts_below_zero():
    result = fold(cancelled("1"), cancelled("2"))

    assert result.status == "pending"
    assert result.counts == {
        "pending": 0,
        "running": 0,
        "succeeded": 0,
        "failed": 0,
        "cancelled": 2,
        "total": 2,
    }


def test_a_missing_event_is_noticed_and_changes_nothing():
    result = fold(started(("a",), 2), begun("1"))
    before = result.counts

    with pytest.raises(ValueError, match="event 3 is missing: got 4 after 2"):
        result.feed({"seq": 4, "type": "ray_batch_test_progress", "payload": {}})

    assert (result.seq, result.counts) == (2, before)


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_the_last_event_says_how_the_batch_ended(status):
    counts = {"pending": 0, "total": 3}
    result = fold(started(("a",), 3), (f"ray_batch_test_{status}", {"counts": counts}))

    assert result.status == status
    assert result.ended == {"counts": counts}


def test_pool_events_and_progress_change_no_result():
    plain = fold(started(), begun("1"))
    with_copies = fold(
        started(),
        ("ray_actor_initialized", {}),
        begun("1"),
        ("ray_batch_test_progress", {}),
        ("ray_backpressure_applied", {}),
    )

    assert with_copies.comparison() == plain.comparison()
    assert with_copies.counts == plain.counts
    assert with_copies.status == plain.status == "running"


def test_the_table_keeps_its_columns_whatever_a_metric_is_called():
    rules = {"a|b\\": weigh(None), "c\nd": weigh(None)}
    comparison = fold(
        started(("a",), 2, rules), succeeded("1", {"a|b\\": 0.25, "c\nd": 1.0}, None), failed("2")
    ).comparison()

    assert render_markdown(comparison) == (
        "| variant | n | succeeded | failed | a\\|b\\\\ | c d | overall |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        "| a | 2 | 1 | error 1 | 0.125 (n 2) | 0.500 (n 2) | - |\n"
    )


def test_a_mean_is_shown_with_its_n():
    assert format_mean({"mean": 0.8666, "n": 15}) == "0.867 (n 15)"
    assert format_mean({"mean": None, "n": 0}) == "-"


def test_a_large_fold_is_the_size_of_its_variants():
    result = BatchFold()
    chance = random.Random(1)
    result.feed(number([started(("a", "b"), 5000)])[0])
    for i in range(5000):
        score = chance.random()
        event = succeeded(str(i), {"score": score}, score, "ab"[i % 2])
        result.feed({"seq": i + 2, "type": event[0], "payload": event[1]})

    assert result.counts["succeeded"] == 5000
    assert not result._running
    assert len(result._variants) == 2
