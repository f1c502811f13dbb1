"""The demo's own decisions; that it works is shown by running it."""

from __future__ import annotations

from pathlib import Path

import pytest

from elite.planner.v1 import planner_pb2
from elite_cli.demo import (
    EVALUATIONS_IN_STEPS,
    FEWEST_STEPS,
    MOST_STEPS,
    TRAINING_SECONDS,
    empty_folder,
    train_options,
)
from elite_cli.endpoints import LOCK_FILE, hold_stack_lock
from elite_cli.errors import CliError


@pytest.mark.parametrize("step_seconds", [0.0, 0.1, 20.0, 40.0, 53.0])
def test_the_steps_fit_into_the_time(step_seconds: float) -> None:
    steps = train_options(planner_pb2.Plan(step_seconds=step_seconds)).steps
    assert FEWEST_STEPS <= steps <= MOST_STEPS
    assert (steps + EVALUATIONS_IN_STEPS) * step_seconds <= TRAINING_SECONDS


def test_a_slow_machine_trains_a_few_steps_all_the_same() -> None:
    assert train_options(planner_pb2.Plan(step_seconds=600)).steps == FEWEST_STEPS


def test_only_folders_of_a_demo_are_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CliError, match="not from a demo"):
        empty_folder(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
    (tmp_path / LOCK_FILE).touch()
    with hold_stack_lock(tmp_path), pytest.raises(CliError, match="a demo is running"):
        empty_folder(tmp_path)
    empty_folder(tmp_path)
    assert not tmp_path.exists()
    empty_folder(tmp_path)
