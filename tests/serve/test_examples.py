"""The batches of `configs/batches` through real deployments, with a few of their cases."""

from pathlib import Path

import pytest

from wtb_core.selection import Selection
from wtb_core.spec_files import read_spec

BATCHES = Path(__file__).parents[2] / "configs" / "batches"


@pytest.mark.parametrize("path", sorted(BATCHES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_batch_of_the_repository_is_accepted_whole(bench, path):
    spec = read_spec(path)

    plan = bench.expand(spec)

    assert plan["cases"] == len(spec["cases"])
    assert plan["executions"] == len(plan["variants"]) * plan["cases"] * plan["repetitions"]
    assert plan["baseline"] in [variant["name"] for variant in plan["variants"]]


def test_the_search_example_is_built_at_registration_and_finds_what_it_is_asked_for(bench):
    spec = read_spec(BATCHES / "stdlib_search.yaml")
    few = Selection(variants=("bm25*",), first=3).apply(spec)

    result = bench.run_batch(few)

    assert result.succeeded, [e["failure"] for e in result.executions if e["failure"]]
    assert set(result.comparison["metrics"]) == {"reciprocal_rank", "recall_at_5"}
    best = max(row["scores"]["recall_at_5"]["mean"] for row in result.comparison["variants"])
    assert best > 0.5
