"""Bytes of activations per token of one decoder layer: what autograd keeps, and what it works with.

Derivations are in docs/reference/memory-model.md under the formula ids named here. All counts are
for unmodified transformers layers with PEFT adapters on every linear (no dropout), batch 1.

Legend: e bytes per element of the compute dtype (2 or 4), h hidden, i intermediate, q query width,
k key/value width, a query heads, g key/value heads, r adapter rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.planner.adapters import Adapters
from services.planner.architectures import Mlp, Norm, NormPlaces, QueryKeyNorm
from services.planner.arithmetic import Number, maximum
from services.planner.models import ModelShape
from services.planner.tracing import Traced

_FLOAT32 = 4
# Tensors an activation of one kernel leaves behind: its input and its output.
_NATIVE_ACTIVATION = 2
# Bytes per channel that the backward of an fp32 RMS norm holds at once on top of what was kept:
# five fp32 tensors and, in 16 bit, the incoming gradient; in fp32 that is the residual's too.
_NORM_BACKWARD = {2: 22, 4: 24}
# The same for the norm before the head, whose input nothing else keeps.
_FINAL_NORM_BACKWARD = {2: 20, 4: 21}


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
    boundary: the layer's input (formula layer-boundary).
    forward: largest working set of a forward that keeps nothing (formula layer-forward).
    moments: bytes at each moment of backward that can be its peak; input_moments: at those that
        only a layer has whose input needs a gradient; recompute_moments: of the forward before.
    final_norm: working set of the backward of the norm before the head, its kept input included.
    """

    kept: PerToken
    input_kept: Number
    input_norm_kept: Number
    boundary: Number
    forward: Number
    moments: tuple[PerToken, ...]
    input_moments: tuple[PerToken, ...]
    recompute_moments: tuple[PerToken, ...]
    final_norm: Number

    def backward(self, rank: Number) -> Number:
        """Largest working set of recompute and backward beside the boundary (layer-backward)."""
        moments = (*self.moments, *self.input_moments, *self.recompute_moments)
        return _largest(moments, rank) - self.input_kept

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
        return self.backward(rank) + self.input_kept - self.kept.at(rank)

    def traced(self) -> LayerActivations:
        """The same with numbers that remember."""
        return LayerActivations(
            kept=PerToken(
                Traced(self.kept.base, "layer_kept"), Traced(self.kept.per_rank, "kept_per_rank")
            ),
            input_kept=Traced(self.input_kept, "layer_input"),
            input_norm_kept=Traced(self.input_norm_kept, "input_norm"),
            boundary=Traced(self.boundary, "boundary"),
            forward=Traced(self.forward, "layer_forward"),
            moments=_traced(self.moments, "layer_backward"),
            input_moments=_traced(self.input_moments, "input_backward"),
            recompute_moments=_traced(self.recompute_moments, "recompute"),
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
) -> LayerActivations:
    """Activation bytes per token of one layer of `model` with these adapters.

    repeats_keys: keys and values are repeated to every query head before the kernel.
    streaming: keys and values wait in the streaming executor's memory instead.
    key_chunks: chunks of keys in a block of its backward on a GPU; 0: a CPU's kernel has no
    workspace that counts.
    """
    kept = _Kept(model, element_bytes, adapters, repeats_keys, streaming)
    in_mlp, in_norm = _backward_moments(model, kept, element_bytes)
    # The first norm's is for the layer's input; one after the MLP every layer has.
    has_both = model.architecture.norm_after_mlp
    moments = (in_mlp, in_norm) if has_both else (in_mlp,)
    if streaming and key_chunks:
        moments = (*moments, _attention_moment(model, kept, element_bytes, key_chunks))
    return LayerActivations(
        kept=PerToken(kept.total, kept.per_rank),
        input_kept=kept.layer_input,
        input_norm_kept=kept.input_norm,
        boundary=element_bytes * model.hidden_size,
        forward=_forward(model, element_bytes),
        moments=moments,
        input_moments=() if has_both else (in_norm,),
        recompute_moments=_recompute_moments(model, kept, element_bytes),
        final_norm=_final_norm(model, element_bytes),
    )


