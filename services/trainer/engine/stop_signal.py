"""SIGTERM and SIGINT: stop now, or after the step that is running."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from services.trainer.engine.failures import StopRequested


class StopSignal:
    """Whether the engine was asked to stop.

    Outside `deferred()` nothing is lost by stopping, and the handler raises `StopRequested` where
    the program stands. Inside, it only sets `requested`, and the caller stops when it can.
    """

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    def install(self) -> None:
        """Takes SIGTERM and SIGINT over. Main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While inside, a signal is noted and no more."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.requested = True
        if not self._deferred:
            raise StopRequested(signal.Signals(number).name)
