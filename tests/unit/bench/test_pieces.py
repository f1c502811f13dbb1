"""Attention's backward whole and in pieces, in small; and what the page says of it."""

from __future__ import annotations

import pytest

from bench import pieces, report_measurements
from services.trainer.engine.attention import register_attention
from services.trainer.engine.streaming import kernels


def way(seconds: float, norm: float) -> dict[str, object]:
    return {
        "loss": 1.0, "gradient_norm": norm, "peak_bytes": 2**20, "seconds": seconds,
        "samples": [seconds],
    }  # fmt: skip


DOCUMENT = {"machine": {}, "threads": 2, "rounds": 1, "cases": [
    {"model": "a:1", "tokens": 64, "chunk_tokens": 16, "key_value_heads": heads,
     "pieces": count, "ways": {pieces.WHOLE: way(4.0, 1.0), pieces.PIECES: way(2.0, 1.001)}}
    for heads, count in ((3, 2), (2, 1))
]}  # fmt: skip


def test_both_ways_do_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "query_pieces", kernels.query_pieces)  # and back
    register_attention()
    case = pieces.measure("llama-2x64", 64, 16, rounds=2)
    whole, cut = case["ways"].values()
    assert list(case["ways"]) == [pieces.WHOLE, pieces.PIECES]
    assert whole["loss"] == cut["loss"] > 0
    assert whole["gradient_norm"] == pytest.approx(cut["gradient_norm"])
    assert len(whole["samples"]) == len(cut["samples"]) == 2
    assert min(whole["peak_bytes"], cut["peak_bytes"], whole["seconds"], cut["seconds"]) > 0
    assert (case["key_value_heads"], case["pieces"], case["chunk_tokens"]) == (2, 1, 16)


def test_the_page_compares_what_was_cut() -> None:
    body = report_measurements.pieces(DOCUMENT)
    assert body.finding == "Cut for 2 threads, a step's time over that of whole: 0.50 to 0.50."
    assert "losses differ by 0 of themselves" in body.limits[0]
    assert "gradient norms differ by 0.001 of themselves" in body.limits[0]
    assert "| a:1 | 3 | 16 | 2 | 4.00 s" in body.blocks[0]
    assert not report_measurements.pieces({}).blocks
