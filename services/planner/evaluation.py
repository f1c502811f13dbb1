"""Memory and time of sets: one itemised, or all of them for every tier at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.planner.adapters import EVERY_LINEAR, Adapters
from services.planner.arithmetic import Number, minimum
from services.planner.calibration import UNCALIBRATED, Correction
from services.planner.cost import SPARED_BY_CHUNKS, StepCost, step_cost
from services.planner.grids import Grid, Group
from services.planner.ladder import Tier
from services.planner.machine import Machine
from services.planner.memory import (
    MemoryPhases,
    RunMemory,
    Sizing,
    itemised,
    memory_phases,
)
from services.planner.models import ModelShape
from services.planner.options import OptimizationSet, Place
from services.planner.streaming_memory import longest_useful_chunk
from services.planner.terms import (
    ModelTerms,
    SetTerms,
    TierTerms,
    model_terms,
    set_terms,
    tier_terms,
)
from services.planner.time_terms import TimeTerms, time_terms

Column = Any  # a numpy array of shape (tiers, sets)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One tier under one set, with what it takes."""

    tier: Tier
    chosen: OptimizationSet
    memory: RunMemory
    cost: StepCost


@dataclass(frozen=True, slots=True)
class Totals:
    """What one set takes at one tier, without its lines."""

    chosen: OptimizationSet
    device_bytes: int
    host_bytes: int
    disk_bytes: int
    seconds: float
    low: float
    high: float
    chunk_tokens: int

    @classmethod
    def of(cls, candidate: Candidate) -> Totals:
        """Those of an itemised candidate."""
        memory, cost = candidate.memory, candidate.cost
        return cls(
            candidate.chosen, memory.device.total_bytes, memory.host.total_bytes,
            memory.disk.total_bytes, cost.seconds, cost.low, cost.high, memory.chunk_tokens,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of every tier (down) under every set (across)."""

    sets: tuple[OptimizationSet, ...]
    device_bytes: Column
    host_bytes: Column
    disk_bytes: Column


@dataclass(frozen=True, slots=True)
class Evaluated(Sizes):
    """Totals of every tier (down) under every set (across)."""

    seconds: Column
    low: Column
    high: Column
    chunk_tokens: Column

    def totals(self, row: int, index: int) -> Totals:
        """Those of one tier and set."""
        return Totals(
            self.sets[index],
            int(self.device_bytes[row, index]),
            int(self.host_bytes[row, index]),
            int(self.disk_bytes[row, index]),
            float(self.seconds[row, index]),
            float(self.low[row, index]),
            float(self.high[row, index]),
            int(self.chunk_tokens[row, index]),
        )


class Evaluation:
    """A model with its adapters on a machine: what sets take and cost."""

    def __init__(
        self,
        model: ModelShape,
        machine: Machine,
        adapters: Adapters = EVERY_LINEAR,
        correction: Correction = UNCALIBRATED,
    ) -> None:
        self._model, self._machine, self._adapters = model, machine, adapters
        self._correction = correction
        self._terms: dict[object, tuple[ModelTerms, TimeTerms]] = {}

    @property
    def rank(self) -> int:
        """Rank of the adapters; 0 takes the tiers'."""
        return self._adapters.rank

    @property
    def dropout(self) -> float:
        """Share of their inputs that adapters drop."""
        return self._adapters.dropout

    def one(self, tier: Tier, chosen: OptimizationSet, sizing: Sizing) -> Candidate:
        """One tier under one set, line by line."""
        column = tier_terms([tier], self._adapters.rank)
        phases, cost = self._run(column, chosen, set_terms([chosen]), sizing)
        memory = self._correction.memory(itemised(phases))
        return Candidate(tier, chosen, memory, self._correction.cost(cost))

    def all(self, ladder: Sequence[Tier], grid: Grid, device_budget: int) -> Evaluated:
        """Totals of all tiers and sets; the chunk of a set grows into the device's budget."""
        tiers, sizing = tier_terms(ladder, self._adapters.rank), self.sizing(device_budget)
        totals = [self._totals(tiers, group, sizing, len(ladder)) for group in grid.groups]
        return Evaluated(grid.sets, *_joined(totals))

    def with_chunks(self, ladder: Sequence[Tier], grid: Grid, lengths: Sequence[int]) -> Evaluated:
        """Totals of streaming sets under chunks of every length, shorter where they must be.

        Rows are the first tier's lengths, then the next one's.
        """
        rows = [tier for tier in ladder for _ in lengths]
        tiers = tier_terms(rows, self._adapters.rank)
        chunk_tokens = np.tile(np.array(lengths, dtype=np.float64), len(ladder))[:, None]
        totals = [
            self._totals(tiers, group, _with_chunk(chunk_tokens, tiers, group.columns), len(rows))
            for group in grid.groups
        ]
        return Evaluated(grid.sets, *_joined(totals))

    def sizes(self, ladder: Sequence[Tier], grid: Grid, chunk_tokens: int) -> Sizes:
        """The same without the time, at half the cost."""
        tiers = tier_terms(ladder, self._adapters.rank)
        totals = []
        for group in grid.groups:
            sizing = _with_chunk(chunk_tokens, tiers, group.columns)
            phases = self._memory(tiers, group.sets[0], group.columns, sizing)
            size = (len(ladder), len(group.sets))
            totals.append([_in_shape(value, size) for value in self._bytes(phases)])
        return Sizes(grid.sets, *_joined(totals))

    def by_chunk(self, tier: Tier, chosen: OptimizationSet, lengths: Sequence[int]) -> Evaluated:
        """Totals of one tier and streaming set under chunks of several lengths, across."""
        count = len(lengths)
        group = Group((chosen,) * count, set_terms([chosen]))
        sizing = Sizing(chunk_tokens=np.array([lengths], dtype=np.float64))  # type: ignore[arg-type]
        totals = self._totals(tier_terms([tier], self._adapters.rank), group, sizing, 1)
        return Evaluated(group.sets, *totals)

    def rates_depend_on_chunk(self, chosen: OptimizationSet) -> bool:
        """Whether a chunk's length changes its time per token, or how often keys are read."""
        _, time = self.terms(chosen)
        by_rates = time.elementwise.depends_on_size or time.forward_overhead or time.blocks
        return bool(by_rates) or chosen.key_values is not Place.DEVICE

    def spared_by_chunk(self, candidate: Candidate) -> float:
        """The most that another chunk may spare a streaming set elsewhere, as a share of the step.

        Waiting, weights made anew for every chunk, and in the last layer the chunks that have
        targets.
        """
        shape, _ = self.terms(candidate.chosen)
        cost = candidate.cost
        by_line = sum(cost.lines[name] for name in SPARED_BY_CHUNKS) / cost.seconds
        # Most of a step may be attention, and that of layers without a window.
        full_layers = max(1, shape.layers - shape.windowed_layers)
        with_targets = candidate.memory.chunk_tokens / (candidate.tier.tokens * full_layers)
        return float(by_line + with_targets)

    def sizing(self, device_budget: int) -> Sizing:
        """The budget as the formulas see it: before they are corrected."""
        return Sizing(device_budget=int(device_budget / self._correction.memory_factor))

    def terms(self, chosen: OptimizationSet) -> tuple[ModelTerms, TimeTerms]:
        """Terms of the model under the executor, dtype and heads of a set."""
        key = (chosen.executor, chosen.dtype, chosen.attention_kernel, chosen.key_value_heads)
        if key not in self._terms:
            on_cuda, rates = self._machine.runs_gpu_kernels, self._machine.rates
            shared = (self._model, chosen, self._adapters)
            self._terms[key] = (
                model_terms(*shared, on_cuda=on_cuda, threads=rates.threads),
                time_terms(*shared, rates, on_cuda=on_cuda),
            )
        return self._terms[key]

    def _memory(
        self, tiers: TierTerms, like: OptimizationSet, columns: SetTerms, sizing: Sizing
    ) -> MemoryPhases:
        shape, _ = self.terms(like)
        return memory_phases(
            shape, tiers, columns, self._machine, streaming=like.streaming, sizing=sizing
        )

    def _run(
        self, tiers: TierTerms, like: OptimizationSet, columns: SetTerms, sizing: Sizing
    ) -> tuple[MemoryPhases, StepCost]:
        shape, time = self.terms(like)
        phases = self._memory(tiers, like, columns, sizing)
        return phases, step_cost(
            shape, tiers, columns, time, streaming=like.streaming,
            chunk_tokens=phases.chunk_tokens, tile_rows=phases.tile_rows,
        )  # fmt: skip

    def _bytes(self, phases: MemoryPhases) -> tuple[Column, ...]:
        return (
            phases.total(phases.device) * self._correction.memory_factor,
            phases.total(phases.host),
            phases.total(phases.disk),
        )

    def _totals(
        self, tiers: TierTerms, group: Group, sizing: Sizing, tier_count: int
    ) -> tuple[Column, ...]:
        phases, cost = self._run(tiers, group.sets[0], group.columns, sizing)
        values = (
            *self._bytes(phases),
            cost.seconds * self._correction.time_factor,
            cost.low * self._correction.time_factor,
            cost.high * self._correction.time_factor,
            phases.chunk_tokens,
        )
        size = (tier_count, len(group.sets))
        return tuple(_in_shape(value, size) for value in values)


def _with_chunk(chunk_tokens: Number, tiers: TierTerms, columns: SetTerms) -> Sizing:
    """The chunk, shorter where a longer one is useless or the window is shorter."""
    useful = longest_useful_chunk(columns.keys_on_device)
    return Sizing(chunk_tokens=minimum(useful, chunk_tokens, tiers.tokens))


def _in_shape(value: Number, size: tuple[int, int]) -> Column:
    """A column of the full shape; most are, and need no view."""
    return value if np.shape(value) == size else np.broadcast_to(value, size)


def _joined(totals: Sequence[Sequence[Column]]) -> list[Column]:
    """The columns of all groups side by side."""
    return [np.concatenate(parts, axis=1) for parts in zip(*totals, strict=True)]


def evaluate(
    tier: Tier,
    chosen: OptimizationSet,
    model: ModelShape,
    machine: Machine,
    sizing: Sizing = Sizing(),  # noqa: B008
) -> Candidate:
    """Memory and time of one tier under one set."""
    return Evaluation(model, machine).one(tier, chosen, sizing)
