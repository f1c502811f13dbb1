"""How long a run is, and what it costs: steps, hours, energy, terabytes written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.planner.evaluation import Candidate
from services.planner.ladder import Tier
from services.planner.machine import Machine
from services.planner.models import ModelShape
from services.planner.tables import table


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps at one tier."""

    tier: Tier
    steps: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """Length of a run: steps, or passes over the data; and the shorter contexts that come first."""

    steps: int = 0
    epochs: float = 0.0
    dataset_tokens: int = 0
    accumulation: int = 1
    curriculum: tuple[Stage, ...] = ()

    def steps_at(self, tier: Tier) -> int:
        """Optimiser steps at the run's own tier."""
        if self.steps:
            return self.steps
        per_step = tier.tokens * self.accumulation
        return max(1, math.ceil(self.epochs * self.dataset_tokens / per_step))

    def windows_at(self, tier: Tier) -> int:
        """Windows the run reads at its own tier."""
        return self.steps_at(tier) * self.accumulation


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage costs."""

    tier: int
    steps: int
    step_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True)
class RunCost:
    """What a whole run costs, its start included."""

    steps: int
    seconds: float
    low: float
    high: float
    energy_joules: float
    disk_written_bytes: int
    trained_tokens: int
    stages: tuple[StageCost, ...]


def run_cost(
    schedule: Schedule, stages: Sequence[tuple[Stage, Candidate]], start: float, machine: Machine
) -> RunCost:
    """The cost of a run from the candidate of each of its stages, in the order they run."""
    windows = [stage.steps * schedule.accumulation for stage, _ in stages]
    costs = [candidate.cost for _, candidate in stages]
    seconds = start + sum(w * cost.seconds for w, cost in zip(windows, costs, strict=True))
    written = sum(w * cost.disk_written_bytes for w, cost in zip(windows, costs, strict=True))
    tokens = sum(
        w * candidate.tier.tokens for w, (_, candidate) in zip(windows, stages, strict=True)
    )
    return RunCost(
        steps=sum(stage.steps for stage, _ in stages),
        seconds=seconds,
        low=start + sum(w * cost.low for w, cost in zip(windows, costs, strict=True)),
        high=start + sum(w * cost.high for w, cost in zip(windows, costs, strict=True)),
        energy_joules=machine.power_watts * seconds,
        disk_written_bytes=int(written),
        trained_tokens=tokens,
        stages=tuple(
            StageCost(
                candidate.tier.tier, stage.steps,
                candidate.cost.seconds * schedule.accumulation,
                w * candidate.cost.seconds,
            )
            for w, (stage, candidate) in zip(windows, stages, strict=True)
        ),
    )  # fmt: skip


def start_seconds(model: ModelShape, candidate: Candidate, machine: Machine) -> float:
    """Start of the engine, reading the weights, and moving them to the device."""
    weights = candidate.chosen.dtype.element_bytes * model.parameter_count
    rates = machine.rates
    read = weights / rates.disk_read if rates.disk_read else 0.0
    moved = candidate.memory.device.phases["load"]
    copied = moved / rates.host_to_device if machine.has_own_memory else 0.0
    return float(table("host")["engine_start_seconds"]) + read + copied
