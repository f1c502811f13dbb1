"""Queries in pieces, so that attention's backward has a KV head for every thread of a CPU."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.attention_threads import busy_share, most_query_pieces, query_pieces


@pytest.mark.parametrize(
    ("heads", "threads", "queries", "pieces"),
    [
        (2, 2, 2048, 1),  # all at work as it is
        (3, 2, 2048, 2),  # six for two
        (1, 2, 2048, 2),
        (9, 2, 1024, 1),  # nine tenths of the time; pieces of 512 would be slower by more
        (2, 16, 8192, 8),
        (2, 16, 1024, 4),  # pieces of 128 would be slower still
        (3, 2, 1001, 1),  # pieces have the same length
        (8, 1, 4096, 1),
        (5, 4, 300, 1),
    ],
)
def test_as_few_pieces_as_keep_the_threads_at_work(
    heads: int, threads: int, queries: int, pieces: int
) -> None:
    assert query_pieces(heads, threads, queries) == pieces


@given(st.integers(1, 128), st.integers(1, 256), st.integers(1, 40_000))
def test_pieces_are_alike_and_never_leave_more_threads_without_work(
    heads: int, threads: int, queries: int
) -> None:
    pieces = query_pieces(heads, threads, queries)
    assert queries % pieces == 0
    assert pieces == 1 or queries // pieces >= 192
    assert pieces == 1 or busy_share(pieces * heads, threads) > busy_share(heads, threads)
    assert pieces <= most_query_pieces(heads, threads) or queries < 8 * 768


@given(st.integers(1, 512), st.integers(1, 256))
def test_a_share_is_of_rounds_of_whole_heads(heads: int, threads: int) -> None:
    share = busy_share(heads, threads)
    assert 0 < share <= 1
    assert heads == 1 or heads % threads or share == 1


def test_nothing_is_known_without_threads() -> None:
    assert most_query_pieces(3, 0) == 1
    assert most_query_pieces(3, 2) == 2