class _Kept:
    """What autograd keeps of one layer, part by part."""

    def __init__(
        self,
        model: ModelShape,
        element_bytes: int,
        adapters: Adapters,
        repeats_keys: bool,
        streaming: bool,
    ) -> None:
        self._model, self._element, self._adapters = model, element_bytes, adapters
        self._repeats_keys, self.streaming = repeats_keys, streaming
        self._linears = [linear for linear in model.linears if adapters.targets(linear.name)]
        self.adapter_element = adapters.element_bytes(element_bytes)
        self.norm = self._norm()
        # What the activation keeps, and its output.
        self.activation = 5 if model.activation == "gelu_new" else _NATIVE_ACTIVATION
        self.mlp = self._mlp()
        # Outputs of the A matrices, and what the adapters make of their inputs by themselves.
        self.per_rank = self.adapter_element * len(self._linears)
        self.own_inputs = self._own_inputs()
        self.total = self._norms() + self._attention() + self.mlp + self.own_inputs

    @property
    def less_rank(self) -> int:
        """`per_rank` when the last linear has let go of its adapter's and of its input copy."""
        return self.per_rank - self.adapter_element

    @property
    def drops(self) -> bool:
        """True when adapters drop parts of their inputs."""
        return self._adapters.dropout > 0

    @property
    def shares_inputs(self) -> bool:
        """True when adapters keep the linears' inputs as they are, without a cast or dropout."""
        return self._adapters.share_inputs(self._element)

    @property
    def mlp_gradients(self) -> int:
        """Gradients as wide as the MLP in the backward of its last linear, at most.

        Two: of its inputs and of its adapter's, or of the two factors of a gated MLP's product. Of
        a plain one with a native activation one, when the adapter adds to it.
        """
        one = self._model.architecture.mlp is Mlp.PLAIN and self.activation == _NATIVE_ACTIVATION
        adds = self.streaming and self._reads("intermediate", attention=False)
        return 1 if one and adds else 2

    def _own_inputs(self) -> int:
        """Copies an adapter makes of its input: in its own dtype, or with parts dropped.

        Dropout keeps its mask too: in the input's dtype on a CPU, one byte an element on CUDA,
        where it is charged as on a CPU.
        """
        if self.shares_inputs:
            return 0
        mask = self.adapter_element if self.drops else 0
        width = sum(linear.inputs for linear in self._linears)
        return (self.adapter_element + mask) * width

    def extra_in_mlp(self) -> int:
        """More than usual, or less, at the MLP's moment, for adapters of other kinds.

        Without an adapter on the last linear nothing keeps its input, and the gradients of both
        factors of that input exist beside its own. Adapters with inputs of their own make gradients
        of those first, in fp32 or masked: counts fitted to the oracle, see bench/results.
        """
        hidden, intermediate = self._model.hidden_size, self._model.intermediate_size
        plain = self._model.architecture.mlp is Mlp.PLAIN
        native = self.activation == _NATIVE_ACTIVATION
        if self.drops:
            elements = (3 if plain else 4) * hidden - intermediate
            if plain and not native:
                elements = -hidden
            if self._model.architecture.norm_after_mlp:
                elements += hidden
        elif not self.shares_inputs:
            elements = ((4 if native else 1) if plain else 5) * hidden
        elif self._reads("intermediate", attention=False):
            elements = 0
        elif plain:
            elements = (0 if native else intermediate) - hidden
        else:
            elements = intermediate
        return self._element * elements

    def _reads(self, inputs: str, *, attention: bool) -> bool:
        """True when an adapter of this half of the layer keeps an input of this width as it is."""
        rows = zip(self._model.architecture.linears, self._model.linears, strict=True)
        return self.shares_inputs and any(
            row.inputs == inputs
            and (row.outputs in ("query", "key_value", "query_key_value")) == attention
            and self._adapters.targets(linear.name)
            for row, linear in rows
        )

    @property
    def layer_input(self) -> int:
        """Bytes of the layer's own input among what is kept."""
        architecture = self._model.architecture
        width = self._element * self._model.hidden_size
        if architecture.norms is NormPlaces.POST or architecture.norm is Norm.LAYER:
            return width
        return width if architecture.norm is Norm.RMS and self._element == _FLOAT32 else 0

    @property
    def input_norm(self) -> int:
        """Bytes that the norm of the layer's input keeps; without one, the input itself."""
        is_normed = self._model.architecture.norms is not NormPlaces.POST
        return self.norm if is_normed else self.layer_input

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
        readers = [self._reads("hidden", attention=half) for half in (True, False)]
        if architecture.norms is NormPlaces.PARALLEL:
            return self.norm + width * any(readers)
        if architecture.norms is NormPlaces.PARALLEL_TWO:
            return self.norm + 2 * self._element + width * sum(readers)
        return architecture.norm_count * self.norm + width * sum(readers)

    def _attention(self) -> int:
        model, element = self._model, self._element
        architecture = model.architecture
        query, key_value = element * model.query_width, element * model.key_value_width
        log_sum_exp = _FLOAT32 * model.query_head_count
        if self.streaming:
            return 2 * query + log_sum_exp + self._query_key_norms()
        rotated = query + key_value
        # Fused: the values are a view that keeps the whole projection alive.
        values = query + 2 * key_value if architecture.fused_query_key_value else key_value
        output = query * (2 if architecture.partial_rotary else 1)
        repeated = 2 * (query - key_value) if self._repeats_keys else 0
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
        # Gated: the up projection too. The down projection's adapter needs its input.
        tensors = self.activation + gated
        product = self._reads("intermediate", attention=False)
        tensors += product if gated else product - 1
        return self._element * self._model.intermediate_size * tensors


