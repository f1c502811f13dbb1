"""Memory of a run under the resident executor, as a maximum over phases.

Every line carries the id of its formula in docs/reference/memory-model.md. Legend: S tokens of the
window, N target rows, T rows of a loss tile, L layers, V vocabulary, h hidden, r adapter rank,
e bytes per element of the compute dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.planner.activations import LayerActivations, layer_activations
from services.planner.architectures import Norm
from services.planner.ladder import Tier
from services.planner.machine import FUSED_KERNELS, Machine
from services.planner.models import ModelShape
from services.planner.options import BasePrecision, OptimizationSet

PHASES = ("load", "forward", "loss", "backward", "optimizer")
LINES = (
    "base_model", "lora", "activations", "kv", "gradients", "optimizer", "buffers", "runtime",
)  # fmt: skip
FORMULAS: Mapping[str, str] = {
    "base_model": "weights",
    "lora": "lora-parameters",
    "activations": "layer-activations",
    "kv": "keys-and-values",
    "gradients": "lora-gradients",
    "optimizer": "optimizer-states",
    "buffers": "working-buffers",
    "runtime": "runtime",
}

# NF4 with double quantisation: half a byte, one byte of scale per 64 weights, one fp32 scale of
# scales per 256 scales (QLoRA, arXiv 2305.14314).
NF4_BYTES_PER_WEIGHT = 1 / 2 + 1 / 64 + 4 / (64 * 256)
# bitsandbytes keeps two 8-bit states with an fp32 scale per 256 elements, and 32-bit states for
# tensors below 4096 elements.
_EIGHT_BIT_STATE = 2 + 2 * 4 / 256
_SMALL_TENSOR = 4096
_TOKEN_BYTES = 16  # token ids and positions, int64
# Logits of one tile: in 16 bit beside their fp32 copy, which the loss then works on in place.
_LOGIT_BYTES = {2: 6, 4: 4}
_LARGEST_TILE_ROWS = 1024
_SMALLEST_TILE_ROWS = 64

Lines = dict[str, int]


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by phase, and by line in the phase with the most."""

    phases: Mapping[str, int]
    lines: Mapping[str, int]
    peak_phase: str

    @property
    def total_bytes(self) -> int:
        """The peak."""
        return self.phases[self.peak_phase]


@dataclass(frozen=True, slots=True)
class RunMemory:
    """What a run takes on device, host and disk, and the loss tile that goes with it."""

    device: MemoryEstimate
    host: MemoryEstimate
    disk: MemoryEstimate
    loss_tile_rows: int


def run_memory(
    model: ModelShape, tier: Tier, chosen: OptimizationSet, machine: Machine
) -> RunMemory:
    """Memory of training `model` at `tier` with one optimisation set."""
    sizes = _Sizes(model, tier, chosen)
    tile_rows = sizes.loss_tile_rows()
    phases = sizes.device_phases(tile_rows)
    device = _maximum(phases)
    host = _maximum(_host_phases(sizes, phases, machine))
    return RunMemory(device, host, _maximum({"optimizer": sizes.checkpoint()}), tile_rows)


def _maximum(phases: Mapping[str, Lines]) -> MemoryEstimate:
    totals = {phase: sum(lines.values()) for phase, lines in phases.items()}
    peak = max(totals, key=lambda phase: totals[phase])
    lines = {name: phases[peak].get(name, 0) for name in LINES}
    return MemoryEstimate(totals, lines, peak)


def _host_phases(
    sizes: _Sizes, device_phases: Mapping[str, Lines], machine: Machine
) -> Mapping[str, Lines]:
    """Host bytes: the process, weights on their way to the device, layer inputs kept there.

    On a machine with one pool the device's tensors are host memory and are counted here too.
    """
    process = {"runtime": machine.process_overhead_bytes}
    if machine.shared_memory:
        return {phase: lines | process for phase, lines in device_phases.items()}
    inputs = {"activations": sizes.pinned_layer_inputs()}
    return {
        "load": process | {"base_model": sizes.full_weights},
        "forward": process | inputs,
        "backward": process | inputs,
    }


