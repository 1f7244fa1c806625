"""Percentiles by the nearest-rank method."""

from math import ceil


def percentile(values, percent):
    """Return the smallest value that at least `percent` % of the values do not exceed."""
    ordered = sorted(values)
    if percent == 0:
        return ordered[0]
    rank = ceil(percent * len(ordered) / 100)
    return ordered[rank]


def spread(values):
    """Return the distance from the smallest to the largest value."""
    return max(values) - min(values)
