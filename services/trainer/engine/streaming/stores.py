"""Where a step's activations wait: pages of one kind of tensor, on the device, the host or a disk.

A page holds one chunk's tensors, side by side, as their codecs write them. Pages are made once and
used again in every step. A store off the device copies through buffers on it: two to read, so that
the next page arrives while this one is used, and one to write. On CUDA the copies run on streams of
their own, ordered by events, and host memory is pinned.

Shapes: B batch, C tokens of a chunk.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch

from services.common.engine_process import LARGE_SLAB_BYTES, SLAB_BYTES
from services.trainer.engine.memory_tracking import counted_as_host
from services.trainer.engine.streaming.codecs import EXACT, Codec
from services.trainer.engine.streaming.copy_stream import CopyStream
from services.trainer.engine.streaming.page_files import FilePages, PageFile, PageFilePlace
from services.trainer.engine.transfers import Moved

# Tensors in a page begin at multiples of this, as kernels like it.
_ALIGNMENT = 64
_READ_BUFFERS, _WRITE = 2, 2


class Place(Enum):
    """Where pages lie."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Field:
    """One tensor of a page: its shape for a number of tokens, its dtype, how it is written."""

    shape: Callable[[int], tuple[int, ...]]
    dtype: torch.dtype
    codec: Codec = EXACT

    def size_bytes(self, tokens: int) -> int:
        """Bytes it takes in a page, without what is left free after it."""
        return self.codec.size_bytes(math.prod(self.shape(tokens)), self.dtype)


@dataclass(frozen=True, slots=True)
class Pages:
    """How many pages, of what. `tokens` is the length of a full chunk."""

    fields: tuple[Field, ...]
    tokens: int
    count: int

    @property
    def page_bytes(self) -> int:
        """Bytes of a full page."""
        return sum(_aligned(field.size_bytes(self.tokens)) for field in self.fields)

    def read(self, page: torch.Tensor, tokens: int) -> list[torch.Tensor]:
        """The tensors of a chunk of so many tokens; views of the page where they are exact."""
        places = self._places(page, tokens)
        return [f.codec.decode(at, f.shape(tokens), f.dtype) for f, at in places]

    def write(self, page: torch.Tensor, tokens: int, tensors: Sequence[torch.Tensor]) -> None:
        """Fills the page with a chunk's tensors."""
        for (field, at), tensor in zip(self._places(page, tokens), tensors, strict=True):
            field.codec.encode(tensor, at)

    def _places(self, page: torch.Tensor, tokens: int) -> list[tuple[Field, torch.Tensor]]:
        places, offset = [], 0
        for field in self.fields:
            size = field.size_bytes(tokens)
            places.append((field, page[offset : offset + size]))
            offset += _aligned(size)
        return places


class Store(Protocol):
    """Pages by number. What `read` returns is good until the next `read`.

    layout: of its pages. changed: pages written since the owner last cleared it. file: where pages
    on a disk are, else None.
    """

    layout: Pages
    changed: set[int]

    @property
    def file(self) -> PageFile | None:
        """Where pages on a disk are, else None."""
        ...

    @property
    def moved(self) -> Moved:
        """What reads and writes have moved off and onto the device."""
        ...

    def read(self, page: int, tokens: int, following: int | None = None) -> list[torch.Tensor]:
        """A page's tensors, on the device. following: the page that will be read next."""
        ...

    def write(self, page: int, tokens: int, tensors: Sequence[torch.Tensor]) -> None:
        """Puts a chunk's tensors into a page."""
        ...

    def finish(self) -> None:
        """Every write so far has arrived when this returns."""
        ...

    def page(self, page: int) -> torch.Tensor:
        """A page's bytes, in host memory, after `finish`; good until anything else is asked."""
        ...

    def set_page(self, page: int, bytes_n: torch.Tensor) -> None:
        """Fills a page with what `page` returned."""
        ...

    def close(self) -> None:
        """Gives back what does not go with the object: a page file. Nothing may be asked after."""
        ...


def make_store(
    pages: Pages, device: torch.device, place: Place, file_place: PageFilePlace | None = None
) -> Store:
    """A store with all its memory allocated. file_place: for a page file.

    Raises `EngineError` (DISK_FULL) when the disk has no room for them.
    """
    if place is Place.DEVICE:
        return DeviceStore(pages, device)
    return make_buffered_store(pages, device, place, file_place)


