"""The plan of a chaos run comes from its seed alone, and asks for what it says."""

from collections import Counter
from itertools import islice

import pytest

from benchmarks.chaos_plan import KILLS, LOADS, Load, make_spec, plan_kills, plan_loads
from wtb_core import specs


def test_the_same_seed_gives_the_same_plan() -> None:
    kills = list(islice(plan_kills(7, 4.0), 100))

    assert kills == list(islice(plan_kills(7, 4.0), 100))
    assert kills != list(islice(plan_kills(8, 4.0), 100))
    assert plan_loads(7, 5_000) == plan_loads(7, 5_000)
    assert plan_loads(7, 5_000) != plan_loads(8, 5_000)


def test_each_pass_through_a_deck_has_every_kind_in_its_share() -> None:
    size = sum(KILLS.values())
    kills = list(islice(plan_kills(1, 4.0), 2 * size))

    for deck in (kills[:size], kills[size:]):
        assert Counter(kill.kind for kill in deck) == KILLS
    assert 3.0 < sum(kill.pause_s for kill in kills) / len(kills) < 5.0


@pytest.mark.parametrize("executions", [30, 200, 5_000])
def test_a_load_has_as_many_executions_as_were_asked_for(executions: int) -> None:
    loads = plan_loads(1, executions)

    assert sum(load.executions for load in loads) == executions
    assert all(load.executions > 0 for load in loads)
    if executions > 100:
        assert {load.kind for load in loads} == LOADS.keys()


@pytest.mark.parametrize("kind", LOADS)
def test_every_kind_of_load_is_a_spec(kind: str) -> None:
    load = Load(3, kind, 5, 11)

    spec = make_spec(load, 1234)

    assert make_spec(load, 1234) == spec
    parsed = specs.parse(spec)
    assert len(parsed.cases) == 5
