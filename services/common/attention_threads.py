"""How torch's attention for CPUs shares its backward out among threads (torch 2.13).

Forward is shared out by queries. Backward gives every thread whole KV heads, of a batch's rows: two
KV heads keep two threads of sixteen at work, three on two threads let one wait a quarter of the
time. The engine therefore hands queries over in pieces, as if they were rows of a batch: every
piece attends to the same keys, and gradients of keys are sums over the pieces.
"""

from __future__ import annotations

import math

# Into so many pieces at most, each with gradients of keys and values of its own.
_MOST_PIECES = 8
# The kernel works on 256 queries at a time from 768 queries on, on 64 from 192, else on 32. Tiles
# of 64 are slower by 5 to 30 % on AVX2 and AVX-512, in 32 and in 16 bits.
_LONG_QUERIES, _FEWEST_QUERIES = 768, 192
_SHORT_PACE = 0.8
# With one KV head in all, the products inside share the threads, and the rest has one.
_ALONE = 0.3


def query_pieces(key_value_heads: int, threads: int, queries: int) -> int:
    """Into how many pieces queries are best cut: 1, 2, 4 or 8; no more than are of use."""
    pieces, most = [1], 1
    while most < _MOST_PIECES and queries % (2 * most) == 0:
        most *= 2
        if queries // most >= _FEWEST_QUERIES:
            pieces.append(most)

    def pace(count: int) -> tuple[float, int]:
        """How fast it goes, then how few there are."""
        of_tiles = 1.0 if queries // count >= _LONG_QUERIES else _SHORT_PACE
        return of_tiles * busy_share(count * key_value_heads, threads), -count

    return max(pieces, key=pace)


def most_query_pieces(key_value_heads: int, threads: int) -> int:
    """The pieces of the longest chunks; 1 where the threads are not known."""
    return query_pieces(key_value_heads, threads, _MOST_PIECES * _LONG_QUERIES) if threads else 1


def busy_share(key_value_heads: int, threads: int) -> float:
    """Of the threads' time, how much of it they work in a backward; heads of all rows."""
    if key_value_heads == 1:
        return 1 / (1 + _ALONE * (threads - 1))
    return key_value_heads / (math.ceil(key_value_heads / threads) * threads)
