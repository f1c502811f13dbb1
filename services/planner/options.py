"""Optimisation sets: the settings of the executors that a plan chooses between.

A set is named by the ids of the optimisations that are on, as in ListOptimizations. Combinations
that make no sense are refused here, where they are defined, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from services.planner.attention_kernels import FUSED_KERNELS
from services.planner.machine import ComputeDtype, DeviceKind, Machine
from services.planner.models import ModelShape

MIXED_PRECISION = "mixed-precision"
FLASH_ATTENTION = "flash-attention"
GROUPED_QUERY_ATTENTION = "grouped-query-attention"
GROUPED_QUERY_CONVERSION = "grouped-query-conversion"
QLORA = "qlora-4bit"
CHECKPOINTING = "gradient-checkpointing"
SELECTIVE_CHECKPOINTING = "selective-checkpointing"
SQRT_CHECKPOINTING = "sqrt-checkpointing"
ACTIVATION_OFFLOAD = "activation-offload"
DISK_OFFLOAD = "disk-offload"
STREAMING = "streaming-executor"
WEIGHT_STREAMING = "weight-streaming"
PAGED_ATTENTION = "paged-attention"
ACTIVATIONS_8BIT = "activations-8bit"
ACTIVATIONS_4BIT = "activations-4bit"
ADAMW_8BIT = "adamw-8bit"
TILED_LOSS = "tiled-loss"


class Executor(Enum):
    """How a step runs."""

    RESIDENT = "resident"
    STREAMING = "streaming"


class BasePrecision(Enum):
    """How the frozen linear weights of the decoder layers are stored."""

    FULL = "full"
    NF4 = "nf4"


class Policy(IntEnum):
    """What is kept for backward: everything; layer inputs; these and attention's output."""

    KEEP_ALL = 0
    EVERY_LAYER = 1
    SELECTIVE = 2


class Place(IntEnum):
    """Where a tensor waits between its making and its use. NOWHERE: it is made again."""

    NOWHERE = 0
    DEVICE = 1
    HOST = 2
    DISK = 3


class Codec(IntEnum):
    """How stored layer inputs are written."""

    EXACT = 0
    INT8 = 1
    NF4 = 2


@dataclass(frozen=True, slots=True)
class OptimizationSet:
    """One combination. Chunk and loss tile are sized with the memory, see memory.py.

    layer_input_interval: every how many layers an input is kept. key_values: place of the keys,
    values and their gradients of the layer at work; kept_keys: of all layers' keys and values.
    key_value_heads: 0 as the model has them.
    """

    base_precision: BasePrecision
    dtype: ComputeDtype
    attention_kernel: str
    executor: Executor = Executor.RESIDENT
    policy: Policy = Policy.EVERY_LAYER
    layer_inputs: Place = Place.DEVICE
    layer_input_interval: int = 1
    codec: Codec = Codec.EXACT
    attention_outputs: Place = Place.NOWHERE
    kept_keys: Place = Place.NOWHERE
    hidden_gradients: Place = Place.DEVICE
    key_values: Place = Place.DEVICE
    weights: Place = Place.DEVICE
    key_value_heads: int = 0
    adamw_8bit: bool = True
    tiled_loss: bool = True

    @property
    def checkpointing(self) -> bool:
        """True when layers are recomputed in backward."""
        return self.policy is not Policy.KEEP_ALL

    @property
    def streaming(self) -> bool:
        """True for the streaming executor."""
        return self.executor is Executor.STREAMING

    @property
    def places(self) -> frozenset[Place]:
        """Where anything waits."""
        return frozenset(
            (
                self.layer_inputs, self.attention_outputs, self.kept_keys, self.hidden_gradients,
                self.key_values,
            )
        )  # fmt: skip

    @property
    def lossy_ids(self) -> tuple[str, ...]:
        """Ids of the optimisations that approximate the model or its training arithmetic."""
        lossy = {
            QLORA: self.base_precision is BasePrecision.NF4,
            ADAMW_8BIT: self.adamw_8bit,
            ACTIVATIONS_8BIT: self.codec is Codec.INT8,
            ACTIVATIONS_4BIT: self.codec is Codec.NF4,
            GROUPED_QUERY_CONVERSION: self.key_value_heads > 0,
        }
        return tuple(name for name, on in lossy.items() if on)

    @property
    def exact(self) -> bool:
        """True when neither the model nor its training arithmetic is approximated."""
        return not self.lossy_ids

    def ids(self, model: ModelShape) -> tuple[str, ...]:
        """Ids of the optimisations that are on for this model."""
        heads = self.key_value_heads or model.key_value_head_count
        is_flash = FUSED_KERNELS[self.attention_kernel].shares_keys
        switched_on = {
            QLORA: self.base_precision is BasePrecision.NF4,
            MIXED_PRECISION: self.dtype is not ComputeDtype.FLOAT32,
            FLASH_ATTENTION: is_flash,
            GROUPED_QUERY_ATTENTION: heads < model.query_head_count
            and (is_flash or self.streaming),
            GROUPED_QUERY_CONVERSION: self.key_value_heads > 0,
            STREAMING: self.streaming,
            WEIGHT_STREAMING: self.weights is Place.HOST,
            CHECKPOINTING: self.checkpointing,
            SELECTIVE_CHECKPOINTING: self.policy is Policy.SELECTIVE,
            SQRT_CHECKPOINTING: self.layer_input_interval > 1,
            ACTIVATION_OFFLOAD: self.layer_inputs is Place.HOST,
            DISK_OFFLOAD: self.layer_inputs is Place.DISK,
            PAGED_ATTENTION: self.streaming and self.key_values is not Place.DEVICE,
            ACTIVATIONS_8BIT: self.codec is Codec.INT8,
            ACTIVATIONS_4BIT: self.codec is Codec.NF4,
            TILED_LOSS: self.tiled_loss,
            ADAMW_8BIT: self.adamw_8bit,
        }
        return tuple(name for name, on in switched_on.items() if on)


