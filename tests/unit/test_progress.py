"""Answers are given once, and what is left of a limit is left to one loop."""

from wtb_core.sandbox.progress import Progress, StartedLimit


def test_answers_that_were_given_before_are_not_given_again():
    progress = Progress(["one", "two", "three"], 1)
    assert [progress.take_answer(), progress.take_answer()] == ["two", "three"]
    assert (progress.answered, progress.has_answer) == (3, False)


def test_more_answers_than_there_are_leave_none():
    assert not Progress(["one"], 7).has_answer


def test_the_first_loop_has_what_is_left_and_the_others_the_whole():
    limit = StartedLimit(25, 3)
    assert not limit < 1
    assert f"limit of {limit}" == "limit of 25"
    assert [7 + limit + 1, 7 + limit + 1, limit + 7] == [11, 33, 32]


def test_less_than_nothing_may_be_left():
    limit = StartedLimit(25, -1)
    assert not limit < 1
    assert 7 + limit == 6
