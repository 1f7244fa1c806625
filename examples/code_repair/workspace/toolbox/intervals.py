"""Closed intervals of numbers."""


def merge(intervals):
    """Join the intervals that overlap or touch; return them in order."""
    merged = []
    for start, end in sorted(intervals):
        if merged and start < merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return [tuple(interval) for interval in merged]


def covered(intervals):
    """Return the total length covered by the intervals."""
    return sum(end - start for start, end in merge(intervals))