def _backward_moments(model: ModelShape, kept: _Kept, element: int) -> tuple[PerToken, PerToken]:
    """Bytes in the backward of the MLP, and in that of the norm it ends with."""
    architecture = model.architecture
    hidden, intermediate = model.hidden_size, model.intermediate_size
    after_norm = kept.norm if architecture.norm_after_mlp else 0
    in_mlp = kept.total - after_norm + element * (kept.mlp_gradients * intermediate + hidden)
    in_mlp += kept.extra_in_mlp()
    if architecture.norm_after_mlp:
        in_norm = kept.total + (_NORM_BACKWARD[element] + element * kept.drops) * hidden
    else:
        in_norm = kept.total - kept.mlp + (_NORM_BACKWARD[element] - element) * hidden
    return PerToken(in_mlp, kept.less_rank), PerToken(in_norm, kept.per_rank)


def _recompute_moments(model: ModelShape, kept: _Kept, element: int) -> tuple[PerToken, ...]:
    """Bytes in the recompute of an MLP whose gate and up projection are one product.

    Beside that: the residual's cast and the output's sum. Stock has the last linear's output too,
    which the streaming executor's recompute leaves out.
    """
    if model.architecture.mlp is not Mlp.GATED_FUSED:
        return ()
    hiddens = (element != _FLOAT32) + (1 if kept.streaming else 2)
    widths = 6 * model.intermediate_size + hiddens * model.hidden_size
    return (PerToken(kept.total - kept.mlp + element * widths, kept.less_rank),)


def _attention_moment(model: ModelShape, kept: _Kept, element: int, key_chunks: int) -> PerToken:
    """Bytes in a GPU's backward of attention, with the kernel's workspace (bench/results/gpu.json).

    Of queries: the gradient that comes in, this block's and the sum so far. Of keys: this block's.
    Workspace: the queries' gradient in fp32, and where heads share keys, the keys' for every head.
    """
    query, key_value = model.query_width, model.key_value_width
    of_queries = (2 * element + 2 * _FLOAT32) * query
    of_keys = 2 * element * key_value
    if key_value < query:
        of_keys += 2 * element * query
    width = of_queries + key_chunks * of_keys + element * model.hidden_size
    return PerToken(kept.total - kept.mlp + width, kept.per_rank)


def _final_norm(model: ModelShape, element: int) -> int:
    native = model.architecture.norm is Norm.LAYER
    return (4 * element if native else _FINAL_NORM_BACKWARD[element]) * model.hidden_size


def _forward(model: ModelShape, element: int) -> int:
    """MLP of a forward that keeps nothing, beside the residual and the layer's output."""
    tensors = {Mlp.GATED: 4, Mlp.GATED_FUSED: 6, Mlp.PLAIN: 3}[model.architecture.mlp]
    if model.activation == "gelu_new":
        tensors = max(tensors, 4)
    return element * (tensors * model.intermediate_size + 2 * model.hidden_size)
