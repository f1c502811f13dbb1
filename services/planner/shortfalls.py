"""What sets lack, and the changes that would make one of them fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.planner.grids import OPT_IN
from services.planner.remedies import Resource


@dataclass(frozen=True, slots=True)
class Change:
    """One change that makes the set at `index` fit; no resource stands for a permission."""

    weight: float
    resource: Resource | None
    amount: float
    index: int
    permission: str = ""


def single_changes(
    missing: Mapping[Resource, Any],
    forbidden: Any,
    seconds: Any,
    available: Mapping[Resource, float],
) -> list[Change]:
    """The smallest change of each kind.

    Hardware weighs by how much more of it is needed; a permission as much as doubling something.
    """
    permitted = ~forbidden.any(axis=0)
    changes = []
    for resource, amounts in missing.items():
        others = [lack == 0 for name, lack in missing.items() if name is not resource]
        enough = permitted & np.all([permitted, *others], axis=0)
        if enough.any():
            index = int(np.where(enough, amounts, np.inf).argmin())
            weight = amounts[index] / max(available[resource], 1e-9)
            changes.append(Change(float(weight), resource, float(amounts[index]), index))
    fits = np.all([lack == 0 for lack in missing.values()], axis=0)
    for permission, needs in zip((*OPT_IN, ""), forbidden, strict=False):
        only = fits & needs & (forbidden.sum(axis=0) == 1)
        if only.any():
            index = int(np.where(only, seconds, np.inf).argmin())
            changes.append(Change(1.0, None, 0.0, index, permission))
    return changes


def nearest_set(
    missing: Mapping[Resource, Any], forbidden: Any, available: Mapping[Resource, float]
) -> int:
    """The permitted set that lacks least, every shortfall weighed by what there is."""
    total = sum(amount / max(available[name], 1e-9) for name, amount in missing.items())
    return int(np.where(forbidden.any(axis=0), np.inf, total).argmin())
