"""Bytes of activations per token of one decoder layer: what autograd keeps, and what it works with.

Derivations are in docs/reference/memory-model.md under the formula ids named here. All counts are
for unmodified transformers layers with PEFT adapters on every linear (no dropout), batch 1.

Legend: e bytes per element of the compute dtype (2 or 4), h hidden, i intermediate, q query width,
k key/value width, a query heads, g key/value heads, r adapter rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from services.planner.adapters import Adapters
from services.planner.architectures import Mlp, Norm, NormPlaces, QueryKeyNorm
from services.planner.arithmetic import Number, maximum
from services.planner.kept_activations import FLOAT32_BYTES, KeptActivations
from services.planner.models import ModelShape
from services.planner.tracing import Traced

# Bytes per channel that the backward of an fp32 RMS norm holds at once on top of what was kept:
# five fp32 tensors and, in 16 bit, the incoming gradient; in fp32 that is the residual's too.
_NORM_BACKWARD = {2: 22, 4: 24}
# The same for the norm before the head, whose input nothing else keeps.
_FINAL_NORM_BACKWARD = 24


@dataclass(frozen=True, slots=True)
class PerToken:
    """Bytes per token: a part that stands, and a part for each unit of adapter rank."""

    base: Number
    per_rank: Number

    def at(self, rank: Number) -> Number:
        """Bytes per token at this rank."""
        return self.base + self.per_rank * rank


@dataclass(frozen=True, slots=True)
class LayerActivations:
    """Bytes per token of one layer.

    kept: what autograd saves between forward and backward, the layer's input included when it is
        saved (formula layer-kept).
    input_kept: the part of `kept` that is the layer's own input; under per-layer checkpointing it
        is the stored boundary, counted elsewhere.
    input_norm_kept: the part of `kept` that the norm of the layer's input keeps, or without one the
        input; the first layer's input needs no gradient, and its norm keeps nothing.
    first_norm: what the first layer of all does not keep: its input's norm; 0 without one.
    boundary: the layer's input (formula layer-boundary).
    forward: largest working set of a forward that keeps nothing (formula layer-forward).
    last_tensor: of a forward that keeps all there is, what is not kept at its end.
    moments: bytes at each moment of backward that can be its peak; input_moments: at those that
        only a layer has whose input needs a gradient; recompute_moments: of the forward before;
        rotation_moments: of that while it rotates queries and keys, before it has an output.
    final_norm: working set of the backward of the norm before the head, its kept input included.
    """

    kept: PerToken
    input_kept: Number
    input_norm_kept: Number
    first_norm: Number
    boundary: Number
    forward: Number
    last_tensor: Number
    moments: tuple[PerToken, ...]
    input_moments: tuple[PerToken, ...]
    recompute_moments: tuple[PerToken, ...]
    rotation_moments: tuple[PerToken, ...]
    final_norm: Number

    def backward(self, rank: Number, kept_output: Number = 0) -> Number:
        """Largest working set of recompute and backward beside the boundary (layer-backward).

        kept_output: bytes a token of attention's output that waits for the recompute to take it.
        """
        moments = (*self.moments, *self.input_moments, *self.recompute_moments)
        largest = _largest(moments, rank)
        if self.rotation_moments:
            largest = maximum(largest, _largest(self.rotation_moments, rank) + kept_output)
        return largest - self.input_kept

    def first_backward(self, rank: Number) -> Number:
        """The same of the first layer, below which nothing is trained."""
        return _largest((*self.moments, *self.recompute_moments), rank) - self.input_norm_kept

    def last_backward(self, rank: Number) -> Number:
        """The same of a layer whose output's gradient is nowhere else but beside it."""
        backward = _largest((*self.moments, *self.input_moments), rank) + self.boundary
        if self.recompute_moments:
            backward = maximum(backward, _largest(self.recompute_moments, rank))
        return backward - self.input_kept

    def backward_over_kept(self, rank: Number) -> Number:
        """The same beyond what is kept, for a layer that was not checkpointed."""
        return _largest((*self.moments, *self.input_moments), rank) - self.kept.at(rank)

    def forward_over_kept(self, rank: Number) -> Number:
        """Working set of such a layer's forward beyond what it keeps."""
        if not self.recompute_moments:
            return self.last_tensor
        recompute = _largest(self.recompute_moments, rank)
        return maximum(self.last_tensor, recompute - self.kept.at(rank))

    def traced(self) -> LayerActivations:
        """The same with numbers that remember."""
        return LayerActivations(
            kept=PerToken(
                Traced(self.kept.base, "layer_kept"), Traced(self.kept.per_rank, "kept_per_rank")
            ),
            input_kept=Traced(self.input_kept, "layer_input"),
            input_norm_kept=Traced(self.input_norm_kept, "input_norm"),
            first_norm=Traced(self.first_norm, "first_norm"),
            boundary=Traced(self.boundary, "boundary"),
            forward=Traced(self.forward, "layer_forward"),
            last_tensor=Traced(self.last_tensor, "last_tensor"),
            moments=_traced(self.moments, "layer_backward"),
            input_moments=_traced(self.input_moments, "input_backward"),
            recompute_moments=_traced(self.recompute_moments, "recompute"),
            rotation_moments=_traced(self.rotation_moments, "rotation"),
            final_norm=Traced(self.final_norm, "final_norm"),
        )


