"""Spectrum-based fault localisation: lines that failing tests execute, and passing tests do not.

Abreu, Zoeteweij, van Gemund: "An Evaluation of Similarity Coefficients for Software Fault
Localization" (PRDC 2006) and "On the Accuracy of Spectrum-based Fault Localization"
(TAIC PART-MUTATION 2007), where Ochiai's coefficient does best.
"""

from collections import Counter
from math import sqrt
from typing import TypedDict

from suite import TestRun


class Suspect(TypedDict):
    """A line (from 1) and its suspiciousness, above 0 and at most 1."""

    line: int
    score: float


def ochiai(tests: list[TestRun]) -> list[Suspect]:
    """Rank the lines that failing tests executed, most suspicious first.

    The score of a line is failed(line) / sqrt(all failed * (failed(line) + passed(line))), where
    failed and passed count the tests of that outcome that executed the line.
    """
    failed = Counter(line for test in tests if not test["passed"] for line in test["lines"])
    passed = Counter(line for test in tests if test["passed"] for line in test["lines"])
    all_failed = sum(not test["passed"] for test in tests)
    suspects: list[Suspect] = [
        {"line": line, "score": count / sqrt(all_failed * (count + passed[line]))}
        for line, count in failed.items()
    ]
    return sorted(suspects, key=lambda suspect: (-suspect["score"], suspect["line"]))
