"""`python -m bench.speed --fast` as it is called: what it writes, never how fast it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CASE_FIELDS = {
    "model", "layers", "dtype", "tokens", "executor", "step_seconds", "samples", "spread",
    "peak_bytes", "static_bytes", "loss", "cpu_share",
}  # fmt: skip
RATIO_FIELDS = {"model", "dtype", "tokens", "time", "time_lowest", "time_highest", "memory"}
# float32 with a ragged last chunk; bfloat16 as planned.
SETTINGS = {"float32": (1e-4, 48), "bfloat16": (2e-2, 0)}


@pytest.mark.parametrize("dtype", SETTINGS)
def test_fast_run_compares_the_executors_and_writes(tmp_path: Path, dtype: str) -> None:
    tolerance, chunk = SETTINGS[dtype]
    output = tmp_path / "results" / "speed.json"
    command = [sys.executable, "-m", "bench.speed", "--fast", "--rounds", "2", "--dtype", dtype]
    command += [*(["--chunk", str(chunk)] if chunk else []), "--output", str(output)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    document = json.loads(output.read_text())
    assert set(document) == {"machine", "cases", "ratios", "left_out"}
    assert document["left_out"] == []
    pairs = list(zip(document["cases"][::2], document["cases"][1::2], strict=True))
    assert [stock["tokens"] for stock, _ in pairs] == [64, 128]
    for stock, streaming in pairs:
        assert (stock["executor"], streaming["executor"]) == ("stock", "streaming")
        assert set(stock) == CASE_FIELDS
        assert set(streaming) == CASE_FIELDS | {"chunk_tokens"}
        assert streaming["chunk_tokens"] == min(chunk, streaming["tokens"]) or not chunk
        assert streaming["loss"] == pytest.approx(stock["loss"], rel=tolerance)
        assert streaming["static_bytes"] == stock["static_bytes"]
        for case in (stock, streaming):
            assert case["dtype"] == dtype
            assert case["peak_bytes"] > case["static_bytes"] > 0
            assert len(case["samples"]) == 2
            assert min(case["samples"]) <= case["step_seconds"] <= max(case["samples"])
    for (stock, streaming), ratio in zip(pairs, document["ratios"], strict=True):
        assert set(ratio) == RATIO_FIELDS
        assert ratio["tokens"] == stock["tokens"]
        assert 0 < ratio["time_lowest"] <= ratio["time"] <= ratio["time_highest"]
        assert ratio["memory"] == streaming["peak_bytes"] / stock["peak_bytes"]
    assert "stock s" in answer.stdout
