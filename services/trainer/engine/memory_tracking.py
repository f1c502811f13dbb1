"""Peak memory of a step: the allocator's count on CUDA, a count of live storages on the CPU."""

from __future__ import annotations

import resource
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryTracker(Protocol):
    """Counts tensor bytes on one device while entered; may be entered again and again."""

    def __enter__(self) -> Any: ...
    def __exit__(self, *exception: Any) -> None: ...

    def reset_peak(self) -> None:
        """The peak becomes what is in use now."""
        ...

    @property
    def current_bytes(self) -> int:
        """Bytes in use."""
        ...

    @property
    def peak_bytes(self) -> int:
        """Most bytes in use at once since `reset_peak`."""
        ...


def memory_tracker(device: torch.device) -> MemoryTracker:
    """The tracker for a device."""
    return CudaTracker(device) if device.type == "cuda" else StorageTracker()


class CudaTracker:
    """Bytes handed out by torch's caching allocator: no context, no fragmentation."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> CudaTracker:
        return self

    def __exit__(self, *exception: Any) -> None:
        return None

    def reset_peak(self) -> None:
        """The peak becomes what is in use now."""
        torch.cuda.reset_peak_memory_stats(self._device)

    @property
    def current_bytes(self) -> int:
        """Bytes in use."""
        return torch.cuda.memory_allocated(self._device)

    @property
    def peak_bytes(self) -> int:
        """Most bytes in use at once since `reset_peak`."""
        return torch.cuda.max_memory_allocated(self._device)


_KIBIBYTE = 1024
_STATUS = Path("/proc/self/status")
_FORGET_PEAK = Path("/proc/self/clear_refs")
_host_placed = False


@contextmanager
def counted_as_host() -> Iterator[None]:
    """Storages made inside stand for host memory beside a device, also where the CPU plays it."""
    global _host_placed
    before, _host_placed = _host_placed, True
    try:
        yield
    finally:
        _host_placed = before


class StorageTracker(TorchDispatchMode):
    """Bytes of CPU storages made by operations inside the mode, until they are freed.

    Those made under `counted_as_host` are counted apart, in `host_peak_bytes`, and as torch would
    pin them, each rounded up to a power of two, in `pinned_peak_bytes`.
    Workspaces inside a kernel are invisible to it, and so are tensors that no operation inside the
    mode has returned.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current_bytes = 0
        self.peak_bytes = 0
        self.host_peak_bytes = self.pinned_peak_bytes = 0
        self._host_bytes = self._pinned_bytes = 0
        self._known: set[int] = set()

    def reset_peak(self) -> None:
        """The peak becomes what is in use now."""
        self.peak_bytes = self.current_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and counts the storages of its results that are new."""
        result = func(*args, **(kwargs or {}))
        if any(value.alias_info is not None for value in func._schema.returns):
            return result  # a view, or the argument itself
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu":
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size_bytes, on_host = storage.nbytes(), _host_placed
        self._known.add(key)
        self._add(size_bytes, 1, on_host)
        # Not at exit: the interpreter takes modules apart before it runs such finalizers.
        weakref.finalize(storage, self._forget, key, size_bytes, on_host).atexit = False

    def _add(self, size_bytes: int, sign: int, on_host: bool) -> None:
        if on_host:
            self._host_bytes += sign * size_bytes
            self._pinned_bytes += sign * (1 << (size_bytes - 1).bit_length() if size_bytes else 0)
            self.host_peak_bytes = max(self.host_peak_bytes, self._host_bytes)
            self.pinned_peak_bytes = max(self.pinned_peak_bytes, self._pinned_bytes)
            return
        self.current_bytes += sign * size_bytes
        self.peak_bytes = max(self.peak_bytes, self.current_bytes)

    def _forget(self, key: int, size_bytes: int, on_host: bool) -> None:
        self._known.discard(key)
        self._add(size_bytes, -1, on_host)


def start_host_peak() -> None:
    """`host_peak_bytes` is of what comes from now on, where the kernel can forget (Linux 4.0)."""
    with suppress(OSError):
        _FORGET_PEAK.write_text("5")


def host_peak_bytes() -> int:
    """Largest resident set of this process since `start_host_peak`; of all its life elsewhere."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * _KIBIBYTE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIBIBYTE
