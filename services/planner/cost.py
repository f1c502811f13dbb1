"""Seconds of one optimiser step over one window, itemised, with bounds.

Every line carries the id of its formula in docs/reference/memory-model.md. The resident executor
queues copies and kernels on one stream; the streaming executor copies beside its kernels, so that
only what outlasts them counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from services.common.engine_process import CHUNK_BLOCK_BYTES, LARGE_BLOCK_BYTES
from services.planner.adapters import Adapters
from services.planner.architectures import Mlp, Norm
from services.planner.arithmetic import Number, ceiling_divide, maximum, minimum, where
from services.planner.models import Linear, ModelShape
from services.planner.options import OptimizationSet
from services.planner.rates import DtypeRates, ElementwiseRates, RateCurve, Rates
from services.planner.static_memory import NF4_BYTES_PER_WEIGHT, STREAMED_LAYERS, layer_bytes
from services.planner.tables import table
from services.planner.terms import ModelTerms, SetTerms, TierTerms

# Multiply-adds count twice. Base weights are frozen, so their backward is one product; adapters'
# is two.
_FORWARD = 2
# Causal attention: two products over half of S x S; backward is five products over the same.
_ATTENTION_BACKWARD = 2.5
# Thin products were measured at this rank; below it they take as long, being bound by memory.
_THIN_RANK = 16
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
}


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds by line, bounds of their sum, and bytes written to disk."""

    lines: Mapping[str, Number]
    seconds: Number
    low: Number
    high: Number
    disk_written_bytes: Number


@dataclass(frozen=True, slots=True)
class TimeTerms:
    """What one model costs on one machine in one dtype: seconds and bytes per token, and rates."""

    linear_seconds: Number
    key_seconds: Number
    unread_seconds: Number
    # Bytes by the width of the tensor that is written.
    elementwise_traffic: Mapping[int, float]
    head_rate: Number
    thin_rate: Number
    # What products cost beside their operations, for one chunk of one layer: forward, backward.
    forward_overhead: Number
    backward_overhead: Number
    attention_forward: RateCurve
    attention_backward: RateCurve
    elementwise: ElementwiseRates
    rates: Rates


