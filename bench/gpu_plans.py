"""Plans for the rows of the ladder on a pretended card, and the operations a step takes.

A row's card has the row's video memory and the rates of the real one. Operations are counted by the
planner's own time model (services/planner/cost.py), by asking it on a machine whose every rate is
one operation a second:

- *hardware*: what the planned set computes. Linears of the layers 2 x weights x tokens for every
  forward (two with recomputation) and once backward, to their inputs, since base weights are
  frozen; queries, keys and values of all layers but the last once more where keys are made again;
  causal attention 2 q S^2 a layer forward and 2.5 times that backward, where the kernel makes the
  scores again; the head forward and backward on target rows.
- *model*: without any recomputation. Linears forward and once backward, attention forward and twice
  that backward, the head as above.

Adapters' products are in neither. *model* counts every layer in full, *hardware* only what runs:
of the last layer's chunks without targets the streaming executor makes keys and values alone. Both
count gradients below the first layer, which it leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from google.protobuf import json_format

from bench import speed
from elite.planner.v1 import planner_pb2
from elite.profiler.v1 import profiler_pb2
from services.planner import responses, search
from services.planner.adapters import EVERY_LINEAR
from services.planner.attention_kernels import best_kernel, card_kernels
from services.planner.budgets import DEFAULT_HEADROOM
from services.planner.evaluation import Candidate, Evaluation
from services.planner.gpus import card_named
from services.planner.ladder import Tier
from services.planner.machine import (
    ComputeDtype,
    DeviceKind,
    Machine,
    card_dtypes,
    card_rates,
    process_overhead_bytes,
)
from services.planner.measured_rates import measured_rates
from services.planner.memory import Sizing
from services.planner.models import ModelShape
from services.planner.options import (
    BasePrecision,
    Codec,
    Executor,
    OptimizationSet,
    Place,
    Policy,
    kept_keys_place,
)
from services.planner.rates import AttentionRates, DtypeRates, ElementwiseRates, RateCurve, Rates

# A host that no plan of the ladder is too large for.
_ANY_HOST_BYTES = 2**41
_FULL_DEPTH_TIERS = 8
# Of a reduced model: the first and the last layer, and one as all others are.
LEAST_LAYERS = 3
# First, last, and some between, so that a straight line through them has the mean of all.
_LEAST_SAMPLE = 5
_HALF_BYTES = 2
# What a step may take beyond its estimate.
_SAFETY = 1.3
_HARDWARE_BACKWARD, _MODEL_BACKWARD = 1.0, 1.25  # of 2.5 forwards: 2.5, and 2


class PlanRefused(Exception):  # noqa: N818 - it is what was found
    """The planner has no plan for this row, or this machine cannot run any depth of it."""


@dataclass(frozen=True, slots=True)
class Device:
    """The real card: name, compute capability, its memory and what is taken of it.

    context_bytes: by the CUDA context. workspace_bytes: by libraries, from torch's allocator.
    """

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    context_bytes: int
    workspace_bytes: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What this machine allows a row.

    host_bytes: for the process, headroom included. row_seconds: of a step of reduced depth.
    allowed_seconds: of one of full depth. chunk_tokens: 0 for the planner's choice.
    """

    host_bytes: int
    row_seconds: float
    allowed_seconds: float
    chunk_tokens: int = 0


@dataclass(frozen=True)
class RowPlan:
    """A row as it is planned at full depth, and as it is run.

    by_card_table: seconds of the full depth by the card table's rates, None without the card.
    sampled_chunks: of every layer; 0 runs all. assumes_host: for the plan at full depth this
    machine has too little host memory.
    """

    tier: Tier
    shape: ModelShape
    machine: Machine
    full: Candidate
    run: Candidate
    layers: int
    sampled_chunks: int
    by_card_table: float | None
    assumes_host: bool

    @cached_property
    def message(self) -> planner_pb2.Plan:
        """The plan of what is run, for the engine."""
        return plan_message(replace(self.shape, layer_count=self.layers), self.machine, self.run)

    @property
    def is_reduced(self) -> bool:
        """Whether layers or chunks are left out."""
        return self.layers < self.shape.layer_count or self.sampled_chunks > 0

    @property
    def chunks(self) -> int:
        """Chunks of the window."""
        return math.ceil(self.tier.tokens / self.full.memory.chunk_tokens)

    @property
    def expected_seconds(self) -> float:
        """Of a step at full depth."""
        return float(self.full.cost.seconds)

    @property
    def missing_bytes(self) -> int:
        """Device bytes of the layers that are left out."""
        return self.full.memory.device.total_bytes - self.run.memory.device.total_bytes