def _largest(moments: tuple[PerToken, ...], rank: Number) -> Number:
    sizes = [moment.at(rank) for moment in moments]
    return maximum(*sizes) if len(sizes) > 1 else sizes[0]


def _traced(moments: tuple[PerToken, ...], name: str) -> tuple[PerToken, ...]:
    return tuple(
        PerToken(
            Traced(moment.base, f"{name}_{number}"),
            Traced(moment.per_rank, f"{name}_rank_{number}"),
        )
        for number, moment in enumerate(moments, start=1)
    )


def layer_activations(
    model: ModelShape,
    element_bytes: int,
    adapters: Adapters,
    *,
    repeats_keys: bool = False,
    streaming: bool = False,
    key_chunks: int = 0,
    pieces: int = 1,
) -> LayerActivations:
    """Activation bytes per token of one layer of `model` with these adapters.

    repeats_keys: keys and values are repeated to every query head before the kernel.
    streaming: keys and values wait in the streaming executor's memory instead.
    key_chunks: chunks of keys in a block of its backward on a GPU; 0: a CPU's kernel has no
    workspace that counts. pieces: of a chunk's queries in a CPU's, each with gradients of the keys.
    """
    kept = KeptActivations(model, element_bytes, adapters, repeats_keys, streaming)
    in_mlp, in_norm = _backward_moments(model, kept, element_bytes)
    # The first norm's is for the layer's input; one after the MLP every layer has.
    has_both = model.architecture.norm_after_mlp
    moments: tuple[PerToken, ...] = (in_mlp, in_norm) if has_both else (in_mlp,)
    moments = (*moments, *_attention_moments(model, kept, element_bytes))
    if streaming and (key_chunks or pieces > 1):
        width = _workspace(model, element_bytes, key_chunks, pieces)
        moments = (*moments, PerToken(kept.total - kept.mlp + width, kept.per_rank))
    moments = _undominated(moments)
    return LayerActivations(
        kept=PerToken(kept.total, kept.per_rank),
        input_kept=kept.layer_input,
        input_norm_kept=kept.input_norm,
        first_norm=0 if model.architecture.norms is NormPlaces.POST else kept.norm,
        boundary=element_bytes * model.hidden_size,
        forward=_forward(model, element_bytes),
        last_tensor=element_bytes * model.intermediate_size,
        moments=moments,
        input_moments=() if has_both else (in_norm,),
        recompute_moments=_recompute_moments(model, kept, element_bytes),
        rotation_moments=_rotation_moments(model, kept, element_bytes, moments),
        final_norm=_final_norm(model, element_bytes),
    )


def _backward_moments(
    model: ModelShape, kept: KeptActivations, element: int
) -> tuple[PerToken, PerToken]:
    """Bytes in the backward of the MLP, and in that of the norm it ends with."""
    architecture = model.architecture
    hidden, intermediate = model.hidden_size, model.intermediate_size
    after_norm = kept.norm if architecture.norm_after_mlp else 0
    if kept.last_own:
        # The adapter's gradient of its own input; of a square, that of it all and three more.
        adapter = kept.adapter_element
        in_mlp = kept.total - after_norm + element * (1 + (adapter != element)) * hidden
        if model.activation == "relu2":
            in_mlp += 4 * element * intermediate - kept.last_own
        else:
            in_mlp += adapter * intermediate
    else:
        in_mlp = kept.total - after_norm + element * (kept.mlp_gradients * intermediate + hidden)
        in_mlp += kept.extra_in_mlp()
    at_work = _norm_backward(model, element)
    if architecture.norm_after_mlp:
        in_norm = kept.total + (at_work + element * kept.drops) * hidden
    else:
        in_norm = kept.total - kept.mlp + (at_work - element) * hidden
    return PerToken(in_mlp, kept.less_rank), PerToken(in_norm, kept.per_rank)


