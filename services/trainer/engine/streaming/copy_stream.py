"""Copies that run beside the computation, ordered by events.

On CUDA they have a stream of their own; on the CPU copies simply happen in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# What the computation had been asked to do at some moment; None on the CPU.
Moment = torch.cuda.Event | None


class CopyStream:
    """One direction of copies, through numbered buffers."""

    def __init__(self, device: torch.device, buffers: int) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._done = [torch.cuda.Event() for _ in range(buffers if self._stream else 0)]

    def now(self) -> Moment:
        """The computation's present moment: until then it may use the buffers."""
        if not self._stream:
            return None
        event: torch.cuda.Event = torch.cuda.current_stream(self._stream.device).record_event()
        return event

    @contextmanager
    def copying(self, buffer: int, after: Moment = None) -> Iterator[None]:
        """Copies issued inside run beside the computation, once it has passed `after`, or now."""
        if not self._stream:
            yield
            return
        moment = after or self.now()
        assert moment is not None  # there is a stream
        self._stream.wait_event(moment)
        with torch.cuda.stream(self._stream):
            yield
            self._done[buffer].record(self._stream)

    def wait_for(self, buffer: int) -> None:
        """The computation goes on only when the last copy through this buffer is done."""
        if self._stream:
            torch.cuda.current_stream(self._stream.device).wait_event(self._done[buffer])

    def follow(self, other: CopyStream, buffer: int) -> None:
        """Copies from here on come after the other stream's last one through its buffer."""
        if self._stream:
            self._stream.wait_event(other._done[buffer])

    def synchronize(self, buffer: int) -> None:
        """The calling thread goes on only when the last copy through this buffer is done."""
        if self._stream:
            self._done[buffer].synchronize()
