"""What the formulas read: tiers down, sets across, and plain numbers of one model in one dtype.

Every field is a number, or a numpy column of them: tiers have shape (tiers, 1), sets (1, sets), so
that a formula gives (tiers, sets) by itself. With one tier and one set everything is plain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from services.common.attention_threads import most_query_pieces
from services.planner.activations import LayerActivations, layer_activations
from services.planner.adapters import Adapters
from services.planner.architectures import Norm
from services.planner.arithmetic import Number
from services.planner.attention_kernels import FUSED_KERNELS, key_chunks
from services.planner.ladder import Tier
from services.planner.models import ModelShape
from services.planner.options import BasePrecision, Codec, OptimizationSet, Place, Policy
from services.planner.tracing import Traced


@dataclass(frozen=True, slots=True)
class ModelTerms:
    """Sizes of a model with its adapters, in element counts; `element` is bytes per element."""

    element: Number
    adapter_element: Number
    layers: Number
    hidden: Number
    intermediate: Number
    query: Number
    key_value: Number
    query_heads: Number
    vocabulary: Number
    # Layers with a sliding window, whether the last is one, and the window's tokens.
    windowed_layers: Number
    last_windowed: Number
    window: Number
    head_size: Number
    parameters: Number
    layer_parameters: Number
    layer_linear_weights: Number
    unread_weights: Number
    largest_linear_weights: Number
    embedding_parameters: Number
    # Of projections that are made anew for fewer key-value heads, on the host.
    pooled_weights: Number
    # Of one layer, per unit of rank.
    adapter_parameters: Number
    # Bytes per token.
    rotary: Number
    final_norm_output: Number
    layer: LayerActivations
    # (inputs or outputs) of every adapter matrix of a layer: it has rank times so many elements.
    adapter_widths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TierTerms:
    """One tier, or a column of them."""

    tokens: Number
    targets: Number
    rank: Number


@dataclass(frozen=True, slots=True)
class SetTerms:
    """One set, or a row of them; those of one row share executor, dtype and kernel."""

    nf4: Number
    adamw_8bit: Number
    tiled_loss: Number
    keeps_all: Number
    selective: Number
    inputs_on_device: Number
    inputs_on_host: Number
    inputs_on_disk: Number
    interval: Number
    # Bytes per value over those of the compute dtype.
    codec_share: Number
    outputs_on_device: Number
    outputs_on_host: Number
    outputs_on_disk: Number
    gradients_on_device: Number
    keeps_keys: Number
    kept_keys_on_device: Number
    kept_keys_on_host: Number
    kept_keys_on_disk: Number
    keys_on_device: Number
    weights_on_device: Number


def model_terms(
    model: ModelShape,
    chosen: OptimizationSet,
    adapters: Adapters,
    *,
    on_cuda: bool = False,
    threads: int = 0,
) -> ModelTerms:
    """The terms of a model under the dtype, kernel and heads of a set.

    threads: of a CPU; 0 where they are not known.
    """
    converted = model.with_key_value_heads(chosen.key_value_heads)
    element = chosen.dtype.element_bytes
    architecture = converted.architecture
    repeats = not chosen.streaming and not FUSED_KERNELS[chosen.attention_kernel].shares_keys
    layer = layer_activations(
        converted, element, adapters, repeats_keys=repeats, streaming=chosen.streaming,
        key_chunks=key_chunks(chosen.attention_kernel, on_cuda=True) if on_cuda else 0,
        pieces=most_query_pieces(converted.key_value_head_count, threads),
    )  # fmt: skip
    linears = [linear for linear in converted.linears if adapters.targets(linear.name)]
    pooled = 2 * converted.layer_count * converted.hidden_size * converted.key_value_width
    rotary_element = 4 if architecture.rotary_float32 else element
    # A layer of a chunk is called with the tables of its own kind only.
    tables = 1 if chosen.streaming else architecture.rotary_tables
    return ModelTerms(
        element=element,
        adapter_element=adapters.element_bytes(element),
        layers=converted.layer_count,
        hidden=converted.hidden_size,
        intermediate=converted.intermediate_size,
        query=converted.query_width,
        key_value=converted.key_value_width,
        query_heads=converted.query_head_count,
        vocabulary=converted.vocabulary_size,
        windowed_layers=converted.windowed_layer_count,
        last_windowed=int(converted.last_layer_windowed),
        window=converted.sliding_window,
        head_size=converted.head_size,
        parameters=converted.parameter_count,
        layer_parameters=converted.layer_parameters,
        layer_linear_weights=converted.layer_linear_weights,
        unread_weights=sum(linear.weight_count for linear in converted.unread_linears),
        largest_linear_weights=converted.largest_linear_weights,
        embedding_parameters=converted.embedding_parameters,
        pooled_weights=pooled * bool(chosen.key_value_heads),
        adapter_parameters=sum(linear.inputs + linear.outputs for linear in linears),
        rotary=tables * 2 * converted.head_size * rotary_element,
        final_norm_output={Norm.RMS: 4, Norm.LAYER: element, Norm.LAYER_FLOAT32: 8}[
            architecture.norm
        ]
        * converted.hidden_size,
        layer=layer,
        adapter_widths=tuple(
            width for linear in linears for width in (linear.inputs, linear.outputs)
        ),
    )


def tier_terms(tiers: Sequence[Tier], rank: int = 0) -> TierTerms:
    """One tier as plain numbers, several as columns; `rank` replaces the tiers' own."""
    rows = [(tier.tokens, tier.target_tokens, rank or tier.lora_rank) for tier in tiers]
    if len(rows) == 1:
        return TierTerms(*rows[0])
    return TierTerms(*(column[:, None] for column in np.array(rows, dtype=np.float64).T))


