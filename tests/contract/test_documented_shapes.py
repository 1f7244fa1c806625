"""Graphs of the shapes that LangGraph documents give through WTB what they give by themselves."""

import pytest
import yaml

from tests.documented_shapes import (
    DIRECTORY,
    PROJECTS,
    SHAPES,
    expected_results,
    normalised,
    run_all,
)
from wtb_core.testbench import TestBench


@pytest.fixture(scope="module")
def expected():
    """What the graphs give when they are invoked directly, in this process."""
    return expected_results()


@pytest.fixture(scope="module")
def executions(tmp_path_factory):
    """The same through child processes."""
    directory = tmp_path_factory.mktemp("bench")
    with TestBench.local(directory, root=PROJECTS, projects=["documented/project.yaml"]) as bench:
        yield run_all(bench)


def test_the_project_offers_every_shape():
    project = yaml.safe_load((DIRECTORY / "project.yaml").read_text())

    expected = {name: f"./{name.replace('.', '.py:')}" for name in SHAPES}
    assert project["graphs"] == expected


def test_every_shape_was_run_both_ways(expected, executions):
    assert len(executions) > 150
    assert executions.keys() == expected.keys()


@pytest.mark.parametrize("name", SHAPES)
def test_wtb_gives_what_a_direct_invoke_gives(expected, executions, name):
    keys = [key for key in expected if key[0] == name]
    for key in keys:
        compare(expected[key], executions[key])


def compare(wanted, execution):
    failure = execution["failure"]
    if "output" in wanted:
        assert failure is None, failure
        assert execution["status"] == "succeeded"
        assert normalised(execution["output"]) == normalised(wanted["output"])
        return
    assert execution["status"] == "failed", execution["output"]
    assert execution["output"] is None
    assert failure["kind"] == wanted["kind"], failure
    match wanted["kind"]:
        case "error":
            assert failure["error_type"] == wanted["error_type"]
            assert normalised(failure["message"]) == normalised(wanted["message"])
        case "interrupted":
            assert wanted["waiting"] in failure["reason"]
        case "invalid_output":
            assert failure["reason"] == wanted["reason"]
    assert failure["node"] == wanted.get("node")
