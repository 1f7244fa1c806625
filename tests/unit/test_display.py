import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from wtb_core.display import (
    clean,
    find_telling,
    follow,
    print_comparison,
    print_execution,
    strip_controls,
)

ATTEMPT = {"execution_id": "b-1-0", "variant": "a", "case_id": "c", "attempt": 1}


def make_console(*, terminal=False):
    return Console(
        file=io.StringIO(), width=120, force_terminal=terminal, color_system=None, highlight=False
    )


def event(type_, **payload):
    return {"type": f"ray_{type_}", "payload": payload}


def forget_backslashes(text):
    """Rich shows one backslash too few before a bracket that begins no markup."""
    return re.sub(r"\\+(?=\[|$)", "", text)


def started(**fields):
    return event(
        "batch_test_started",
        executions=2,
        project="p",
        variants=["a"],
        cases=2,
        repetitions=1,
        **fields,
    )


def failed(**fields):
    known = {"kind": "error", "reason": "it raised", "will_retry": False}
    return event("variant_execution_failed", **{**ATTEMPT, **known, **fields})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bcreset", "reset"),
        ("over\rwrite\x08\x7f", "overwrite"),
        ("\x9b2Jclear", "2Jclear"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b", ""),
    ],
)
def test_control_sequences_are_taken_out(text, shown):
    assert strip_controls(text) == shown


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("\x1b[]0;m\\/a")))
def test_what_is_cleaned_shows_as_the_text_that_was_meant(text):
    cleaned = clean(text, limit=1_000)

    bare = re.sub(r"\s*\n\s*", " ", strip_controls(text))
    assert not any(ord(c) < 32 and c != "\t" for c in cleaned)
    assert "\x1b" not in cleaned
    shown = Text.from_markup(f"[bold]{cleaned}[/]")
    assert forget_backslashes(shown.plain) == forget_backslashes(bare)
    assert [span.style for span in shown.spans] in ([], ["bold"])


def test_text_cannot_forge_a_line_or_turn_the_direction_of_what_follows():
    assert clean("one\n  failed: two\u202e") == "one failed: two"


def test_long_text_is_cut_before_it_is_escaped():
    assert clean("[bold]" * 100, limit=7) == "\\[bold]…"
    assert clean("x" * 300) == "x" * 300
    assert clean("x" * 301) == "x" * 299 + "…"


def test_without_a_terminal_events_pass_as_plain_lines():
    console = make_console()
    events = [
        started(),
        event("variant_execution_started", **ATTEMPT),
        failed(will_retry=True, kind="crash"),
        failed(case_id="\x1b[31m[red]", reason="[/]oh"),
        event(
            "batch_test_progress",
            succeeded=1,
            failed=2,
            cancelled=3,
            running=4,
            total=12,
            per_s=0.5,
            remaining_ms=61_000,
        ),
        event("batch_test_cancelled", cancelled_by="alice", reason="\x07enough"),
    ]

    assert list(follow(events, 2, console)) == events

    assert console.file.getvalue().splitlines() == [
        "started: 2 executions of p (1 variants x 2 cases x 1 repetitions)",
        "failed: a / c: crash: it raised, will be tried again",
        "failed: a / [red]: error: [/]oh",
        "6/12 ended, 4 running, 2 failed, 0.5/s, about 61 s left",
        "cancelled by alice: enough",
    ]


def test_in_a_terminal_the_bar_counts_what_runs_and_what_ended():
    console = make_console(terminal=True)
    events = [
        started(),
        event("variant_execution_started", **ATTEMPT),
        failed(will_retry=True),
        event("variant_execution_cancelled", **ATTEMPT),
        event("variant_execution_started", **{**ATTEMPT, "execution_id": "b-1-1"}),
        event("variant_execution_completed", **{**ATTEMPT, "execution_id": "b-1-1"}),
    ]

    assert list(follow(events, 2, console)) == events

    last = [line for line in console.file.getvalue().splitlines() if "running," in line][-1]
    assert "2/2" in last
    assert "0 running, 1 succeeded, 0 failed" in last


def row(variant, mean, **fields):
    return {
        "variant": variant,
        "n": 3,
        "succeeded": 2,
        "cancelled": 0,
        "failed": {"error": 1},
        "scores": {"m[x]": {"mean": mean, "n": 3}},
        "overall_score": {"mean": mean, "n": 3},
        **fields,
    }


def test_the_comparison_marks_the_best_variant():
    console = make_console()
    comparison = {
        "metrics": ["m[x]"],
        "best_variant": "b",
        "best_score": 0.75,
        "variants": [row("a", None, failed={}), row("b", 0.75)],
    }

    print_comparison(comparison, console)

    text = console.file.getvalue()
    assert "m[x]" in text
    assert "│   a     │ 3 │         2 │       0 │           - │           - │" in text
    assert "│ * b     │ 3 │         2 │ error 1 │ 0.750 (n 3) │ 0.750 (n 3) │" in text
    assert "* best mean overall score: b (0.750)" in text


def test_cancelled_executions_have_a_column_where_there_are_any():
    console = make_console()
    cancelled = row("a", None) | {"cancelled": 6}
    comparison = {
        "metrics": ["x", "y"],
        "best_variant": None,
        "best_score": None,
        "variants": [cancelled | {"scores": {key: {"mean": 0.5, "n": 1} for key in "xy"}}],
    }

    print_comparison(comparison, console)

    text = console.file.getvalue()
    assert "┃ cancelled ┃" in text
    assert "│         6 │" in text
    assert "no overall score: give metrics a `weight`" in text


def test_an_execution_is_shown_without_what_its_text_would_do_to_the_terminal():
    console = make_console()
    print_execution(
        {
            **ATTEMPT,
            "status": "succeeded",
            "overall_score": 1.0,
            "duration_ms": 5,
            "node_count": 2,
            "checkpoint_count": 3,
            "score_comments": {"m": "\x1b[2J[bold]fine"},
            "output": {"text": "\x9b31m"},
        },
        console,
    )

    assert console.file.getvalue().splitlines() == [
        "a / c: succeeded, score 1.000, 5 ms, 2 nodes, 3 checkpoints",
        "  m: [bold]fine",
        '  output: {"text": "31m"}',
        "  b-1-0",
    ]


def scored(variant, case, score):
    return {"variant": variant, "case_id": case, "overall_score": score}


def test_the_most_telling_executions_reach_what_few_others_do():
    executions = [
        scored("a", "1", 1.0),
        scored("b", "1", 1.0),
        scored("c", "1", 0.0),
        scored("a", "2", 0.0),
        scored("b", "2", 1.0),
        scored("c", "2", 0.0),
        scored("a", "3", 1.0),
        scored("b", "3", 1.0),
        scored("c", "3", 1.0),
        scored("a", "4", None),
        scored("b", "5", 1.0),
        scored("a", "5", 0.0),
    ]

    telling = find_telling(executions, count=3)

    assert [(e["variant"], e["case_id"]) for e in telling] == [("b", "2"), ("a", "1"), ("b", "5")]
    assert find_telling([], count=3) == []
