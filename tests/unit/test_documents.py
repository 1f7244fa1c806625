import json
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from wtb_core import documents
from wtb_core.documents import parse_json, parse_yaml
from wtb_core.errors import InvalidDocument


def refuse(parse, data):
    with pytest.raises(InvalidDocument) as caught:
        parse(data)
    return caught.value


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def _loader(request, monkeypatch):
    monkeypatch.setattr(documents, "_LOADER", getattr(yaml, request.param))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_values, st.booleans())
def test_json_is_read_as_it_was_written(value, escaped):
    data = json.dumps(value, ensure_ascii=escaped).encode()

    assert parse_json(data) == value
    assert parse_json(b"\xef\xbb\xbf" + data) == value


@given(json_values)
def test_yaml_that_a_plain_writer_wrote_is_read_back(value):
    text = yaml.safe_dump(value)

    assert parse_yaml(text.encode()) == value


@settings(max_examples=300)
@given(
    st.binary(max_size=60) | st.text('{}[]:,"\\ud83d0e1-.NaInfty \n', max_size=60).map(str.encode)
)
def test_whatever_bytes_come_json_is_a_value_or_refused(data):
    try:
        value = parse_json(data)
    except InvalidDocument as error:
        assert str(error).encode()
    else:
        assert json.loads(data.decode("utf-8-sig")) == value
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


@settings(max_examples=300)
@given(
    st.binary(max_size=60) | st.text('{}[]:,"\\&*a!<|>?-#%~ \n\t0.e1', max_size=60).map(str.encode)
)
def test_whatever_bytes_come_yaml_is_a_json_value_or_refused(data):
    try:
        value = parse_yaml(data)
    except InvalidDocument as error:
        assert str(error).encode()
    else:
        assert json.loads(json.dumps(value, allow_nan=False)) == value


@pytest.mark.parametrize(
    ("data", "line", "column", "message"),
    [
        (b"", 1, 1, "nothing in it"),
        (b" \n\n", 1, 1, "nothing in it"),
        (b"\xef\xbb\xbf", 1, 1, "nothing in it"),
        (b'{"a": 1,\n "a": 2}', 2, 8, "'a' is given twice"),
        (b'[{}, {"x": {"b": 1}},\n{"b": "}}", "b": 2}]', 2, 19, "'b' is given twice"),
        (b'["NaN",\nNaN]', 2, 1, "NaN is no JSON value"),
        (b"[-Infinity]", 1, 2, "-Infinity is no JSON value"),
        (b'["1e400",\n\n 1e400]', 3, 2, "no finite number"),
        (b"[18446744073709551616]", 1, 2, "64 bits"),
        (b"[-9223372036854775809]", 1, 2, "64 bits"),
        (b"[1, " + b"9" * 5000 + b"]", 1, 5, "64 bits"),
        (b'["a",\n "\xff"]', 2, 3, "0xff is not UTF-8"),
        ("[1]".encode("utf-16"), 1, 1, "not UTF-8"),
        (b'["\\\\ud800",\n"\\ud800"]', 2, 2, "lone surrogate"),
        (b'["\\ud83d\\ud83d\\ude00"]', 1, 3, "lone surrogate"),
        (b"\n" + b"[" * 200_000, 2, 101, "nested more than 100"),
        (b'{"a":' * 200_000, 1, 501, "nested more than 100"),
        (b"[1,]", 1, 4, "value"),
        (b'{"a": 1', 1, 8, "delimiter"),
        (b'"a\nb"', 1, 3, "invalid control character"),
        (b"\x00", 1, 1, "value"),
        (b"{} {}", 1, 4, "extra data"),
        (b"{'a': 1}", 1, 2, "double quotes"),
    ],
)
def test_what_is_no_json_is_refused_where_it_is(data, line, column, message):
    error = refuse(parse_json, data)

    assert error.kind == "JSON"
    assert message in error.message
    assert (error.line, error.column) == (line, column)


@pytest.mark.parametrize(
    "data",
    [b'["' + b"[" * 500 + b'"]', b'["\\"[", "\\\\", "]"]', b"[" * 100 + b"]" * 100],
)
def test_brackets_in_texts_are_no_depth(data):
    assert parse_json(data) == json.loads(data)


def test_the_shape_is_counted_across_the_pieces_that_are_looked_at(monkeypatch):
    monkeypatch.setattr(documents, "_CHUNK_BYTES", 3)
    monkeypatch.setattr(documents, "MAX_JSON_MARKS", 9)

    data = b'{"a[[": [1, "\\\\", "\\"[[,,,", {}], "b,,": {"c": []}}'
    assert parse_json(data) == json.loads(data)
    assert "more than 9 commas" in refuse(parse_json, data[:-1] + b', "d": 1}').message
    monkeypatch.setattr(documents, "MAX_JSON_MARKS", 1_000)
    assert "nested" in refuse(parse_json, b'["[",' * 101).message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("retry: {max_attempts: 3, on: [crash, lost]}", {"retry": {"max_attempts": 3, "on": ["crash", "lost"]}}),
        ("resume: [yes, No, on, OFF, true]", {"resume": [True, False, True, False, True]}),
        ("{yes: 1, 1: 2, 2024-01-01: 3, null: 4, 1.5: 5}", {"yes": 1, "1": 2, "2024-01-01": 3, "null": 4, "1.5": 5}),
        ("[2024-01-01, 2001-12-14t21:59:43Z, 12:30, 12:30:45, 010, 007, 0o7, 0b1]", ["2024-01-01", "2001-12-14t21:59:43Z", "12:30", "12:30:45", "010", "007", "0o7", "0b1"]),
        ("[1e-4, 1E5, -1.5, .5, 5., +1, 1_000, 0xFF, -0]", [1e-4, 1e5, -1.5, 0.5, 5.0, 1, 1000, 255, 0]),
        ("[1.2.3, 1-2, ~, ., +, '1', \"yes\", '']", ["1.2.3", "1-2", None, ".", "+", "1", "yes", ""]),
        ("[~, null, Null, NULL, ]", [None, None, None, None]),
        ("18446744073709551615", 2**64 - 1),
        ("~", None),
        ("a: |\n  x\n  y\nb: >\n  x\n  y\n", {"a": "x\ny\n", "b": "x y\n"}),
        ("a: &x {b: [1]}\nc: *x\nd: &x 2\ne: *x", {"a": {"b": [1]}, "c": {"b": [1]}, "d": 2, "e": 2}),
        ("base: &b {x: 1, y: 2}\nv: {<<: *b, y: 3}", {"base": {"x": 1, "y": 2}, "v": {"x": 1, "y": 3}}),
        ("{<<: [{a: 1}, {a: 2, b: 2}], c: 3}", {"a": 1, "b": 2, "c": 3}),
        ("'<<': 1", {"<<": 1}),
        ("%YAML 1.1\n---\na: é\n...\n", {"a": "é"}),
        ("\ufeffa: 1", {"a": 1}),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("_loader")
