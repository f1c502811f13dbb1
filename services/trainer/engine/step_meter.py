"""Where the time of a step goes and what it moves, measured while it runs.

On CUDA a phase lies between two events on the stream of the computation, so that nothing waits for
a measurement; copies beside it count only where the computation waits for them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from services.trainer.engine.transfers import Moved, Mover, total_moved

FORWARD, LOSS, BACKWARD, OPTIMIZER = "forward", "loss", "backward", "optimizer"
# Spans whose ends nobody has asked for yet: fewer than kernels can be queued on a device, so that
# the oldest of more is over.
_MOST_OPEN_SPANS = 4096

# Seconds on the CPU.
Moment = torch.cuda.Event | float


class PhaseClock:
    """Seconds by phase. To be used by one thread."""

    def __init__(self, device: torch.device | None = None) -> None:
        """device: whose work is timed; None: the CPU's."""
        self._device = device if device is not None and device.type == "cuda" else None
        self._open: deque[tuple[str, Moment, Moment]] = deque()
        self._seconds: dict[str, float] = {}
        # The phase that time goes to now, since when.
        self._running: tuple[str, Moment] | None = None

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """What is asked of the device inside is of that phase, and not of one around it."""
        around = self._running[0] if self._running else None
        self._switch(phase)
        try:
            yield
        finally:
            self._switch(around)

    def settle(self) -> None:
        """Adds up what was timed so far; waits until the device has done it."""
        while self._open:
            self._settle_oldest()

    def take(self) -> dict[str, float]:
        """Seconds by phase since last taken; waits as `settle` does."""
        self.settle()
        taken, self._seconds = self._seconds, {}
        return taken

    def _switch(self, phase: str | None) -> None:
        now = self._now()
        if self._running:
            self._open.append((*self._running, now))
        self._running = (phase, now) if phase else None
        if len(self._open) > _MOST_OPEN_SPANS:
            self._settle_oldest()

    def _settle_oldest(self) -> None:
        phase, begin, end = self._open.popleft()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + _seconds_between(begin, end)

    def _now(self) -> Moment:
        if self._device is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def _seconds_between(begin: Moment, end: Moment) -> float:
    if isinstance(begin, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000
    assert isinstance(end, float)
    return end - begin


class StepMeter:
    """One executor's clock, and everything that moves bytes for it."""

    def __init__(self, device: torch.device) -> None:
        self.phases = PhaseClock(device)
        self._movers: list[Mover] = []

    def count(self, mover: Mover) -> None:
        """From now on it counts, too."""
        self._movers.append(mover)

    @property
    def moved(self) -> Moved:
        """By all of them, since they were made."""
        return total_moved(self._movers)
