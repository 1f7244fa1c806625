import dataclasses
import datetime as dt
import decimal
import enum
import json
import pathlib
import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from pydantic import BaseModel

from wtb_core.errors import InvalidOutput
from wtb_core.sandbox.rendering import render, render_within

text = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
    max_leaves=30,
)


@given(json_values)
def test_json_values_come_back_unchanged(value):
    rendered = render(value)
    assert json.loads(rendered) == value
    assert rendered.encode()


@given(json_values)
def test_the_limit_is_the_size_in_bytes(value):
    rendered = render(value)
    size = len(rendered.encode())
    assert render(value, limit=size) == rendered
    with pytest.raises(InvalidOutput, match=rf"over limits\.output of {size - 1}"):
        render(value, limit=size - 1)


@given(st.sets(st.integers() | text))
def test_a_set_is_a_list_in_the_order_of_its_items_text(value):
    items = json.loads(render(value))
    assert items == sorted(items, key=lambda item: json.dumps(item, ensure_ascii=False))
    assert set(items) == value


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Model(BaseModel):
    when: dt.date
    inner: list["Model"] = []


@dataclasses.dataclass
class Point:
    x: float
    tags: set[str]


DAY = dt.date(2020, 1, 2)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, (2,)), [1, [2]]),
        (Color.RED, "red"),
        ({Color.RED: Level.LOW}, {"red": 1}),
        (DAY, "2020-01-02"),
        (dt.datetime(2020, 1, 2, 3, tzinfo=dt.UTC), "2020-01-02T03:00:00+00:00"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (pathlib.PurePosixPath("a/b"), "a/b"),
        (decimal.Decimal("1.10"), "1.10"),
        (
            Model(when=DAY, inner=[Model(when=DAY)]),
            {"when": "2020-01-02", "inner": [{"when": "2020-01-02", "inner": []}]},
        ),
        (Point(1.5, {"b", "a"}), {"x": 1.5, "tags": ["a", "b"]}),
        (np.float64(0.5), 0.5),
        (np.str_("n"), "n"),
        (frozenset(), []),
    ],
)
def test_what_has_one_obvious_json_form_takes_it(value, expected):
    assert json.loads(render(value)) == expected


def test_a_message_is_its_json_dump():
    message = AIMessage("hello", id="1")
    assert json.loads(render([message])) == [message.model_dump(mode="json")]


CYCLE: list = []
CYCLE.append({"again": CYCLE})
DEEP: list = []
for _ in range(300):
    DEEP = [DEEP]


class Unserializable(BaseModel, arbitrary_types_allowed=True):
    thing: object


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"scores": [0, 1, 2, np.zeros(1)]}, "output.scores[3]: a numpy.ndarray has no JSON form; return a list (`.tolist()`)"),
        (np.int64(1), "output: a numpy.int64 has no JSON form; return a plain number (`.item()`)"),
        ([float("nan")], "output[0]: nan is not a JSON number; return null or text"),
        ([float("-inf")], "output[0]: -inf is not a JSON number; return null or text"),
        ({1: 2}, "output: the key 1 is a int; keys are text"),
        ({"a": {None: 2}}, "output.a: the key None is a NoneType; keys are text"),
        ({"two words": b""}, 'output["two words"]: a bytes has no JSON form; return text, or base64 of it'),
        (["\ud800"], "output[0]: the text holds a lone surrogate at character 1, not valid UTF-8"),
        ({"\udfff": 1}, "output: the text holds a lone surrogate at character 1, not valid UTF-8"),
        (CYCLE, "output[0].again: the list contains itself"),
        (object(), "output: a object has no JSON form; return plain dicts, lists, text and numbers"),
        (Point, "output: a type has no JSON form; return plain dicts, lists, text and numbers"),
        ({"x": {lambda: 1}}, "output.x{}: a function has no JSON form; return plain dicts, lists, text and numbers"),
    ],
)  # fmt: skip
def test_what_has_no_honest_form_is_refused_with_its_place(value, message):
    with pytest.raises(InvalidOutput) as caught:
        render(value)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (DEEP, "nested deeper than 200 levels"),
        (Unserializable(thing=object()), "could not be dumped as JSON"),
        pytest.param(10**5000, "too many digits", id="digits"),
    ],
)
def test_other_refusals(value, part):
    with pytest.raises(InvalidOutput, match=part):
        render(value)


def test_the_same_value_twice_is_no_cycle():
    shared = [1]
    assert render([shared, shared]) == "[[1],[1]]"


def test_the_size_of_a_huge_value_is_told_without_holding_its_text():
    with pytest.raises(InvalidOutput, match=r"about 400001 bytes, over limits\.output of 10"):
        render([1] * 200_000, limit=10)
    with pytest.raises(InvalidOutput, match="about 1000002 bytes"):
        render("x" * 1_000_000, limit=10)


def test_the_root_names_what_is_rendered():
    with pytest.raises(InvalidOutput, match=r"^state\.x: "):
        render({"x": b""}, root="state")


@given(value=json_values, limit=st.integers(0, 60))
def test_what_is_rendered_within_a_limit_is_the_same_text_or_nothing(value, limit):
    whole = render(value)

    assert render_within(value, limit) == (whole if len(whole.encode()) <= limit else None)


def test_a_value_that_fails_when_it_is_looked_at_is_not_rendered_within():
    class Failing(dict):
        def items(self):
            raise KeyError("no")

    assert render_within({"x": {1, 2}, "y": [Failing()]}, 1000) is None
    assert render_within({"x": object()}, 1000) is None
    assert render_within({"x": {1, 2}}, 1000) == '{"x":[1,2]}'
