"""When an engine has had its time: the run's deadline, and the silence that means it hangs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from elite.trainer.v1 import trainer_pb2

# Of the highest step time the plan foresees.
_STALL_STEPS = 3.0


@dataclass
class Watchdog:
    """Clocks of one attempt. They do not follow the wall clock when that is set.

    stall_seconds: silence that is always allowed, beside what the plan's steps take.
    """

    run: trainer_pb2.Run
    stall_seconds: float
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    _heard_at: float = field(init=False)
    _ends_at: float = field(init=False)

    def __post_init__(self) -> None:
        """The attempt begins now; what earlier attempts took is the record's to say."""
        self._heard_at = self.clock()
        limit = self.run.spec.max_run_seconds
        taken = max(0.0, self.wall_clock() - self.run.started_at.ToMilliseconds() / 1000)
        self._ends_at = self._heard_at + limit - taken if limit else float("inf")

    @property
    def longest_silence_seconds(self) -> float:
        """Events come with every step and evaluated window; a step may be slower than planned."""
        training, plan = self.run.spec.training, self.run.spec.plan
        windows = max(1, training.gradient_accumulation_steps, training.evaluation_windows)
        return self.stall_seconds + _STALL_STEPS * windows * plan.step_seconds_high

    def heard(self) -> None:
        """The engine said something."""
        self._heard_at = self.clock()

    @property
    def hangs(self) -> bool:
        """Whether it has been silent for too long."""
        return self.clock() - self._heard_at > self.longest_silence_seconds

    @property
    def is_over(self) -> bool:
        """Whether the run has had its `max_run_seconds`."""
        return self.clock() >= self._ends_at