def _norm_backward(model: ModelShape, element: int) -> int:
    """Bytes per channel in a norm's backward; a native one's are six tensors (from the oracle)."""
    return 6 * element if model.architecture.norm is Norm.LAYER else _NORM_BACKWARD[element]


def _recompute_moments(
    model: ModelShape, kept: KeptActivations, element: int
) -> tuple[PerToken, ...]:
    """Bytes in the recompute of the MLP: at its widest product, and at its end.

    An adapter makes its product and that scaled, beside the linear's own; where it reads the input
    as it is, that is a peak of a gate and up projection in one only. Adapters with inputs of their
    own have more of them at the end than backward begins with.
    """
    hidden, intermediate = model.hidden_size, model.intermediate_size
    fused = model.architecture.mlp is Mlp.GATED_FUSED
    own, adapter = not kept.shares_inputs, kept.adapter_element
    after = model.architecture.norm_after_mlp
    # Without a kept residual the MLP's input.
    standing = kept.total - (kept.norm if after else 0) + element * kept.residual
    standing += _gradients_at_recompute(model, kept, element)
    if own and model.architecture.norms is not NormPlaces.POST:
        standing += element * hidden
    moments = []
    if kept.adapts_widest:
        width = (1 + fused) * intermediate
        made = element * kept.activation * intermediate * (model.architecture.mlp is Mlp.GATED)
        at_product = made + (element + 2 * adapter) * width - kept.mlp - kept.last_own
        moments.append(PerToken(standing + at_product, kept.less_rank))
    if kept.last_own:
        at_end = element * (intermediate + hidden) + 2 * adapter * hidden * after
        moments.append(PerToken(standing + at_end, kept.per_rank))
    return _undominated(moments)


def _gradients_at_recompute(model: ModelShape, kept: KeptActivations, element: int) -> int:
    """The gradient that came in, that of the last linear, and scaled."""
    hidden, adapter = model.hidden_size, kept.adapter_element
    gradients = element * hidden
    if model.architecture.norm_after_mlp:
        casts = not kept.shares_inputs and element != FLOAT32_BYTES
        gradients += FLOAT32_BYTES * hidden * casts
    elif kept.adapts_last and not (kept.streaming and kept.shares_inputs):
        gradients += (adapter + element * (adapter != element)) * hidden
    if model.architecture.scaled_embeddings and not kept.streaming:
        gradients += element * hidden
    return gradients


def _attention_moments(
    model: ModelShape, kept: KeptActivations, element: int
) -> tuple[PerToken, ...]:
    """Bytes in the backward of attention, of the rotary embedding, and of norms before that.

    Gradients: of the residual; of outputs and queries, and of keys and values. Streamed queries
    have theirs in fp32, beside a block's.
    """
    query, key_value = model.query_width, model.key_value_width
    hidden = element * model.hidden_size
    # Beside them a tensor as wide as the layer's input: when streaming, of an MLP that runs beside
    # attention, of rotation in fp32.
    architecture = model.architecture
    wide = hidden * (kept.streaming or architecture.parallel)
    rotated = 0 if kept.streaming else (kept.rotary + hidden) * architecture.rotary_float32
    if kept.streaming:
        gradients = (2 * element + FLOAT32_BYTES) * query + 2 * element * key_value
    else:
        gradients = 2 * element * (query + key_value)
    moments = [
        kept.attention + gradients + wide,
        *(
            kept.query_key_norms
            + rotated
            + hidden * (architecture.parallel and not kept.streaming)
            + moment
            for moment in _rotary_moments(model, element)
        ),
        *(moment + wide for moment in _query_key_norm_moments(model, element)),
    ]
    standing = kept.for_attention + hidden
    return tuple(PerToken(standing + moment, kept.rank_for_attention) for moment in moments)


