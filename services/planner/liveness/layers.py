"""Decoder layers, written in the shadow vocabulary as transformers writes them in torch.

E hidden, I intermediate, Q query heads x head size, K key-value heads x head size.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.planner.liveness import operations as op
from services.planner.liveness.shadow import Meter, Tensor, leaf, run_backward


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Widths and habits of one decoder layer."""

    hidden: int
    intermediate: int
    query_heads: int
    key_value_heads: int
    head_size: int
    rank: int
    element_bytes: int
    norm: str = "rms"  # rms | rms_float | layer | layer_float
    mlp: str = "gated"  # gated | fused_gated | plain
    activation: str = "native"  # native | gelu_new
    block: str = "serial"  # serial | parallel | parallel_two_norms | sandwich | post_norm
    fused_qkv: bool = False
    query_key_norm: str = "none"  # none | head | full
    rotary_size: int = 0  # 0: the whole head
    rotary: str = "half"  # half | interleaved_float | none
    residual_scaled: bool = False
    # Queries that leave the rotary embedding through a cat lie head by head in memory, and so does
    # the attention's output, which is then copied to token order.
    attention_copied: bool = False

    @property
    def query(self) -> int:
        return self.query_heads * self.head_size

    @property
    def key_value(self) -> int:
        return self.key_value_heads * self.head_size


def norm(shape: LayerShape, hidden: Tensor, rows: float = 1) -> Tensor:
    """The family's normalisation over `hidden`; `rows` statistics per token."""
    if shape.norm == "layer":
        return op.layer_norm(hidden)
    if shape.norm == "layer_float":
        return _layer_norm_float(hidden, rows)
    return _rms_norm(hidden, rows, multiply_in_float=shape.norm == "rms_float")


def _rms_norm(hidden: Tensor, rows: float, multiply_in_float: bool) -> Tensor:
    element_bytes = hidden.element_bytes
    hidden = op.cast(hidden, 4)
    variance = op.mean(op.power(hidden), rows)
    hidden = op.multiply(hidden, op.reciprocal_root(op.add_constant(variance)))
    if multiply_in_float:
        return op.cast(op.scale(hidden, by_weight=True), element_bytes)
    return op.scale(op.cast(hidden, element_bytes), by_weight=True)


def _layer_norm_float(hidden: Tensor, rows: float) -> Tensor:
    element_bytes = hidden.element_bytes
    hidden = op.cast(hidden, 4)
    average = op.mean(hidden, rows)
    variance = op.mean(op.power(op.subtract(hidden, average)), rows)
    hidden = op.multiply(
        op.subtract(hidden, average), op.reciprocal_root(op.add_constant(variance))
    )
    hidden = op.scale(hidden, by_weight=True)
    return op.cast(hidden, element_bytes)


def rotate(shape: LayerShape, states: Tensor) -> Tensor:
    """Rotary embedding of queries or keys."""
    if shape.rotary == "none":
        return states
    if shape.rotary == "interleaved_float":
        return _rotate_interleaved(states)
    rotated = states.width * (shape.rotary_size or shape.head_size) / shape.head_size
    if rotated == states.width:
        return _rotate_half(states)
    rotating, passing = op.slice_of(states, rotated), op.slice_of(states, states.width - rotated)
    return op.concatenate(_rotate_half(rotating), passing)


def _rotate_half(states: Tensor) -> Tensor:
    # (x * cos) + (rotate_half(x) * sin)
    direct = op.scale(states, by_weight=True)
    first, second = op.slice_of(states, states.width / 2), op.slice_of(states, states.width / 2)
    return op.add(direct, op.scale(op.concatenate(op.negate(second), first), by_weight=True))


def _rotate_interleaved(states: Tensor) -> Tensor:
    element_bytes = states.element_bytes
    states = op.cast(states, 4)
    return op.cast(_rotate_half(states), element_bytes)


def attention_block(shape: LayerShape, hidden: Tensor) -> Tensor:
    """Projections, rotary embedding, attention, output projection."""
    if shape.fused_qkv:
        query, key, value = _fused_projections(shape, hidden)
    else:
        query, key, value = _projections(shape, hidden)
    query, key = rotate(shape, query), rotate(shape, key)
    output = op.attention(query, key, value, shape.query_heads)
    if shape.attention_copied:
        output = op.copied(output)
    return op.lora_linear(output, shape.hidden, shape.rank)


