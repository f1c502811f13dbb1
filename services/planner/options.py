"""Optimisation sets: the settings of the executor that a plan chooses between.

A set is named by the ids of the optimisations that are on, as in ListOptimizations; off and on are
complete, so the ids of a chosen plan describe it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from services.planner.machine import FUSED_KERNELS, ComputeDtype, DeviceKind, Machine
from services.planner.models import ModelShape

MIXED_PRECISION = "mixed-precision"
FLASH_ATTENTION = "flash-attention"
GROUPED_QUERY_ATTENTION = "grouped-query-attention"
QLORA = "qlora-4bit"
CHECKPOINTING = "gradient-checkpointing"
ACTIVATION_OFFLOAD = "activation-offload"
ADAMW_8BIT = "adamw-8bit"
TILED_LOSS = "tiled-loss"

# Those that are switches of a set, in the order apply_plan uses them.
SWITCHES = (QLORA, MIXED_PRECISION, FLASH_ATTENTION, CHECKPOINTING, ACTIVATION_OFFLOAD,
            TILED_LOSS, ADAMW_8BIT)  # fmt: skip


class BasePrecision(Enum):
    """How the frozen linear weights of the decoder layers are stored."""

    FULL = "full"
    NF4 = "nf4"


@dataclass(frozen=True, slots=True)
class OptimizationSet:
    """One legal combination. The loss tile is sized with the memory, see memory.py."""

    base_precision: BasePrecision
    dtype: ComputeDtype
    checkpointing: bool
    layer_inputs_on_host: bool
    adamw_8bit: bool
    tiled_loss: bool
    attention_kernel: str

    @property
    def exact(self) -> bool:
        """True when neither the model nor its training arithmetic is approximated."""
        return self.base_precision is BasePrecision.FULL and not self.adamw_8bit

    def ids(self, model: ModelShape) -> tuple[str, ...]:
        """Ids of the optimisations that are on for this model."""
        switched_on = {
            QLORA: self.base_precision is BasePrecision.NF4,
            MIXED_PRECISION: self.dtype is not ComputeDtype.FLOAT32,
            FLASH_ATTENTION: self.attention_kernel == "sdpa_flash",
            GROUPED_QUERY_ATTENTION: model.key_value_head_count < model.query_head_count
            and FUSED_KERNELS[self.attention_kernel],
            CHECKPOINTING: self.checkpointing,
            ACTIVATION_OFFLOAD: self.layer_inputs_on_host,
            TILED_LOSS: self.tiled_loss,
            ADAMW_8BIT: self.adamw_8bit,
        }
        return tuple(name for name, on in switched_on.items() if on)


def legal_sets(machine: Machine, exact_only: bool) -> Iterator[OptimizationSet]:
    """Every set this machine can run, deterministic in order; empty without a fused kernel."""
    kernel = best_kernel(machine)
    if kernel is None:
        return
    lossy_allowed = machine.has_bitsandbytes and not exact_only
    precisions = (BasePrecision.FULL, BasePrecision.NF4) if lossy_allowed else (BasePrecision.FULL,)
    layouts = [(False, False), (True, False)]
    if machine.device_kind is DeviceKind.CUDA and not machine.shared_memory:
        layouts.append((True, True))
    for precision in precisions:
        for dtype in machine.dtypes:
            for checkpointing, on_host in layouts:
                yield OptimizationSet(
                    precision, dtype, checkpointing, on_host, lossy_allowed, True, kernel
                )


def best_kernel(machine: Machine) -> str | None:
    """The best fused attention kernel that works on this machine."""
    return next((name for name in FUSED_KERNELS if name in machine.attention_kernels), None)
