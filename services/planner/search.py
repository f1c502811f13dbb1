"""The search: every tier, every legal set, the cheapest in time that fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import compress
from typing import Any

import numpy as np

from services.planner.adapters import EVERY_LINEAR, Adapters
from services.planner.budgets import Constraints, budget_for
from services.planner.calibration import UNCALIBRATED, Correction
from services.planner.evaluation import Candidate, Evaluated, Evaluation, Sizes, Totals
from services.planner.grids import DEFAULT_LOSSY, LOSSY, OPT_IN, Grid, choice, grid_of
from services.planner.ladder import Tier
from services.planner.machine import Machine
from services.planner.memory import Sizing
from services.planner.models import ModelShape
from services.planner.options import OptimizationSet, Place
from services.planner.prescriptions import Prescriptions
from services.planner.remedies import (
    Remedy,
    Resource,
    remedy_for_dropout,
    remedy_for_kernel,
    remedy_for_window,
)
from services.planner.shortfalls import nearest_set, single_changes
from services.planner.streaming_memory import (
    SMALLEST_CHUNK,
    chunk_lengths,
    longest_useful_chunk,
)
from services.planner.verdicts import Result, Verdict

# A long ladder is judged in parts that a processor's cache can hold.
_TIERS_AT_ONCE = 64
# A chunk that saves less than this share of the step leaves the memory to others, and a disk.
_WORTHWHILE = 0.01
# A chunk takes up to half of the device, and pages of its length up to a fifth of the host.
_REACH_ON_DEVICE = 1.5
_REACH_ON_HOST = 1.25
_REACH_IN_TIME = 2.0
# Of a channel of keys and its gradient, in 16 bits and fp32.
_LEAST_KEY_BYTES = 6
_USUAL_DISK_BYTES = 10**12  # what a shortfall weighs against where no disk was named


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
        """Chooses the longest context that fits, and its fastest set; judges every other tier.

        With `constraints.tier` the choice is that tier or none.
        """
        verdicts = self.judge_all(ladder)
        eligible = [
            verdict for verdict in verdicts
            if verdict.fits and self._constraints.tier in (0, verdict.tier.tier)
        ]  # fmt: skip
        if not eligible:
            return Result(None, verdicts, self.budget)
        # A user's tier may have a higher number than one with a longer context.
        longest = max(eligible, key=lambda verdict: verdict.tier.context_tokens)
        best = self._with_best_set(longest)
        verdicts = tuple(best if verdict is longest else verdict for verdict in verdicts)
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
        fits = _nothing(missing) & ~forbidden.any(axis=0)
        seconds = np.where(fits, _wearing(found.seconds, grid), np.inf)
        best = seconds.argmin(axis=1)
        verdicts = [
            self._fitting(tier, found.totals(row, best[row]))
            if np.isfinite(seconds[row, best[row]])
            else self._refused(
                tier, found, {name: amount[row] for name, amount in missing.items()}, forbidden, row
            )
            for row, tier in enumerate(ladder)
        ]
        refused = np.array([not verdict.fits for verdict in verdicts])
        in_reach = grid.streams & ~forbidden.any(axis=0) & self._in_reach(found, ladder, grid)
        in_reach &= refused[:, None]
        if not in_reach.any():
            return tuple(verdicts)
        tiers = list(compress(ladder, in_reach.any(axis=1)))
        rescued = self._with_other_chunks(tiers, grid.only(in_reach.any(axis=0)))
        return tuple(rescued.get(verdict.tier.tier, verdict) for verdict in verdicts)

    def _in_reach(self, found: Evaluated, ladder: Sequence[Tier], grid: Grid) -> Any:
        """Sets that another chunk could make fit: most tiers that do not fit are far from it."""
        budget = self.budget
        near_device = found.device_bytes <= _REACH_ON_DEVICE * budget.gpu_bytes
        near_host = found.host_bytes <= _REACH_ON_HOST * budget.host_bytes
        near_disk = found.disk_bytes <= _REACH_ON_HOST * budget.disk_bytes
        limits = [self._constraints.longest_step_seconds(tier) or math.inf for tier in ladder]
        in_time = found.seconds <= _REACH_IN_TIME * np.array(limits)[:, None]
        return near_device & near_host & in_time & np.where(grid.on_disk, near_disk, True)

    def _with_other_chunks(self, ladder: Sequence[Tier], grid: Grid) -> Mapping[int, Verdict]:
        """Those of the tiers that fit if the chunk is not as long as the budget suggests.

        A budget that suggests a longer chunk would else be worth less than a smaller one. grid: of
        streaming sets that are permitted.
        """
        shortest = self.evaluation.sizes(ladder, grid, SMALLEST_CHUNK)
        in_memory = _nothing(self._missing_bytes(shortest, grid.on_disk))
        possible = [tier for tier, fits in zip(ladder, in_memory.any(axis=1), strict=True) if fits]
        if not possible:
            return {}
        lengths = chunk_lengths(2**62, keys_on_device=False)
        found = self.evaluation.with_chunks(possible, grid, lengths)
        rows = [tier for tier in possible for _ in lengths]
        fits = _nothing(self._missing(found, rows, grid.on_disk))
        seconds = np.where(fits, _wearing(found.seconds, grid), np.inf)
        verdicts = {}
        for number, tier in enumerate(possible):
            own = seconds[number * len(lengths) : (number + 1) * len(lengths)]
            length, index = np.unravel_index(own.argmin(), own.shape)
            if np.isfinite(own[length, index]):
                totals = found.totals(number * len(lengths) + int(length), int(index))
                verdicts[tier.tier] = self._fitting(tier, totals, lengths[length])
        return verdicts

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
        return verdict if is_given else self._with_best_chunk(verdict)[0]

    def _with_best_set(self, verdict: Verdict) -> Verdict:
        """The verdict with a set that is among the fastest, each under its own best chunk.

        Sets were compared under the chunks that the budget suggests, which are longer where keys
        stream. Of sets that take the same time one with the keys on the device is taken, and first
        of all the verdict's. None is lossier than that, or wears a disk where that does not.
        """
        best, is_limited = self._with_best_chunk(verdict)
        grid = self._grid(resident=False)
        if not (grid and verdict.totals):
            return best
        in_pages = verdict.totals.chosen.key_values is not Place.DEVICE
        if not (self._keys_may_fit(verdict.tier) if in_pages else is_limited):
            return best
        wanted = self._no_worse_than(verdict.totals.chosen, grid)
        if not wanted.any():
            return best
        grid = grid.only(wanted)
        lengths = chunk_lengths(verdict.tier.tokens, keys_on_device=False)
        found = self.evaluation.with_chunks([verdict.tier], grid, lengths)
        fits = _nothing(self._missing(found, [verdict.tier] * len(lengths), grid.on_disk))
        seconds = np.where(fits, found.seconds, np.inf)
        here = np.where([one.key_values is Place.DEVICE for one in grid.sets], seconds, np.inf)
        own = best.totals.seconds if best.totals else np.inf
        limit = min(own, seconds.min()) / (1 - _WORTHWHILE)
        if own <= limit and not (in_pages and here.min() <= limit):
            return best
        fastest = here if here.min() <= limit else seconds
        length, index = np.unravel_index(fastest.argmin(), fastest.shape)
        totals = found.totals(int(length), int(index))
        return self._with_best_chunk(self._fitting(verdict.tier, totals, lengths[length]))[0]

    def _no_worse_than(self, chosen: OptimizationSet, grid: Grid) -> Any:
        """Permitted streaming sets that are no lossier, and on no disk where it is on none."""
        lossier = {*LOSSY} - {*chosen.lossy_ids}
        worse = [grid.lossy[name] for name in lossier]
        if Place.DISK not in chosen.places:
            worse.append(grid.on_disk)
        return grid.streams & ~np.any([*self._forbidden(grid), *worse], axis=0)

    def _keys_may_fit(self, tier: Tier) -> bool:
        """Whether one layer's keys, values and gradients are within the device's budget."""
        model = self._model
        channels = 2 * model.key_value_head_count * model.head_size
        return tier.tokens * channels * _LEAST_KEY_BYTES < self.budget.gpu_bytes

    def _with_best_chunk(self, verdict: Verdict) -> tuple[Verdict, bool]:
        """The verdict with a chunk that is among the fastest that fit, where lengths differ.

        And whether a faster one does not fit. Only for what is planned or estimated: sets are
        compared, and tiers judged, under chunks that do not depend on the window, so that a longer
        one never takes less. Of those that take the same time it is the longest not above that one,
        else the shortest. A verdict that does not fit under its chunk fits if any length does.
        """
        totals = verdict.totals
        if totals is None or verdict.binding is Resource.SOFTWARE:
            return verdict, False
        tier, chosen = verdict.tier, totals.chosen
        if not chosen.streaming:
            return verdict, not verdict.fits
        is_alike = verdict.fits and not self.evaluation.rates_depend_on_chunk(chosen)
        candidate = verdict.candidate if is_alike else None
        if candidate and self.evaluation.spared_by_chunk(candidate) <= _WORTHWHILE:
            return verdict, False
        lengths = chunk_lengths(tier.tokens, keys_on_device=chosen.key_values is Place.DEVICE)
        found = self.evaluation.by_chunk(tier, chosen, lengths)
        missing = self._missing(found, [tier], np.array([Place.DISK in chosen.places]))
        fits = _nothing(missing)[0]
        if not fits.any():
            return verdict, True
        seconds = np.where(fits, found.seconds[0], np.inf)
        fast = np.flatnonzero(seconds <= seconds.min() / (1 - _WORTHWHILE))
        not_longer = [i for i in fast if lengths[i] <= totals.chunk_tokens]
        best = int(not_longer[-1] if not_longer else fast[0])
        is_limited = bool(found.seconds.min() < (1 - _WORTHWHILE) * seconds.min())
        if verdict.fits and lengths[best] == totals.chunk_tokens:
            return verdict, is_limited
        return self._fitting(tier, found.totals(0, best), lengths[best]), is_limited

    def _grid(self, *, resident: bool) -> Grid | None:
        wanted = choice(
            self._machine, self._model, resident=resident, streaming=not self.evaluation.dropout,
            exact_too=any(map(self._constraints.forbids, DEFAULT_LOSSY)),
        )  # fmt: skip
        return grid_of(wanted) if wanted else None

    def _missing(
        self, found: Evaluated, ladder: Sequence[Tier], on_disk: Any
    ) -> Mapping[Resource, Any]:
        """What every set lacks, in bytes, and in seconds for time; 0 where it fits."""
        lacks = self._missing_bytes(found, on_disk)
        limits = [self._constraints.longest_step_seconds(tier) for tier in ladder]
        if any(limits):
            over = found.seconds - np.array(limits)[:, None]
            lacks[Resource.TIME] = np.maximum(over, 0)
        return lacks

    def _missing_bytes(self, found: Sizes, on_disk: Any) -> dict[Resource, Any]:
        """A disk that nobody named is enough for checkpoints, and for nothing else."""
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
        return {name: np.maximum(amount, 0) for name, amount in needs.items()}

    def _forbidden(self, grid: Grid) -> Any:
        """(permissions, sets): True where a set needs a permission the caller has not given.

        The last row is what sets do unless they are forbidden to, and what was forbidden by name:
        to allow that is not enough.
        """
        constraints = self._constraints
        rows = [grid.lossy[name] & constraints.forbids(name) for name in LOSSY]
        named = [
            grid.lossy[name] & (constraints.exact_only or name in constraints.forbidden)
            for name in LOSSY
        ]
        return np.array([*rows[: len(OPT_IN)], np.any(named, axis=0)])

    def _fitting(self, tier: Tier, totals: Totals, chunk_tokens: int = 0) -> Verdict:
        """chunk_tokens: what the totals are under; 0: what the budget suggests."""
        return Verdict(tier, totals, itemise=self._itemiser(tier, totals, chunk_tokens))

    def _itemiser(
        self, tier: Tier, totals: Totals, chunk_tokens: int = 0
    ) -> Callable[[], Candidate]:
        chosen, sizing = totals.chosen, self.evaluation.sizing(self.budget.gpu_bytes)
        if chunk_tokens:
            useful = longest_useful_chunk(chosen.key_values is Place.DEVICE)
            sizing = Sizing(chunk_tokens=int(min(useful, chunk_tokens, tier.tokens)))
        return lambda: self.evaluation.one(tier, chosen, sizing)

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
        prescriptions = self._prescriptions(tier)
        changes = prescriptions.ranked(
            single_changes(missing, forbidden, found.seconds[row], available)
        )
        nearest = nearest_set(missing, forbidden, available)
        binding, index = next(
            ((change.resource, change.index) for change in changes if change.resource),
            (max(missing, key=lambda name: missing[name][nearest]), nearest),
        )
        amount = float(missing[binding][index])
        limit = available[Resource.TIME]
        remedies = [prescriptions.remedy(change, limit) for change in changes]
        if not remedies:
            lacks = {name: float(lack[nearest]) for name, lack in missing.items()}
            remedies = [prescriptions.together(lacks, limit)]
        in_bytes = binding is not Resource.TIME
        totals = found.totals(row, index)
        return Verdict(
            tier, totals, binding,
            shortfall_bytes=int(amount) if in_bytes else 0,
            shortfall_seconds=0.0 if in_bytes else amount,
            remedies=tuple(remedies),
            itemise=self._itemiser(tier, totals),
        )  # fmt: skip

    def _prescriptions(self, tier: Tier) -> Prescriptions:
        is_timed = bool(self._constraints.longest_step_seconds(tier))
        budget = self.budget
        return Prescriptions(
            self._machine, budget.gpu_bytes, budget.headroom_fraction, is_timed=is_timed
        )

    def _available(self, tier: Tier) -> Mapping[Resource, float]:
        """What there is of every resource, to weigh shortfalls by."""
        budget = self.budget
        return {
            Resource.GPU_MEMORY: budget.gpu_bytes,
            Resource.HOST_MEMORY: budget.host_bytes,
            Resource.DISK: budget.disk_bytes or _USUAL_DISK_BYTES,
            Resource.TIME: self._constraints.longest_step_seconds(tier),
        }


def _wearing(seconds: Any, grid: Grid) -> Any:
    """Seconds to compare sets by: what a disk saves has to be worth its wear."""
    return seconds * (1 + _WORTHWHILE * grid.on_disk)


def _nothing(missing: Mapping[Resource, Any]) -> Any:
    """Where nothing is missing."""
    return np.all([amount == 0 for amount in missing.values()], axis=0)
