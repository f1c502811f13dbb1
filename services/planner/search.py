"""The search: every tier, every legal set, the cheapest in time that fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from services.planner.adapters import EVERY_LINEAR, Adapters
from services.planner.calibration import UNCALIBRATED, Correction
from services.planner.evaluation import Candidate, Evaluated, Evaluation, Totals
from services.planner.grids import DEFAULT_LOSSY, LOSSY, OPT_IN, Grid, choice, grid_of
from services.planner.ladder import Tier
from services.planner.machine import Machine
from services.planner.memory import Sizing
from services.planner.models import ModelShape
from services.planner.options import OptimizationSet, Place
from services.planner.remedies import (
    Remedy,
    Resource,
    remedy_for_bytes,
    remedy_for_dropout,
    remedy_for_gpu,
    remedy_for_kernel,
    remedy_for_permission,
    remedy_for_time,
    remedy_for_window,
    smallest_card,
)
from services.planner.schedule import Schedule
from services.planner.shortfalls import Change, nearest_set, single_changes
from services.planner.streaming_memory import chunk_lengths

DEFAULT_HEADROOM = 0.12
# A long ladder is judged in parts that a processor's cache can hold.
_TIERS_AT_ONCE = 64
# A chunk that saves less than this share of the step leaves the memory to others.
_WORTHWHILE = 0.01
# What a shortfall weighs against where no disk was named.
_USUAL_DISK_BYTES = 10**12


@dataclass(frozen=True, slots=True)
class Constraints:
    """What the caller limits. 0 stands for no limit, tier 0 for the planner's choice."""

    gpu_memory_bytes: int = 0
    host_memory_bytes: int = 0
    disk_bytes: int = 0
    max_step_seconds: float = 0.0
    exact_only: bool = False
    tier: int = 0
    headroom_fraction: float = DEFAULT_HEADROOM
    max_run_seconds: float = 0.0
    schedule: Schedule | None = None
    allowed: frozenset[str] = field(default_factory=frozenset)
    forbidden: frozenset[str] = field(default_factory=frozenset)

    def forbids(self, lossy_id: str) -> bool:
        """Whether a plan must do without this lossy optimisation."""
        unasked = lossy_id in OPT_IN and lossy_id not in self.allowed
        return self.exact_only or unasked or lossy_id in self.forbidden

    def longest_step_seconds(self, tier: Tier) -> float:
        """The tighter of the two limits on time, for one step over one window; 0 for none."""
        limits = [self.max_step_seconds] if self.max_step_seconds else []
        if self.max_run_seconds and self.schedule:
            limits.append(self.max_run_seconds / self.schedule.windows_at(tier))
        return min(limits, default=0.0)


@dataclass(frozen=True, slots=True)
class Budget:
    """Safe memory, and what is left of it after the headroom.

    one_pool: device and host figures describe the same memory.
    """

    gpu_bytes: int
    host_bytes: int
    disk_bytes: int
    headroom_fraction: float
    gpu_safe_bytes: int
    host_safe_bytes: int
    one_pool: bool


@dataclass(frozen=True)
class Verdict:
    """Whether a tier fits, with what its best set takes; None when the machine has no legal set."""

    tier: Tier
    totals: Totals | None
    binding: Resource | None = None
    shortfall_bytes: int = 0
    shortfall_seconds: float = 0.0
    remedies: tuple[Remedy, ...] = ()
    itemise: Callable[[], Candidate] | None = field(default=None, compare=False, repr=False)

    @property
    def fits(self) -> bool:
        """True when nothing binds."""
        return self.binding is None

    @property
    def remedy(self) -> str:
        """The smallest change in words; empty when it fits."""
        return self.remedies[0].text if self.remedies else ""

    @cached_property
    def candidate(self) -> Candidate | None:
        """The best set line by line, worked out when it is asked for."""
        return self.itemise() if self.itemise else None


@dataclass(frozen=True, slots=True)
class Result:
    """The chosen candidate, if any, and a verdict on every tier."""

    chosen: Candidate | None
    verdicts: tuple[Verdict, ...]
    budget: Budget


