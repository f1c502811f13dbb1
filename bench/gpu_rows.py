"""Sections `row-TIER` and `kernels`: optimiser steps of the ladder's rows in the rows' own memory.

The allocator may hold what a card of the row's VRAM would leave beside its CUDA context, less what
layers that are left out would take. The plan is the planner's for such a card; the model has random
weights and is loaded as the engine loads one. Up to tier 8 all layers run if there is time. Above,
and when there is none, a step has fewer layers, and where three are still too many, some chunks of
each: what a step of all takes is then `extrapolated_step_seconds`.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping
from typing import Any

import torch

from bench import gpu_device
from bench.gpu_plans import (
    Limits,
    PlanRefused,
    RowPlan,
    fast_machine,
    plan_row,
    rates_from,
    row_machine,
    streaming_set,
    table_rates,
)
from bench.gpu_row_report import cap_of, memory_part, plan_part, time_part
from bench.gpu_row_run import run_row
from bench.gpu_settings import Settings
from bench.speed import Subject
from bench.speed_steps import free_bytes
from services.common.host_memory import read_memory
from services.planner.attention_kernels import FLASH
from services.planner.ladder import Tier, load_ladder
from services.trainer.engine.failures import EngineError
from services.trainer.engine.streaming.kernels import KERNELS

_KERNELS_TIER = 8
_KERNELS_SECONDS = 8.0
_KERNELS_FIELDS = (
    "tier", "layers", "sampled_chunks", "attention_kernel", "peak_allocated_bytes",
    "error_percent", "per_layer_seconds", "extrapolated_step_seconds", "model_flops_utilisation",
    "hardware_flops_utilisation",
)  # fmt: skip
# Tiers, chunk and depth of --fast: low rows run whole, high ones with chunks left out.
_FAST_TOKENS, _FAST_RANK, _FAST_CHUNK, _FAST_LAYERS = {False: (192, 64), True: (384, 128)}, 4, 32, 4


def measure(settings: Settings, number: int) -> dict[str, Any]:
    """The row of a tier. Raises `PlanRefused`, and what the engine raises."""
    limits = Limits(_host_bytes(settings), settings.row_seconds, settings.allowed_seconds)
    return _measure(settings, number, limits, settings.attention_kernel)


def measure_kernels(settings: Settings, number: int) -> dict[str, Any]:
    """Some chunks of a few layers of tier 8 with each attention kernel, or why it cannot."""
    del number
    limits = Limits(_host_bytes(settings), _KERNELS_SECONDS, allowed_seconds=0.0)
    device, found = gpu_device.open_device(), []
    for name in dict.fromkeys(kernel.name for kernel in KERNELS):
        try:
            row = _measure(settings, _KERNELS_TIER, limits, name)
            found.append({"kernel": name} | {field: row.get(field) for field in _KERNELS_FIELDS})
        except (EngineError, PlanRefused, RuntimeError) as error:
            found.append({"kernel": name, "reason": str(error).strip().partition("\n")[0]})
        settings.note({"kernels": found})
        gc.collect()  # the model and its stores
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return {"kernels": found}


def _measure(settings: Settings, number: int, limits: Limits, kernel: str) -> dict[str, Any]:
    device = gpu_device.open_device()
    subject = Subject.of(settings.subject_name(_FAST_LAYERS if settings.fast else 0))
    vram_bytes: int | None
    cap_bytes: int | None
    workspace_bytes = 0
    if settings.fast:
        row, vram_bytes, cap_bytes = _fast_row(subject, number, device, limits, kernel), None, None
    else:
        tier = _tier(number)
        card, vram_bytes = gpu_device.describe(device), tier.reference_vram_bytes
        workspace_bytes = card.workspace_bytes
        measured = rates_from(settings.so_far)
        machine = row_machine(card, vram_bytes, limits.host_bytes, measured, kernel)
        row = plan_row(subject.shape, tier, machine, limits, by_table=table_rates(card))
        cap_bytes = cap_of(row, card, vram_bytes)
    planned = {"model": subject.name} | plan_part(row, vram_bytes)
    settings.note(planned)
    ran = run_row(
        row, config_at(subject.config, row.layers), device, cap_bytes,
        lambda ran: settings.note(planned | {"setup_seconds": ran.setup_seconds}),
    )  # fmt: skip
    memory = memory_part(row, ran, vram_bytes, cap_bytes, workspace_bytes)
    times = time_part(row, ran, settings.matmul_peak, settings.data_sheet_peak)
    return planned | memory | times


def _fast_row(
    subject: Subject, number: int, device: torch.device, limits: Limits, kernel: str
) -> RowPlan:
    """A window of some hundred tokens through the streaming executor."""
    context, targets = _FAST_TOKENS[number > _KERNELS_TIER]
    machine = fast_machine(device.type, free_bytes(device), kernel or FLASH)
    chosen = streaming_set(subject.shape, machine)
    is_whole = number <= _KERNELS_TIER and limits.allowed_seconds > 0
    tiny = Limits(limits.host_bytes, 0.0, math.inf if is_whole else 0.0, _FAST_CHUNK)
    tier = Tier(number, context, targets, _FAST_RANK)
    return plan_row(subject.shape, tier, machine, tiny, chosen)


def config_at(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """A model's config with so many layers."""
    types = config.get("layer_types")
    kept = {"layer_types": types[:layers]} if types else {}
    return {**config, **kept, "num_hidden_layers": layers}


def _tier(number: int) -> Tier:
    for tier in load_ladder():
        if tier.tier == number:
            return tier
    raise ValueError(f"the ladder has no tier {number}")


def _host_bytes(settings: Settings) -> int:
    return settings.host_memory_bytes or read_memory().available_bytes
