import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtb_core.attempts import Evaluation, Failure, NodeRun, Outcome
from wtb_core.redaction import MIN_CHARS, Redactor

KEY = "sk-0123456789"
MARK = "[redacted API_KEY]"


@pytest.fixture
def redactor():
    return Redactor({"API_KEY": KEY, "SHORT": "1234567"})


def test_a_secret_is_replaced_by_its_name_and_a_short_value_is_none(redactor):
    assert redactor.text(f"the key {KEY}, {KEY}; 1234567") == f"the key {MARK}, {MARK}; 1234567"


@pytest.mark.parametrize(
    "value",
    [
        'a "quoted" secret',
        "line one\nline two",
        "gr\u00fc\u00dfe-geheim",
        "a/b+c=d&e f",
        "back\\slash1",
    ],
)
def test_a_secret_is_found_in_the_forms_that_texts_give_it(value):
    from urllib.parse import quote

    redactor = Redactor({"V": value})
    for form in (
        value,
        json.dumps(value),
        json.dumps(value, ensure_ascii=False),
        repr(value),
        quote(value, safe=""),
    ):
        assert value not in redactor.text(f"<{form}>")
        assert "[redacted V]" in redactor.text(f"<{form}>"), form
    nested = json.dumps({"a": json.dumps({"b": value})})
    assert json.loads(redactor.json_text(nested)) == {"a": '{"b": "[redacted V]"}'}


def test_of_a_secret_that_holds_another_one_nothing_is_left():
    redactor = Redactor({"INNER": "abcdefgh", "OUTER": "xx-abcdefgh-yy"})

    assert redactor.text("xx-abcdefgh-yy abcdefgh") == "[redacted OUTER] [redacted INNER]"


def test_a_secret_that_a_cut_went_through_is_no_longer_there(redactor):
    assert redactor.text(f"the key {KEY[:9]}") == f"the key {MARK}"
    assert redactor.text(f"[cut]\n{KEY[-9:]} was it") == f"[cut]\n{MARK} was it"
    assert redactor.text(f"the key {KEY[:7]}") == f"the key {KEY[:7]}"


@pytest.mark.parametrize("cut", range(1, 40))
def test_the_head_of_a_log_ends_with_no_part_of_a_secret(redactor, cut):
    whole = f"{KEY} and then {KEY} again".encode()

    head = redactor.log(whole[: cut + redactor.longest_bytes], cut)

    assert len(head) <= cut
    for size in range(MIN_CHARS, len(KEY)):
        assert KEY[:size].encode() not in head


def test_json_stays_json_and_only_texts_and_numbers_change():
    redactor = Redactor({"N": "12345678", "Q": 'x":"y","z', "E": "nabcdefgh"})
    value = {"x": "y", "z": [12345678, "\nabcdefgh", True, None, 1.5], "12345678": "\u00fc"}

    shown = json.loads(
        redactor.json_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    )

    assert shown == {
        "x": "y",
        "z": ["[redacted N]", "\nabcdefgh", True, None, 1.5],
        "[redacted N]": "\u00fc",
    }


def test_text_without_secrets_is_left_as_it_is(redactor):
    text = '{"b": 1.0,  "a":"\\u0041"}'

    assert redactor.json_text(text) == text
    assert Redactor({}).log(b"abc", 2) == b"ab"


def test_every_text_of_an_outcome_is_redacted(redactor):
    said = f"it said {KEY}"
    outcome = Outcome(
        status="failed",
        failure=Failure(kind="error", reason=said, message=said, traceback=said, node="n"),
        evaluation=Evaluation(scores={"m": 1.0}, comments={"m": said}, errors={"m": said}),
        nodes=[NodeRun(name="n", superstep=1, start_ms=0, error=said)],
        start_reason=said,
    )

    shown = redactor.outcome(outcome)

    assert KEY not in shown.model_dump_json()
    assert shown.model_dump_json().count(MARK) == 7
    assert shown.failure.error_type is None


@given(st.text(min_size=MIN_CHARS), st.text(), st.text())
def test_any_secret_is_found_in_any_text(secret, before, after):
    redactor = Redactor({"S": secret})
    text = before + secret + after

    if len(secret.strip()) >= MIN_CHARS:
        assert "[redacted S]" in redactor.text(text)
        [shown] = json.loads(redactor.json_text(json.dumps([text], ensure_ascii=False)))
        assert "[redacted S]" in shown
