"""Bars: as wide as they are told, true to scale, and never a crash."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from elite.planner.v1 import planner_pb2 as pb
from elite_cli.render.bars import line_glyph, stacked_bar, total_bar

NAMES = ("base_model", "lora", "activations", "kv", "gradients", "optimizer", "buffers", "runtime")
SIZES = st.integers(min_value=0, max_value=2**50)


@given(st.lists(SIZES, max_size=8), SIZES, st.integers(min_value=1, max_value=120), st.booleans())
def test_a_stacked_bar_is_as_wide_as_told(
    sizes: list[int], budget: int, width: int, plain: bool
) -> None:
    lines = [pb.MemoryLine(name=name, bytes=size) for name, size in zip(NAMES, sizes, strict=False)]
    bar = stacked_bar(lines, budget, width, plain=plain).plain
    assert len(bar) == max(width, 2)
    assert bar.isascii() or not plain
    assert ("│" in bar or "|" in bar) is (budget > 0)
    if budget and sum(sizes) > 2 * budget:
        assert bar.endswith((">", "▶"))


@given(SIZES, SIZES, st.integers(min_value=1, max_value=120), st.booleans(), st.booleans())
def test_a_total_is_as_wide_as_told(
    total: int, budget: int, width: int, fits: bool, plain: bool
) -> None:
    bar = total_bar(total, budget, width, fits=fits, plain=plain).plain
    assert len(bar) == max(width, 2)
    assert bar.isascii() or not plain


def test_segments_are_true_to_scale() -> None:
    lines = [pb.MemoryLine(name="base_model", bytes=25), pb.MemoryLine(name="kv", bytes=50)]
    bar = stacked_bar(lines, 100, 41, plain=True).plain
    assert bar == "#" * 10 + "%" * 20 + " " * 10 + "|"


def test_every_line_has_a_character_of_its_own() -> None:
    for plain in (False, True):
        assert len({line_glyph(name, plain=plain) for name in (*NAMES, "new_line")}) == 9