class _Sizes:
    """The sizes one set gives rise to, and the phases they add up to."""

    def __init__(self, model: ModelShape, tier: Tier, chosen: OptimizationSet) -> None:
        self._model, self._tier, self._chosen = model, tier, chosen
        self._element = chosen.dtype.element_bytes
        self._lora = self._element * model.lora_parameters(tier.lora_rank)
        self._layer: LayerActivations = layer_activations(
            model,
            self._element,
            tier.lora_rank,
            repeats_keys=not FUSED_KERNELS[chosen.attention_kernel],
        )
        self.full_weights = self._element * model.parameter_count
        self._weights = self._base_weights()
        self._states = self._optimizer_states()
        self._static: Lines = {"base_model": self._weights, "lora": self._lora}

    def device_phases(self, tile_rows: int) -> Mapping[str, Lines]:
        """Lines of every phase, without the CUDA context: the budget is net of it."""
        trained = self._static | {"optimizer": self._states}
        return {
            "load": self._load(),
            "forward": trained | self._forward(),
            "loss": trained | self._loss(tile_rows),
            "backward": trained | self._backward(),
            "optimizer": trained | {"gradients": self._lora, "buffers": self._update_buffers()},
        }

    def loss_tile_rows(self) -> int:
        """Largest power of two for which the loss takes no more than backward does."""
        rows = self._tier.target_tokens
        if not self._chosen.tiled_loss:
            return rows
        rows = min(_LARGEST_TILE_ROWS, 1 << (rows.bit_length() - 1))
        backward = sum(self._backward().values())
        while rows > _SMALLEST_TILE_ROWS and sum(self._loss(rows).values()) > backward:
            rows //= 2
        return rows

    def pinned_layer_inputs(self) -> int:
        """Layer inputs in pinned pages: each allocation is rounded up to a power of two."""
        if not self._chosen.layer_inputs_on_host:
            return 0
        one = self._layer.boundary * self._tier.tokens
        return self._model.layer_count * (1 << (one - 1).bit_length())

    def checkpoint(self) -> Lines:
        """What one checkpoint writes: adapters and optimizer states."""
        return {"lora": self._lora, "optimizer": self._states}

    def _base_weights(self) -> int:
        if self._chosen.base_precision is BasePrecision.FULL:
            return self.full_weights
        quantised = round(self._model.linear_weights * NF4_BYTES_PER_WEIGHT)
        return quantised + self._element * (
            self._model.parameter_count - self._model.linear_weights
        )

    def _optimizer_states(self) -> int:
        rank = self._tier.lora_rank
        per_layer = 0.0
        for linear in self._model.linears:
            for count in (rank * linear.inputs, rank * linear.outputs):
                per_layer += count * self._state_bytes(count)
        return round(self._model.layer_count * per_layer)

    def _state_bytes(self, count: int) -> float:
        if not self._chosen.adamw_8bit:
            return 2 * self._element
        return 8 if count < _SMALL_TENSOR else _EIGHT_BIT_STATE

    def _update_buffers(self) -> int:
        """torch's AdamW works on all parameters at once and needs their size again."""
        return 0 if self._chosen.adamw_8bit else self._lora

    def _load(self) -> Lines:
        """Weights come from a mapped file; NF4 holds one in the compute dtype while it packs it."""
        return self._static | {"buffers": self._dequantised()}

    def _kept(self) -> int:
        """What all layers keep for backward, on the device."""
        if not self._chosen.checkpointing:
            return self._model.layer_count * self._tokens(self._layer.kept)
        layers = 1 if self._chosen.layer_inputs_on_host else self._model.layer_count
        return layers * self._tokens(self._layer.boundary)

    def _forward(self) -> Lines:
        # A layer that keeps everything has its working set among what it keeps, but for one tensor.
        last = self._element * self._model.intermediate_size
        working = self._tokens(self._layer.forward if self._chosen.checkpointing else last)
        return self._with_keys(self._kept() + working, self._kept_layers())

    def _loss(self, tile_rows: int) -> Lines:
        model, element = self._model, self._element
        hidden = element * model.hidden_size
        norm = hidden if model.architecture.norm is Norm.LAYER else 4 * model.hidden_size
        last_hidden = self._tokens(norm + hidden)
        rows = hidden * (self._tier.target_tokens + 3 * tile_rows)
        tile = _LOGIT_BYTES[element] * model.vocabulary_size * tile_rows
        layers = 0 if self._chosen.checkpointing else model.layer_count
        lines = self._with_keys(self._kept() + last_hidden + rows, layers)
        return lines | {"buffers": lines["buffers"] + tile}

    def _backward(self) -> Lines:
        """The later of two moments: the last layer's, or the first's with all gradients made."""
        layer, chosen, layers = self._layer, self._chosen, self._model.layer_count
        working = layer.backward if chosen.checkpointing else layer.backward_over_kept
        working = max(working, layer.final_norm)
        gradients = self._lora // layers
        one_layer = layer.boundary if chosen.checkpointing else layer.kept
        freed = (layers - 1) * self._tokens(one_layer)
        kept = self._kept()
        if not chosen.layer_inputs_on_host and self._lora - gradients > freed:
            gradients, kept = self._lora, kept - freed
        elif chosen.layer_inputs_on_host:
            gradients = self._lora
        lines = self._with_keys(kept + self._tokens(working), self._kept_layers())
        # A whole weight in the compute dtype, before one of the MLP's gradients is made.
        one_tensor = self._tokens(self._element * self._model.intermediate_size)
        buffers = lines["buffers"] + max(0, self._dequantised() - one_tensor)
        return lines | {"gradients": gradients, "buffers": buffers}

    def _kept_layers(self) -> int:
        return 1 if self._chosen.checkpointing else self._model.layer_count

    def _with_keys(self, activations: int, layers: int) -> Lines:
        """Splits the keys and values of `layers` layers off the activations."""
        keys = layers * self._tokens(2 * self._element * self._model.key_value_width)
        rotary = self._model.architecture.rotary_tables * 2 * self._model.head_size
        rotary *= 4 if self._model.architecture.rotary_float32 else self._element
        embedding = self._layer.boundary if self._model.architecture.scaled_embeddings else 0
        return {
            "activations": activations + self._tokens(embedding) - keys,
            "kv": keys,
            "buffers": self._tokens(_TOKEN_BYTES + rotary),
        }

    def _dequantised(self) -> int:
        """bitsandbytes makes the whole of one weight in the compute dtype."""
        if self._chosen.base_precision is BasePrecision.FULL:
            return 0
        return self._element * self._model.largest_linear_weights

    def _tokens(self, bytes_per_token: int) -> int:
        return bytes_per_token * self._tier.tokens
