"""From changes, in numbers, to what the caller is told to do: rounded so that it is enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from services.planner.machine import Machine
from services.planner.remedies import (
    Remedy,
    Resource,
    remedy_for_bytes,
    remedy_for_gpu,
    remedy_for_limit,
    remedy_for_permission,
    remedy_for_time,
    smallest_card,
)
from services.planner.shortfalls import Change


@dataclass(frozen=True, slots=True)
class Prescriptions:
    """For one machine with its budget.

    gpu_bytes: the device's budget, after the headroom. is_timed: the caller limits time, so that a
    slower card is no help.
    """

    machine: Machine
    gpu_bytes: int
    headroom_fraction: float
    is_timed: bool

    def ranked(self, changes: Sequence[Change]) -> list[Change]:
        """The smallest first; more memory than any card has is the last resort."""
        return sorted(changes, key=lambda one: (self._is_beyond_every_card(one), one.weight))

    def remedy(self, change: Change, limit_seconds: float) -> Remedy:
        """One change in words. Budgets are shares: what is missing there is more of the whole."""
        usable = 1.0 - self.headroom_fraction
        if change.resource is None:
            return remedy_for_permission(change.permission)
        if change.resource is Resource.TIME:
            return remedy_for_time(change.amount + limit_seconds)
        if change.resource is Resource.GPU_MEMORY:
            return self._more_gpu_memory(change.amount / usable, self._safe_bytes(change))
        share = 1.0 if change.resource is Resource.DISK else usable
        return remedy_for_bytes(change.amount / share, change.resource)

    def together(self, lacks: Mapping[Resource, float], limit_seconds: float) -> Remedy:
        """Everything that is missing, when no single change is enough."""
        changes = [
            self.remedy(Change(0.0, name, amount, 0), limit_seconds)
            for name, amount in lacks.items()
            if amount > 0
        ]
        return replace(changes[0], text=" and ".join(change.text for change in changes))

    def _more_gpu_memory(self, missing_bytes: float, safe_bytes: float) -> Remedy:
        if safe_bytes <= self.machine.gpu_safe_bytes:
            return remedy_for_limit(missing_bytes)
        return remedy_for_gpu(missing_bytes, smallest_card(safe_bytes, self.machine, self.is_timed))

    def _safe_bytes(self, change: Change) -> float:
        """What tensors must have before the headroom is taken off."""
        return (self.gpu_bytes + change.amount) / (1.0 - self.headroom_fraction)

    def _is_beyond_every_card(self, change: Change) -> bool:
        if change.resource is not Resource.GPU_MEMORY:
            return False
        needed = self._safe_bytes(change)
        fits_here = needed <= self.machine.gpu_safe_bytes
        return not fits_here and smallest_card(needed, self.machine, self.is_timed) is None
