import csv
import io
import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wtb_core.cases import read_cases
from wtb_core.errors import InvalidSpec
from wtb_core.spec_files import read_spec


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def find(tmp_path, name, content):
    """The problems of a file with this content, as texts."""
    with pytest.raises(InvalidSpec) as caught:
        read_cases(write(tmp_path, name, content))
    return [str(problem) for problem in caught.value.problems]


CASES = [
    {"id": "a", "input": {"x": 1}, "reference": [1.5, None], "tags": ["t"], "resume": [True]},
    {"input": "é", "files": {"a/b.txt": "line\n"}},
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.jsonl", "\n".join(json.dumps(case) for case in CASES)),
        ("c.jsonl", "\ufeff" + "\r\n\n".join(json.dumps(case) for case in CASES) + "\r\n"),
        ("c.json", json.dumps(CASES)),
        ("c.JSON", json.dumps({"cases": CASES}, indent=1)),
        ("c.yaml", yaml.safe_dump(CASES)),
        ("c.yml", yaml.safe_dump({"cases": CASES})),
    ],
)
def test_cases_are_read_as_they_were_written(tmp_path, name, content):
    assert read_cases(write(tmp_path, name, content)) == CASES


def test_each_column_of_a_csv_file_has_its_place(tmp_path):
    path = write(
        tmp_path,
        "c.csv",
        "\ufeffid, tags ,reference,question,n\r\n"
        'a,"math; hard;",42,"two\nlines, one ""quoted""",007\r\n'
        "\r\n"
        ",,,,\r\n",
    )

    assert read_cases(path) == [
        {
            "id": "a",
            "tags": ["math", "hard"],
            "reference": "42",
            "input": {"question": 'two\nlines, one "quoted"', "n": "007"},
        },
        {"input": {"question": "", "n": ""}},
    ]


def test_several_reference_columns_are_one_mapping(tmp_path):
    path = write(tmp_path, "c.csv", "q,reference.tests,reference_note.x\na,7,\nb,,\nc,1,2\n")

    assert read_cases(path) == [
        {"input": {"q": "a"}, "reference": {"tests": "7"}},
        {"input": {"q": "b"}},
        {"input": {"q": "c"}, "reference": {"tests": "1", "note.x": "2"}},
    ]


def test_the_example_in_the_docs_is_what_is_read(tmp_path):
    page = (Path(__file__).parents[2] / "docs/spec.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^```(csv|json)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE))

    assert read_cases(write(tmp_path, "c.csv", blocks["csv"])) == json.loads(blocks["json"])


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5))
def test_a_csv_file_is_text_as_its_writer_meant_it(tmp_path_factory, rows):
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    writer.writerows([("q", "id column"), *rows])
    path = write(tmp_path_factory.mktemp("cases"), "c.csv", out.getvalue())

    assert [tuple(case["input"].values()) for case in read_cases(path)] == rows