def make_buffered_store(
    pages: Pages, device: torch.device, place: Place, file_place: PageFilePlace | None = None
) -> BufferedStore:
    """A store off the device: on the host or a disk."""
    if place is Place.HOST:
        return BufferedStore(pages, HostPages(pages, device))
    assert file_place is not None, "pages on a disk need a folder"
    file = PageFile(pages.count, pages.page_bytes, file_place)
    return BufferedStore(pages, FilePages(file, device))


class DeviceStore:
    """Pages on the device: reading an exact one returns the page itself."""

    file = None
    moved = Moved()  # nothing leaves the device

    def __init__(self, pages: Pages, device: torch.device) -> None:
        self.layout, self.changed = pages, set[int]()
        self._pages = _carve(pages, lambda size: _bytes_on(device, size))

    def read(self, page: int, tokens: int, following: int | None = None) -> list[torch.Tensor]:
        """A page's tensors."""
        del following  # it is here already
        return self.layout.read(self._pages[page], tokens)

    def write(self, page: int, tokens: int, tensors: Sequence[torch.Tensor]) -> None:
        """Copies a chunk's tensors into a page."""
        self.layout.write(self._pages[page], tokens, tensors)
        self.changed.add(page)

    def finish(self) -> None:
        """What is read next waits by itself."""

    def page(self, page: int) -> torch.Tensor:
        """A page's bytes."""
        return self._pages[page].cpu()

    def set_page(self, page: int, bytes_n: torch.Tensor) -> None:
        """Fills a page."""
        self._pages[page].copy_(bytes_n)

    def close(self) -> None:
        """Memory goes with the object."""


class Transfer(Protocol):
    """Moves pages to and from its `buffers` on the device: two to read, then one to write.

    What it starts for one page is done in that order.
    """

    buffers: list[torch.Tensor]

    @property
    def file(self) -> PageFile | None:
        """Where pages on a disk are."""
        ...

    @property
    def moved(self) -> Moved:
        """So far."""
        ...

    def load(self, page: int, buffer: int) -> None:
        """Starts to fill a buffer."""
        ...

    def save(self, page: int, buffer: int) -> None:
        """Starts to send a buffer home."""
        ...

    def wait_for(self, buffer: int) -> None:
        """The computation may use the buffer."""
        ...

    def finish(self) -> None:
        """Everything that was started is done when this returns."""
        ...

    def page(self, page: int) -> torch.Tensor:
        """A page's bytes, in host memory, after `finish`."""
        ...

    def set_page(self, page: int, bytes_n: torch.Tensor) -> None:
        """Fills a page, after `finish`."""
        ...

    def close(self) -> None:
        """Lets a page file go; nothing that was started is under way when this returns."""
        ...


class BufferedStore:
    """Pages elsewhere, seen through buffers on the device."""

    def __init__(self, pages: Pages, transfer: Transfer) -> None:
        self.layout, self.changed, self._transfer = pages, set[int](), transfer
        # Which page each of the two read buffers holds, and which of them comes next.
        self._held: list[int | None] = [None] * _READ_BUFFERS
        self._turn = 0

    @property
    def file(self) -> PageFile | None:
        """Where pages on a disk are."""
        return self._transfer.file

    @property
    def moved(self) -> Moved:
        """So far; a page that was fetched ahead counts when its copy starts."""
        return self._transfer.moved

    def read(self, page: int, tokens: int, following: int | None = None) -> list[torch.Tensor]:
        """A page's tensors, in a buffer; starts to fetch the following page into the other."""
        turn = self._turn
        if self._held[turn] != page:
            self._fetch(page, turn)
        self._transfer.wait_for(turn)
        self._turn = 1 - turn
        if following is not None:
            self._fetch(following, self._turn)
        return self.layout.read(self._transfer.buffers[turn], tokens)

    def write(self, page: int, tokens: int, tensors: Sequence[torch.Tensor]) -> None:
        """Writes a chunk's tensors into the write buffer, and starts to send it home."""
        self._transfer.wait_for(_WRITE)
        self.layout.write(self._transfer.buffers[_WRITE], tokens, tensors)
        self._transfer.save(page, _WRITE)
        self._held = [None if held == page else held for held in self._held]
        self.changed.add(page)

    def written(self, tokens: int) -> list[torch.Tensor]:
        """The tensors written last, in the write buffer; good until the next `write`."""
        return self.layout.read(self._transfer.buffers[_WRITE], tokens)

    def finish(self) -> None:
        """Every write has arrived; nothing that was fetched ahead is relied on."""
        self._transfer.finish()
        self._held = [None] * _READ_BUFFERS

    def page(self, page: int) -> torch.Tensor:
        """A page's bytes."""
        return self._transfer.page(page)

    def set_page(self, page: int, bytes_n: torch.Tensor) -> None:
        """Fills a page."""
        self._transfer.set_page(page, bytes_n)

    def close(self) -> None:
        """Lets a page file go."""
        self._transfer.close()

    def _fetch(self, page: int, turn: int) -> None:
        self._transfer.load(page, turn)
        self._held[turn] = page


