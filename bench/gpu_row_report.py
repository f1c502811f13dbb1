"""What is written of a row: the plan beside what was measured."""

from __future__ import annotations

import statistics
from typing import Any

from bench.gpu_device import Peaks
from bench.gpu_extrapolation import full_step_seconds, per_layer
from bench.gpu_plans import Device, RowPlan, operations
from bench.gpu_row_run import Ran
from bench.gpu_settings import NO_CUDA

_RESIDENT = "the resident executor has no stages"
_PEAKS = (
    "peak_load_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "process_bytes",
    "allocation_retries",
)  # fmt: skip


def plan_part(row: RowPlan, vram_bytes: int | None) -> dict[str, Any]:
    """What was planned, at full depth and as it is run."""
    tier, full, run = row.tier, row.full, row.run
    return {
        "tier": tier.tier, "context_tokens": tier.context_tokens,
        "target_tokens": tier.target_tokens, "tokens": tier.tokens,
        "layers": row.layers, "full_layers": row.shape.layer_count,
        "chunks": row.chunks if full.chosen.streaming else None,
        "sampled_chunks": row.sampled_chunks or None,
        "executor": full.chosen.executor.value,
        "optimizations": list(full.chosen.ids(row.shape)),
        "chunk_tokens": full.memory.chunk_tokens if full.chosen.streaming else None,
        "vram_bytes": vram_bytes,
        "planned_bytes": run.memory.device.total_bytes,
        "planned_lines": dict(run.memory.device.lines),
        "planned_bytes_at_full_depth": full.memory.device.total_bytes,
        "planned_host_bytes": run.memory.host.total_bytes,
        "planned_host_bytes_at_full_depth": full.memory.host.total_bytes,
        "assumes_more_host_memory": row.assumes_host,
        "planned_step_seconds": float(full.cost.seconds),
        "planned_step_seconds_by_card_table": row.by_card_table,
    }  # fmt: skip


def cap_of(row: RowPlan, device: Device, vram_bytes: int) -> int:
    """Bytes that torch's allocator may hold: the row's, less the context and missing layers."""
    return vram_bytes - device.context_bytes - row.missing_bytes


def memory_part(
    row: RowPlan, ran: Ran, vram_bytes: int | None, cap_bytes: int | None, workspace_bytes: int
) -> dict[str, Any]:
    """Peaks beside the plan and the cap.

    workspace_bytes: of libraries, from torch's allocator; a plan has them with the context.
    process_bytes: what the allocator held at most, and what is outside it at the end. inside_vram:
    whether that is within the row's VRAM, less what missing layers would take. An allocator that
    keeps what was freed fills its cap without need.
    """
    host = {"host_peak_resident_bytes": ran.host_peak_bytes, "setup_seconds": ran.setup_seconds}
    if ran.step_peaks is None or ran.load_peaks is None or ran.outside_bytes is None:
        missing = (*_PEAKS, "cap_bytes", "inside_cap", "inside_vram", "error_percent")
        return dict.fromkeys(missing) | host | {"not_measured": dict.fromkeys(missing, NO_CUDA)}
    peaks = _highest(ran.load_peaks, ran.step_peaks)
    process_bytes = peaks.reserved_bytes + ran.outside_bytes
    planned_bytes = row.run.memory.device.total_bytes
    return host | {
        "peak_load_bytes": ran.load_peaks.allocated_bytes,
        "peak_allocated_bytes": peaks.allocated_bytes,
        "peak_reserved_bytes": peaks.reserved_bytes,
        "process_bytes": process_bytes,
        "allocation_retries": ran.allocation_retries,
        "cap_bytes": cap_bytes,
        "inside_cap": None if cap_bytes is None else peaks.reserved_bytes <= cap_bytes,
        "inside_vram": None if vram_bytes is None
        else process_bytes <= vram_bytes - row.missing_bytes,
        "workspace_bytes": workspace_bytes,
        "error_percent": 100 * (planned_bytes / (peaks.allocated_bytes - workspace_bytes) - 1),
        "not_measured": {},
    }  # fmt: skip


def time_part(
    row: RowPlan, ran: Ran, peak: float | None, data_sheet: float | None
) -> dict[str, Any]:
    """Seconds, tokens a second and utilisation, of the fastest product's FLOP/s and the card's.

    Utilisation and tokens a second are those of a step at full depth over the whole window: of
    the measured one, or of the extrapolated one where anything was left out. spread: slowest less
    fastest step, over the median.
    """
    median = statistics.median(ran.samples)
    found = operations(row.shape, row.tier, row.full.chosen)
    stages = ran.stages
    extrapolated = None
    if row.is_reduced and stages is not None:
        extrapolated = full_step_seconds(stages, ran.share, row.shape.layer_count)
    seconds = median if extrapolated is None else extrapolated
    return {
        "attention_kernel": ran.attention_kernel,
        "loss": ran.loss,
        "step_seconds": median,
        "samples": ran.samples,
        "spread": (max(ran.samples) - min(ran.samples)) / median,
        "phases": stages.phases if stages else None,
        "phases_not_measured": None if stages else _RESIDENT,
        "per_layer_seconds": per_layer(stages, ran.share) if stages else None,
        "extrapolated_step_seconds": extrapolated,
        "planned_over_measured": row.expected_seconds / seconds,
        "tokens_per_second": row.tier.tokens / seconds,
        "model_flops": found.model,
        "hardware_flops": found.hardware,
        **found.utilisation(seconds, peak),
        "model_flops_utilisation_of_data_sheet": found.model / seconds / data_sheet
        if data_sheet
        else None,
    }


def _highest(one: Peaks, other: Peaks) -> Peaks:
    return Peaks(
        max(one.allocated_bytes, other.allocated_bytes),
        max(one.reserved_bytes, other.reserved_bytes),
    )
