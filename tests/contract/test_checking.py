import io
import json

import pytest
from rich.console import Console
from sandbox_bench import PROJECTS

from wtb_core.checking import CheckReport, check_project, render_check

ROOT = PROJECTS.parents[1]


def render(report):
    console = Console(file=io.StringIO(), width=200, color_system=None)
    render_check(report, console)
    return console.file.getvalue()


def test_a_check_without_a_case_describes_and_says_how_to_give_one():
    report = check_project(PROJECTS / "trivial")

    assert report.ok
    assert report.problems == []
    assert report.graphs["default"].nodes == ["first", "second"]
    assert report.graphs["default"].input_schema["properties"].keys() == {"value", "gate"}
    assert report.implementations == {"second": ["negate", "fail"]}
    assert report.evaluators["equals_reference"] == ["output", "reference"]
    assert report.case is None
    assert "--input JSON" in report.note
    assert CheckReport.model_validate_json(report.model_dump_json()) == report
    shown = render(report)
    for words in ("graph default (state_graph)", "value?: integer", "second: negate, fail", "ok"):
        assert words in shown


def test_an_input_is_run_and_an_evaluator_without_its_reference_is_no_problem():
    report = check_project(PROJECTS / "trivial" / "project.yaml", given={"value": 3})

    assert report.ok
    assert report.case.output == {"value": 7}
    assert report.case.nodes == ["first", "second"]
    assert report.case.scores == {"equals_reference": 0.0, "size": 7.0}
    assert 'output: {"value": 7}' in render(report)


def test_a_spec_gives_its_first_variant_and_case():
    spec = {
        "project": "trivial",
        "variants": [{"name": "failing", "nodes": {"second": "fail"}}, {"name": "fine"}],
        "cases": [{"id": "one", "input": {"value": 1}}, {"input": {"value": 2}}],
    }
    report = check_project(PROJECTS / "trivial", spec=spec)

    assert not report.ok
    assert report.case.place == "graph.py:27"
    assert report.problems == [
        "the case 'one' failed (graph.py:27): error in the node 'second': ValueError: no luck with 2"
    ]
    assert "not ok" in render(report)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"given": {}, "graph": "no"}, "variants[0].graph: there is no graph 'no'"),
        ({"spec": {"project": "trivial"}}, "cases"),
        ({"spec": {}, "given": 1}, "give an input or a spec, not both"),
    ],
)
def test_what_cannot_be_run_is_told(fields, words):
    report = check_project(PROJECTS / "trivial", **fields)

    assert not report.ok
    assert any(words in problem for problem in report.problems)
    assert report.case is None


def test_a_place_without_a_project_says_what_was_looked_for(tmp_path):
    report = check_project(tmp_path)

    assert report.problems == [f"there is no project.yaml or langgraph.json in {tmp_path}"]
    assert "not ok" in render(report)


def test_a_langgraph_json_with_faults_says_all_in_plain_words(tmp_path, monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    (tmp_path / "langgraph.json").write_text(
        json.dumps(
            {
                "graphs": {"agent": "./agent.py:graph", "other": "./agent.py:missing"},
                "dependencies": ["."],
                "env": {"API_KEY": "0123456789"},
            }
        )
    )
    (tmp_path / "agent.py").write_text(
        "import os\n\nraise OSError('\\x1b[31m' + os.environ['API_KEY'])\n"
    )

    report = check_project(tmp_path)

    assert report.problems == [
        "./agent.py:graph: OSError at agent.py:3: \x1b[31m[redacted API_KEY]",
        "./agent.py:missing: OSError at agent.py:3: \x1b[31m[redacted API_KEY]",
    ]
    assert report.environment == {"API_KEY": "set"}
    shown = render(report)
    assert "dependencies: are not installed" in shown
    assert "\x1b" not in shown
    assert "[redacted API_KEY]" in shown