def _rotary_moments(model: ModelShape, element: int) -> list[int]:
    """Bytes in the rotary embedding's backward: that of queries comes last.

    In fp32 (counts fitted to the oracle) queries' gradients wait for keys' to be done.
    """
    query, key_value = model.query_width, model.key_value_width
    if model.architecture.rotates_in_float32 and element != FLOAT32_BYTES:
        return [18 * query + 8 * key_value, 22 * key_value + 8 * query]
    if model.architecture.rotary_float32 and element != FLOAT32_BYTES:
        return [14 * query + 2 * element * key_value, 18 * key_value + FLOAT32_BYTES * query]
    return [5 * element * query + 2 * element * key_value]


def _rotation_moments(
    model: ModelShape, kept: KeptActivations, element: int, others: Iterable[PerToken]
) -> tuple[PerToken, ...]:
    """Bytes in the recompute's rotary embedding, where an output more may put them above `others`.

    What is rotated is there four times: itself, two products, their sum. Queries come first.
    """
    architecture = model.architecture
    if kept.streaming:
        return ()
    query, key_value = element * model.query_width, element * model.key_value_width
    in_float32 = architecture.rotates_in_float32 or architecture.rotary_float32
    if in_float32 and element != FLOAT32_BYTES:
        widths = _rotary_moments(model, element)
    else:
        widths = [4 * query + 2 * key_value, 2 * query + 5 * key_value]
    gradients = _gradients_at_recompute(model, kept, element)
    standing = kept.for_attention + kept.rotary + kept.query_key_norms + gradients
    output = element * model.query_width + FLOAT32_BYTES * model.query_head_count
    return _undominated(
        [PerToken(standing + width, kept.rank_for_attention) for width in widths],
        [PerToken(other.base - output, other.per_rank) for other in others],
    )


def _query_key_norm_moments(model: ModelShape, element: int) -> list[int]:
    """Bytes in the backward of norms of queries and of keys, of which queries' come last.

    Gradients of keys and values wait where all projections are made before the norms; else they
    have become one of the layer's input by then.
    """
    architecture = model.architecture
    if architecture.query_key_norm is QueryKeyNorm.NONE:
        return []
    query, key_value = model.query_width, model.key_value_width
    after_projections = architecture.norms_after_projections
    waiting = element * (key_value if after_projections else model.hidden_size)
    at_work = _NORM_BACKWARD[element] + FLOAT32_BYTES - element
    return [
        at_work * query + waiting + after_projections * element * key_value,
        at_work * key_value + waiting + (FLOAT32_BYTES + element) * query,
    ]


def _undominated(
    moments: Iterable[PerToken], others: Iterable[PerToken] = ()
) -> tuple[PerToken, ...]:
    """Without those that another one is above at every rank."""
    left: list[PerToken] = []
    for moment in sorted(moments, key=lambda one: (-one.base, -one.per_rank)):
        above = (one for one in (*left, *others) if one.base >= moment.base)
        if all(moment.per_rank > one.per_rank for one in above):
            left.append(moment)
    return tuple(left)


def _workspace(model: ModelShape, element: int, key_chunks: int, pieces: int) -> int:
    """Bytes in attention's backward, with a GPU's kernel's workspace (bench/results/gpu.json).

    Of queries: the gradient that comes in, this block's and the sum so far. Of keys: this block's.
    Workspace: the queries' gradient in fp32, and where heads share keys, the keys' for every head.
    On a CPU (no key_chunks) none; but every piece's gradients of the keys, and their sums in fp32.
    """
    query, key_value = model.query_width, model.key_value_width
    width = (2 * element + FLOAT32_BYTES) * query + element * model.hidden_size
    if not key_chunks:
        return width + 2 * (pieces * element + FLOAT32_BYTES) * key_value
    of_keys = 2 * element * (key_value + query * (key_value < query))
    return width + FLOAT32_BYTES * query + key_chunks * of_keys


def _final_norm(model: ModelShape, element: int) -> int:
    native = model.architecture.norm is Norm.LAYER
    return (5 * element if native else _FINAL_NORM_BACKWARD) * model.hidden_size


def _forward(model: ModelShape, element: int) -> int:
    """MLP of a forward that keeps nothing, beside the residual and the layer's output."""
    tensors = {Mlp.GATED: 4, Mlp.GATED_FUSED: 6, Mlp.PLAIN: 3}[model.architecture.mlp]
    if model.activation == "gelu_new":
        tensors = max(tensors, 4)
    return element * (tensors * model.intermediate_size + 2 * model.hidden_size)
