"""`python -m bench.time --fast` as it is called: what it writes, never how fast it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CASE_FIELDS = {
    "model", "layers", "tokens", "dtype", "set", "predicted_seconds", "low", "high",
    "measured_seconds", "error_percent", "spread", "samples", "cpu_share", "predicted_lines",
    "measured_lines",
}  # fmt: skip
GROUPS = {
    "matmul", "thin_matmul", "head_matmul", "attention_forward", "attention_backward",
    "optimizer", "everything_else",
}  # fmt: skip


def test_fast_run_predicts_measures_and_writes(tmp_path: Path) -> None:
    output = tmp_path / "results" / "time.json"
    command = [sys.executable, "-m", "bench.time", "--fast", "--rounds", "1"]
    command += ["--output", str(output)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    document = json.loads(output.read_text())
    assert set(document) == {
        "machine", "profile", "measured_rates", "drift", "summary", "cases",
    }  # fmt: skip
    assert document["summary"]["cases"] == len(document["cases"]) == 3
    (drift,) = document["drift"].values()
    assert set(drift) == {"matmul", "attention", "block", "elementwise", "operations", "memory"}
    before, after = document["measured_rates"]
    # Products that would take too long are left out, and may be near that.
    assert document["profile"].keys() == before.keys() & after.keys()
    assert len(document["profile"]) >= 0.8 * len(before)
    for name, rate in document["profile"].items():
        assert rate == pytest.approx(2 / (1 / before[name] + 1 / after[name]))
    for row in document["cases"]:
        assert set(row) == CASE_FIELDS
        assert 0 < row["low"] <= row["predicted_seconds"] <= row["high"]
        assert min(row["samples"]) <= row["measured_seconds"] <= max(row["samples"])
        assert len(row["samples"]) == 1
        lines = row["measured_lines"]
        assert set(lines) == GROUPS | {"largest_others"}
        assert all(lines[group] > 0 for group in GROUPS)
    assert "mean_absolute_error_percent" in answer.stdout
