"""How far a graph has come: the answers that it was given, the supersteps that it has made."""

from collections import deque
from collections.abc import Iterable
from typing import Any, Self


class Progress:
    """The case's answers to interrupts, used in their order; `answered` were used before."""

    def __init__(self, answers: Iterable[Any] = (), answered: int = 0) -> None:
        self.answered = answered
        self._left = deque([*answers][answered:])

    @property
    def has_answer(self) -> bool:
        """Whether an answer is left."""
        return bool(self._left)

    def take_answer(self) -> Any:
        """The next answer."""
        self.answered += 1
        return self._left.popleft()


class StartedLimit(int):
    """A recursion limit of which the first loop that asks has only `left`, which may be negative.

    A loop of LangGraph's asks once, by adding the limit to the number of its first superstep; that
    of the whole graph comes before those of its subgraphs, which get the same object and have the
    whole of it. So managed values count on too, and messages name the limit that was set.
    """

    _left: int

    def __new__(cls, limit: int, left: int) -> Self:
        """As a number it is `limit`."""
        made = super().__new__(cls, limit)
        made._left = left
        return made

    def __add__(self, step: int) -> int:
        """Where the loop that asks stops."""
        left, self._left = self._left, int(self)
        return step + left

    def __radd__(self, step: int) -> int:
        """See `__add__`."""
        return self + step
