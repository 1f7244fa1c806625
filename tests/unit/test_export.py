import csv
import io
import json
import os
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtb_core.export import export, write_atomically
from wtb_core.report import render_csv

BATCH = {"batch_id": "b-1", "name": None}
COMPARISON = {
    "metrics": ["a,b", "c"],
    "variants": [
        {
            "variant": "one",
            "n": 3,
            "succeeded": 1,
            "failed": {"error": 1, "lost": 1},
            "cancelled": 0,
            "scores": {"a,b": {"mean": 0.5, "n": 2}, "c": {"mean": None, "n": 0}},
            "overall_score": {"mean": 0.5, "n": 2},
        }
    ],
}


def execution(number, status="succeeded", kind=None, **fields):
    failure = {
        "kind": kind,
        "reason": f"it was {kind}",
        "error_type": "ValueError",
        "message": "no luck",
        "node": None,
    }
    return {
        "execution_id": f"b-1-{number}",
        "variant": "one" if number < 3 else "two",
        "case_id": "case",
        "repetition": number,
        "status": status,
        "attempt": 1,
        "failure": None if kind is None else failure,
        "scores": {"a,b": 0.5} if status == "succeeded" else {},
        "overall_score": None,
        "duration_ms": 1500,
        "output": {"text": "=1+1\n"} if status == "succeeded" else None,
        **fields,
    }


EXECUTIONS = [
    execution(0),
    execution(1, "failed", "error"),
    execution(2, "failed", "lost"),
    execution(3, "cancelled", duration_ms=None),
    execution(4, "running", duration_ms=None),
]


def text_of(format_, executions=EXECUTIONS):
    return "".join(export(format_, BATCH, COMPARISON, iter(executions)))


def test_json_has_everything_and_json_lines_the_executions():
    assert json.loads(text_of("json")) == {
        "batch": BATCH,
        "comparison": COMPARISON,
        "executions": EXECUTIONS,
    }
    assert [json.loads(line) for line in text_of("jsonl").splitlines()] == EXECUTIONS


def test_csv_is_one_execution_a_row_with_a_column_for_each_metric():
    rows = list(csv.DictReader(io.StringIO(text_of("csv"))))

    assert len(rows) == 5
    assert (rows[0]["scores.a,b"], rows[0]["scores.c"]) == ("0.5", "")
    assert json.loads(rows[0]["output"]) == {"text": "=1+1\n"}
    assert (rows[1]["failure_kind"], rows[1]["failure_reason"]) == ("error", "it was error")
    assert (rows[3]["duration_ms"], rows[3]["output"]) == ("", "")


def test_a_comparison_as_csv_is_one_variant_a_row():
    (row,) = csv.DictReader(io.StringIO(render_csv(COMPARISON)))

    assert row == {
        "variant": "one",
        "n": "3",
        "succeeded": "1",
        "failed": "2",
        "cancelled": "0",
        "a,b": "0.5",
        "a,b.n": "2",
        "c": "",
        "c.n": "0",
        "overall_score": "0.5",
        "overall.n": "2",
    }


def test_junit_tells_the_variants_failures_from_those_of_the_infrastructure():
    root = ET.fromstring(text_of("junit"))

    assert {k: root.get(k) for k in ("name", "tests", "failures", "errors", "skipped", "time")} == {
        "name": "b-1",
        "tests": "5",
        "failures": "1",
        "errors": "1",
        "skipped": "2",
        "time": "4.500",
    }
    one, two = root
    assert (one.get("name"), one.get("tests"), two.get("skipped")) == ("one", "3", "2")
    fine, wrong, lost = one
    assert (fine.get("name"), fine.get("classname"), fine.get("time")) == ("case", "one", "1.500")
    assert fine.find("properties/property[@name='score.a,b']").get("value") == "0.5"
    assert wrong.get("name") == "case [repetition 1]"
    failure = wrong.find("failure")
    assert (failure.get("type"), failure.get("message")) == ("error", "it was error")
    assert failure.text == "error_type: ValueError\nmessage: no luck"
    assert lost.find("error").get("type") == "lost"
    assert [case.find("skipped").get("message") for case in two] == ["cancelled", "running"]


@given(st.text(st.characters() | st.sampled_from("\x00\x1b\x9b\ud800\ufffe<>&\"']")))
def test_whatever_user_code_says_is_well_formed(text):
    failed = execution(1, "failed", "error", case_id=text, variant=text)
    failed["failure"]["message"] = failed["failure"]["reason"] = text

    case = ET.fromstring(text_of("junit", [failed]))[0][0]
    assert not any(ord(c) < 32 and c not in "\t\n" for c in case.find("failure").get("message"))
    for format_ in ("json", "jsonl", "csv"):
        out = text_of(format_, [failed]).encode().decode()
        if format_ != "csv":
            assert not any("\x7f" <= c <= "\x9f" for c in out)
    assert json.loads(text_of("jsonl", [failed])) == failed


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("before")
    path.chmod(0o640)

    def pieces():
        yield "half"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        write_atomically(path, pieces())
    assert path.read_text() == "before"

    write_atomically(path, ["a\r\n", "é"])
    assert path.read_bytes() == "a\r\né".encode()
    assert path.stat().st_mode & 0o777 == 0o640
    assert [item.name for item in tmp_path.iterdir()] == ["out.json"]


def test_a_new_file_has_the_mode_that_the_user_wants(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "new", [""])
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to("target")

    write_atomically(tmp_path / "link", ["new"])

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"
