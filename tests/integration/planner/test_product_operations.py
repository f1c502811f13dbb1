"""How many operations of products the planner counts beside those that a step asks torch for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch.utils.flop_counter import FlopCounterMode

from bench.gpu_plans import fast_machine
from services.planner.ladder import Tier
from services.planner.machine import ComputeDtype
from services.planner.options import Policy
from services.planner.rates import Rates, single_rates
from tests.support.counted_steps import FAMILIES, resident_set, resident_step, tiny_subject

# From rank 16 on, thin products take as long as they have operations.
_TIER = Tier(1, 248, 8, 16)
_ONE_A_SECOND = single_rates(1.0, [(1.0, 1.0)], 1.0, thin=1.0)


@pytest.mark.parametrize("layers", [2, 4])
@pytest.mark.parametrize("policy", [Policy.EVERY_LAYER, Policy.KEEP_ALL])
@pytest.mark.parametrize("family", FAMILIES)
def test_products_of_a_resident_step_are_those_that_are_counted(
    family: str, policy: Policy, layers: int
) -> None:
    subject = tiny_subject(family, layers)
    machine = replace(
        fast_machine("cpu", 2**33, "sdpa_flash"), rates=Rates({4: _ONE_A_SECOND}, 1.0, 1.0, 1.0)
    )
    chosen = resident_set(ComputeDtype.FLOAT32, policy)
    candidate, step = resident_step(subject, _TIER, chosen, machine)
    with FlopCounterMode(display=False) as counter:
        step()
    found = sum(
        count for operation, count in counter.get_flop_counts()["Global"].items()
        if "mm" in str(operation)
    )  # fmt: skip
    head = 2 * 2 * subject.shape.embedding_parameters * _TIER.target_tokens
    counted = float(candidate.cost.lines["linear"])
    # Gradients that adapters' first matrices leave out too are not counted.
    assert counted == pytest.approx(found - head, rel=0.03)
