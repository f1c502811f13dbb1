"""Memory of the streaming executor, phase by phase: one layer at a time, chunk by chunk.

What grows with the window is the keys, values and their fp32 gradients of one layer, and the
stores; everything else grows with the chunk. Formula ids: streaming-keys, streaming-chunk,
streaming-stores and those of static_memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from services.common.engine_process import LARGE_SLAB_BYTES, SLAB_BYTES
from services.planner.arithmetic import (
    Number,
    ceiling_divide,
    floor_divide,
    maximum,
    minimum,
    power_of_two_from,
    power_of_two_to,
    total,
    value_of,
    where,
    whole,
)
from services.planner.resident_memory import (
    LARGEST_TILE_ROWS,
    SMALLEST_TILE_ROWS,
    Lines,
    logit_bytes,
    output_width,
)
from services.planner.static_memory import Static
from services.planner.terms import ModelTerms, SetTerms, TierTerms
from services.planner.tracing import Traced

SMALLEST_CHUNK = 256
# The chunk's share of the budget beside the weights; the rest is for what grows with the window.
_CHUNK_SHARE = 1 / 8
_CHUNK_SHARE_FOR_STREAMED_KEYS = 1 / 2
# Beyond these a longer chunk buys no time: products and attention have reached their full rate, and
# on a CPU what a layer works on leaves the caches (bench.speed --chunk).
LARGEST_CHUNK = 16384
LARGEST_CHUNK_ON_CPU = 1024
# Keys that stream from the host are read once a chunk: longer chunks hide it.
LARGEST_CHUNK_FOR_STREAMED_KEYS = 32768
_FLOAT32 = 4
# A store off the device has so many pages on it: at work, on its way there, on its way back.
BUFFERED_PAGES = 3
# Page files are read and written in whole blocks.
DISK_BLOCK_BYTES = 4096
# Of a layer's adapters: those of the MLP's last linears are done at the peak of a chunk's backward.
_FOUND_SHARE = 0.3
# Token ids of a chunk, int64.
_TOKEN_BYTES = 8


def longest_useful_chunk(keys_on_device: Number, with_keys: int = LARGEST_CHUNK) -> Number:
    """The length beyond which nothing is won; with_keys: where keys are on the device."""
    return where(keys_on_device, with_keys, LARGEST_CHUNK_FOR_STREAMED_KEYS)


def chunk_lengths(tokens: int, *, keys_on_device: bool) -> tuple[int, ...]:
    """Lengths worth a look for a window: powers of two, and the window itself."""
    largest = int(min(tokens, longest_useful_chunk(keys_on_device)))
    powers = range(SMALLEST_CHUNK.bit_length() - 1, (largest - 1).bit_length())
    return (*(1 << power for power in powers), largest)


def slabs(count: Number, page_bytes: Number) -> Number:
    """Bytes of pinned slabs of whole pages; each allocation is rounded up to a power of two."""
    if Traced in (type(count), type(page_bytes)):
        taken = slabs(value_of(count), value_of(page_bytes))
        return Traced.call("slabs", taken, (count, page_bytes))
    # A slab that is full of pages is more than half full: it is rounded up to its own size.
    page = maximum(1, page_bytes)
    rounded_page = power_of_two_from(page)
    per_large = maximum(1, floor_divide(LARGE_SLAB_BYTES, page))
    full = floor_divide(count, per_large)
    rest = count - full * per_large
    per_slab = maximum(1, floor_divide(SLAB_BYTES, page))
    small = floor_divide(rest, per_slab)
    parts = small * maximum(SLAB_BYTES, rounded_page)
    parts = parts + power_of_two_from((rest - small * per_slab) * page_bytes)
    # What is left goes into one, where several would take more.
    rest_bytes = minimum(parts, power_of_two_from(rest * page_bytes))
    return full * maximum(LARGE_SLAB_BYTES, rounded_page) + rest_bytes


@dataclass(frozen=True, slots=True)
class Store:
    """Pages of `layers` layers, `width` bytes a token each, and where they are."""

    layers: Number
    width: Number
    on_device: Number
    on_host: Number
    on_disk: Number


@dataclass(frozen=True, slots=True)
class _Pages:
    """How many pages a store has, and the bytes of one."""

    count: Number
    bytes: Number


class StreamingMemory:
    """One model under one dtype; tiers and sets may be columns.

    device_budget: bytes the chunk may grow into, up to largest_chunk tokens. chunk_tokens: 0 sizes
    it, else it is given.
    """

    def __init__(
        self,
        model: ModelTerms,
        tier: TierTerms,
        chosen: SetTerms,
        static: Static,
        device_budget: Number,
        chunk_tokens: Number = 0,
        largest_chunk: int = LARGEST_CHUNK,
    ) -> None:
        self._largest_chunk = largest_chunk
        self._model, self._tier, self._chosen, self._static = model, tier, chosen, static
        self._trained = {
            "base_model": static.base_model, "lora": static.lora, "optimizer": static.optimizer,
        }  # fmt: skip
        self._stores = stores(model, chosen)
        # Of the keys at work and their gradients, on the device.
        self._keys_width = 2 * (model.element + _FLOAT32) * model.key_value
        # The chunk's size does not depend on what the stores take.
        self._on_device: Number = 0
        self._buffered = BUFFERED_PAGES * sum(
            where(store.on_device, 0, where(store.layers > 0, store.width, 0))
            for store in self._stores
        )
        is_given = np.any(value_of(chunk_tokens))
        self.chunk_tokens = chunk_tokens if is_given else self._chunk(device_budget)
        # The last page of every layer is a whole one too.
        self._chunks = ceiling_divide(tier.tokens, self.chunk_tokens)
        self._stored = tuple((store, self._pages_of(store)) for store in self._stores)
        self._on_device = self.chunk_tokens * sum(
            where(store.on_device, pages.count * store.width, 0) for store, pages in self._stored
        )
        self._between = self._backward(self.chunk_tokens)
        self.tile_rows = self._loss_tile_rows()

    def phases(self) -> dict[str, Lines]:
        """Lines of every phase, without the CUDA context: the budget is net of it."""
        static, chunk = self._static, self.chunk_tokens
        update = {
            "gradients": static.lora,
            "buffers": static.update,
        }
        return {
            "load": {
                "base_model": static.base_model, "lora": static.lora,
                "buffers": static.dequantised,
            },
            "forward": self._trained | self._forward(chunk),
            "loss": self._trained | self._loss(self.tile_rows),
            "last_layer": self._trained | self._last_layer(chunk),
            "backward": self._trained | self._between,
            "first_layer": self._trained | self._first_layer(chunk),
            "optimizer": self._trained | update,
        }  # fmt: skip

    def host_stores(self) -> Lines:
        """Stores in pinned memory, slab by slab, and weights that are streamed."""
        keys = where(self._chosen.keys_on_device, 0, self._paged_keys())
        activations = sum(
            _wherever(store.on_host, _slabs, pages) + _wherever(store.on_disk, _staging, pages)
            for store, pages in self._stored
        )
        return {
            "activations": activations,
            "kv": keys,
            "base_model": _whole_slabs(self._static.host_weights),
        }

    def disk_stores(self) -> Lines:
        """Page files."""
        files = (_wherever(store.on_disk, _file_bytes, pages) for store, pages in self._stored)
        return {"activations": sum(files)}

    def journal_bytes(self) -> Number:
        """Files of a step saved in the middle: pages that are not on a disk, hidden states twice.

        Inputs between two kept ones are made again.
        """
        inputs, _, (_, hidden_pages), outputs, keys = self._stored
        kept = (
            where(store.on_disk, 0, _file_bytes(pages)) for store, pages in (inputs, outputs, keys)
        )
        return sum(kept) + 2 * _file_bytes(hidden_pages)

    def _chunk(self, device_budget: Number) -> Number:
        """A share of what the weights leave of the budget, in whole powers of two.

        It does not depend on the window, so that a longer one never takes less. A window shorter
        than a chunk is one chunk.
        """
        keys_here = self._chosen.keys_on_device
        share = where(keys_here, _CHUNK_SHARE, _CHUNK_SHARE_FOR_STREAMED_KEYS)
        per_token = total(self._backward(1).values()) - total(self._backward(0).values())
        room = floor_divide((device_budget - self._static.base_model) * share, per_token)
        useful = longest_useful_chunk(keys_here, self._largest_chunk)
        fitting = minimum(power_of_two_to(maximum(room, SMALLEST_CHUNK)), useful)
        return minimum(fitting, self._tier.tokens)

    def _loss_tile_rows(self) -> Number:
        """Largest power of two for which the loss takes no more than backward does."""
        room = total(self._between.values()) - total(self._loss(0).values())
        rows = floor_divide(room, self._loss_row_bytes() + logit_bytes(self._model))
        fitting = power_of_two_to(maximum(rows, SMALLEST_TILE_ROWS))
        return minimum(fitting, LARGEST_TILE_ROWS, power_of_two_to(self._tier.targets))

    def _pages_of(self, store: Store) -> _Pages:
        return _Pages(store.layers * self._chunks, whole(self.chunk_tokens * store.width))

    def _paged_keys(self) -> Number:
        model = self._model
        widths = (2 * model.element * model.key_value, 2 * _FLOAT32 * model.key_value)
        return sum(slabs(self._chunks, whole(self.chunk_tokens * width)) for width in widths)

    def _forward(self, chunk: Number) -> Lines:
        """A layer's MLP, beside the embeddings that the first layer takes."""
        model = self._model
        working = chunk * (model.layer.forward + model.layer.boundary + _TOKEN_BYTES)
        return self._standing(chunk, working)

    def _loss(self, tile_rows: Number) -> Lines:
        """A tile of rows beside what autograd has of a chunk's last layer, output and gradient."""
        model, chunk = self._model, self.chunk_tokens
        layer = model.layer.kept.at(self._tier.rank) - model.layer.input_kept
        width = layer + 2 * model.layer.boundary + _TOKEN_BYTES
        lines = self._standing(chunk, chunk * width + tile_rows * self._loss_row_bytes())
        buffers = lines["buffers"] + logit_bytes(model) * tile_rows + self._static.dequantised
        return lines | {"gradients": whole(_FLOAT32 * self._adapter_count()), "buffers": buffers}

    def _loss_row_bytes(self) -> Number:
        """Of a row of a tile, beside its logits."""
        return self._model.final_norm_output + 4 * self._model.element * self._model.hidden

    def _last_layer(self, chunk: Number) -> Lines:
        """Backward of the layer that goes to the loss: nothing of it was kept.

        The gradient of its output is in no store.
        """
        return self._working(chunk, self._model.layer.last_backward(self._tier.rank), 0)

    def _backward(self, chunk: Number) -> Lines:
        """Recompute and backward of a layer between; its input may have been decoded."""
        layer = self._model.layer
        decoded = where(self._chosen.codec_share < 1, layer.boundary, 0)
        width = layer.backward(self._tier.rank) + decoded - self._kept_outputs()
        return self._working(chunk, width, maximum(self._model.layers - 2, 0))

    def _first_layer(self, chunk: Number) -> Lines:
        """The same, from the embeddings, which need no gradient."""
        layer = self._model.layer
        width = layer.first_backward(self._tier.rank) + layer.boundary - self._kept_outputs()
        return self._working(chunk, width, self._model.layers - 1)

    def _kept_outputs(self) -> Number:
        """Bytes a token that a recompute is spared: attention outputs are views of their pages."""
        return where(self._chosen.selective, output_width(self._model), 0)

    def _working(self, chunk: Number, width: Number, layers_done: Number) -> Lines:
        """A chunk under autograd, `width` bytes a token; its layer's output has been let go.

        Gradients: of the layers that are done, the fp32 sums of this one's, and the chunk's so far.
        """
        model, static = self._model, self._static
        lines = self._standing(chunk, chunk * (width - model.layer.boundary + _TOKEN_BYTES))
        sums = (_FLOAT32 + _FOUND_SHARE * model.adapter_element) * self._adapter_count()
        return lines | {
            "gradients": floor_divide(static.lora, model.layers) * layers_done + whole(sums),
            "buffers": lines["buffers"] + static.dequantised,
        }

    def _adapter_count(self) -> Number:
        """Parameters of one layer's adapters."""
        return self._model.adapter_parameters * self._tier.rank

    def _standing(self, chunk: Number, working: Number) -> Lines:
        """What a chunk's work takes, and what stands beside it all the time."""
        keys = where(
            self._chosen.keys_on_device,
            self._tier.tokens * self._keys_width,
            BUFFERED_PAGES * chunk * self._keys_width,
        )
        return {
            "activations": self._on_device + chunk * self._buffered + working,
            "kv": keys,
            "buffers": chunk * self._model.rotary,
        }


