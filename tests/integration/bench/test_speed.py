"""`python -m bench.speed --fast` as it is called: what it writes, never how fast it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.speed_worker import STOCK, STREAMING, TILED

CASE_FIELDS = {
    "model", "layers", "dtype", "tokens", "executor", "step_seconds", "samples", "spread",
    "peak_bytes", "static_bytes", "loss", "cpu_share",
}  # fmt: skip
RATIO_FIELDS = {"model", "dtype", "tokens", "time", "time_lowest", "time_highest", "memory", "over"}
# With a ragged last chunk. What the planner chooses is in tests/unit/bench/test_speed.py.
CHUNK_TOKENS = 48
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_fast_run_compares_the_executors_and_writes(tmp_path: Path, dtype: str) -> None:
    output = tmp_path / "results" / "speed.json"
    command = [sys.executable, "-m", "bench.speed", "--fast", "--rounds", "2", "--dtype", dtype]
    command += ["--chunk", str(CHUNK_TOKENS), "--output", str(output)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    document = json.loads(output.read_text())
    assert set(document) == {"machine", "cases", "ratios", "left_out", "goals"}
    assert document["left_out"] == []
    by_length: dict[int, dict[str, Any]] = {}
    for case in document["cases"]:
        by_length.setdefault(case["tokens"], {})[case["executor"]] = case
    assert list(by_length) == [64, 128]
    for cases in by_length.values():
        assert set(cases) == {STOCK, STREAMING} | ({TILED} & set(cases))
        stock, streaming = cases[STOCK], cases[STREAMING]
        assert streaming.pop("chunk_tokens") == CHUNK_TOKENS
        assert streaming["static_bytes"] == stock["static_bytes"]
        for case in cases.values():
            assert set(case) == CASE_FIELDS
            assert case["dtype"] == dtype
            assert case["loss"] == pytest.approx(stock["loss"], rel=TOLERANCES[dtype])
            assert case["peak_bytes"] > case["static_bytes"] > 0
            assert len(case["samples"]) == 2
            assert min(case["samples"]) <= case["step_seconds"] <= max(case["samples"])
    for ratio in document["ratios"]:
        assert set(ratio) == RATIO_FIELDS
        cases = by_length[ratio["tokens"]]
        assert 0 < ratio["time_lowest"] <= ratio["time"] <= ratio["time_highest"]
        over = cases[ratio["over"]]
        assert ratio["memory"] == cases[STREAMING]["peak_bytes"] / over["peak_bytes"]
    assert "streaming over stock: time" in answer.stdout
