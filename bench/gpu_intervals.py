"""Stretches of time: their union, and how long two sets of them lie side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Interval = tuple[float, float]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Ascending intervals that do not touch and cover the same time."""
    merged: list[Interval] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        elif end > begin:
            merged.append((begin, end))
    return merged


def length(merged: Sequence[Interval]) -> float:
    """Time in a union."""
    return sum(end - begin for begin, end in merged)


def shared(one: Sequence[Interval], other: Sequence[Interval]) -> float:
    """Time that is in both unions."""
    total, i, j = 0.0, 0, 0
    while i < len(one) and j < len(other):
        total += max(0.0, min(one[i][1], other[j][1]) - max(one[i][0], other[j][0]))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return total


def within(intervals: Iterable[Interval], begin: float, end: float) -> list[Interval]:
    """The parts of intervals that lie between two moments."""
    cut = ((max(begin, a), min(end, b)) for a, b in intervals)
    return [(a, b) for a, b in cut if a < b]
