"""Bytes of activations per token of one decoder layer: what autograd keeps, and what it works with.

Derivations are in docs/reference/memory-model.md under the formula ids named here. All counts are
for unmodified transformers layers with PEFT adapters on every linear (no dropout), batch 1.

Legend: e bytes per element of the compute dtype (2 or 4), h hidden, i intermediate, q query width,
k key/value width, a query heads, g key/value heads, r adapter rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.planner.architectures import Mlp, Norm, NormPlaces, QueryKeyNorm
from services.planner.models import ModelShape

_FLOAT32 = 4
# Bytes per channel that the backward of an fp32 RMS norm holds at once on top of what was kept:
# five fp32 tensors and, in 16 bit, the incoming gradient; in fp32 that is the residual's too.
_NORM_BACKWARD = {2: 22, 4: 24}
# The same for the norm before the head, whose input nothing else keeps.
_FINAL_NORM_BACKWARD = {2: 20, 4: 21}


@dataclass(frozen=True, slots=True)
class LayerActivations:
    """Bytes per token of one layer.

    kept: what autograd saves between forward and backward, the layer's input included when it is
        saved (formula layer-kept).
    input_kept: the part of `kept` that is the layer's own input; under per-layer checkpointing it
        is the stored boundary, counted elsewhere.
    boundary: the layer's input (formula layer-boundary).
    forward: largest working set of a forward that keeps nothing (formula layer-forward).
    backward: largest working set of recompute and backward beside the boundary (layer-backward).
    backward_over_kept: the same beyond what is kept, for a layer that was not checkpointed.
    final_norm: working set of the backward of the norm before the head, its kept input included.
    """

    kept: int
    input_kept: int
    boundary: int
    forward: int
    backward: int
    backward_over_kept: int
    final_norm: int


def layer_activations(
    model: ModelShape, element_bytes: int, rank: int, *, repeats_keys: bool = False
) -> LayerActivations:
    """Activation bytes per token of one layer of `model` with adapters of this rank.

    repeats_keys: keys and values are repeated to every query head before the kernel.
    """
    kept_parts = _Kept(model, element_bytes, rank, repeats_keys)
    kept, input_kept = kept_parts.total, kept_parts.layer_input
    peak = max(_backward_moments(model, kept_parts, element_bytes, rank))
    return LayerActivations(
        kept=kept,
        input_kept=input_kept,
        boundary=element_bytes * model.hidden_size,
        forward=_forward(model, element_bytes),
        backward=peak - input_kept,
        backward_over_kept=peak - kept,
        final_norm=_final_norm(model, element_bytes),
    )


class _Kept:
    """What autograd keeps of one layer, part by part."""

    def __init__(
        self, model: ModelShape, element_bytes: int, rank: int, repeats_keys: bool
    ) -> None:
        self._model, self._element = model, element_bytes
        self._repeats_keys = repeats_keys
        self.norm = self._norm()
        self.activation = (4 if model.activation == "gelu_new" else 1) + 1
        self.mlp = self._mlp()
        ranks = element_bytes * rank * len(model.linears)
        self.total = self._norms() + self._attention() + self.mlp + ranks

    @property
    def layer_input(self) -> int:
        """Bytes of the layer's own input among what is kept."""
        architecture = self._model.architecture
        width = self._element * self._model.hidden_size
        if architecture.norms is NormPlaces.POST or architecture.norm is Norm.LAYER:
            return width
        return width if architecture.norm is Norm.RMS and self._element == _FLOAT32 else 0

    def _norm(self) -> int:
        """One norm: its input (RMS: as fp32) and its statistics."""
        hidden = self._model.hidden_size
        return {
            Norm.RMS: _FLOAT32 * hidden + _FLOAT32,
            Norm.LAYER: self._element * hidden + 2 * self._element,
            Norm.LAYER_FLOAT32: 2 * _FLOAT32 * hidden + _FLOAT32,
        }[self._model.architecture.norm]

    def _norms(self) -> int:
        """All norms of the layer, and the inputs of attention and MLP."""
        architecture = self._model.architecture
        width = self._element * self._model.hidden_size
        if architecture.norms is NormPlaces.PARALLEL:
            return self.norm + width
        if architecture.norms is NormPlaces.PARALLEL_TWO:
            return self.norm + 2 * self._element + 2 * width
        return architecture.norm_count * self.norm + 2 * width

    def _attention(self) -> int:
        model, element = self._model, self._element
        architecture = model.architecture
        query, key_value = element * model.query_width, element * model.key_value_width
        rotated = query + key_value
        # Fused: the values are a view that keeps the whole projection alive.
        values = query + 2 * key_value if architecture.fused_query_key_value else key_value
        output = query * (2 if architecture.partial_rotary else 1)
        repeated = 2 * (query - key_value) if self._repeats_keys else 0
        log_sum_exp = _FLOAT32 * model.query_head_count
        return rotated + values + repeated + output + log_sum_exp + self._query_key_norms()

    def _query_key_norms(self) -> int:
        model = self._model
        kind = model.architecture.query_key_norm
        if kind is QueryKeyNorm.NONE:
            return 0
        rows = model.query_head_count + model.key_value_head_count
        statistics = rows if kind is QueryKeyNorm.HEAD else 2
        return _FLOAT32 * (model.query_width + model.key_value_width + statistics)

    def _mlp(self) -> int:
        """Activation function's inputs and output; gated: the up projection and product too."""
        gated = self._model.architecture.mlp is not Mlp.PLAIN
        tensors = self.activation + (2 if gated else 0)
        return self._element * self._model.intermediate_size * tensors


def _backward_moments(model: ModelShape, kept: _Kept, element: int, rank: int) -> tuple[int, ...]:
    """Bytes at each moment of a layer's recompute and backward that can be its peak."""
    architecture = model.architecture
    hidden, intermediate = model.hidden_size, model.intermediate_size
    last_linear_done = kept.total - element * rank
    after_norm = kept.norm if architecture.norm_after_mlp else 0
    in_mlp = last_linear_done - after_norm + element * (2 * intermediate + hidden)
    if architecture.norm_after_mlp:
        in_norm = kept.total + _NORM_BACKWARD[element] * hidden
    else:
        in_norm = kept.total - kept.mlp + (_NORM_BACKWARD[element] - element) * hidden
    if architecture.mlp is not Mlp.GATED_FUSED:
        return in_mlp, in_norm
    residual = 1 if element != _FLOAT32 else 0
    recompute = last_linear_done - kept.mlp + element * (6 * intermediate + (2 + residual) * hidden)
    return in_mlp, in_norm, recompute


def _final_norm(model: ModelShape, element: int) -> int:
    native = model.architecture.norm is Norm.LAYER
    return (4 * element if native else _FINAL_NORM_BACKWARD[element]) * model.hidden_size


def _forward(model: ModelShape, element: int) -> int:
    """MLP of a forward that keeps nothing, beside the residual and the layer's output."""
    tensors = {Mlp.GATED: 4, Mlp.GATED_FUSED: 6, Mlp.PLAIN: 3}[model.architecture.mlp]
    if model.activation == "gelu_new":
        tensors = max(tensors, 4)
    return element * (tensors * model.intermediate_size + 2 * model.hidden_size)
