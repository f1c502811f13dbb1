"""What stands on the device through a whole run: weights, adapters, optimizer states.

Formula ids: weights, lora-parameters, lora-gradients, optimizer-states.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.planner.arithmetic import Number, maximum, value_of, where, whole
from services.planner.terms import ModelTerms, SetTerms, TierTerms

# NF4 with double quantisation: half a byte, one byte of scale per 64 weights, one fp32 scale of
# scales per 256 scales (QLoRA, arXiv 2305.14314).
NF4_BYTES_PER_WEIGHT = 1 / 2 + 1 / 64 + 4 / (64 * 256)
# bitsandbytes keeps two 8-bit states with an fp32 scale per 256 elements, and 32-bit states for
# tensors below 4096 elements.
_EIGHT_BIT_STATE = 2 + 2 * 4 / 256
_SMALL_TENSOR = 4096
_FLOAT32 = 4
_FLOAT32_STATES = 2 * _FLOAT32
# Layers on the device when weights are streamed: the one at work, and the next or the last one.
STREAMED_LAYERS = 2


@dataclass(frozen=True, slots=True)
class Static:
    """Bytes of what stands. `host_weights` is nothing unless weights are streamed.

    converted: what weights take on their way from a mapped file through the host: the largest in
    the compute dtype, of weights that are streamed a layer, and those that are made anew, in the
    file's dtype. update: what the optimizer works with beside. torch's AdamW, of fp32 adapters,
    works on all parameters at once and needs their size again; bitsandbytes' on one after another,
    in place.
    """

    base_model: Number
    host_weights: Number
    converted: Number
    lora: Number
    optimizer: Number
    update: Number
    dequantised: Number


def static_memory(model: ModelTerms, tier: TierTerms, chosen: SetTerms) -> Static:
    """The standing bytes of a run."""
    layer = layer_bytes(model, chosen)
    lora = model.adapter_element * model.layers * model.adapter_parameters * tier.rank
    by_torch = value_of(model.adapter_element) == _FLOAT32
    outside = model.element * (model.parameters - model.layers * model.layer_parameters)
    on_device = chosen.weights_on_device
    in_layers = where(on_device, model.largest_linear_weights, model.layer_parameters)
    largest = maximum(in_layers, model.embedding_parameters)
    return Static(
        base_model=outside + whole(where(on_device, model.layers, STREAMED_LAYERS) * layer),
        host_weights=where(on_device, 0, whole(model.layers * layer)),
        converted=_FLOAT32 * model.pooled_weights + model.element * largest,
        lora=lora,
        optimizer=_optimizer_states(model, tier, chosen),
        update=where(chosen.adamw_8bit, 0, lora) if by_torch else 0,
        # bitsandbytes makes the whole of one weight in the compute dtype.
        dequantised=where(chosen.nf4, model.element * model.largest_linear_weights, 0),
    )


def layer_bytes(model: ModelTerms, chosen: SetTerms) -> Number:
    """Weights of one decoder layer; norms and biases are never quantised."""
    linear = model.layer_linear_weights * where(chosen.nf4, NF4_BYTES_PER_WEIGHT, model.element)
    return linear + model.element * (model.layer_parameters - model.layer_linear_weights)


def _optimizer_states(model: ModelTerms, tier: TierTerms, chosen: SetTerms) -> Number:
    """Two states a parameter: in fp32, or in 8 bits where a tensor is large."""
    small = 0
    for width in set(model.adapter_widths):
        count = tier.rank * width
        small = small + where(count < _SMALL_TENSOR, count * model.adapter_widths.count(width), 0)
    parameters = tier.rank * model.adapter_parameters
    eight_bit = _EIGHT_BIT_STATE * (parameters - small) + _FLOAT32_STATES * small
    plain = _FLOAT32_STATES * parameters
    return whole(model.layers * where(chosen.adamw_8bit, eight_bit, plain))