def _projections(shape: LayerShape, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query = op.lora_linear(hidden, shape.query, shape.rank)
    key = op.lora_linear(hidden, shape.key_value, shape.rank)
    if shape.query_key_norm == "none":
        value = op.lora_linear(hidden, shape.key_value, shape.rank)
        return op.transposed(query), op.transposed(key), value
    by_head = shape.query_key_norm == "head"
    query = op.transposed(norm(shape, query, shape.query_heads if by_head else 1))
    key = op.transposed(norm(shape, key, shape.key_value_heads if by_head else 1))
    value = op.lora_linear(hidden, shape.key_value, shape.rank)
    return query, key, value


def _fused_projections(shape: LayerShape, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    fused = op.lora_linear(hidden, shape.query + 2 * shape.key_value, shape.rank)
    query = op.transposed(op.slice_of(fused, shape.query))
    key = op.transposed(op.slice_of(fused, shape.key_value))
    return query, key, op.slice_of(fused, shape.key_value)


def activate(shape: LayerShape, states: Tensor) -> Tensor:
    """The MLP's activation function."""
    if shape.activation == "native":
        return op.activation(states)
    # 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))
    half = op.scale(states)
    inner = op.scale(op.add(states, op.scale(op.power(states))))
    return op.multiply(half, op.add_constant(op.hyperbolic_tangent(inner)))


def mlp(shape: LayerShape, hidden: Tensor) -> Tensor:
    """The feed-forward network."""
    rank, width = shape.rank, shape.intermediate
    if shape.mlp == "plain":
        return op.lora_linear(
            activate(shape, op.lora_linear(hidden, width, rank)), shape.hidden, rank
        )
    if shape.mlp == "fused_gated":
        both = op.lora_linear(hidden, 2 * width, rank)
        gate, up = op.split(both, width, width)
        up = op.multiply(up, activate(shape, gate))
        return op.lora_linear(up, shape.hidden, rank)
    gated = op.multiply(
        activate(shape, op.lora_linear(hidden, width, rank)), op.lora_linear(hidden, width, rank)
    )
    return op.lora_linear(gated, shape.hidden, rank)


def residual_add(shape: LayerShape, residual: Tensor, update: Tensor) -> Tensor:
    """residual + update, scaled in families that scale it."""
    if shape.residual_scaled:
        update = op.scale(update, by_weight=True)
    return op.add(residual, update)


def decoder_layer(shape: LayerShape, hidden: Tensor) -> Tensor:
    """One decoder layer, block by block as its family orders them."""
    if shape.block == "parallel":
        normed = norm(shape, hidden)
        attended = attention_block(shape, normed)
        return op.add(op.add(attended, mlp(shape, normed)), hidden)
    if shape.block == "parallel_two_norms":
        attended = attention_block(shape, norm(shape, hidden))
        return op.add(op.add(mlp(shape, norm(shape, hidden)), attended), hidden)
    before, after = shape.block in ("serial", "sandwich"), shape.block in ("sandwich", "post_norm")
    for part in (attention_block, mlp):
        residual = hidden
        if before:
            hidden = norm(shape, hidden)
        hidden = part(shape, hidden)
        if after:
            hidden = norm(shape, hidden)
        hidden = residual_add(shape, residual, hidden)
    return hidden


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes per token at the highest moment, by line, and what is still alive at the end."""

    peak: float
    lines: dict[str, float]
    kept: float


def forward_usage(shape: LayerShape) -> Usage:
    """A forward pass that saves nothing, as under activation checkpointing. The layer's input is
    not counted, its output is."""
    meter = Meter(saving=False)
    hidden = _input(meter, shape)
    output = decoder_layer(shape, hidden)
    return Usage(meter.peak, meter.peak_lines, output.storage.size)


def recompute_usage(shape: LayerShape) -> Usage:
    """Recompute and backward of a checkpointed layer. The layer's input is not counted; the
    gradient that comes in is."""
    counting = Meter()
    decoder_layer(shape, leaf(counting, shape.hidden, shape.element_bytes))
    meter = Meter()
    hidden = _input(meter, shape)
    incoming = [hidden.like()]
    # Recomputation starts when the first saved tensor is asked for. Unless the layer ends in a
    # norm, that is after the adapter of the last projection has scaled the gradient.
    scaled = [hidden.like() for _ in range(_gradients_before_recompute(shape))]
    meter.stop_after_save = counting.save_count
    output = decoder_layer(shape, hidden)
    scaled.clear()
    meter.muted = False
    run_backward(output, incoming)
    return Usage(meter.peak, meter.peak_lines, 0.0)


def _gradients_before_recompute(shape: LayerShape) -> int:
    if shape.block in ("sandwich", "post_norm"):
        return 0
    return 2 if shape.residual_scaled else 1


def saving_usage(shape: LayerShape) -> Usage:
    """Forward and backward without checkpointing. `kept` is what the forward pass leaves alive
    (without the layer's input, with its output); `peak` is reached in backward."""
    meter = Meter()
    hidden = _input(meter, shape)
    output = decoder_layer(shape, hidden)
    kept = meter.live
    meter.peak, meter.peak_lines = 0.0, {}
    run_backward(output, [output.like()])
    return Usage(meter.peak, meter.peak_lines, kept)


def _input(meter: Meter, shape: LayerShape) -> Tensor:
    hidden = leaf(meter, shape.hidden, shape.element_bytes, "input")
    meter.change(-meter.live, "input")
    meter.peak, meter.peak_lines = 0.0, {}
    return hidden
