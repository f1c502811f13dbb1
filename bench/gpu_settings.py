"""What every section of `python -m bench.gpu` is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

NO_CUDA = "no CUDA device"
# Catalogue model of the rows and of the comparison with stock training.
MODEL = "qwen2.5-1.5b"
# A Llama of bench.speed that any processor trains in a moment.
FAST_MODEL = "llama-2x64"


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a section.

    attention_kernel: name of the only kernel that plans may take; empty: the planner's choice.
    host_memory_bytes: what plans may use; 0: what is available.
    row_seconds: how long a step of reduced depth may take, by estimate.
    allowed_seconds: for the whole section. so_far: the results of the sections before.
    note: takes what is known by now, for the case that the section does not end well.
    """

    fast: bool = False
    model: str = MODEL
    attention_kernel: str = ""
    host_memory_bytes: int = 0
    row_seconds: float = 60.0
    allowed_seconds: float = 600.0
    so_far: Mapping[str, Any] = field(default_factory=dict)
    note: Callable[[Mapping[str, Any]], None] = lambda _: None

    @property
    def matmul_peak(self) -> float | None:
        """FLOP/s of the fastest 16-bit product that was measured, if it was."""
        rate = self.so_far.get("rates", {}).get("matmul_peak_flops_per_second")
        return float(rate) if rate else None

    @property
    def data_sheet_peak(self) -> float | None:
        """FLOP/s of 16-bit products as the card's maker has it, where the card table does."""
        rate = self.so_far.get("environment", {}).get("data_sheet_flops_per_second")
        return float(rate) if rate else None

    def subject_name(self, layers: int = 0) -> str:
        """The model as `bench.speed.Subject.of` takes it; 0: all its layers."""
        name = FAST_MODEL if self.fast else self.model
        return f"{name}:{layers}" if layers else name
