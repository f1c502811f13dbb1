"""Deadlines and silences, by clocks of the test's own."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from elite.planner.v1 import planner_pb2
from elite.trainer.v1 import trainer_pb2
from services.trainer.worker.watchdog import Watchdog


@dataclass
class Clocks:
    monotonic: float = 500.0
    wall: float = 1_000_000.0

    def watchdog(self, run: trainer_pb2.Run, stall_seconds: float = 100.0) -> Watchdog:
        return Watchdog(run, stall_seconds, lambda: self.monotonic, lambda: self.wall)

    def pass_by(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds


def a_run(limit: int = 0, started: float = 1_000_000.0, **training: int) -> trainer_pb2.Run:
    spec = trainer_pb2.RunSpec(
        plan=planner_pb2.Plan(step_seconds_high=10.0),
        training=trainer_pb2.TrainingSettings(steps=5, **training),
        max_run_seconds=limit,
    )
    run = trainer_pb2.Run(spec=spec)
    run.started_at.FromMilliseconds(int(started * 1000))
    return run


def test_without_a_limit_a_run_may_take_for_ever() -> None:
    clocks = Clocks()
    watchdog = clocks.watchdog(a_run())
    clocks.pass_by(1e9)
    assert not watchdog.is_over


def test_earlier_attempts_count_towards_the_limit() -> None:
    clocks = Clocks()
    watchdog = clocks.watchdog(a_run(limit=60, started=clocks.wall - 40))
    clocks.pass_by(19)
    assert not watchdog.is_over
    clocks.pass_by(1)
    assert watchdog.is_over


def test_a_wall_clock_that_jumps_moves_no_deadline() -> None:
    clocks = Clocks()
    watchdog = clocks.watchdog(a_run(limit=60))
    clocks.wall += 3600
    assert not watchdog.is_over
    assert not watchdog.hangs
    clocks.wall -= 7200
    clocks.monotonic += 60
    assert watchdog.is_over


def test_a_start_in_the_future_gives_no_more_than_the_limit() -> None:
    clocks = Clocks()
    watchdog = clocks.watchdog(a_run(limit=60, started=clocks.wall + 3600))
    clocks.pass_by(60)
    assert watchdog.is_over


@pytest.mark.parametrize(
    ("training", "silence"),
    [
        ({}, 100 + 3 * 10),
        ({"gradient_accumulation_steps": 4}, 100 + 3 * 10 * 4),
        ({"evaluation_windows": 6}, 100 + 3 * 10 * 6),
    ],
)
def test_silence_is_measured_by_what_the_plan_expects(
    training: dict[str, int], silence: float
) -> None:
    clocks = Clocks()
    watchdog = clocks.watchdog(a_run(**training))
    clocks.pass_by(silence)
    assert not watchdog.hangs
    watchdog.heard()
    clocks.pass_by(silence)
    assert not watchdog.hangs
    clocks.pass_by(1)
    assert watchdog.hangs
