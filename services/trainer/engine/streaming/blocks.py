"""Which keys a chunk of queries attends to, as blocks that every fused kernel can do without masks.

A chunk sees a rectangle of earlier keys and the triangle of its own. Under a sliding window the
rectangle loses its lower left corner; what is left there is a triangle again, upside down: with
queries and keys in reverse order it is an ordinary causal block, and attention does not care about
the order of keys. Positions count from the start of the window, ends are exclusive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class BlockShape(Enum):
    """Which pairs of a block's queries and keys take part."""

    FULL = "every pair"
    CAUSAL = "query i sees keys 0 ... i; square"
    REVERSED = "query i sees keys i ... n - 1; square"


@dataclass(frozen=True, slots=True)
class Block:
    """Queries [query_begin, query_end) against keys [key_begin, key_end)."""

    query_begin: int
    query_end: int
    key_begin: int
    key_end: int
    shape: BlockShape = BlockShape.FULL


def causal_blocks(begin: int, end: int, window: int | None, longest: int) -> Iterator[Block]:
    """Blocks that together are causal attention of queries [begin, end); the own ones come first.

    window: each query sees its own key and the window - 1 before it; None: all before it.
    longest: most keys of one block; bounds what a kernel returns. Cuts are at multiples of it, as
        pages are. Queries must be no more.
    """
    for first, last in _query_ranges(begin, end, window):
        yield Block(first, last, first, last, BlockShape.CAUSAL)
        rectangle = 0 if window is None else max(0, last - window)
        for key, end in _cut(rectangle, first, longest):
            yield Block(first, last, key, end)
        if window is not None and rectangle and last - first > 1:
            # All but the last query, whose oldest key is where the rectangle begins.
            yield Block(first, last - 1, first - window + 1, rectangle, BlockShape.REVERSED)


def _cut(begin: int, end: int, longest: int) -> Iterator[tuple[int, int]]:
    while begin < end:
        cut = min((begin // longest + 1) * longest, end)
        yield begin, cut
        begin = cut


def _query_ranges(begin: int, end: int, window: int | None) -> Iterator[tuple[int, int]]:
    """Ranges no longer than the window, with a cut where it begins to cut keys off."""
    step = window or end - begin
    while begin < end:
        cut = window if window and begin < window else begin + step
        yield begin, min(cut, end)
        begin = min(cut, end)
