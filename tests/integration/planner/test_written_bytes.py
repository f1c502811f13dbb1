"""How many bytes of results the planner counts beside those that a step makes.

On a CPU pages of large ones are new, and cost more than the arithmetic.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.gpu_plans import fast_machine
from services.planner.adapters import EVERY_LINEAR
from services.planner.ladder import Tier
from services.planner.machine import ComputeDtype
from services.planner.options import Policy
from services.planner.time_terms import time_terms
from tests.support.counted_steps import FAMILIES, resident_set, resident_step, tiny_subject

_TIER = Tier(1, 248, 8, 4)
_MACHINE = fast_machine("cpu", 2**33, "sdpa_flash")


class ResultBytes(TorchDispatchMode):
    """Adds up the bytes of all storages that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = set(map(_storage_of, tree_leaves((args, kwargs or {}))))
        result = func(*args, **(kwargs or {}))
        made = {_storage_of(leaf): leaf for leaf in tree_leaves(result)}
        for storage, leaf in made.items():
            if storage and storage not in given:
                self.total += leaf.untyped_storage().nbytes()
        return result


def _storage_of(leaf: Any) -> int:
    return leaf.untyped_storage()._cdata if isinstance(leaf, torch.Tensor) else 0


@pytest.mark.parametrize("policy", [Policy.EVERY_LAYER, Policy.KEEP_ALL])
@pytest.mark.parametrize("family", FAMILIES)
def test_results_of_a_layer_are_those_that_are_counted(family: str, policy: Policy) -> None:
    chosen = resident_set(ComputeDtype.BFLOAT16, policy)
    totals = []
    for layers in (4, 2):
        _, step = resident_step(tiny_subject(family, layers), _TIER, chosen, _MACHINE)
        with ResultBytes() as found:
            step()
        totals.append(found.total)
    of_layer = (totals[0] - totals[1]) / 2
    shape = tiny_subject(family, 4).shape
    counted = time_terms(shape, chosen, EVERY_LINEAR, _MACHINE.rates).written.values()
    forwards = 1 if policy is Policy.KEEP_ALL else 2
    expected = sum(forwards * forward + backward for forward, backward in counted)
    assert expected * _TIER.tokens == pytest.approx(of_layer, rel=0.15)