def plan_row(
    shape: ModelShape, tier: Tier, machine: Machine, limits: Limits,
    chosen: OptimizationSet | None = None, by_table: Rates | None = None,
) -> RowPlan:  # fmt: skip
    """Plans a row, and chooses the depth that this machine can run in time.

    chosen: the set, instead of the planner's choice. by_table: the card table's rates, for
    comparison. Raises `PlanRefused`.
    """
    full, assumes_host = _full_depth(shape, tier, machine, limits, chosen)
    depths = _Depths(shape, machine, full)
    layers, sample = depths.choose(limits)
    by_card_table = depths.seconds(shape.layer_count, by_table) if by_table else None
    return RowPlan(
        tier, shape, machine, full, depths.at(layers), layers, sample, by_card_table, assumes_host
    )


def _full_depth(
    shape: ModelShape, tier: Tier, machine: Machine, limits: Limits, chosen: OptimizationSet | None
) -> tuple[Candidate, bool]:
    """The plan at full depth, and whether it needs more host memory than there is."""
    if chosen is not None:
        sizing = Sizing(machine.gpu_safe_bytes, min(limits.chunk_tokens, tier.tokens))
        return Evaluation(shape, machine).one(tier, chosen, sizing), False
    for host_bytes in (machine.host_safe_bytes, _ANY_HOST_BYTES):
        on = replace(machine, host_safe_bytes=host_bytes)
        found = search.plan([tier], shape, on, search.Constraints())
        if found.chosen is not None:
            return found.chosen, host_bytes == _ANY_HOST_BYTES
    raise PlanRefused(f"tier {tier.tier} does not fit {machine.gpu_safe_bytes:,} bytes of device "
                      f"memory: {found.verdicts[0].remedy}")  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Depths:
    """A plan at any depth."""

    shape: ModelShape
    machine: Machine
    full: Candidate

    def at(self, layers: int) -> Candidate:
        return _again(replace(self.shape, layer_count=layers), self.machine, self.full)

    def seconds(self, layers: int, rates: Rates | None = None) -> float:
        timed = replace(self.machine, rates=rates or self.machine.rates)
        return float(_again(replace(self.shape, layer_count=layers), timed, self.full).cost.seconds)

    def choose(self, limits: Limits) -> tuple[int, int]:
        """Layers, and how many chunks of each are sampled; 0 for all."""
        most = self.shape.layer_count
        in_time = self.seconds(most) * _SAFETY <= limits.allowed_seconds
        is_low = self.full.tier.tier <= _FULL_DEPTH_TIERS
        if not self.full.chosen.streaming or (is_low and in_time and self._fits(most, limits)):
            return most, 0
        for layers in range(most - 1, LEAST_LAYERS - 1, -1):
            if self.seconds(layers) <= limits.row_seconds and self._fits(layers, limits):
                return layers, 0
        if not self._fits(LEAST_LAYERS, limits):
            needed_bytes = self.at(LEAST_LAYERS).memory.host.total_bytes
            problem = f"{LEAST_LAYERS} layers take {needed_bytes:,} bytes of host memory"
            raise PlanRefused(f"{problem}, {limits.host_bytes:,} are there")
        share = limits.row_seconds / self.seconds(LEAST_LAYERS)
        chunks = math.ceil(self.full.tier.tokens / self.full.memory.chunk_tokens)
        sample = max(_LEAST_SAMPLE, int(share * chunks))
        return LEAST_LAYERS, sample if sample < chunks else 0

    def _fits(self, layers: int, limits: Limits) -> bool:
        usable_bytes = (1 - DEFAULT_HEADROOM) * limits.host_bytes
        return bool(self.at(layers).memory.host.total_bytes <= usable_bytes)


def _again(shape: ModelShape, machine: Machine, like: Candidate) -> Candidate:
    """A candidate's tier, set and sizes for another depth or other rates."""
    sizing = Sizing(
        chunk_tokens=like.memory.chunk_tokens if like.chosen.streaming else 0,
        tile_rows=like.memory.loss_tile_rows,
    )
    return Evaluation(shape, machine).one(like.tier, like.chosen, sizing)


def plan_message(shape: ModelShape, machine: Machine, candidate: Candidate) -> planner_pb2.Plan:
    """A candidate as the engine reads it."""
    budget = search.budget_for(machine, search.Constraints())
    answer = responses.Answer(shape, machine, budget, EVERY_LINEAR)
    return responses.plan_message(candidate, answer)


