"""Copies that run beside the computation, ordered by events.

On CUDA they have a stream of their own; on the CPU copies simply happen in order.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

# What the computation had been asked to do at some moment; None on the CPU.
Moment = torch.cuda.Event | None
# Target and source, of one size.
Copy = tuple[torch.Tensor, torch.Tensor]


class CopyStream:
    """One direction of copies, through numbered buffers. One thread asks for them.

    copied_bytes: of all copies that were started.
    """

    def __init__(self, device: torch.device, buffers: int) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._done = [torch.cuda.Event() for _ in range(buffers if self._stream else 0)]
        self.copied_bytes = 0

    def now(self) -> Moment:
        """The computation's present moment: until then it may use the buffers."""
        if not self._stream:
            return None
        event: torch.cuda.Event = torch.cuda.current_stream(self._stream.device).record_event()
        return event

    def copy(self, copies: Iterable[Copy], buffer: int, after: Moment = None) -> None:
        """Starts copies through a buffer.

        They run beside the computation, once it has passed `after`, or now.
        """
        if not self._stream:
            self._copy(copies)
            return
        moment = after or self.now()
        assert moment is not None  # there is a stream
        self._stream.wait_event(moment)
        with torch.cuda.stream(self._stream):
            self._copy(copies)
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

    def _copy(self, copies: Iterable[Copy]) -> None:
        for target, source in copies:
            target.copy_(source, non_blocking=True)
            self.copied_bytes += target.nbytes