def budget_for(machine: Machine, constraints: Constraints) -> Budget:
    """Safe figures under the constraints, less the headroom."""
    host_safe = _smaller(machine.host_safe_bytes, constraints.host_memory_bytes)
    shared = host_safe if machine.shared_memory else 2**63
    gpu_safe = min(machine.gpu_safe_bytes, constraints.gpu_memory_bytes or 2**63, shared)
    usable = 1.0 - constraints.headroom_fraction
    return Budget(
        gpu_bytes=int(gpu_safe * usable),
        host_bytes=int(host_safe * usable),
        disk_bytes=_smaller(machine.disk_free_bytes, constraints.disk_bytes),
        headroom_fraction=constraints.headroom_fraction,
        gpu_safe_bytes=gpu_safe,
        host_safe_bytes=host_safe,
        one_pool=machine.shared_memory,
    )


def _smaller(available: int, limit: int) -> int:
    """The smaller of two figures of which 0 means unknown or unlimited."""
    return min(available, limit) if available and limit else available or limit


def plan(
    ladder: Sequence[Tier],
    model: ModelShape,
    machine: Machine,
    constraints: Constraints,
    adapters: Adapters = EVERY_LINEAR,
    correction: Correction = UNCALIBRATED,
) -> Result:
    """Chooses a tier and set, see `Search.choose`."""
    return Search(model, machine, constraints, adapters, correction).choose(ladder)


