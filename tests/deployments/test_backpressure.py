"""Backpressure of the executor queue: what begins it, what ends it, and that they alternate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.backpressure import RELEASE_AFTER_S, QueuePressure


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("outstanding", "slots", "held", "begins"),
    [(4, 4, 1, True), (9, 4, 1, True), (3, 4, 1, False), (9, 4, 0, False), (0, 0, 1, True)],
)
def test_it_begins_by_a_rejection_with_every_slot_taken_and_work_held_back(
    outstanding: int, slots: int, held: int, begins: bool
) -> None:
    pressure = QueuePressure(Clock())

    assert pressure.reject(outstanding, slots, held) is begins
    assert pressure.applied is begins
    assert pressure.reject(outstanding, slots, held) is False


def test_it_ends_when_nothing_is_held_back() -> None:
    clock = Clock()
    pressure = QueuePressure(clock)
    pressure.reject(4, 4, 1)
    clock.now += 1.5

    assert pressure.settle(1) is None
    assert pressure.settle(0) == (1.5,)
    assert pressure.settle(0) is None


def test_it_ends_some_time_after_the_last_rejection_although_work_is_held_back() -> None:
    clock = Clock()
    pressure = QueuePressure(clock)
    pressure.reject(4, 4, 1)
    clock.now += 1.0
    pressure.reject(4, 4, 1)
    clock.now += RELEASE_AFTER_S - 0.1
    assert pressure.settle(1) is None
    clock.now += 0.1

    assert pressure.settle(1) == (RELEASE_AFTER_S + 1.0,)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("reject"), st.integers(0, 9), st.integers(0, 9)),
            st.tuples(st.just("settle"), st.integers(0, 2), st.just(0)),
            st.tuples(st.just("wait"), st.integers(0, 3), st.just(0)),
        )
    )
)
def test_begin_and_end_alternate_whatever_happens(steps: list[tuple[str, int, int]]) -> None:
    clock = Clock()
    pressure = QueuePressure(clock)
    said: list[str] = []
    for kind, first, second in steps:
        if kind == "reject" and pressure.reject(first, 4, second):
            said.append("applied")
        elif kind == "settle" and pressure.settle(first) is not None:
            said.append("released")
        elif kind == "wait":
            clock.now += first

    assert said == (["applied", "released"] * len(said))[: len(said)]
    assert pressure.applied is (len(said) % 2 == 1)
