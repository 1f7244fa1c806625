"""The shapes that LangGraph documents, through the real deployments, as the sequential runner."""

import pytest

from tests.documented_shapes import PROJECTS, normalised, run_all
from wtb_core.testbench import TestBench

FIELDS = ("status", "output", "failure", "attempt", "node_count", "checkpoint_count", "scores")


@pytest.mark.timeout(900)
def test_every_shape_gives_served_what_it_gives_locally(
    service, bench: TestBench, tmp_path
) -> None:
    """Whatever they give directly is compared with the sequential runner in the contract tests."""
    served = summarise(run_all(bench))
    projects = ["documented/project.yaml"]
    with TestBench.local(tmp_path / "local", root=PROJECTS, projects=projects) as local:
        expected = summarise(run_all(local))

    assert served.keys() == expected.keys()
    different = {
        key: (served[key], expected[key]) for key in served if served[key] != expected[key]
    }
    assert different == {}


def summarise(executions: dict) -> dict:
    """What must agree; a traceback names files in the data directory."""
    found = {}
    for key, execution in executions.items():
        facts = {field: execution[field] for field in FIELDS}
        failure = {**(facts["failure"] or {}), "traceback": None}
        found[key] = normalised({**facts, "failure": failure})
    return found
