"""Peak bytes of the device during a step.

On CUDA the allocator counts. On CPU nobody does: `torch.profiler` slows a step down and the
resident set counts pages, not tensors. A dispatch mode that sees every storage is exact: it agrees
with the same step under fake tensors to the byte.
"""

from __future__ import annotations

import resource
import weakref
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMeter(Protocol):
    """Measures the peak between two calls of `restart`."""

    def __enter__(self) -> PeakMeter: ...
    def __exit__(self, *exception: object) -> None: ...
    def restart(self) -> None:
        """Forgets the peak so far."""

    @property
    def peak_bytes(self) -> int:
        """Most bytes alive at once since the last restart."""


class CudaPeakMeter:
    """The caching allocator's own counters."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> CudaPeakMeter:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def restart(self) -> None:
        """Forgets the peak so far."""
        torch.cuda.reset_peak_memory_stats(self._device)

    @property
    def peak_bytes(self) -> int:
        """`torch.cuda.max_memory_allocated`."""
        return torch.cuda.max_memory_allocated(self._device)


class StorageTracker(TorchDispatchMode):
    """Follows every CPU storage from its first appearance to its end."""

    def __init__(self, existing: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self._alive: dict[int, int] = {}
        self._live_bytes = 0
        self.peak_bytes = 0
        for tensor in existing:
            self._track(tensor)

    def restart(self) -> None:
        """Forgets the peak so far."""
        self.peak_bytes = self._live_bytes

    def _track(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()
        self._alive[key] = size
        self._live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._live_bytes -= self._alive.pop(key, 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs the operation and tracks what it returns."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu":
                self._track(leaf)
        return result


def peak_meter(device: torch.device, existing: Iterable[torch.Tensor]) -> PeakMeter:
    """The meter for a device. `existing` are the tensors that are alive already."""
    return CudaPeakMeter(device) if device.type == "cuda" else StorageTracker(existing)


def host_peak_bytes() -> int:
    """Largest resident set of this process so far (Linux reports KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
