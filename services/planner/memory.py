"""Memory of a run on device, host and disk, as a maximum over phases.

Every line carries the id of its formula in docs/reference/memory-model.md. The formulas run for one
tier and set, or for columns of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.planner.arithmetic import Number, maximum, total
from services.planner.machine import DeviceKind, Machine
from services.planner.resident_memory import Lines, ResidentMemory
from services.planner.static_memory import Static, static_memory
from services.planner.streaming_memory import (
    LARGEST_CHUNK,
    LARGEST_CHUNK_ON_CPU,
    StreamingMemory,
)
from services.planner.terms import ModelTerms, SetTerms, TierTerms

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
_STREAMING = {"activations": "streaming-chunk", "kv": "streaming-keys"}
_STORED = {"activations": "streaming-stores", "kv": "streaming-keys"}


def formula_ids(budget: str, *, streaming: bool) -> Mapping[str, str]:
    """Formula of every line of a budget ("gpu", "host" or "disk") under an executor."""
    if not streaming:
        return FORMULAS
    return {**FORMULAS, **(_STREAMING if budget == "gpu" else _STORED)}


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
    """What a run takes on device, host and disk, and the sizes that go with it.

    journal_bytes: disk that a step saved in the middle takes, beside the page files.
    """

    device: MemoryEstimate
    host: MemoryEstimate
    disk: MemoryEstimate
    loss_tile_rows: int
    chunk_tokens: int
    journal_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryPhases:
    """Lines of every phase, for one tier and set or for columns of them."""

    device: Mapping[str, Lines]
    host: Mapping[str, Lines]
    disk: Mapping[str, Lines]
    tile_rows: Number
    chunk_tokens: Number
    journal_bytes: Callable[[], Number]

    def total(self, phases: Mapping[str, Lines]) -> Number:
        """The largest phase."""
        return maximum(*(total(lines.values()) for lines in phases.values()))


@dataclass(frozen=True, slots=True)
class Sizing:
    """What the chunk may grow into, or the chunk itself; 0 where it is not given."""

    device_budget: int = 2**62
    chunk_tokens: int = 0
    tile_rows: int = 0


def memory_phases(
    model: ModelTerms,
    tier: TierTerms,
    chosen: SetTerms,
    machine: Machine,
    *,
    streaming: bool,
    sizing: Sizing,
) -> MemoryPhases:
    """All lines of all phases on the three budgets."""
    static = static_memory(model, tier, chosen)
    process = {"runtime": machine.process_overhead_bytes}
    executor: StreamingMemory | ResidentMemory
    if streaming:
        executor = StreamingMemory(
            model, tier, chosen, static, sizing.device_budget, sizing.chunk_tokens,
            LARGEST_CHUNK_ON_CPU if machine.device_kind is DeviceKind.CPU else LARGEST_CHUNK,
        )  # fmt: skip
    else:
        executor = ResidentMemory(model, tier, chosen, static)
    if sizing.tile_rows:
        executor.tile_rows = sizing.tile_rows
    device = executor.phases()
    host = _host(device, executor.host_stores(), static, process, machine.shared_memory)
    disk = {"optimizer": _checkpoint(static) | executor.disk_stores()}
    return MemoryPhases(
        device, host, disk, executor.tile_rows, executor.chunk_tokens, executor.journal_bytes
    )


def _host(
    device: Mapping[str, Lines], on_host: Lines, static: Static, process: Lines, one_pool: bool
) -> Mapping[str, Lines]:
    """Host bytes: the process, weights on their way to the device, and stores kept there.

    On a machine with one pool the device's tensors are host memory and are counted here too.
    """
    if one_pool:
        return {phase: lines | process for phase, lines in device.items()}
    streamed = on_host.get("base_model", 0)
    return {
        "load": process | {"base_model": streamed + static.converted},
        "forward": process | on_host,
        "backward": process | on_host,
    }


def _checkpoint(static: Static) -> Lines:
    """What one checkpoint writes: adapters and optimizer states."""
    return {"lora": static.lora, "optimizer": static.optimizer}


def itemised(phases: MemoryPhases) -> RunMemory:
    """The estimate of one tier and set."""
    return RunMemory(
        device=_estimate(phases.device),
        host=_estimate(phases.host),
        disk=_estimate(phases.disk),
        loss_tile_rows=int(phases.tile_rows),
        chunk_tokens=int(phases.chunk_tokens),
        journal_bytes=int(phases.journal_bytes()),
    )


def _estimate(phases: Mapping[str, Lines]) -> MemoryEstimate:
    totals = {phase: int(total(lines.values())) for phase, lines in phases.items()}
    peak = max(totals, key=lambda phase: totals[phase])
    lines = {name: int(phases[peak].get(name, 0)) for name in LINES}
    return MemoryEstimate(totals, lines, peak)