def time_terms(
    model: ModelShape, chosen: OptimizationSet, adapters: Adapters, rates: Rates
) -> TimeTerms:
    """The terms of a model under the dtype and heads of a set.

    Raises `ValueError` when the machine has no rates for the dtype.
    """
    of_dtype = rates.of(chosen.dtype.element_bytes)
    if of_dtype is None:
        raise ValueError(f"no rates for {chosen.dtype.value}")
    converted = model.with_key_value_heads(chosen.key_value_heads)
    rows = zip(converted.architecture.linears, converted.linears, strict=True)
    attention = [
        linear for row, linear in rows if row.outputs in ("query", "key_value", "query_key_value")
    ]
    forward, backward = of_dtype.attention(converted.head_size)
    products = len(converted.linears)
    adapted = sum(adapters.targets(linear.name) for linear in converted.linears)
    return TimeTerms(
        linear_seconds=converted.layer_count * _product_seconds(converted.linears, of_dtype),
        key_seconds=converted.layer_count * _product_seconds(attention, of_dtype),
        unread_seconds=converted.layer_count * _product_seconds(converted.unread_linears, of_dtype),
        elementwise_traffic=_forward_traffic(converted, chosen.dtype.element_bytes, adapters),
        head_rate=of_dtype.head,
        thin_rate=of_dtype.thin,
        forward_overhead=(products + 2 * adapted) * of_dtype.product_overhead_seconds,
        backward_overhead=(products + 4 * adapted) * of_dtype.product_overhead_seconds,
        attention_forward=forward,
        attention_backward=backward,
        elementwise=of_dtype.elementwise,
        rates=rates,
    )


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
    busy = sum(compute.values())
    if streaming:
        copied = maximum(busy, to_host)
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
        disk_written_bytes=cost.disk_written(),
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
        # Share of the layers whose inputs are made again, by one more forward.
        self._made_again = 1 - 1 / chosen.interval
        self._forwards = where(chosen.keeps_all, 1, 2) + self._made_again
        # Tokens of which the streaming executor's last layer makes keys and values only: those of
        # chunks without targets.
        self._keys_only: Number = 0
        if streaming:
            self._keys_only = (tier.tokens - tier.targets - 1) // chunk_tokens * chunk_tokens
        # What they spare, in tokens of one layer.
        spared = 1 - terms.key_seconds / terms.linear_seconds
        self._layer_tokens = model.layers * tier.tokens - self._keys_only * spared

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

    def transfer_seconds(self) -> Number:
        """Copies between host and device; the two directions run side by side when streaming."""
        rates = self._terms.rates
        if not self._streaming:
            moved = where(self._chosen.inputs_on_host, self._layer_inputs(), 0)
            return _over(moved, rates.device_to_host) + _over(moved, rates.host_to_device)
        out, back = self._streamed()
        return maximum(_over(out, rates.device_to_host), _over(back, rates.host_to_device))

    def disk_seconds(self) -> Number:
        """Page files, written in forward and read in backward; one direction at a time."""
        rates, chosen = self._terms.rates, self._chosen
        reads = where(chosen.inputs_on_disk, self._input_reads(), 0) * self._layer_inputs()
        outputs = where(chosen.outputs_on_disk, 1 + self._made_again, 0)
        reads = reads + outputs * self._kept_attention()
        return _over(self.disk_written(), rates.disk_write) + _over(reads, rates.disk_read)

    def disk_written(self) -> Number:
        """Bytes one step writes to page files."""
        if not self._streaming:
            return 0
        outputs = where(self._chosen.outputs_on_disk, self._kept_attention(), 0)
        return self._on_disk_inputs() + outputs

    def _linear(self) -> Number:
        """Linears of all layers: every forward, backward to inputs; adapters to weights too.

        A window or chunk that is no multiple costs as much as its share.
        """
        model, tier, terms = self._model, self._tier, self._terms
        # The streaming executor's recompute leaves out what nothing reads.
        unread = terms.unread_seconds * self._streaming
        products = terms.linear_seconds * (self._forwards + 1) - unread
        base = self._layer_tokens / model.layers * products
        makes_keys = self._streaming & (1 - self._chosen.keeps_keys)
        # Backward begins with the last layer's, which are there.
        share = (model.layers - 1) / model.layers
        keys = tier.tokens * terms.key_seconds * share * makes_keys
        rank = maximum(tier.rank, _THIN_RANK)
        adapters = _FORWARD * rank * model.adapter_parameters * self._layer_tokens
        calls = self._layer_tokens / self._rows
        overhead = calls * (self._forwards * terms.forward_overhead + terms.backward_overhead)
        return base + keys + adapters * (self._forwards + 2) / terms.thin_rate + overhead

    def _attention(self) -> Number:
        """Causal attention of all layers; kept outputs spare every forward but the first."""
        model, tier, terms = self._model, self._tier, self._terms
        causal = 2.0 * model.query * self._attended_pairs()
        forwards = where(self._chosen.selective, 1, self._forwards)
        return causal * forwards / terms.attention_forward.at(
            tier.tokens
        ) + causal * _ATTENTION_BACKWARD / terms.attention_backward.at(tier.tokens)

    def _attended_pairs(self) -> Number:
        """Twice the pairs of query and key in all layers: S S causal, 2 S w - w w in windows.

        Tokens with keys only have no queries; where any layer attends to all, the last one does.
        """
        model, tokens, idle = self._model, self._tier.tokens, self._keys_only
        window = minimum(model.window, tokens)
        full_layers = model.layers - model.windowed_layers
        pairs = full_layers * tokens * tokens
        pairs = pairs + model.windowed_layers * window * (2 * tokens - window)
        in_window = minimum(window, idle)
        return pairs - where(full_layers > 0, idle * idle, in_window * (2 * idle - in_window))

    def _elementwise(self) -> Number:
        """Everything except matrix products, at the rates of tensors of their sizes.

        A forward's traffic once for each forward, twice for the backward.
        """
        seconds_per_token: Number = 0
        for width, traffic in self._terms.elementwise_traffic.items():
            size = self._rows * width * self._model.element
            seconds_per_token = seconds_per_token + traffic / self._elementwise_rate(size)
        return (self._forwards + 2) * self._layer_tokens * seconds_per_token

    def _elementwise_rate(self, tensor_bytes: Number) -> Number:
        kept_below = CHUNK_BLOCK_BYTES if self._streaming else LARGE_BLOCK_BYTES
        return self._terms.elementwise.at(tensor_bytes, kept_below)

    def _loss(self) -> Number:
        """Head forward and backward on the target rows, and the softmax's passes over logits."""
        model, tier, terms = self._model, self._tier, self._terms
        flops = 2.0 * _FORWARD * model.embedding_parameters * tier.targets
        logits = 28.0 * model.vocabulary * tier.targets
        # A tile is worked on in place, in fp32.
        tile_bytes = self._tile_rows * model.vocabulary * _FLOAT32
        return flops / terms.head_rate + logits / terms.elementwise.there.at(tile_bytes)

    def _dequantised(self) -> Number:
        """Each pass over a chunk reads the NF4 weights and writes them out in the compute dtype."""
        model = self._model
        passes = (self._forwards + 1) * model.layer_linear_weights
        weights = passes - model.unread_weights * self._streaming
        chunks = ceiling_divide(self._tier.tokens, self._chunk)
        traffic = model.layers * chunks * weights * (NF4_BYTES_PER_WEIGHT + model.element)
        return where(self._chosen.nf4, traffic, 0)

    def _optimizer(self) -> Number:
        """Parameters and states read and written, gradients read twice (norm, update)."""
        model = self._model
        parameters = model.layers * model.adapter_parameters * self._tier.rank
        states = where(self._chosen.adamw_8bit, 2.0, 2.0 * model.adapter_element)
        return parameters * (4 * model.adapter_element + 2 * states)

    def _layer_inputs(self) -> Number:
        """Of the layers whose inputs are kept; the streaming executor looks the first's up."""
        model = self._model
        kept = model.layers
        if self._streaming:
            kept = (model.layers - 1) // self._chosen.interval
        return kept * self._tier.tokens * model.layer.boundary * self._chosen.codec_share

    def _input_reads(self) -> Number:
        """How often backward reads a kept input: for the layer, its keys, the layers after it."""
        chosen = self._chosen
        return 1 + where(chosen.keeps_keys, 0, 1) + where(chosen.interval > 1, 1, 0)

    def _on_disk_inputs(self) -> Number:
        return where(self._chosen.inputs_on_disk, self._layer_inputs(), 0)

    def _kept_attention(self) -> Number:
        """Attention outputs of all layers, and keys and values where they are kept beside."""
        model, chosen = self._model, self._chosen
        outputs = model.element * model.query + _FLOAT32 * model.query_heads
        keys = where(chosen.keeps_keys, 2 * model.element * model.key_value, 0)
        with_outputs = model.layers * self._tier.tokens - self._keys_only
        outputs = where(chosen.selective, with_outputs * outputs, 0)
        return outputs + model.layers * self._tier.tokens * keys

    def _streamed(self) -> tuple[Number, Number]:
        """Bytes from the device and to it: stores, hidden states, keys, weights."""
        model, chosen, tokens = self._model, self._chosen, self._tier.tokens
        one_layer = tokens * model.layer.boundary
        inputs = where(chosen.inputs_on_device, 0, self._layer_inputs())
        between = where(
            chosen.inputs_on_device | chosen.gradients_on_device,
            0,
            model.layers * self._made_again * one_layer,
        )
        outputs = where(chosen.outputs_on_device, 0, self._kept_attention())
        # Every layer reads and writes them, in forward and in backward.
        hidden = where(chosen.gradients_on_device, 0, 2 * model.layers * one_layer)
        keys_out, keys_back = self._streamed_keys()
        return (
            inputs + between + outputs + hidden + keys_out,
            self._input_reads() * (inputs + between)
            + (1 + self._made_again) * outputs
            + hidden
            + keys_back
            + self._streamed_weights(),
        )

    def _streamed_keys(self) -> tuple[Number, Number]:
        """Each chunk reads all keys before it, and adds to their gradients in backward."""
        model, chosen, tokens = self._model, self._chosen, self._tier.tokens
        keys = model.layers * 2 * model.element * model.key_value * tokens
        gradients = model.layers * 2 * _FLOAT32 * model.key_value * tokens
        # How often all of them are read: a chunk reads those before it, half of them on average.
        times = 0.5 * (ceiling_divide(tokens, self._chunk) - 1)
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


