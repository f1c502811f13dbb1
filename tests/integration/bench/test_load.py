"""The load bench on a small scale: what it says of a real site."""

from __future__ import annotations

import json
from pathlib import Path

from bench import load, report_load


def test_a_small_load(tmp_path: Path) -> None:
    output = tmp_path / "load.json"
    load.main([
        "--watchers", "12", "--steps", "5", "--submit-seconds", "2", "--soak-seconds", "12",
        "--output", str(output),
    ])  # fmt: skip
    document = json.loads(output.read_text())
    watchers, submits = document["watchers"], document["submits"]
    assert (watchers["told_otherwise"], watchers["cut_off"]) == (0, {})
    # Each is told of every step, and of more.
    assert watchers["events"] > 12 * 5
    assert 0 < watchers["late_seconds"]["median"] < 30
    assert submits["taken"] > 0
    assert (submits["lost"], submits["twice"], submits["refused"]) == (0, 0, {})
    assert document["soak"]["api"]["highest_bytes"] > 10_000_000
    assert "12 watchers" in report_load.load(document).finding
