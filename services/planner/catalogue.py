"""The catalogue of optimisations: what this system does, offers, plans or declines, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from services.planner.tables import table


@dataclass(frozen=True, slots=True)
class OptimizationRow:
    """One row of data/optimizations.yaml; its header explains the fields."""

    name: str
    description: str
    exact: bool
    status: str
    memory_effect: str
    time_effect: str
    reason: str = ""
    requirements: tuple[str, ...] = ()


@cache
def optimizations() -> Mapping[str, OptimizationRow]:
    """All rows by id, in the order of the table."""
    return {row["id"]: _row(row) for row in table("optimizations")["optimizations"]}


def _row(row: Mapping[str, Any]) -> OptimizationRow:
    return OptimizationRow(**{name: value for name, value in row.items() if name != "id"})
