"""Keys and values of the layer at work, for the whole window, and their fp32 gradients.

On the device they are four tensors, and any run of tokens is one piece. In pages (host memory or
disk), blocks are cut at page boundaries, and each page is fetched while the one before is used.

Shapes: B batch, S tokens of the window, C tokens of a chunk, K keys of a block, G KV heads,
D head dim. Keys and values lie token by token, (B, S, G, D).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from services.trainer.engine.streaming.blocks import Block
from services.trainer.engine.streaming.chunks import Chunk, chunks_of
from services.trainer.engine.streaming.kernels import Heads
from services.trainer.engine.streaming.stores import BufferedStore, Field, Store

Pair = tuple[torch.Tensor, torch.Tensor]
# Kernels count elements in 32 bits.
_MOST_ELEMENTS = 2**31 - 1


class KeyMemory(Protocol):
    """One layer at a time. What `of` returns is good until the next `of`."""

    # Most keys that one block may have.
    longest_block: int

    def start_window(self, tokens: int) -> None:
        """Makes room for a window of so many tokens."""
        ...

    def write(self, chunk: Chunk, key_bgcd: torch.Tensor, value_bgcd: torch.Tensor) -> None:
        """Puts a chunk's keys and values where later chunks find them."""
        ...

    def of(self, block: Block) -> Pair:
        """A block's keys and values, (B, G, K, D)."""
        ...

    def start_gradients(self) -> None:
        """No chunk has added to any gradient yet."""
        ...

    def add_gradients(self, block: Block, dk: torch.Tensor, dv: torch.Tensor) -> None:
        """Adds a block's gradients, (B, G, K, D)."""
        ...

    def gradients_of(self, chunk: Chunk) -> Pair:
        """Sums for a chunk's keys and values, fp32 (B, G, C, D), after all later chunks."""
        ...