def _width(inputs: int, outputs: int) -> float:
    """Harmonic mean of a weight's sides: the smaller one decides how fast its product runs."""
    return 2 * inputs * outputs / (inputs + outputs)


def _product_seconds(linears: tuple[Linear, ...] | list[Linear], rates: DtypeRates) -> float:
    """Seconds per token of one product with each weight."""
    return sum(
        _FORWARD
        * linear.weight_count
        / float(rates.matmul.at(_width(linear.inputs, linear.outputs)))
        for linear in linears
    )


def _forward_traffic(model: ModelShape, element: int, adapters: Adapters) -> Mapping[int, float]:
    """Bytes per token and layer, by the width of what is written.

    Adapters' sums, norms, rotary embedding, activation, residuals.
    """
    traffic: dict[int, float] = defaultdict(float)
    for linear in model.linears:
        if adapters.targets(linear.name):
            # Scale and add its output (two and three passes); its products are thin, see linear.
            traffic[linear.outputs] += 5 * element
    # fp32: cast, square, mean, scale, cast back, weight; native: one kernel.
    native = model.architecture.norm is Norm.LAYER
    norm = 2 * element if native else 24 + 4 * element
    # Residuals and their sums, three passes each.
    traffic[model.hidden_size] += model.architecture.norm_count * norm + 6 * element
    # Two products and their sum, and the half-turn's copy.
    for width in (model.query_width, model.key_value_width):
        traffic[width] += 10 * element
    gate = 0 if model.architecture.mlp is Mlp.PLAIN else 3
    steps = 14 if model.activation == "gelu_new" else 2
    traffic[model.intermediate_size] += (steps + gate) * element
    return {width: amount * width for width, amount in traffic.items()}