class Search:
    """One request: a model with its adapters, a machine, constraints."""

    def __init__(
        self,
        model: ModelShape,
        machine: Machine,
        constraints: Constraints,
        adapters: Adapters = EVERY_LINEAR,
        correction: Correction = UNCALIBRATED,
    ) -> None:
        self._model, self._machine, self._constraints = model, machine, constraints
        self.budget = budget_for(machine, constraints)
        self.evaluation = Evaluation(model, machine, adapters, correction)

    def choose(self, ladder: Sequence[Tier]) -> Result:
        """Chooses the highest tier that fits, and its fastest set; judges every other tier.

        With `constraints.tier` the choice is that tier or none.
        """
        verdicts = self.judge_all(ladder)
        eligible = [
            verdict for verdict in verdicts
            if verdict.fits and self._constraints.tier in (0, verdict.tier.tier)
        ]  # fmt: skip
        if not eligible:
            return Result(None, verdicts, self.budget)
        best = self._with_best_chunk(eligible[-1])
        verdicts = tuple(best if verdict is eligible[-1] else verdict for verdict in verdicts)
        return Result(best.candidate, verdicts, self.budget)

    def judge_all(self, ladder: Sequence[Tier]) -> tuple[Verdict, ...]:
        """A verdict on every tier: the fastest set that fits, else what would make one fit."""
        verdicts: list[Verdict] = []
        for is_windowed in (False, True):
            tiers = [t for t in ladder if self._model.reads_at_most(t.tokens) == is_windowed]
            for begin in range(0, len(tiers), _TIERS_AT_ONCE):
                block = tiers[begin : begin + _TIERS_AT_ONCE]
                verdicts += self._judge(block, resident=not is_windowed)
        position = {tier.tier: index for index, tier in enumerate(ladder)}
        return tuple(sorted(verdicts, key=lambda verdict: position[verdict.tier.tier]))

    def _judge(self, ladder: Sequence[Tier], *, resident: bool) -> tuple[Verdict, ...]:
        if not ladder:
            return ()
        grid = self._grid(resident=resident)
        if grid is None:
            why = (self._remedy_without_sets(ladder[0], resident=resident),)
            return tuple(Verdict(t, None, Resource.SOFTWARE, remedies=why) for t in ladder)
        found = self.evaluation.all(ladder, grid, self.budget.gpu_bytes)
        missing = self._missing(found, ladder, grid.on_disk)
        forbidden = self._forbidden(grid)
        fits = ~np.any([amount > 0 for amount in missing.values()], axis=0)
        seconds = np.where(fits & ~forbidden.any(axis=0), found.seconds, np.inf)
        best = seconds.argmin(axis=1)
        return tuple(
            self._fitting(tier, found.totals(row, best[row]))
            if np.isfinite(seconds[row, best[row]])
            else self._refused(
                tier, found, {name: amount[row] for name, amount in missing.items()}, forbidden, row
            )
            for row, tier in enumerate(ladder)
        )

    def _remedy_without_sets(self, tier: Tier, *, resident: bool) -> Remedy:
        if resident or not self.evaluation.dropout:
            return remedy_for_kernel(self._machine)
        return remedy_for_dropout(self._model, tier)

    def judge(self, tier: Tier, chosen: OptimizationSet, sizing: Sizing) -> Verdict:
        """The verdict on one tier under one set; a chunk that is not given is the best one."""
        is_given = bool(sizing.chunk_tokens)
        if not is_given:
            sizing = self.evaluation.sizing(self.budget.gpu_bytes)
        candidate = self.evaluation.one(tier, chosen, sizing)
        totals = Totals.of(candidate)
        figures = [getattr(totals, one.name) for one in fields(Totals)[1:]]
        found = Evaluated((chosen,), *(np.array([[figure]]) for figure in figures))
        lacks = self._missing(found, [tier], np.array([Place.DISK in chosen.places]))
        missing = {name: amount[0] for name, amount in lacks.items()}
        if any(amount[0] > 0 for amount in missing.values()):
            verdict = self._refused(tier, found, missing, np.array([[False]]), 0)
        else:
            verdict = self._fitting(tier, totals)
        if not chosen.streaming and self._model.reads_at_most(tier.tokens):
            verdict = Verdict(
                tier, totals, Resource.SOFTWARE, remedies=(remedy_for_window(self._model, tier),)
            )
        verdict = replace(verdict, itemise=lambda: candidate)
        return verdict if is_given or not verdict.fits else self._with_best_chunk(verdict)

    def _with_best_chunk(self, verdict: Verdict) -> Verdict:
        """The verdict with a chunk that is among the fastest that fit, where lengths differ.

        Only for what is planned or estimated: sets are compared, and tiers judged, under chunks
        that do not depend on the window, so that a longer one never takes less. Of those that
        take the same time it is the longest not above that one, else the shortest.
        """
        candidate = verdict.candidate
        if candidate is None or not self.evaluation.rates_depend_on_chunk(candidate.chosen):
            return verdict
        tier, chosen = verdict.tier, candidate.chosen
        lengths = chunk_lengths(tier.tokens, keys_on_device=chosen.key_values is Place.DEVICE)
        found = self.evaluation.by_chunk(tier, chosen, lengths)
        missing = self._missing(found, [tier], np.array([Place.DISK in chosen.places]))
        fits = np.all([lack[0] == 0 for lack in missing.values()], axis=0)
        seconds = np.where(fits, found.seconds[0], np.inf)
        fast = np.flatnonzero(seconds <= seconds.min() / (1 - _WORTHWHILE))
        not_longer = [i for i in fast if lengths[i] <= candidate.memory.chunk_tokens]
        best = int(not_longer[-1] if not_longer else fast[0])
        sizing = Sizing(chunk_tokens=lengths[best])
        return replace(
            verdict, totals=found.totals(0, best),
            itemise=lambda: self.evaluation.one(tier, chosen, sizing),
        )  # fmt: skip

    def _grid(self, *, resident: bool) -> Grid | None:
        wanted = choice(
            self._machine, self._model, resident=resident, streaming=not self.evaluation.dropout,
            exact_too=any(map(self._constraints.forbids, DEFAULT_LOSSY)),
        )  # fmt: skip
        return grid_of(wanted) if wanted else None

    def _missing(
        self, found: Evaluated, ladder: Sequence[Tier], on_disk: Any
    ) -> Mapping[Resource, Any]:
        """What every set lacks, in bytes, and in seconds for time; 0 where it fits.

        A disk that nobody named is enough for checkpoints, and for nothing else.
        """
        budget = self.budget
        on_device = found.device_bytes - budget.gpu_bytes
        on_host = found.host_bytes - budget.host_bytes
        needs = {Resource.HOST_MEMORY: on_host}
        if budget.one_pool:
            needs[Resource.HOST_MEMORY] = np.maximum(on_host, on_device)
        else:
            needs[Resource.GPU_MEMORY] = on_device
        if budget.disk_bytes:
            needs[Resource.DISK] = found.disk_bytes - budget.disk_bytes
        else:
            needs[Resource.DISK] = np.where(on_disk, found.disk_bytes, 0)
        limits = [self._constraints.longest_step_seconds(tier) for tier in ladder]
        if any(limits):
            needs[Resource.TIME] = found.seconds - np.array(limits)[:, None]
        return {name: np.maximum(amount, 0) for name, amount in needs.items()}

    def _forbidden(self, grid: Grid) -> Any:
        """(permissions, sets): True where a set needs a permission the caller has not given.

        The last row is what sets do unless they are forbidden to.
        """
        rows = [grid.lossy[name] & self._constraints.forbids(name) for name in LOSSY]
        count = len(OPT_IN)
        return np.array([*rows[:count], np.any(rows[count:], axis=0)])

    def _candidate(self, tier: Tier, chosen: OptimizationSet) -> Candidate:
        sizing = self.evaluation.sizing(self.budget.gpu_bytes)
        return self.evaluation.one(tier, chosen, sizing)

    def _fitting(self, tier: Tier, totals: Totals) -> Verdict:
        return Verdict(tier, totals, itemise=self._itemiser(tier, totals))

    def _itemiser(self, tier: Tier, totals: Totals) -> Callable[[], Candidate]:
        return lambda: self._candidate(tier, totals.chosen)

    def _refused(
        self,
        tier: Tier,
        found: Evaluated,
        missing: Mapping[Resource, Any],
        forbidden: Any,
        row: int,
    ) -> Verdict:
        """The verdict on a tier that does not fit: what binds, by how much, what would help."""
        available = self._available(tier)
        changes = sorted(
            single_changes(missing, forbidden, found.seconds[row], available),
            key=lambda change: (self._is_beyond_every_card(change), change.weight),
        )
        nearest = nearest_set(missing, forbidden, available)
        binding, index = next(
            ((change.resource, change.index) for change in changes if change.resource),
            (max(missing, key=lambda name: missing[name][nearest]), nearest),
        )
        amount = float(missing[binding][index])
        limit = available[Resource.TIME]
        remedies = [self._remedy(change, limit) for change in changes]
        if not remedies:
            lacks = {name: float(lack[nearest]) for name, lack in missing.items()}
            remedies = [self._together(lacks, limit)]
        in_bytes = binding is not Resource.TIME
        totals = found.totals(row, index)
        return Verdict(
            tier, totals, binding,
            shortfall_bytes=int(amount) if in_bytes else 0,
            shortfall_seconds=0.0 if in_bytes else amount,
            remedies=tuple(remedies),
            itemise=self._itemiser(tier, totals),
        )  # fmt: skip

    def _is_beyond_every_card(self, change: Change) -> bool:
        """True when no card of the table has so much memory: then it is the last resort."""
        if change.resource is not Resource.GPU_MEMORY:
            return False
        needed = (self.budget.gpu_bytes + change.amount) / (1 - self.budget.headroom_fraction)
        return smallest_card(needed) is None

    def _available(self, tier: Tier) -> Mapping[Resource, float]:
        """What there is of every resource, to weigh shortfalls by."""
        budget = self.budget
        return {
            Resource.GPU_MEMORY: budget.gpu_bytes,
            Resource.HOST_MEMORY: budget.host_bytes,
            Resource.DISK: budget.disk_bytes or _USUAL_DISK_BYTES,
            Resource.TIME: self._constraints.longest_step_seconds(tier),
        }

    def _remedy(self, change: Change, limit_seconds: float) -> Remedy:
        usable = 1.0 - self._constraints.headroom_fraction
        if change.resource is None:
            return remedy_for_permission(change.permission)
        if change.resource is Resource.TIME:
            return remedy_for_time(change.amount + limit_seconds)
        if change.resource is Resource.GPU_MEMORY:
            needed = (self.budget.gpu_bytes + change.amount) / usable
            return remedy_for_gpu(change.amount / usable, needed)
        share = 1.0 if change.resource is Resource.DISK else usable
        return remedy_for_bytes(change.amount / share, change.resource)

    def _together(self, lacks: Mapping[Resource, float], limit_seconds: float) -> Remedy:
        """What the nearest set lacks, when no single change is enough."""
        changes = [
            self._remedy(Change(0.0, name, amount, 0), limit_seconds)
            for name, amount in lacks.items()
            if amount > 0
        ]
        return replace(changes[0], text=" and ".join(change.text for change in changes))
