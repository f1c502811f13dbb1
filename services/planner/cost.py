"""Seconds of one optimiser step over one window, itemised, with bounds.

Every line carries the id of its formula in docs/reference/memory-model.md. The resident executor
queues copies and kernels on one stream; the streaming executor copies beside its kernels, so that
only what outlasts them counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.common.engine_process import CHUNK_BLOCK_BYTES, LARGE_BLOCK_BYTES
from services.planner.arithmetic import (
    Number,
    ceiling_divide,
    floor_divide,
    maximum,
    minimum,
    value_of,
    where,
)
from services.planner.merges import merge_traffic
from services.planner.resident_memory import logit_bytes, output_width
from services.planner.static_memory import NF4_BYTES_PER_WEIGHT, STREAMED_LAYERS, layer_bytes
from services.planner.streaming_memory import kept_layer_inputs
from services.planner.tables import table
from services.planner.terms import ModelTerms, SetTerms, TierTerms
from services.planner.time_terms import FORWARD_OPERATIONS, TimeTerms

# Causal attention: two products over half of S x S; backward is five products over the same.
_ATTENTION_BACKWARD = 2.5
# Thin products were measured at this rank; below it they take as long, being bound by memory.
_THIN_RANK = 16
_EXPOSED_PAGES = 2
# Of a pass's operations, what making keys again takes.
_KEYS_PASS = 0.5
_FLOAT32 = 4

FORMULAS: Mapping[str, str] = {
    "linear": "linear-flops",
    "attention": "attention-flops",
    "elementwise": "elementwise-traffic",
    "loss": "loss-flops",
    "dequantisation": "dequantisation-traffic",
    "transfer": "host-transfer",
    "disk": "disk-transfer",
    "optimizer": "optimizer-traffic",
    "launch": "launches",
}
# Lines that chunks of another length may make shorter.
SPARED_BY_CHUNKS = ("transfer", "disk", "launch", "dequantisation")


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds by line, bounds of their sum, and bytes written to disk."""

    lines: Mapping[str, Number]
    seconds: Number
    low: Number
    high: Number
    disk_written_bytes: Number


def step_cost(
    model: ModelTerms,
    tier: TierTerms,
    chosen: SetTerms,
    terms: TimeTerms,
    *,
    streaming: bool,
    chunk_tokens: Number,
    tile_rows: Number,
) -> StepCost:
    """Time of one optimiser step over one window, for one tier and set or for columns of them."""
    cost = _Cost(model, tier, chosen, terms, streaming, chunk_tokens, tile_rows)
    compute = cost.compute()
    to_host, disk = cost.transfer_seconds(), cost.disk_seconds()
    kernels = sum(compute.values())
    asked = cost.launch_seconds()
    # A GPU computes beside the thread that asks it to, a CPU in it.
    busy = maximum(kernels, asked) if terms.on_cuda else kernels + asked
    compute = compute | {"launch": busy - kernels}
    if streaming:
        copied = maximum(busy + cost.exposed_seconds(), to_host)
        seconds = maximum(copied, disk)
        exposed = {"transfer": copied - busy, "disk": seconds - copied}
    else:
        seconds = busy + to_host + disk
        exposed = {"transfer": to_host, "disk": disk}
    lowest, highest = terms.rates.spread
    margin = table("host")["step_time_margin"]
    return StepCost(
        lines=compute | exposed,
        seconds=seconds,
        low=maximum(busy / highest * (1 - margin), to_host, disk) if streaming
        else busy / highest * (1 - margin) + to_host,
        high=busy / lowest * (1 + margin) + to_host + disk,
        disk_written_bytes=cost.disk_written_bytes,
    )  # fmt: skip