class DeviceKeys:
    """Four tensors, made once. Bytes: B * S * G * D * 2 * (bytes of the compute dtype + 4)."""

    def __init__(self, heads: Heads, batch: int, tokens: int) -> None:
        self._shape = (batch, heads.key_value_heads, heads.head_dim)
        self.longest_block = max(1, _MOST_ELEMENTS // math.prod(self._shape))
        elements = tokens * math.prod(self._shape)
        self._flat = [
            torch.empty(elements, dtype=dtype, device=heads.device)
            for dtype in (heads.dtype, heads.dtype, torch.float32, torch.float32)
        ]
        self.start_window(tokens)

    def start_window(self, tokens: int) -> None:
        """Makes room for a window of so many tokens."""
        batch, heads, head_dim = self._shape
        count, shape = tokens * math.prod(self._shape), (batch, tokens, heads, head_dim)
        views = [flat[:count].view(shape) for flat in self._flat]
        self._values_bsgd, self._gradients_bsgd = views[:2], views[2:]

    def write(self, chunk: Chunk, key_bgcd: torch.Tensor, value_bgcd: torch.Tensor) -> None:
        """Copies."""
        for memory, tensor in zip(self._values_bsgd, (key_bgcd, value_bgcd), strict=True):
            memory[:, chunk.begin : chunk.end].copy_(tensor.transpose(1, 2))

    def of(self, block: Block) -> Pair:
        """Views."""
        key, value = (
            memory[:, block.key_begin : block.key_end].transpose(1, 2)
            for memory in self._values_bsgd
        )
        return key, value

    def start_gradients(self) -> None:
        """Zeroes."""
        for memory in self._gradients_bsgd:
            memory.zero_()

    def add_gradients(self, block: Block, dk: torch.Tensor, dv: torch.Tensor) -> None:
        """Adds in place."""
        for memory, found in zip(self._gradients_bsgd, (dk, dv), strict=True):
            memory[:, block.key_begin : block.key_end].transpose(1, 2).add_(found)

    def gradients_of(self, chunk: Chunk) -> Pair:
        """Views."""
        dk, dv = (
            memory[:, chunk.begin : chunk.end].transpose(1, 2) for memory in self._gradients_bsgd
        )
        return dk, dv


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens [begin, end) of a page."""

    page: int
    begin: int
    end: int


class PagedKeys:
    """Pages elsewhere; those of the chunk at work are still in the write buffer."""

    def __init__(
        self, heads: Heads, batch: int, page_tokens: int, keys: BufferedStore, gradients: Store
    ) -> None:
        """Stores of pages with `key_fields` and `key_gradient_fields`."""
        self._shape = (batch, heads.key_value_heads, heads.head_dim)
        self._device, self._keys, self._gradients = heads.device, keys, gradients
        self.longest_block = self._page_tokens = page_tokens
        self._tokens = 0
        self._own: int | None = None

    def start_window(self, tokens: int) -> None:
        """Nothing to make."""
        self._tokens, self._own = tokens, None

    def write(self, chunk: Chunk, key_bgcd: torch.Tensor, value_bgcd: torch.Tensor) -> None:
        """Sends them home."""
        self._own = chunk.index
        pair = (key_bgcd.transpose(1, 2), value_bgcd.transpose(1, 2))
        self._keys.write(chunk.index, chunk.length, pair)

    def of(self, block: Block) -> Pair:
        """Views of a buffer; only a block on two pages is copied together."""
        pieces = list(self._pieces(block))
        if len(pieces) == 1:
            return self._keys_of(pieces[0])
        # A buffer is good until the next is read.
        copies = [[part.clone() for part in self._keys_of(piece)] for piece in pieces]
        key, value = (torch.cat(parts, dim=2) for parts in zip(*copies, strict=True))
        return key, value

    def start_gradients(self) -> None:
        """Zeroes all pages."""
        batch, heads, head_dim = self._shape
        shape = (batch, self._page_tokens, heads, head_dim)
        zeros = torch.zeros(shape, dtype=torch.float32, device=self._device)
        for chunk in chunks_of(self._tokens, self._page_tokens):
            part = zeros[:, : chunk.length]
            self._gradients.write(chunk.index, chunk.length, (part, part))

    def add_gradients(self, block: Block, dk: torch.Tensor, dv: torch.Tensor) -> None:
        """Fetches, adds, and sends home."""
        done = 0
        for piece in self._pieces(block):
            length = piece.end - piece.begin
            sums = self._sums_of(piece.page)
            for total, found in zip(sums, (dk, dv), strict=True):
                part = found[:, :, done : done + length].transpose(1, 2)
                total[:, piece.begin : piece.end].add_(part)
            self._gradients.write(piece.page, self._length(piece.page), sums)
            done += length

    def gradients_of(self, chunk: Chunk) -> Pair:
        """Views of a buffer."""
        dk, dv = (total.transpose(1, 2) for total in self._sums_of(chunk.index))
        return dk, dv

    def _pieces(self, block: Block) -> Iterator[_Piece]:
        size, begin = self._page_tokens, block.key_begin
        while begin < block.key_end:
            page = begin // size
            end = min((page + 1) * size, block.key_end)
            yield _Piece(page, begin - page * size, end - page * size)
            begin = end

    def _keys_of(self, piece: _Piece) -> Pair:
        length = self._length(piece.page)
        if piece.page == self._own:
            found = self._keys.written(length)
        else:
            found = self._keys.read(piece.page, length, self._before_own(piece.page + 1))
        key, value = (tensor[:, piece.begin : piece.end].transpose(1, 2) for tensor in found)
        return key, value

    def _sums_of(self, page: int) -> list[torch.Tensor]:
        """A page's sums so far, (B, C, G, D)."""
        return self._gradients.read(page, self._length(page), self._before_own(page + 1))

    def _before_own(self, page: int) -> int | None:
        """The page, if blocks of the chunk at work may ask for it."""
        return page if self._own is not None and page < self._own else None

    def _length(self, page: int) -> int:
        return min(self._page_tokens, self._tokens - page * self._page_tokens)


def key_fields(heads: Heads, batch: int) -> tuple[Field, Field]:
    """Keys and values of a page."""
    return _fields(heads, batch, heads.dtype)


def key_gradient_fields(heads: Heads, batch: int) -> tuple[Field, Field]:
    """Their gradients."""
    return _fields(heads, batch, torch.float32)


def _fields(heads: Heads, batch: int, dtype: torch.dtype) -> tuple[Field, Field]:
    field = Field(lambda n: (batch, n, heads.key_value_heads, heads.head_dim), dtype)
    return field, field