def test_yaml_says_what_a_writer_of_json_means(text, value):
    made = parse_yaml(text.encode())

    assert made == value
    assert json.dumps(made, sort_keys=True) == json.dumps(value, sort_keys=True)


LAUGHS = b"a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (i, i, b",".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("data", "line", "message"),
    [
        (b"", 1, "nothing in it"),
        (b"# only this\n", 1, "nothing in it"),
        (b"---\n", 1, "nothing in it"),
        (b"a: 1\n---\nb: 2", 2, "one document"),
        (b"a: 1\nb: 2\na: 3", 3, "'a' is given twice"),
        (b"1: a\n'1': b", 2, "'1' is given twice"),
        (b"{<<: {a: 1}, <<: {b: 1}}", 1, "'<<' is given twice"),
        (b"<<: 3", 1, "takes a mapping"),
        (b"prompt: {{name}}", 1, "a key is text"),
        (b"? [a]\n: b", 1, "a key is text"),
        (b"a: &a b\n*a : c", 2, "a key is text"),
        (b"&a b: c", 1, "a key has no anchor"),
        (b"{a: 1, : x}", 1, "xpect"),
        (b"a: {? : x}", 1, "a key is missing"),
        (b"\na: !!python/object/apply:os.system [ls]", 2, "tags such as"),
        (b"a: !!binary aGk=", 1, "tags such as"),
        (b"a: !!set {x, y}", 1, "tags such as"),
        (b"a: !own x", 1, "tags such as"),
        (b"a: &a [*a]", 1, "stands inside of what it repeats"),
        (b"a: *missing", 1, "missing"),
        (LAUGHS, 7, "aliases repeat more than"),
        (b"a: &a " + b"x" * 100_000 + b"\nb: [" + b"*a, " * 200 + b"]", 2, "aliases repeat"),
        (b"[" * 200_000, 1, "nested more than 100"),
        (b"- " * 200_000, 1, "nested more than 100"),
        (b"a: &a " + b"[" * 60 + b"]" * 60 + b"\nb: " + b"[" * 60 + b"*a" + b"]" * 60, 2, "nested"),
        (b"a: .inf", 1, "no finite number"),
        (b"a: -.INF", 1, "no finite number"),
        (b"a: .nan", 1, "no finite number"),
        (b"a: 1e400", 1, "no finite number"),
        (b"a: 18446744073709551616", 1, "64 bits"),
        (b"a: " + b"9" * 5000, 1, "64 bits"),
        (b"a: 0x10000000000000000", 1, "64 bits"),
        (b"a: 1\nb: \x00", 2, "characters are not allowed"),
        (b"a: 1\nb: \xff", 2, "0xff is not UTF-8"),
        (b"\n\ta: 1", 2, "cannot start any token"),
        (b"a: b: c", 1, "mapping values are not allowed"),
        (b'a: "\\ud800"', 1, "nicode"),
        (b"%YAML 9.9\n---\na: 1", 1, "incompatible"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("_loader")
def test_what_is_no_plain_yaml_is_refused_where_it_is(data, line, message):
    error = refuse(parse_yaml, data)

    assert error.kind == "YAML"
    assert message in error.message
    assert error.line == line


def test_the_values_of_a_yaml_text_are_counted(monkeypatch):
    monkeypatch.setattr(documents, "MAX_YAML_VALUES", 6)

    assert parse_yaml(b"a: [1, 2, 3]") == {"a": [1, 2, 3]}
    assert "more than 6" in refuse(parse_yaml, b"a: [1, 2, 3, 4]").message


def test_a_large_text_takes_time_in_proportion_to_its_length():
    case = {"id": "x", "input": {"module": "gcd.py", "text": "y" * 200}, "tags": ["a"]}
    line = json.dumps(case).encode()
    begin = time.process_time()

    assert len(parse_json(b"[" + b",".join([line] * 20_000) + b"]")) == 20_000
    assert len(parse_yaml(b"".join(b"- " + line + b"\n" for _ in range(4_000)))) == 4_000
    refuse(parse_json, b'["' + b'\\"' * 1_000_000)
    refuse(parse_json, b'"' * 1_000_000)
    refuse(parse_json, b"{}," * 2_000_000)
    refuse(parse_json, b"9" * 1_000_000)
    refuse(parse_yaml, b"'" * 1_000_001)

    assert time.process_time() - begin < 20
