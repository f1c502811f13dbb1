"""What a search answers: a verdict on every tier, and the choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from services.planner.budgets import Budget
from services.planner.evaluation import Candidate, Totals
from services.planner.ladder import Tier
from services.planner.remedies import Remedy, Resource


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