# Bytes a value takes: int8 with an fp32 scale per 128 values; NF4 with one per 64.
_CODEC_BYTES = {Codec.INT8: 1 + 4 / 128, Codec.NF4: 0.5 + 4 / 64}


def set_terms(sets: Sequence[OptimizationSet]) -> SetTerms:
    """One set as plain numbers, several as rows."""
    readers: dict[str, Callable[[OptimizationSet], Any]] = {
        "nf4": lambda one: one.base_precision is BasePrecision.NF4,
        "adamw_8bit": lambda one: one.adamw_8bit,
        "tiled_loss": lambda one: one.tiled_loss,
        "keeps_all": lambda one: one.policy is Policy.KEEP_ALL,
        "selective": lambda one: one.policy is Policy.SELECTIVE,
        "inputs_on_device": lambda one: one.layer_inputs is Place.DEVICE,
        "inputs_on_host": lambda one: one.layer_inputs is Place.HOST,
        "inputs_on_disk": lambda one: one.layer_inputs is Place.DISK,
        "interval": lambda one: one.layer_input_interval,
        "codec_share": _codec_share,
        "outputs_on_device": lambda one: one.attention_outputs is Place.DEVICE,
        "outputs_on_host": lambda one: one.attention_outputs is Place.HOST,
        "outputs_on_disk": lambda one: one.attention_outputs is Place.DISK,
        "keeps_keys": lambda one: one.kept_keys is not Place.NOWHERE,
        "kept_keys_on_device": lambda one: one.kept_keys is Place.DEVICE,
        "kept_keys_on_host": lambda one: one.kept_keys is Place.HOST,
        "kept_keys_on_disk": lambda one: one.kept_keys is Place.DISK,
        "gradients_on_device": lambda one: one.hidden_gradients is Place.DEVICE,
        "keys_on_device": lambda one: one.key_values is Place.DEVICE,
        "weights_on_device": lambda one: one.weights is Place.DEVICE,
    }
    if len(sets) == 1:
        return SetTerms(**{name: read(sets[0]) for name, read in readers.items()})
    return SetTerms(**{
        name: np.array([[float(read(one)) for one in sets]]) for name, read in readers.items()
    })  # fmt: skip


def _codec_share(chosen: OptimizationSet) -> float:
    if chosen.codec is Codec.EXACT:
        return 1.0
    return _CODEC_BYTES[chosen.codec] / chosen.dtype.element_bytes


# Names of the numbers in explanations.
_SYMBOLS = {
    "element": "e", "adapter_element": "e_lora", "layers": "L", "hidden": "h",
    "intermediate": "i", "query": "q", "key_value": "k", "query_heads": "a", "vocabulary": "V",
    "tokens": "S", "targets": "N", "rank": "r",
}  # fmt: skip


def traced(terms: Any) -> Any:
    """The same terms with numbers that remember. Flags and tables stay as they are."""
    changes: dict[str, Any] = {
        field.name: Traced(value, _SYMBOLS.get(field.name, field.name))
        for field in fields(terms)
        if type(value := getattr(terms, field.name)) in (int, float)
    }
    if isinstance(terms, ModelTerms):
        changes["layer"] = terms.layer.traced()
    return replace(terms, **changes)