class HostPages:
    """Pages in host memory; both directions of the bus are used at once."""

    file = None

    def __init__(self, pages: Pages, device: torch.device) -> None:
        self.buffers = [_bytes_on(device, pages.page_bytes) for _ in range(_READ_BUFFERS + 1)]
        self._pages = _carve(pages, lambda size: _bytes_on_host(device, size))
        self._loads, self._saves = CopyStream(device, _READ_BUFFERS), CopyStream(device, 1)
        self._last_saved = -1

    @property
    def moved(self) -> Moved:
        """So far."""
        return Moved(self._loads.copied_bytes, self._saves.copied_bytes)

    def load(self, page: int, buffer: int) -> None:
        """Starts to fill a buffer."""
        # Pages saved before the last one have arrived: the write buffer was free again.
        if page == self._last_saved:
            self._loads.follow(self._saves, 0)
        self._loads.copy([(self.buffers[buffer], self._pages[page])], buffer)

    def save(self, page: int, buffer: int) -> None:
        """Starts to send a buffer home."""
        self._saves.copy([(self._pages[page], self.buffers[buffer])], 0)
        self._last_saved = page

    def wait_for(self, buffer: int) -> None:
        """The computation may use the buffer."""
        if buffer == _WRITE:
            self._saves.wait_for(0)
        else:
            self._loads.wait_for(buffer)

    def finish(self) -> None:
        """Everything that was started is done."""
        self._saves.synchronize(0)
        for buffer in range(_READ_BUFFERS):
            self._loads.synchronize(buffer)

    def page(self, page: int) -> torch.Tensor:
        """The page itself."""
        return self._pages[page]

    def set_page(self, page: int, bytes_n: torch.Tensor) -> None:
        """Fills a page."""
        self._pages[page].copy_(bytes_n)

    def close(self) -> None:
        """Nothing is copied any more: the memory may go, with the object."""
        self.finish()


def _carve(pages: Pages, allocate: Callable[[int], torch.Tensor]) -> list[torch.Tensor]:
    """All pages, from slabs of whole pages."""
    size, carved = pages.page_bytes, []
    for count in _pages_by_slab(pages.count, size):
        slab = allocate(count * size)
        carved += [slab[i * size : (i + 1) * size] for i in range(count)]
    return carved


def _pages_by_slab(count: int, page_bytes: int) -> Iterator[int]:
    """How many pages each slab has; what is left goes into one where several would take more."""
    large, small = (max(1, size // page_bytes) for size in (LARGE_SLAB_BYTES, SLAB_BYTES))
    full, rest = divmod(count, large)
    parts = [small] * (rest // small) + [rest % small] * bool(rest % small)

    def taken_bytes(slabs: list[int]) -> int:
        """Of slabs of so many pages, each rounded up to a power of two."""
        return sum(1 << (pages * page_bytes - 1).bit_length() for pages in slabs if pages)

    yield from itertools.repeat(large, full)
    yield from min(parts, [rest], key=taken_bytes)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _bytes_on(device: torch.device, size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device=device)


def _bytes_on_host(device: torch.device, size: int) -> torch.Tensor:
    with counted_as_host():
        return torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