class _Cost:
    def __init__(
        self,
        model: ModelTerms,
        tier: TierTerms,
        chosen: SetTerms,
        terms: TimeTerms,
        streaming: bool,
        chunk_tokens: Number,
        tile_rows: Number,
    ) -> None:
        self._model, self._tier, self._chosen, self._terms = model, tier, chosen, terms
        self._streaming, self._chunk, self._tile_rows = streaming, chunk_tokens, tile_rows
        # Of a tensor that a layer works on.
        self._rows = chunk_tokens if streaming else tier.tokens
        self._kept_below = CHUNK_BLOCK_BYTES if streaming else LARGE_BLOCK_BYTES
        self._chunks = ceiling_divide(tier.tokens, chunk_tokens)
        # Share of the layers whose inputs are made again, by one more forward.
        self._made_again = 1 - 1 / chosen.interval
        self._forwards = where(chosen.keeps_all, 1, 2) + self._made_again
        # The streaming executor's last layer goes to the loss and back at once; of chunks without
        # targets it makes keys and values only, before and with its backward.
        self._others = model.layers - streaming
        self._idle: Number = 0
        if streaming:
            unasked = tier.tokens - tier.targets - 1
            self._idle = floor_divide(unasked, chunk_tokens) * chunk_tokens
        self._busy = tier.tokens - self._idle
        # What they take, in tokens of a whole layer.
        idle = self._idle * terms.key_seconds / terms.linear_seconds
        self._backward_tokens = self._others * tier.tokens + streaming * (self._busy + idle)
        self._forward_tokens = self._others * tier.tokens * self._forwards
        self._forward_tokens += streaming * (self._busy + 2 * idle)
        # Kept attention outputs spare all forwards of attention but one.
        self._attending = where(chosen.selective, 1, self._forwards)
        self._inputs, self._outputs = self._layer_inputs(), self._kept_attention()
        self._pages = self._paged() if streaming else (0, 0)
        self.disk_written_bytes = self._disk_written() if streaming else 0

    def compute(self) -> dict[str, Number]:
        """Seconds of kernels, by line."""
        terms = self._terms
        return {
            "linear": self._linear(),
            "attention": self._attention(),
            "elementwise": self._elementwise(),
            "loss": self._loss(),
            "dequantisation": self._dequantised() / terms.rates.memory_bandwidth,
            "optimizer": self._optimizer() / terms.rates.memory_bandwidth,
        }

    def launch_seconds(self) -> Number:
        """What Python takes to ask for all passes of all chunks through layers."""
        passes = self._forward_tokens + self._backward_tokens
        keys = self._others * self._tier.tokens * (1 - self._chosen.keeps_keys)
        passes = passes + self._streaming * _KEYS_PASS * keys
        return ceiling_divide(passes, self._rows) * self._terms.launch_seconds

    def transfer_seconds(self) -> Number:
        """Copies between host and device; the two directions run side by side when streaming."""
        rates = self._terms.rates
        if not self._streaming:
            moved = where(self._chosen.inputs_on_host, self._inputs, 0)
            return _over(moved, rates.device_to_host) + _over(moved, rates.host_to_device)
        (out, back), (keys_out, keys_back) = self._pages, self._streamed_keys()
        return self._both_ways(out + keys_out, back + keys_back + self._streamed_weights())

    def _both_ways(self, out: Number, back: Number) -> Number:
        """Seconds of bytes from the device and to it, side by side."""
        rates = self._terms.rates
        return maximum(_over(out, rates.device_to_host), _over(back, rates.host_to_device))

    def exposed_seconds(self) -> Number:
        """Copies of the streaming executor's pages that nothing hides.

        A layer's first and last page have no chunk beside them: 27 % of the copies with 8 chunks
        to a layer (bench/results/gpu.json).
        """
        return minimum(1, _EXPOSED_PAGES / self._chunks) * self._both_ways(*self._pages)

    def disk_seconds(self) -> Number:
        """Page files, written in forward and read in backward; one direction at a time."""
        rates, chosen = self._terms.rates, self._chosen
        reads = where(chosen.inputs_on_disk, self._input_reads(), 0) * self._inputs
        outputs = where(chosen.outputs_on_disk, 1 + self._made_again, 0)
        reads = reads + outputs * self._outputs
        return _over(self.disk_written_bytes, rates.disk_write) + _over(reads, rates.disk_read)

    def _disk_written(self) -> Number:
        """Bytes one step writes to page files."""
        inputs = where(self._chosen.inputs_on_disk, self._inputs, 0)
        return inputs + where(self._chosen.outputs_on_disk, self._outputs, 0)

    def _linear(self) -> Number:
        """Linears of all layers: every forward, backward to inputs; adapters to weights too.

        A window or chunk that is no multiple costs as much as its share.
        """
        model, tier, terms = self._model, self._tier, self._terms
        passes = self._forward_tokens + self._backward_tokens
        # Base weights are frozen: their backward is one product, adapters' is two.
        base = passes * terms.linear_seconds / model.layers
        # The streaming executor's recompute leaves out what nothing reads.
        recomputed = self._others * tier.tokens * self._streaming
        base = base - recomputed * terms.unread_seconds / model.layers
        # Nothing asks for gradients of the embeddings.
        base = base - minimum(1, self._others) * tier.tokens * terms.input_seconds / model.layers
        # Keys that were not kept are made again; the last layer's, of chunks with queries, as well.
        keys = self._others * tier.tokens * (1 - self._chosen.keeps_keys) + self._busy
        base = base + self._streaming * keys * terms.key_seconds / model.layers
        rank = maximum(tier.rank, _THIN_RANK)
        adapters = FORWARD_OPERATIONS * rank * model.adapter_parameters
        thin = adapters * (self._forward_tokens + 2 * self._backward_tokens) / terms.thin_rate
        overhead = self._forward_tokens * terms.forward_overhead
        overhead = overhead + self._backward_tokens * terms.backward_overhead
        return base + thin + overhead / self._rows

    def _attention(self) -> Number:
        """Causal attention of all layers, at the rates of the pieces it is done in.

        A chunk does the triangle of its own keys, and blocks of those before it.
        """
        terms, tokens = self._terms, self._tier.tokens
        passes = self._attention_passes(*self._attended_pairs())
        causal = terms.attention_forward, terms.attention_backward
        if self._streaming and terms.blocks is not None:
            own = self._attention_passes(*self._triangles())
            seconds = sum(
                triangle / of_triangles.at(self._chunk)
                + (pairs - triangle) / of_blocks.at(self._chunk)
                for pairs, triangle, of_triangles, of_blocks in zip(
                    passes, own, causal, terms.blocks, strict=True
                )
            )
        else:
            seconds = sum(
                pairs / rate.at(tokens) for pairs, rate in zip(passes, causal, strict=True)
            )
        return 2.0 * self._model.query * seconds

    def _attention_passes(self, others: Number, last: Number) -> tuple[Number, Number]:
        """Of pairs: how many all forwards do, and backward."""
        return others * self._attending + last, _ATTENTION_BACKWARD * (others + last)

    def _attended_pairs(self) -> tuple[Number, Number]:
        """Twice the pairs of query and key: S S causal, 2 S w - w w in windows.

        In layers that attend in forward and in backward; in the last one, which does so once: its
        tokens with keys only have no queries.
        """
        model, tokens, idle = self._model, self._tier.tokens, self._idle
        window = minimum(model.window, tokens)
        full_layers = model.layers - model.windowed_layers
        windowed = window * (2 * tokens - window)
        pairs = full_layers * tokens * tokens + model.windowed_layers * windowed
        if not self._streaming:
            return pairs, 0
        in_window = minimum(window, idle)
        attends_to_all = model.last_windowed < 1
        last = where(attends_to_all, tokens * tokens, windowed)
        unasked = where(attends_to_all, idle * idle, in_window * (2 * idle - in_window))
        return pairs - last, last - unasked

    def _triangles(self) -> tuple[Number, Number]:
        """Those of these pairs that chunks do in triangles: at their own keys, at a window's end.

        As wide as the chunk, in a window at most as wide as that.
        """
        model, tokens, idle = self._model, self._tier.tokens, self._idle
        window = minimum(model.window, tokens)
        full_layers = model.layers - model.windowed_layers
        narrow = minimum(self._chunk, window)
        full, windowed = self._chunk * tokens, narrow * (2 * tokens - window)
        all_layers = full_layers * full + model.windowed_layers * windowed
        attends_to_all = model.last_windowed < 1
        last = where(attends_to_all, full, windowed)
        in_window = minimum(narrow, idle) * (2 * idle - minimum(window, idle))
        unasked = where(attends_to_all, self._chunk * idle, in_window)
        return all_layers - last, last - unasked

    def _elementwise(self) -> Number:
        """Everything except matrix products, at the rates of tensors of their sizes.

        A forward's traffic and operations once for each forward, twice for the backward.
        """
        there, element = self._terms.elementwise.there, self._model.element
        seconds_per_token: Number = self._terms.elementwise_overhead / self._rows
        for width, traffic in self._terms.elementwise_traffic.items():
            rate = there.at(self._rows * width * element)
            seconds_per_token = seconds_per_token + traffic / rate
        tokens = self._forward_tokens + 2 * self._backward_tokens
        own = tokens * seconds_per_token + self._page_faults()
        if not self._streaming:
            return own
        merged = merge_traffic(
            self._model, self._chosen, self._tier.tokens / self._rows,
            forwards=self._attending, window=self._model.window / self._rows,
            key_chunks=self._terms.key_chunks,
        )  # fmt: skip
        rate = there.at(self._rows * self._model.query * _FLOAT32)
        return own + self._tier.tokens * merged / rate

    def _page_faults(self) -> Number:
        """What pages of results cost that glibc gets from the system anew: of large tensors."""
        row_bytes, rates = self._rows * self._model.element, self._terms.elementwise
        return sum(
            (self._forward_tokens * forward + self._backward_tokens * backward)
            * rates.fault_seconds(row_bytes * width, self._kept_below)
            for width, (forward, backward) in self._terms.written.items()
        )

    def _loss(self) -> Number:
        """Head forward and backward on the target rows, and the softmax's passes over logits."""
        model, tier, terms = self._model, self._tier, self._terms
        flops = 2.0 * FORWARD_OPERATIONS * model.embedding_parameters * tier.targets
        # A tile is worked on in place, in fp32.
        tile_bytes = self._tile_rows * model.vocabulary * _FLOAT32
        passes = 28.0 * model.vocabulary / terms.elementwise.there.at(tile_bytes)
        # Logits and their gradient in the compute dtype, beside those in fp32.
        made = logit_bytes(model) + where(value_of(model.element) == 2, 2, 0) * model.vocabulary
        faults = made * terms.elementwise.fault_seconds(tile_bytes, self._kept_below)
        return flops / terms.head_rate + tier.targets * (passes + faults)

    def _dequantised(self) -> Number:
        """Each pass over a chunk reads the NF4 weights and writes them out in the compute dtype."""
        model, tokens = self._model, self._tier.tokens
        weights = (self._forward_tokens + self._backward_tokens) * model.layer_linear_weights
        weights = weights - self._streaming * self._others * tokens * model.unread_weights
        traffic = self._chunks * weights / tokens * (NF4_BYTES_PER_WEIGHT + model.element)
        return where(self._chosen.nf4, traffic, 0)

    def _optimizer(self) -> Number:
        """Parameters and states read and written, gradients read twice (norm, update)."""
        model = self._model
        parameters = model.layers * model.adapter_parameters * self._tier.rank
        states = where(self._chosen.adamw_8bit, 2.0, 2.0 * _FLOAT32)
        return parameters * (4 * model.adapter_element + 2 * states)

    def _layer_inputs(self) -> Number:
        """Of the layers whose inputs are kept."""
        model = self._model
        kept = kept_layer_inputs(model, self._chosen) if self._streaming else model.layers
        return kept * self._tier.tokens * model.layer.boundary * self._chosen.codec_share

    def _input_reads(self) -> Number:
        """How often backward reads a kept input: for the layer, its keys, the layers after it."""
        chosen = self._chosen
        return 1 + where(chosen.keeps_keys, 0, 1) + where(chosen.interval > 1, 1, 0)

    def _kept_attention(self) -> Number:
        """Attention outputs, and keys and values where they are kept beside."""
        model, chosen = self._model, self._chosen
        keys = where(chosen.keeps_keys, 2 * model.element * model.key_value, 0)
        width = where(chosen.selective, output_width(model), 0) + keys
        return self._others * self._tier.tokens * width

    def _paged(self) -> tuple[Number, Number]:
        """Bytes from the device and to it: stores and hidden states."""
        model, chosen, tokens = self._model, self._chosen, self._tier.tokens
        one_layer = tokens * model.layer.boundary
        inputs = where(chosen.inputs_on_device, 0, self._inputs)
        between = where(
            maximum(chosen.inputs_on_device, chosen.gradients_on_device),
            0,
            model.layers * self._made_again * one_layer,
        )
        outputs = where(chosen.outputs_on_device, 0, self._outputs)
        # Every layer reads and writes them, in forward and in backward: the first reads embeddings
        # and has no gradient to write, the last reads twice, for its keys too.
        hidden = where(chosen.gradients_on_device, 0, 2 * self._others * one_layer)
        keys_input = where(chosen.gradients_on_device, 0, one_layer)
        back = self._input_reads() * (inputs + between) + (1 + self._made_again) * outputs
        return inputs + between + outputs + hidden, back + hidden + keys_input

    def _streamed_keys(self) -> tuple[Number, Number]:
        """Each chunk reads all keys before it, and adds to their gradients in backward."""
        model, chosen, tokens = self._model, self._chosen, self._tier.tokens
        keys = model.layers * 2 * model.element * model.key_value * tokens
        gradients = model.layers * 2 * _FLOAT32 * model.key_value * tokens
        # How often all of them are read: a chunk reads those before it, half of them on average.
        times = 0.5 * (self._chunks - 1)
        out = 2 * keys + times * gradients
        back = times * (2 * keys + gradients)
        return where(chosen.keys_on_device, 0.0, out), where(chosen.keys_on_device, 0.0, back)

    def _streamed_weights(self) -> Number:
        """All layers once a pass; the two it ends with are still there for the next one."""
        model, chosen = self._model, self._chosen
        layers = maximum(model.layers - STREAMED_LAYERS, 0)
        weights = self._forwards * layers * layer_bytes(model, chosen)
        return where(chosen.weights_on_device, 0.0, weights)


def _over(size: Number, rate: float) -> Number:
    """Seconds; nothing moves over a link whose rate is not known."""
    return size / rate if rate else 0.0 * size