@pytest.mark.parametrize(
    ("name", "content", "problems"),
    [
        ("c.jsonl", "", ["c.jsonl: there is no case in it"]),
        ("c.jsonl", "\n \n", ["c.jsonl: there is no case in it"]),
        ("c.json", "[]", ["c.json: there is no case in it"]),
        ("c.csv", "", ["c.csv: there is no case in it"]),
        ("c.csv", "q\n", ["c.csv: there is no case in it"]),
        ("c.txt", "x", ["c.txt: give a file that ends in .jsonl, .json, .yaml, .yml, .csv"]),
        ("c.json", '{"case": []}', ["c.json: give a list of cases, or a mapping with `cases` and nothing else"]),
        ("c.yaml", "a: b: c", ["c.yaml line 1, column 5: mapping values are not allowed in this context"]),
        (
            "c.jsonl",
            b'{"input": 1}\n{"input": }\n\n{"input": NaN}\n[1]\n{"inputs": 2}\n\xff\n{"id": "z", "input": 3}\n{"id": "z", "input": 4}\n',
            [
                "c.jsonl line 2: expecting value (column 11)",
                "c.jsonl line 4: NaN is no JSON value; give a number, text or null (column 11)",
                "c.jsonl line 7: the byte 0xff is not UTF-8; save it as UTF-8 (column 1)",
                "c.jsonl line 5: give a mapping",
                "c.jsonl line 6: inputs: unknown key; did you mean `input`?",
                "c.jsonl line 6: input: required",
                "c.jsonl line 9: id: 'z' is also the id of line 8",
            ],
        ),
        ("c.json", '[{"input": 1}, {"input": 2, "tags": "x"}]', ["c.json row 2: tags: give a list"]),
        (
            "c.csv",
            'id,q\n1,a\n2\n3,b,c\n"4","x\ny"\n4,z\n',
            [
                "c.csv line 3: it has 1 cells and the header 2; put a value with a comma in double quotes",
                "c.csv line 4: it has 3 cells and the header 2; put a value with a comma in double quotes",
                "c.csv line 7: id: '4' is also the id of line 5",
            ],
        ),
        ("c.csv", "q,,q\na,b,c\n", ["c.csv line 1: column 2 has no name", "c.csv line 1: column 'q' is also column 1"]),
        ("c.csv", "id,tags,reference\n1,a,b\n", ["c.csv line 1: there is no column for the input: any but `id`, `tags` and `reference...`"]),
        ("c.csv", "q,reference,reference.x\na,b,c\n", ["c.csv line 1: give `reference` or 'reference.x', not both"]),
        ("c.csv", "q,references\na,b\n", ["c.csv line 1: column 'references': a reference is `reference`, or `reference.NAME` for several"]),
        ("c.csv", "q,reference.x,reference_x\na,b,c\n", ["c.csv line 1: column 'reference_x' is also column 2"]),
        ("c.csv", "q\na\nb\0\n", ["c.csv line 3: there is a NUL character; save the file as plain text"]),
        ("c.csv", b"q\na\n\xff\n", ["c.csv line 3: this is not UTF-8; save the file as UTF-8"]),
        ("c.csv", 'q\na\n"open\n', ["c.csv line 3: unexpected end of data"]),
        ("c.csv", 'q\n"a" b\n', ["c.csv line 2: ',' expected after '\"'"]),
        ("c.csv", "q\n" + "x" * 200_000, ["c.csv line 2: field larger than field limit (131072)"]),
    ],
)  # fmt: skip
def test_a_fault_is_named_by_its_file_and_line(tmp_path, name, content, problems):
    assert find(tmp_path, name, content) == problems


def test_no_more_than_a_hundred_problems_are_named(tmp_path):
    assert len(find(tmp_path, "c.jsonl", "x\n" * 1_000)) == 100
    assert len(find(tmp_path, "c.jsonl", "{}\n" * 1_000)) == 100
    assert len(find(tmp_path, "c.csv", "q\n" + "a,b\n" * 1_000)) == 100


@pytest.mark.parametrize("name", ["missing.jsonl", "folder.jsonl", "nul\0.jsonl"])
def test_a_file_that_cannot_be_read_is_a_problem(tmp_path, name):
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InvalidSpec, match="cannot be read"):
        read_cases(tmp_path / name)


def test_cases_beside_the_spec_are_put_into_it(tmp_path, monkeypatch):
    (tmp_path / "specs").mkdir()
    write(tmp_path / "specs", "cases.jsonl", '{"input": 1}\n')
    write(tmp_path, "cases.csv", "q\na\n")
    path = write(tmp_path / "specs", "nightly.yaml", "project: p\ncases: file://cases.jsonl\n")
    other = write(tmp_path / "specs", "n.json", '{"project": "p", "cases": "file://../cases.csv"}')
    monkeypatch.chdir(tmp_path)

    assert read_spec(path) == {"project": "p", "cases": [{"input": 1}]}
    assert read_spec(str(other)) == {"project": "p", "cases": [{"input": {"q": "a"}}]}
    given_ = {"project": "p", "cases": "file://cases.csv"}
    assert read_spec(given_)["cases"] == [{"input": {"q": "a"}}]
    assert given_["cases"] == "file://cases.csv"
    absolute = {"project": "p", "cases": f"file://{tmp_path}/specs/cases.jsonl"}
    assert read_spec(absolute)["cases"] == [{"input": 1}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.yaml", "a: [", "line"),
        ("s.yaml", "- 1", "a batch spec is a mapping"),
        ("s.yaml", "cases: file://", "give a path after"),
        ("s.yaml", "cases: file://missing.csv", "cannot be read"),
        ("s.json", "{'a': 1}", "is not JSON that can be read, line 1, column 2"),
        ("s.yaml", b"a: \xff", "not UTF-8"),
        ("s.yaml", "on: 1\non: 2", "given twice"),
        ("missing.yaml", None, "cannot be read: No such file"),
    ],
)
def test_a_spec_that_cannot_be_read_is_a_problem(tmp_path, name, content, message):
    path = tmp_path / name if content is None else write(tmp_path, name, content)
    with pytest.raises(InvalidSpec, match=message):
        read_spec(path)


def test_cases_that_name_no_file_are_left_for_the_checks():
    assert read_spec({"cases": "cases.jsonl"}) == {"cases": "cases.jsonl"}
    assert read_spec({"cases": [1]}) == {"cases": [1]}
