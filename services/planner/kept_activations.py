"""Bytes per token that autograd keeps of one decoder layer between its forward and its backward.

Derivations are in docs/reference/memory-model.md (formula layer-kept).
"""

from __future__ import annotations

from collections.abc import Sequence

from services.planner.adapters import Adapters
from services.planner.architectures import Mlp, Norm, NormPlaces, QueryKeyNorm
from services.planner.models import Linear, ModelShape

FLOAT32_BYTES = 4
# Tensors an activation of one kernel leaves behind: its input and its output.
_NATIVE_ACTIVATION = 2
_ATTENTION_WIDTHS = frozenset({"query", "key_value", "query_key_value"})


class KeptActivations:
    """Bytes per token that autograd keeps of one layer, part by part."""

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
        self.own_inputs = self._own_inputs(self._linears)
        last = model.architecture.linears[-1].name
        widest = model.architecture.linears[-2].name
        self.adapts_last, self.adapts_widest = adapters.targets(last), adapters.targets(widest)
        self.last_own = self._own_inputs([one for one in self._linears if one.name == last])
        self.rotary, self.query_key_norms = self._rotary(), self._query_key_norms()
        self.attention = self._attention()
        self.total = self._norms() + self.attention + self.mlp + self.own_inputs

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
        a plain one with a native activation one, when the adapter adds to it. The backward of a
        square makes three.
        """
        if self._model.activation == "relu2":
            return 3
        one = self._model.architecture.mlp is Mlp.PLAIN and self.activation == _NATIVE_ACTIVATION
        adds = self.streaming and self._reads("intermediate", attention=False)
        return 1 if one and adds else 2

    @property
    def for_attention(self) -> int:
        """What is there yet in the backward of attention itself, beside what attention keeps.

        All that is behind attention has let go of what it kept.
        """
        architecture = self._model.architecture
        has_norm = architecture.norms is not NormPlaces.POST
        own = self._own_inputs([linear for linear in self._linears if self._feeds(linear.name)])
        read = self._element * self._model.hidden_size * self._reads("hidden", attention=True)
        return has_norm * self.norm + read + own

    @property
    def rank_for_attention(self) -> int:
        """The same of `per_rank`."""
        return self.adapter_element * sum(self._feeds(linear.name) for linear in self._linears)

    def _feeds(self, name: str) -> bool:
        """Whether the linear makes queries, keys or values."""
        (row,) = (row for row in self._model.architecture.linears if row.name == name)
        return row.outputs in _ATTENTION_WIDTHS

    def _own_inputs(self, linears: Sequence[Linear]) -> int:
        """Copies adapters make of these linears' inputs: in their own dtype, or with parts dropped.

        Dropout keeps its mask too: in the input's dtype on a CPU, one byte an element on CUDA,
        where it is charged as on a CPU.
        """
        if self.shares_inputs:
            return 0
        mask = self.adapter_element if self.drops else 0
        return (self.adapter_element + mask) * sum(linear.inputs for linear in linears)

    def extra_in_mlp(self) -> int:
        """More than usual at the MLP's moment, without an adapter on the last linear.

        Nothing keeps its input, and the gradients of both factors of that input, or of a square,
        exist beside its own.
        """
        if self._adapts_last_as_it_is:
            return 0
        gated = self._model.architecture.mlp is not Mlp.PLAIN
        makes_more = gated or self.activation != _NATIVE_ACTIVATION or self._squares
        return self._element * self._model.intermediate_size * makes_more

    @property
    def _squares(self) -> bool:
        return self._model.activation == "relu2"

    @property
    def _adapts_last_as_it_is(self) -> bool:
        return self._reads("intermediate", attention=False)

    @property
    def residual(self) -> int:
        """Channels of a residual, or of attention's output, that nothing keeps beside the MLP."""
        architecture = self._model.architecture
        alone = architecture.norm is Norm.RMS and self._element != FLOAT32_BYTES
        alone = alone or (architecture.norms is NormPlaces.POST and not self.shares_inputs)
        beside = architecture.parallel and not self.shares_inputs
        # Of a gated MLP behind a native norm both (counts from the oracle: StableLM).
        gated = architecture.norm is Norm.LAYER and architecture.mlp is Mlp.GATED
        both = gated and not self.shares_inputs
        return self._model.hidden_size * (2 if both else alone or beside)

    def _reads(self, inputs: str, *, attention: bool) -> bool:
        """True when an adapter of this half of the layer keeps an input of this width as it is."""
        rows = zip(self._model.architecture.linears, self._model.linears, strict=True)
        return self.shares_inputs and any(
            row.inputs == inputs
            and (row.outputs in _ATTENTION_WIDTHS) == attention
            and self._adapters.targets(linear.name)
            for row, linear in rows
        )

    @property
    def layer_input(self) -> int:
        """Bytes of the layer's own input among what is kept."""
        architecture = self._model.architecture
        width = self._element * self._model.hidden_size
        if architecture.norms is NormPlaces.POST:
            return width * self._reads("hidden", attention=True)
        if architecture.norm is Norm.LAYER:
            return width
        return width if architecture.norm is Norm.RMS and self._element == FLOAT32_BYTES else 0

    @property
    def input_norm(self) -> int:
        """Bytes that the norm of the layer's input keeps; without one, the input itself."""
        is_normed = self._model.architecture.norms is not NormPlaces.POST
        return self.norm if is_normed else self.layer_input

    def _norm(self) -> int:
        """One norm: its input (RMS: as fp32) and its statistics."""
        hidden = self._model.hidden_size
        return {
            Norm.RMS: FLOAT32_BYTES * hidden + FLOAT32_BYTES,
            Norm.LAYER: self._element * hidden + 2 * self._element,
            Norm.LAYER_FLOAT32: 2 * FLOAT32_BYTES * hidden + FLOAT32_BYTES,
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
        beside = FLOAT32_BYTES * model.query_head_count + self.rotary + self.query_key_norms
        if self.streaming:
            return 2 * query + beside
        rotated = query + key_value
        # Fused: the values are a view that keeps the whole projection alive.
        values = query + 2 * key_value if architecture.fused_query_key_value else key_value
        copied = architecture.partial_rotary and self._reads("query", attention=False)
        output = query * (1 + copied)
        repeated = 2 * (query - key_value) if self._repeats_keys else 0
        return rotated + values + repeated + output + beside

    def _rotary(self) -> int:
        """Cosines and sines that a layer makes for itself."""
        architecture = self._model.architecture
        element = FLOAT32_BYTES if architecture.rotary_float32 else self._element
        return 2 * element * self._model.head_size * architecture.interleaved_rotary

    def _query_key_norms(self) -> int:
        """Their inputs in fp32, and their statistics."""
        model = self._model
        kind = model.architecture.query_key_norm
        if kind is QueryKeyNorm.NONE:
            return 0
        rows = model.query_head_count + model.key_value_head_count
        statistics = rows if kind is QueryKeyNorm.HEAD else 2
        return FLOAT32_BYTES * (model.query_width + model.key_value_width + statistics)

    def _mlp(self) -> int:
        """Activation function's inputs and output; gated: the up projection and product too."""
        gated = self._model.architecture.mlp is not Mlp.PLAIN
        # Gated: the up projection too. The down projection's adapter needs its input.
        tensors = self.activation + gated
        product = self._reads("intermediate", attention=False)
        tensors += product if gated else product - 1
        return self._element * self._model.intermediate_size * tensors