def hidden_states_place(layer_inputs: Place, *, has_own_memory: bool) -> Place:
    """Where hidden states wait. Every layer reads and writes them: host memory is far enough."""
    elsewhere = has_own_memory and layer_inputs is not Place.DEVICE
    return Place.HOST if elsewhere else Place.DEVICE


def kept_keys_place(
    attention_outputs: Place, key_values: Place, query_heads: int, key_value_heads: int
) -> Place:
    """Where all layers' keys wait: beside kept attention outputs, where they are much smaller."""
    small = 2 * key_value_heads <= query_heads and key_values is Place.DEVICE
    return attention_outputs if small else Place.NOWHERE


def refusal(chosen: OptimizationSet, machine: Machine) -> tuple[str, str, str] | None:
    """Why a set cannot be, as (id, problem, fix); None when it can."""
    for name, broken, problem, fix in (*_contradictions(chosen), *_beyond(chosen, machine)):
        if broken:
            return name, problem, fix
    return None


def _contradictions(chosen: OptimizationSet) -> tuple[tuple[str, bool, str, str], ...]:
    keeps_outputs = chosen.attention_outputs is not Place.NOWHERE
    resident = not chosen.streaming
    return (
        (ACTIVATION_OFFLOAD, resident and not chosen.checkpointing
         and chosen.layer_inputs is not Place.DEVICE,
         f"{ACTIVATION_OFFLOAD} moves what {CHECKPOINTING} keeps", f"add {CHECKPOINTING}"),
        (DISK_OFFLOAD, resident and Place.DISK in chosen.places,
         f"the resident executor keeps nothing on disk, which {DISK_OFFLOAD} asks for",
         f"add {STREAMING}"),
        (STREAMING, chosen.streaming and not chosen.checkpointing,
         f"{STREAMING} recomputes every layer in backward", f"add {CHECKPOINTING}"),
        (SELECTIVE_CHECKPOINTING, keeps_outputs != (chosen.policy is Policy.SELECTIVE),
         f"{SELECTIVE_CHECKPOINTING} is what keeps attention outputs",
         "give both, or neither"),
        (SELECTIVE_CHECKPOINTING, resident and chosen.policy is Policy.SELECTIVE
         and chosen.layer_inputs is not Place.DEVICE,
         f"the resident executor keeps attention outputs on the device only, and "
         f"{ACTIVATION_OFFLOAD} moves the rest", "drop one of them"),
        (SQRT_CHECKPOINTING, resident and chosen.layer_input_interval > 1,
         f"the resident executor keeps every layer's input; {SQRT_CHECKPOINTING} skips some",
         f"add {STREAMING}"),
        (WEIGHT_STREAMING, resident and chosen.weights is not Place.DEVICE,
         f"the resident executor needs all weights on the device; {WEIGHT_STREAMING} moves them",
         f"add {STREAMING}"),
        (PAGED_ATTENTION, resident and chosen.key_values is not Place.DEVICE,
         "the resident executor keeps keys and values on the device", f"add {STREAMING}"),
        (ACTIVATIONS_4BIT, chosen.codec is not Codec.EXACT
         and chosen.layer_inputs not in (Place.HOST, Place.DISK),
         "a codec is for layer inputs that leave the device",
         f"add {ACTIVATION_OFFLOAD} or {DISK_OFFLOAD}"),
        (ACTIVATIONS_4BIT, chosen.codec is Codec.NF4 and keeps_outputs,
         "kept attention outputs do not belong to queries made from 4-bit inputs: gradients were "
         "measured to point elsewhere (bench/results/codecs.json)",
         f"drop {SELECTIVE_CHECKPOINTING}, or take {ACTIVATIONS_8BIT}"),
    )  # fmt: skip


def _beyond(chosen: OptimizationSet, machine: Machine) -> tuple[tuple[str, bool, str, str], ...]:
    """What this machine does not have."""
    off_device = Place.HOST in chosen.places or chosen.weights is Place.HOST
    lossy = [name for name in chosen.lossy_ids if name in (QLORA, ADAMW_8BIT, ACTIVATIONS_4BIT)]
    return (
        (MIXED_PRECISION, chosen.dtype not in machine.dtypes,
         f"{chosen.dtype.value} compute is not supported on {machine.device_name}",
         f"add {MIXED_PRECISION}" if chosen.dtype is ComputeDtype.FLOAT32
         else f"one of {', '.join(dtype.value for dtype in machine.dtypes)}"),
        (ACTIVATION_OFFLOAD, off_device and not machine.has_own_memory,
         f"{machine.device_name} computes in host memory already", "leave it out"),
        (lossy[0] if lossy else QLORA, bool(lossy) and not machine.has_bitsandbytes,
         f"{lossy[0] if lossy else QLORA} needs bitsandbytes, which the profile does not list",
         "install it and profile again"),
    )  # fmt: skip


def on_card(machine: Machine) -> bool:
    """True for a CUDA device with memory of its own."""
    return machine.device_kind is DeviceKind.CUDA and not machine.shared_memory