def row_machine(
    device: Device, vram_bytes: int, host_bytes: int, measured: Rates | None, kernel: str
) -> Machine:
    """A card like `device` with so much video memory. kernel: the only one; empty: the card's.

    Rates are those measured, else the card table's. Raises `PlanRefused` without either.
    """
    rates = measured or table_rates(device)
    if rates is None:
        problem = f"the card table has no {device.name}, and its rates were not measured"
        raise PlanRefused(problem)
    return Machine(
        device_name=device.name, device_kind=DeviceKind.CUDA, device_index=0, shared_memory=False,
        gpu_safe_bytes=vram_bytes - device.context_bytes - device.workspace_bytes,
        host_safe_bytes=host_bytes,
        process_overhead_bytes=process_overhead_bytes(DeviceKind.CUDA), disk_free_bytes=0,
        rates=rates, dtypes=card_dtypes(device.capability),
        attention_kernels=(kernel,) if kernel else fastest_kernels(rates, device.capability),
        has_bitsandbytes=True,
    )  # fmt: skip


def fastest_kernels(rates: Rates | None, capability: tuple[int, int]) -> tuple[str, ...]:
    """Attention kernels as they were timed, the fastest first; else as is usual for such a card."""
    of_dtype = rates.of(_HALF_BYTES) if rates else None
    return tuple(of_dtype.kernels if of_dtype else ()) or card_kernels(capability)


def table_rates(device: Device) -> Rates | None:
    """The card table's; None where it does not have the card."""
    card = card_named(device.name, device.memory_bytes)
    return card_rates(card) if card else None


def fast_machine(kind: str, memory_bytes: int, kernel: str) -> Machine:
    """Whatever there is, with rates that say nothing. kind: of the torch device."""
    return speed.Setting(
        ComputeDtype.BFLOAT16, DeviceKind(kind), memory_bytes, rounds=1, kernel=kernel
    ).machine


def streaming_set(
    shape: ModelShape, machine: Machine, place: Place = Place.DEVICE
) -> OptimizationSet:
    """The streaming executor in 16 bits with kept attention outputs, all stores in one place."""
    heads = shape.query_head_count, shape.key_value_head_count
    kernel = best_kernel(machine.attention_kernels, shape.head_size) or ""
    return OptimizationSet(
        base_precision=BasePrecision.FULL, dtype=machine.dtypes[0],
        attention_kernel=kernel, executor=Executor.STREAMING,
        policy=Policy.SELECTIVE, layer_inputs=place, attention_outputs=place,
        hidden_gradients=place, adamw_8bit=False,
        kept_keys=kept_keys_place(place, Place.DEVICE, *heads),
    )  # fmt: skip


def rates_from(so_far: Mapping[str, Any]) -> Rates | None:
    """What the section `rates` measured, as the planner reads a stress test; None without it."""
    section = so_far.get("rates", {})
    if not section.get("measurements"):
        return None
    message = json_format.ParseDict(section["measurements"], profiler_pb2.DeviceMeasurements())
    return measured_rates(message, profiler_pb2.Disk())


@dataclass(frozen=True, slots=True)
class Operations:
    """Floating-point operations of one step at full depth."""

    model: float
    hardware: float

    def utilisation(self, seconds: float, peak: float | None) -> dict[str, float | None]:
        """Both over a peak rate; null without one."""
        return {
            "model_flops_utilisation": self.model / seconds / peak if peak else None,
            "hardware_flops_utilisation": self.hardware / seconds / peak if peak else None,
        }


def operations(shape: ModelShape, tier: Tier, chosen: OptimizationSet) -> Operations:
    """Operations of a step, see the top of this file."""
    without = replace(
        chosen, executor=Executor.RESIDENT, policy=Policy.KEEP_ALL, layer_inputs=Place.DEVICE,
        layer_input_interval=1, codec=Codec.EXACT, attention_outputs=Place.NOWHERE,
        kept_keys=Place.NOWHERE, hidden_gradients=Place.DEVICE, key_values=Place.DEVICE,
        weights=Place.DEVICE,
    )  # fmt: skip
    return Operations(
        model=_counted(shape, tier, without, _MODEL_BACKWARD),
        hardware=_counted(shape, tier, chosen, _HARDWARE_BACKWARD),
    )


def _counted(
    shape: ModelShape, tier: Tier, chosen: OptimizationSet, attention_backward: float
) -> float:
    """Seconds of a machine that does one operation a second, and everything else in no time."""
    one, no_time = RateCurve(((1.0, 1.0),)), math.inf
    backward = RateCurve(((1.0, attention_backward),))
    nothing = ElementwiseRates.single(no_time)
    attention = {"": AttentionRates({128: one}, {128: backward})}
    of_dtype = DtypeRates(one, 1.0, no_time, 0.0, attention, nothing)
    rates = Rates({2: of_dtype, 4: of_dtype}, no_time, no_time, no_time, no_time, no_time)
    machine = replace(fast_machine("cuda", 2**62, chosen.attention_kernel), rates=rates)
    lines = Evaluation(shape, machine).one(tier, chosen, Sizing()).cost.lines
    return float(sum(lines[name] for name in ("linear", "attention", "loss")))
