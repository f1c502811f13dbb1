"""Memory of the streaming executor, phase by phase: one layer at a time, chunk by chunk.

What grows with the window is the keys, values and their fp32 gradients of one layer, and the
stores; everything else grows with the chunk. Formula ids: streaming-keys, streaming-chunk,
streaming-stores and those of static_memory.
"""

from __future__ import annotations

from services.planner.arithmetic import (
    Number,
    ceiling_divide,
    maximum,
    minimum,
    power_of_two_to,
    where,
    whole,
)
from services.planner.resident_memory import (
    LARGEST_TILE_ROWS,
    SMALLEST_TILE_ROWS,
    Lines,
    logit_bytes,
)
from services.planner.static_memory import Static
from services.planner.terms import ModelTerms, SetTerms, TierTerms

SMALLEST_CHUNK = 256
# The chunk's share of the budget beside the weights; the rest is for what grows with the window.
_CHUNK_SHARE = 1 / 8
_CHUNK_SHARE_FOR_STREAMED_KEYS = 1 / 2
# Beyond this a longer chunk buys no time: products have reached their full rate.
LARGEST_CHUNK = 8192
# Keys that stream from the host are read once a chunk: longer chunks hide it.
LARGEST_CHUNK_FOR_STREAMED_KEYS = 32768
# Host pages are carved from slabs of this size, so that pinned memory's rounding costs nothing.
SLAB_BYTES = 256 * 2**20
_FLOAT32 = 4
# A store off the device keeps the page at work and the next one on it.
_BUFFERED_PAGES = 2