def _slabs(pages: _Pages) -> Number:
    return slabs(pages.count, pages.bytes)


def _staging(pages: _Pages) -> Number:
    """Pinned pages on the way between device and disk."""
    return BUFFERED_PAGES * power_of_two_from(pages.bytes + DISK_BLOCK_BYTES)


def _file_bytes(pages: _Pages) -> Number:
    return pages.count * ceiling_divide(pages.bytes, DISK_BLOCK_BYTES) * DISK_BLOCK_BYTES


def _wherever(condition: Number, amount: Callable[[_Pages], Number], pages: _Pages) -> Number:
    """Nothing elsewhere; a grid without such a place is spared the arithmetic."""
    is_anywhere = condition.any() if isinstance(condition, np.ndarray) else value_of(condition)
    return where(condition, amount(pages), 0) if is_anywhere else 0


def stores(model: ModelTerms, chosen: SetTerms) -> tuple[Store, ...]:
    """What a step keeps: layers' inputs, those between two kept ones, hidden states, attention
    outputs, keys and values."""
    boundary = model.layer.boundary
    # Of the last layer nothing is kept.
    interval = minimum(chosen.interval, maximum(model.layers - 1, 1))
    gradients = chosen.gradients_on_device
    # Inputs made again wait beside the hidden states, never on a disk.
    between = maximum(chosen.inputs_on_device, gradients)
    return (
        Store(
            kept_layer_inputs(model, chosen), boundary * chosen.codec_share,
            chosen.inputs_on_device, chosen.inputs_on_host, chosen.inputs_on_disk,
        ),
        Store(interval - 1, boundary, between, 1 - between, 0),
        Store(1, boundary, gradients, 1 - gradients, 0),
        Store(
            where(chosen.selective, model.layers - 1, 0), output_width(model),
            chosen.outputs_on_device, chosen.outputs_on_host, chosen.outputs_on_disk,
        ),
        Store(
            where(chosen.keeps_keys, model.layers - 1, 0), 2 * model.element * model.key_value,
            chosen.kept_keys_on_device, chosen.kept_keys_on_host, chosen.kept_keys_on_disk,
        ),
    )  # fmt: skip


def kept_layer_inputs(model: ModelTerms, chosen: SetTerms) -> Number:
    """How many layers' inputs are kept: every k-th of those between the first and the last.

    The first's are the embeddings; the last's are the hidden states when backward begins.
    """
    return floor_divide(maximum(model.layers - 2, 0), chosen.interval)


def _whole_slabs(size: Number) -> Number:
    return ceiling_divide(size, SLAB_BYTES) * SLAB_BYTES
