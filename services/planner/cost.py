"""Seconds of one optimiser step over one window, itemised.

Every line carries the id of its formula in docs/reference/memory-model.md. Rates are the machine's;
nothing overlaps: the resident executor queues copies and kernels on one stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.planner.architectures import Mlp, Norm
from services.planner.ladder import Tier
from services.planner.machine import ComputeDtype, Machine, Rates
from services.planner.memory import NF4_BYTES_PER_WEIGHT
from services.planner.models import ModelShape
from services.planner.options import BasePrecision, OptimizationSet

# Multiply-adds count twice. Base weights are frozen, so their backward is one product, and
# adapters' is two.
_FORWARD = 2
# Causal attention: two products over half of S x S; backward is five products over the same.
_ATTENTION_BACKWARD = 2.5


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds by line."""

    lines: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """The whole step."""
        return sum(self.lines.values())


FORMULAS: Mapping[str, str] = {
    "linear": "linear-flops",
    "attention": "attention-flops",
    "elementwise": "elementwise-traffic",
    "loss": "loss-flops",
    "dequantisation": "dequantisation-traffic",
    "transfer": "layer-input-transfer",
    "optimizer": "optimizer-traffic",
}


def step_cost(model: ModelShape, tier: Tier, chosen: OptimizationSet, machine: Machine) -> StepCost:
    """Time of one optimiser step over one window."""
    rates, dtype = machine.rates, chosen.dtype
    matmul = matmul_rate(rates, dtype)
    lines = {
        "linear": linear_flops(model, tier, chosen) / matmul,
        "attention": attention_flops(model, tier, chosen) / attention_rate(rates, tier),
        "elementwise": elementwise_bytes(model, tier, chosen) / rates.memory_bandwidth,
        "loss": _loss_seconds(model, tier, rates, matmul),
        "dequantisation": _dequantised_bytes(model, chosen) / rates.memory_bandwidth,
        "transfer": _transfer_seconds(model, tier, chosen, rates),
        "optimizer": _optimizer_bytes(model, tier, chosen) / rates.memory_bandwidth,
    }
    return StepCost({name: seconds for name, seconds in lines.items() if seconds > 0})


def matmul_rate(rates: Rates, dtype: ComputeDtype) -> float:
    """Matrix-product FLOP/s in this dtype."""
    return rates.matmul_32bit if dtype is ComputeDtype.FLOAT32 else rates.matmul_16bit


def attention_rate(rates: Rates, tier: Tier) -> float:
    """Attention FLOP/s at the window's length: linear between the measured ones, constant outside.

    fp32 is computed on CPUs only, whose flash kernel works in fp32 inside: as fast as in 16 bit.
    """
    points, tokens = rates.attention, tier.tokens
    below = [point for point in points if point[0] <= tokens]
    above = [point for point in points if point[0] > tokens]
    if not below:
        return above[0][1]
    if not above:
        return below[-1][1]
    (left, left_rate), (right, right_rate) = below[-1], above[0]
    share = (tokens - left) / (right - left)
    return left_rate + share * (right_rate - left_rate)


def linear_flops(model: ModelShape, tier: Tier, chosen: OptimizationSet) -> float:
    """Linears of all layers: forward, recompute, backward to inputs; adapters to weights too."""
    forwards = 2 if chosen.checkpointing else 1
    base = _FORWARD * model.linear_weights * (forwards + 1)
    adapters = _FORWARD * model.lora_parameters(tier.lora_rank) * (forwards + 2)
    return float(tier.tokens * (base + adapters))


def attention_flops(model: ModelShape, tier: Tier, chosen: OptimizationSet) -> float:
    """Causal attention of all layers."""
    forwards = 2 if chosen.checkpointing else 1
    causal = 2.0 * model.query_width * tier.tokens**2
    return model.layer_count * causal * (forwards + _ATTENTION_BACKWARD)


def elementwise_bytes(model: ModelShape, tier: Tier, chosen: OptimizationSet) -> float:
    """Bytes that everything except matrix products reads and writes.

    A forward's traffic once for the forward, once for the recompute, twice for the backward.
    """
    passes = (2 if chosen.checkpointing else 1) + 2
    per_token = _forward_traffic(model, chosen.dtype.element_bytes)
    return float(passes * model.layer_count * tier.tokens * per_token)


def _forward_traffic(model: ModelShape, element: int) -> float:
    """Bytes per token and layer: adapters' sums, norms, rotary embedding, activation, residuals."""
    outputs = sum(linear.outputs for linear in model.linears)
    # Thin products: A reads the input, B writes the output; then scale and add (two and three).
    inputs = sum(linear.inputs for linear in model.linears)
    adapters = element * (inputs + 6 * outputs)
    # fp32: cast, square, mean, scale, cast back, weight; native: one kernel.
    native = model.architecture.norm is Norm.LAYER
    norm = (2 * element if native else 24 + 4 * element) * model.hidden_size
    norms = model.architecture.norm_count * norm
    # Two products and their sum, and the half-turn's copy.
    rotary = 10 * element * (model.query_width + model.key_value_width)
    gate = 0 if model.architecture.mlp is Mlp.PLAIN else 3
    steps = 14 if model.activation == "gelu_new" else 2
    mlp = (steps + gate) * element * model.intermediate_size
    residuals = 6 * element * model.hidden_size
    return adapters + norms + rotary + mlp + residuals


def _loss_seconds(model: ModelShape, tier: Tier, rates: Rates, matmul: float) -> float:
    """Head forward and backward on the target rows, and the softmax's passes over the logits."""
    flops = 2 * _FORWARD * model.embedding_parameters * tier.target_tokens
    logits = 28 * model.vocabulary_size * tier.target_tokens
    return flops / matmul + logits / rates.memory_bandwidth


def _dequantised_bytes(model: ModelShape, chosen: OptimizationSet) -> float:
    """Each pass reads the NF4 weights and writes them out in the compute dtype."""
    if chosen.base_precision is BasePrecision.FULL:
        return 0.0
    passes = 3 if chosen.checkpointing else 2
    return passes * model.linear_weights * (NF4_BYTES_PER_WEIGHT + chosen.dtype.element_bytes)


def _transfer_seconds(
    model: ModelShape, tier: Tier, chosen: OptimizationSet, rates: Rates
) -> float:
    """Layer inputs out in forward and back in backward, on the compute stream."""
    if not chosen.layer_inputs_on_host:
        return 0.0
    moved = model.layer_count * tier.tokens * model.hidden_size * chosen.dtype.element_bytes
    return moved / rates.device_to_host + moved / rates.host_to_device


def _optimizer_bytes(model: ModelShape, tier: Tier, chosen: OptimizationSet) -> float:
    """Parameters and states read and written, gradients read twice (norm, update)."""
    element = chosen.dtype.element_bytes
    states = 2.0 if chosen.adamw_8bit else 2.0 * element
    return model.lora_parameters(tier.lora_rank) * (4 * element + 2 * states)