class StreamingMemory:
    """One model under one dtype; tiers and sets may be columns.

    device_budget: bytes the chunk may grow into. chunk_tokens: 0 sizes it, else it is given.
    """

    def __init__(
        self,
        model: ModelTerms,
        tier: TierTerms,
        chosen: SetTerms,
        static: Static,
        device_budget: Number,
        chunk_tokens: Number = 0,
    ) -> None:
        self._model, self._tier, self._chosen, self._static = model, tier, chosen, static
        self._trained = {
            "base_model": static.base_model, "lora": static.lora, "optimizer": static.optimizer,
        }  # fmt: skip
        self._boundary = tier.tokens * model.layer.boundary
        self._layer_inputs = self._kept_inputs()
        # Inputs of the layers between two kept ones, made again for one segment at a time.
        self._segment_inputs = (chosen.interval - 1) * self._boundary
        self._attention_outputs = self._kept_outputs()
        self._keys = tier.tokens * 2 * model.element * model.key_value
        self._key_gradients = tier.tokens * 2 * _FLOAT32 * model.key_value
        self._on_device, self._pages = self._stores()
        self.chunk_tokens = chunk_tokens or self._chunk(device_budget)
        self.tile_rows = self._loss_tile_rows()

    def phases(self) -> dict[str, Lines]:
        """Lines of every phase, without the CUDA context: the budget is net of it."""
        static, chunk = self._static, self.chunk_tokens
        update = {
            "gradients": static.lora,
            "buffers": where(self._chosen.adamw_8bit, 0, static.lora),
        }
        return {
            "load": {
                "base_model": static.base_model, "lora": static.lora,
                "buffers": static.dequantised,
            },
            "forward": self._trained | self._forward(chunk),
            "loss": self._trained | self._loss(self.tile_rows),
            "backward": self._trained | self._backward(chunk),
            "optimizer": self._trained | update,
        }  # fmt: skip

    def host_stores(self) -> Lines:
        """Stores in pinned memory, slab by slab, and weights that are streamed."""
        chosen = self._chosen
        keys = where(chosen.keys_on_device, 0, self._keys + self._key_gradients)
        gradients = where(chosen.gradients_on_device, 0, self._boundary)
        activations = (
            _slabs(where(chosen.inputs_on_host, self._layer_inputs, 0))
            + _slabs(where(chosen.inputs_on_device, 0, self._segment_inputs))
            + _slabs(where(chosen.outputs_on_host, self._attention_outputs, 0))
            + _slabs(gradients)
        )
        return {
            "activations": activations,
            "kv": _slabs(keys),
            "base_model": _slabs(self._static.host_weights),
        }

    def disk_stores(self) -> Lines:
        """Page files."""
        chosen = self._chosen
        inputs = where(chosen.inputs_on_disk, self._layer_inputs, 0)
        outputs = where(chosen.outputs_on_disk, self._attention_outputs, 0)
        return {"activations": inputs + outputs}

    def _chunk(self, device_budget: Number) -> Number:
        """A share of what the weights leave of the budget, in whole powers of two.

        It does not depend on the window, so that a longer one never takes less. A window shorter
        than a chunk is one chunk.
        """
        keys_here = self._chosen.keys_on_device
        share = where(keys_here, _CHUNK_SHARE, _CHUNK_SHARE_FOR_STREAMED_KEYS)
        per_token = sum(self._backward(1).values()) - sum(self._backward(0).values())
        room = (device_budget - self._static.base_model) * share // per_token
        useful = where(keys_here, LARGEST_CHUNK, LARGEST_CHUNK_FOR_STREAMED_KEYS)
        fitting = minimum(power_of_two_to(maximum(room, SMALLEST_CHUNK)), useful)
        return minimum(fitting, self._tier.tokens)

    def _loss_tile_rows(self) -> Number:
        """Largest power of two for which the loss takes no more than backward does."""
        without, with_one = (sum(self._loss(count).values()) for count in (0, 1))
        room = sum(self._backward(self.chunk_tokens).values()) - without
        fitting = power_of_two_to(maximum(room // (with_one - without), SMALLEST_TILE_ROWS))
        return minimum(fitting, LARGEST_TILE_ROWS, power_of_two_to(self._tier.targets))

    def _kept_inputs(self) -> Number:
        kept = ceiling_divide(self._model.layers, self._chosen.interval)
        return whole(kept * self._boundary * self._chosen.codec_share)

    def _kept_outputs(self) -> Number:
        kept = self._model.layers * self._tier.tokens * self._output_width()
        return where(self._chosen.selective, kept, 0)

    def _output_width(self) -> Number:
        """Bytes per token of one layer's attention output and log-sum-exp."""
        return self._model.element * self._model.query + _FLOAT32 * self._model.query_heads

    def _stores(self) -> tuple[Number, Number]:
        """Bytes of the stores on the device, and per chunk token of the pages of the others."""
        chosen = self._chosen
        page = _BUFFERED_PAGES * self._model.layer.boundary
        output_page = _BUFFERED_PAGES * self._output_width()
        outputs_elsewhere = chosen.outputs_on_host | chosen.outputs_on_disk
        on_device = (
            where(chosen.inputs_on_device, self._layer_inputs + self._segment_inputs, 0)
            + where(chosen.gradients_on_device, self._boundary, 0)
            + where(chosen.outputs_on_device, self._attention_outputs, 0)
        )
        pages = (
            where(chosen.inputs_on_device, 0, page)
            + where(chosen.gradients_on_device, 0, page)
            + where(outputs_elsewhere, output_page, 0)
        )
        return on_device, pages

    def _forward(self, chunk: Number) -> Lines:
        model, chosen = self._model, self._chosen
        working = chunk * (model.layer.forward + self._attention_working())
        keys_on_device = where(chosen.keys_on_device, self._keys, self._key_pages(chunk))
        return {
            "activations": self._on_device + chunk * self._pages + working,
            "kv": keys_on_device,
            "buffers": chunk * model.rotary,
        }

    def _loss(self, tile_rows: Number) -> Lines:
        model = self._model
        hidden = model.element * model.hidden
        rows = tile_rows * (model.final_norm_output + 4 * hidden)
        return {
            "activations": self._on_device + self.chunk_tokens * self._pages + rows,
            "buffers": logit_bytes(model) * tile_rows,
        }

    def _backward(self, chunk: Number) -> Lines:
        model, chosen = self._model, self._chosen
        layer = model.layer.backward(self._tier.rank) + model.layer.boundary
        working = chunk * (layer + self._attention_working())
        keys = where(
            chosen.keys_on_device, self._keys + self._key_gradients, self._key_pages(chunk)
        )
        return {
            "activations": self._on_device + chunk * self._pages + working,
            "kv": keys,
            "gradients": self._static.lora,
            "buffers": chunk * model.rotary + self._static.dequantised,
        }

    def _attention_working(self) -> Number:
        """fp32 output and query gradient of a chunk, and one block's share of each."""
        model = self._model
        return 2 * _FLOAT32 * model.query + 2 * model.element * model.query

    def _key_pages(self, chunk: Number) -> Number:
        """Two pages of keys, values and their gradients: streamed keys come by the chunk."""
        model = self._model
        pages = _BUFFERED_PAGES * chunk * 2 * (model.element + _FLOAT32) * model.key_value
        return minimum(pages, self._keys + self._key_gradients)


def _slabs(size: Number) -> Number:
    return ceiling_divide(size, SLAB_BYTES) * SLAB_BYTES
