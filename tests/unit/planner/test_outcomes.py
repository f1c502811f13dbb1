"""The outcome store survives restarts and torn lines, and says when it cannot write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.common.errors import ErrorReason, ServiceError
from services.planner.outcomes import OutcomeStore


def test_outcomes_are_counted_across_restarts(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    assert OutcomeStore(folder).append({"run": "a"}) == 1
    again = OutcomeStore(folder)
    assert again.append({"run": "b"}) == 2
    assert again.append({"run": "c"}) == 3
    lines = (folder / "outcomes.jsonl").read_text().splitlines()
    assert [json.loads(line)["run"] for line in lines] == ["a", "b", "c"]


def test_a_torn_line_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "outcomes.jsonl").write_text('{"run": "a"}\n{"run": "b')
    assert OutcomeStore(tmp_path).append({"run": "c"}) == 2
    assert (tmp_path / "outcomes.jsonl").read_text().splitlines()[-1] == '{"run": "c"}'


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="ELITE_PLANNER_STATE_DIRECTORY") as refusal:
        OutcomeStore(tmp_path / "file").append({})
    assert refusal.value.reason is ErrorReason.STORE_UNAVAILABLE
