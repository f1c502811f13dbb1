"""What reported runs teach: how far measurements lie from the formulas on one kind of machine.

Residuals are kept by card, driver, torch and attention kernel. The correction is their median, so
that a wild outlier cannot move it; a run further than `_OUTLIER` from all formulas is kept on file
but not used. Memory is never corrected below the closed form.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from services.planner.cost import StepCost
from services.planner.machine import Machine
from services.planner.memory import MemoryEstimate, RunMemory

# A measurement beyond this factor of its prediction, either way, is an accident: another process on
# the card, a suspended machine.
_OUTLIER = 4.0
# The newest runs count; drivers and habits change.
_REMEMBERED = 50
# With fewer runs than this the median could be one bad run's: then only those count that lie within
# this factor of the formulas.
_FEWEST = 3
_PLAUSIBLE = 1.5


@dataclass(frozen=True, slots=True)
class Key:
    """What residuals depend on."""

    device_name: str
    driver_version: str
    torch_version: str
    attention_kernel: str


@dataclass(frozen=True, slots=True)
class Correction:
    """Factors on the formulas, and how many runs they come from."""

    memory_factor: float = 1.0
    time_factor: float = 1.0
    memory_runs: int = 0
    time_runs: int = 0

    def memory(self, memory: RunMemory) -> RunMemory:
        """The estimate with its device total corrected; the difference is on the buffers' line."""
        if self.memory_factor == 1.0:
            return memory
        return replace(memory, device=_grown(memory.device, self.memory_factor))

    def cost(self, cost: StepCost) -> StepCost:
        """The step's time, corrected line by line."""
        if self.time_factor == 1.0:
            return cost
        factor = self.time_factor
        lines = {name: seconds * factor for name, seconds in cost.lines.items()}
        return replace(
            cost, lines=lines, seconds=cost.seconds * factor, low=cost.low * factor,
            high=cost.high * factor,
        )  # fmt: skip


UNCALIBRATED = Correction()


class Outcomes(Protocol):
    """Where reported runs are kept, oldest first."""

    def read(self) -> Sequence[Mapping[str, Any]]:
        """All of them; cheap when nothing was added."""
        ...


class Calibration:
    """Corrections from a store of outcomes, worked out again when it has grown."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self._count = -1
        self._corrections: Mapping[Key, Correction] = {}

    def correction(self, key: Key) -> Correction:
        """The correction for a kind of machine; none without runs."""
        outcomes = self._outcomes.read()
        if len(outcomes) != self._count:
            self._corrections, self._count = corrections(outcomes), len(outcomes)
        return self._corrections.get(key, UNCALIBRATED)


def key_of(machine: Machine, attention_kernel: str) -> Key:
    """The key a machine's runs are kept under."""
    return Key(machine.device_name, machine.driver_version, machine.torch_version, attention_kernel)


def corrections(outcomes: Iterable[Mapping[str, Any]]) -> Mapping[Key, Correction]:
    """Corrections by key, from outcomes as the store has them (protobuf JSON), oldest first."""
    return {key: _correction(*ratios) for key, ratios in _ratios_by_key(outcomes).items()}


def _ratios_by_key(outcomes: Iterable[Mapping[str, Any]]) -> Mapping[Key, list[list[float]]]:
    """Usable ratios of memory, and of seconds."""
    found: dict[Key, list[list[float]]] = defaultdict(lambda: [[], []])
    for outcome in outcomes:
        key, *ratios = _ratios(outcome)
        for kind, ratio in enumerate(ratios):
            if is_usable(ratio):
                found[key][kind].append(ratio)
    return found


def is_usable(ratio: float) -> bool:
    """True for measured over predicted that no accident explains."""
    return 1 / _OUTLIER <= ratio <= _OUTLIER


def is_used(outcome: Mapping[str, Any], outcomes: Iterable[Mapping[str, Any]]) -> bool:
    """True when plans made now learn from this one of the outcomes."""
    key, *ratios = _ratios(outcome)
    of_key = _ratios_by_key(outcomes).get(key, [[], []])
    return any(one in _believed(others) for one, others in zip(ratios, of_key, strict=True))


def _ratios(outcome: Mapping[str, Any]) -> tuple[Key, float, float]:
    """Key and measured over predicted; 0 where there is nothing to compare.

    Predictions may be calibrated themselves: their factors are taken out, so that residuals are
    those of the formulas. A run that ran out of memory measured nothing but the card's end.
    """
    plan = outcome.get("plan", {})
    used, on = plan.get("calibration", {}), plan.get("plannedOn", {})
    key = Key(
        outcome.get("deviceName") or on.get("deviceName", ""),
        outcome.get("driverVersion") or on.get("driverVersion", ""),
        outcome.get("torchVersion") or on.get("torchVersion", ""),
        plan.get("execution", {}).get("attentionKernel", ""),
    )
    if outcome.get("outOfMemory"):
        return key, 0.0, 0.0
    predicted_bytes = float(plan.get("gpuMemory", {}).get("totalBytes", 0))
    predicted_bytes /= used.get("memoryFactor", 1.0) or 1.0
    predicted_seconds = float(plan.get("stepSeconds", 0.0)) / (used.get("timeFactor", 1.0) or 1.0)
    return (
        key,
        _ratio(float(outcome.get("measuredGpuPeakBytes", 0)), predicted_bytes),
        _ratio(float(outcome.get("measuredStepSeconds", 0.0)), predicted_seconds),
    )


def _ratio(measured: float, predicted: float) -> float:
    return measured / predicted if predicted > 0 and math.isfinite(measured) else 0.0


def _correction(memory: list[float], seconds: list[float]) -> Correction:
    memory, seconds = _believed(memory), _believed(seconds)
    return Correction(
        memory_factor=max(1.0, _median(memory)),
        time_factor=_median(seconds),
        memory_runs=len(memory),
        time_runs=len(seconds),
    )


def _believed(ratios: list[float]) -> list[float]:
    """The newest; of a few those that are plausible by themselves."""
    if len(ratios) < _FEWEST:
        return [ratio for ratio in ratios if 1 / _PLAUSIBLE <= ratio <= _PLAUSIBLE]
    return ratios[-_REMEMBERED:]


def _median(ratios: list[float]) -> float:
    return statistics.median(ratios) if ratios else 1.0


def _grown(estimate: MemoryEstimate, factor: float) -> MemoryEstimate:
    phases = {name: math.ceil(size * factor) for name, size in estimate.phases.items()}
    more = phases[estimate.peak_phase] - estimate.total_bytes
    lines = {**estimate.lines, "buffers": estimate.lines["buffers"] + more}
    return MemoryEstimate(phases, lines, estimate.peak_phase)
