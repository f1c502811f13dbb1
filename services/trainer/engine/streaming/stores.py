"""Where a step's activations wait: pages of one kind of tensor, on the device or in host memory.

A page holds one chunk's tensors, side by side. Pages are carved from slabs that are made once and
used again in every step. A store off the device copies through buffers on it: two to read, so that
the next page arrives while this one is used, and one to write. On CUDA the copies run on a stream
of their own, ordered by events, and host memory is pinned.

Shapes: B batch, C tokens of a chunk.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from services.trainer.engine.memory_tracking import counted_as_host

# Pinned memory is rounded up to a power of two for every allocation, so slabs are one.
SLAB_BYTES = 256 * 2**20
# Tensors in a page begin at multiples of this, as kernels like it.
_ALIGNMENT = 64
_WRITE = 2  # the buffer after the two that are read


@dataclass(frozen=True, slots=True)
class Field:
    """One tensor of a page: its shape for a number of tokens, and its dtype."""

    shape: Callable[[int], tuple[int, ...]]
    dtype: torch.dtype

    def size_bytes(self, tokens: int) -> int:
        """Bytes it takes up in a page."""
        size = math.prod(self.shape(tokens)) * self.dtype.itemsize
        return -(-size // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True, slots=True)
class Pages:
    """How many pages, of what. `tokens` is the length of a full chunk."""

    fields: tuple[Field, ...]
    tokens: int
    count: int

    @property
    def page_bytes(self) -> int:
        """Bytes of a full page."""
        return self.used_bytes(self.tokens)

    def used_bytes(self, tokens: int) -> int:
        """Bytes of a page that a chunk of so many tokens uses."""
        return sum(field.size_bytes(tokens) for field in self.fields)

    def tensors(self, page: torch.Tensor, tokens: int) -> list[torch.Tensor]:
        """The page's bytes as the tensors of a chunk of so many tokens."""
        views, offset = [], 0
        for field in self.fields:
            shape = field.shape(tokens)
            size = math.prod(shape) * field.dtype.itemsize
            views.append(page[offset : offset + size].view(field.dtype).view(shape))
            offset += field.size_bytes(tokens)
        return views


class Store(Protocol):
    """Pages by number. What `read` returns is good until the next `read`."""

    def read(self, page: int, tokens: int, following: int | None = None) -> list[torch.Tensor]:
        """A page's tensors, on the device. following: the page that will be read next."""
        ...

    def write(self, page: int, tokens: int, tensors: Sequence[torch.Tensor]) -> None:
        """Puts a chunk's tensors into a page."""
        ...


def make_store(pages: Pages, device: torch.device, *, on_host: bool) -> Store:
    """A store with all its memory allocated."""
    return HostStore(pages, device) if on_host else DeviceStore(pages, device)


class DeviceStore:
    """Pages on the device: reading returns the page itself."""

    def __init__(self, pages: Pages, device: torch.device) -> None:
        self._layout = pages
        self._pages = _carve(pages, lambda size: _bytes_on(device, size))

    def read(self, page: int, tokens: int, following: int | None = None) -> list[torch.Tensor]:
        """A page's tensors."""
        del following  # it is here already
        return self._layout.tensors(self._pages[page], tokens)

    def write(self, page: int, tokens: int, tensors: Sequence[torch.Tensor]) -> None:
        """Copies a chunk's tensors into a page."""
        _fill(self._layout.tensors(self._pages[page], tokens), tensors)


class HostStore:
    """Pages in host memory, seen through buffers on the device."""

    def __init__(self, pages: Pages, device: torch.device) -> None:
        self._layout = pages
        self._pages = _carve(pages, lambda size: _bytes_on_host(device, size))
        self._buffers = [_bytes_on(device, pages.page_bytes) for _ in range(_WRITE + 1)]
        self._copies = _CopyStream(device, len(self._buffers))
        # Which page each of the two read buffers holds, and which of them comes next.
        self._held: list[int | None] = [None, None]
        self._turn = 0

    def read(self, page: int, tokens: int, following: int | None = None) -> list[torch.Tensor]:
        """A page's tensors, in a buffer; starts to fetch the following page into the other."""
        turn = self._turn
        if self._held[turn] != page:
            self._fetch(page, turn)
        self._copies.wait_for(turn)
        self._turn = 1 - turn
        if following is not None:
            self._fetch(following, self._turn)
        return self._layout.tensors(self._buffers[turn], tokens)

    def write(self, page: int, tokens: int, tensors: Sequence[torch.Tensor]) -> None:
        """Copies a chunk's tensors into the write buffer, and starts to send it home."""
        self._copies.wait_for(_WRITE)
        buffer = self._buffers[_WRITE]
        _fill(self._layout.tensors(buffer, tokens), tensors)
        with self._copies.copying(_WRITE):
            self._pages[page].copy_(buffer, non_blocking=True)
        self._held = [None if held == page else held for held in self._held]

    def _fetch(self, page: int, turn: int) -> None:
        with self._copies.copying(turn):
            self._buffers[turn].copy_(self._pages[page], non_blocking=True)
        self._held[turn] = page


class _CopyStream:
    """A side stream and an event for each buffer; on the CPU, copies simply happen in order."""

    def __init__(self, device: torch.device, buffers: int) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._done = [torch.cuda.Event() for _ in range(buffers if self._stream else 0)]

    @contextlib.contextmanager
    def _on_side_stream(self, buffer: int) -> Iterator[None]:
        stream = self._stream
        assert stream is not None
        # What was asked of the device before this may still use the buffer.
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            yield
            self._done[buffer].record(stream)

    def copying(self, buffer: int) -> AbstractContextManager[None]:
        """Copies issued inside run beside the computation, once it is done with the buffer."""
        return self._on_side_stream(buffer) if self._stream else contextlib.nullcontext()

    def wait_for(self, buffer: int) -> None:
        """The computation goes on only when the last copy of this buffer is done."""
        if self._stream:
            torch.cuda.current_stream(self._stream.device).wait_event(self._done[buffer])


def _carve(pages: Pages, allocate: Callable[[int], torch.Tensor]) -> list[torch.Tensor]:
    """All pages, from slabs of whole pages."""
    size, carved = pages.page_bytes, []
    per_slab = max(1, SLAB_BYTES // size)
    for first in range(0, pages.count, per_slab):
        count = min(per_slab, pages.count - first)
        slab = allocate(count * size)
        carved += [slab[i * size : (i + 1) * size] for i in range(count)]
    return carved


def _fill(targets: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> None:
    for target, tensor in zip(targets, tensors, strict=True):
        target.copy_(tensor)


def _bytes_on(device: torch.device, size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device=device)


def _bytes_on_host(device: torch.device, size: int) -> torch.Tensor:
    with counted_as_host():
        return torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
