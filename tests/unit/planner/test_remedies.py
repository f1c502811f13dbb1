"""Remedies: doing what one says makes the tier fit; and more of anything never makes one unfit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.planner.adapters import Adapters
from services.planner.budgets import Constraints
from services.planner.gpus import gpu_cards
from services.planner.grids import DEFAULT_LOSSY, OPT_IN
from services.planner.ladder import Tier, load_ladder
from services.planner.machine import Machine, hypothetical_machine
from services.planner.models import ModelShape, catalogue, model_by_id
from services.planner.remedies import Remedy, Resource
from services.planner.search import plan
from services.planner.verdicts import Verdict
from tests.support.machines import GIBIBYTE, machine

LADDER = load_ladder()
TIERS = st.one_of(
    st.sampled_from(LADDER),
    st.builds(Tier, st.just(1), st.integers(256, 2**22), st.integers(1, 2**19), st.integers(1, 64)),
)


@dataclass(frozen=True)
class Case:
    """One tier of one model on one machine."""

    tier: Tier
    model: ModelShape
    device: Machine
    constraints: Constraints
    adapters: Adapters

    @property
    def verdict(self) -> Verdict:
        ladder = [self.tier]
        return plan(ladder, self.model, self.device, self.constraints, self.adapters).verdicts[0]


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    host, disk = draw(st.integers(2, 1024)), draw(st.sampled_from([0, 0, 10, 200, 5000]))
    if draw(st.booleans()):
        pool = draw(st.integers(2, 64)) * GIBIBYTE
        return machine(pool, pool, on_cpu=True, disk_bytes=disk * GIBIBYTE)
    card = draw(st.sampled_from(list(gpu_cards())))
    return hypothetical_machine(card, host * GIBIBYTE, disk * GIBIBYTE)


@st.composite
def limits(draw: st.DrawFn) -> Constraints:
    exact_only = draw(st.booleans()) and draw(st.booleans())
    opted = frozenset() if exact_only else draw(st.frozensets(st.sampled_from(OPT_IN)))
    return Constraints(
        gpu_memory_bytes=draw(st.sampled_from([0, 0, 3, 10])) * GIBIBYTE,
        host_memory_bytes=draw(st.sampled_from([0, 0, 8, 64])) * GIBIBYTE,
        disk_bytes=draw(st.sampled_from([0, 0, 50])) * GIBIBYTE,
        max_step_seconds=draw(st.sampled_from([0.0, 0.0, 10.0, 3600.0])),
        headroom_fraction=draw(st.sampled_from([0.12, 0.0, 0.15, 0.5])),
        exact_only=exact_only, allowed=opted,
        forbidden=draw(st.frozensets(st.sampled_from([*DEFAULT_LOSSY, *OPT_IN]))) - opted,
    )  # fmt: skip


CASES = st.builds(
    Case, TIERS, st.sampled_from(list(catalogue().values())), machines(), limits(),
    st.builds(Adapters, dropout=st.sampled_from([0.0, 0.0, 0.1])),
)  # fmt: skip


def limited(have: int, limit: int) -> int:
    """The smaller of two figures of which 0 means that there is none."""
    return min(have, limit) if have and limit else have or limit


def with_more(case: Case, resource: Resource, count: int) -> Case:
    """The case with so many more bytes of it, and no limit on it."""
    device, asked = case.device, case.constraints
    gpu = limited(device.gpu_safe_bytes, asked.gpu_memory_bytes)
    host = limited(device.host_safe_bytes, asked.host_memory_bytes)
    disk = limited(device.disk_free_bytes, asked.disk_bytes)
    if resource is Resource.DISK:
        return replace(
            case, device=replace(device, disk_free_bytes=disk + count),
            constraints=replace(asked, disk_bytes=0),
        )  # fmt: skip
    if resource is Resource.GPU_MEMORY:
        return replace(
            case, device=replace(device, gpu_safe_bytes=gpu + count),
            constraints=replace(asked, gpu_memory_bytes=0),
        )  # fmt: skip
    pooled = count if device.shared_memory else 0
    return replace(
        case,
        device=replace(device, host_safe_bytes=host + count, gpu_safe_bytes=gpu + pooled),
        constraints=replace(asked, host_memory_bytes=0, gpu_memory_bytes=0)
        if pooled
        else replace(asked, host_memory_bytes=0),
    )


def done(case: Case, remedy: Remedy) -> Case:
    """The case after what a remedy says was done, to the letter."""
    asked = case.constraints
    if remedy.resource is Resource.TIME:
        return replace(case, constraints=replace(asked, max_step_seconds=remedy.seconds))
    if remedy.optimization_id:
        allowed = asked.allowed | {remedy.optimization_id}
        return replace(case, constraints=replace(asked, allowed=allowed))
    if remedy.resource is Resource.SOFTWARE:
        return replace(case, constraints=replace(asked, exact_only=False, forbidden=frozenset()))
    named = round(float(remedy.text.partition(" GiB more")[0]) * GIBIBYTE)
    assert named >= remedy.bytes
    return with_more(case, remedy.resource, remedy.bytes)


def is_single(remedy: Remedy) -> bool:
    """One change that the caller can make, not several, and not another installation."""
    about_sets = remedy.resource is Resource.SOFTWARE and not remedy.optimization_id
    return " and " not in remedy.text and (not about_sets or "exact_only" in remedy.text)


@given(case=CASES)
@settings(deadline=None, max_examples=150)
def test_what_a_remedy_says_makes_the_tier_fit(case: Case) -> None:
    for remedy in filter(is_single, case.verdict.remedies):
        assert done(case, remedy).verdict.fits
        if remedy.gpu_id:
            card = hypothetical_machine(
                remedy.gpu_id, case.device.host_safe_bytes, case.device.disk_free_bytes
            )
            unlimited = replace(case.constraints, gpu_memory_bytes=0)
            assert replace(case, device=card, constraints=unlimited).verdict.fits


@given(
    case=CASES,
    resource=st.sampled_from([Resource.GPU_MEMORY, Resource.HOST_MEMORY, Resource.DISK]),
    excess=st.floats(0, 0.3),
    more=st.floats(0, 0.3),
)
@settings(deadline=None, max_examples=150)
def test_more_never_makes_a_tier_unfit(
    case: Case, resource: Resource, excess: float, more: float
) -> None:
    """Beginning where the tier fits by a hair: sizes that follow the budget change there."""
    if case.device.shared_memory and resource is Resource.GPU_MEMORY:
        resource = Resource.HOST_MEMORY
    enough = next((one for one in case.verdict.remedies if one.resource is resource), None)
    if enough is not None and is_single(enough):
        case = with_more(case, resource, enough.bytes)
    else:
        assume(case.verdict.fits)
    device = case.device
    size = device.disk_free_bytes if resource is Resource.DISK else device.gpu_safe_bytes
    case = with_more(case, resource, round(size * excess))
    assume(case.verdict.fits)
    assert with_more(case, resource, round(size * more)).verdict.fits


def test_a_chunk_that_grows_with_the_budget_leaves_a_tier_that_fitted() -> None:
    """Just above 7.68 GiB the usual chunk doubles, and its pages with it."""
    model, tiers = model_by_id("olmo-2-7b"), LADDER[:1]
    pools = [round(gibibytes / 1000 * GIBIBYTE) for gibibytes in range(7_600, 7_800, 5)]
    fits = [
        plan(tiers, model, machine(pool, pool, on_cpu=True), Constraints()).verdicts[0].fits
        for pool in pools
    ]
    assert fits == sorted(fits)


@pytest.mark.parametrize("constraints", [
    Constraints(exact_only=True), Constraints(forbidden=frozenset(OPT_IN)),
])  # fmt: skip
def test_what_was_ruled_out_is_not_proposed(constraints: Constraints) -> None:
    device = hypothetical_machine("h100-sxm", 16 * GIBIBYTE, 0)
    for verdict in plan(LADDER, model_by_id("llama-2-7b"), device, constraints).verdicts:
        assert not {remedy.optimization_id for remedy in verdict.remedies} & set(OPT_IN)


def test_a_limit_on_the_device_is_no_reason_to_buy_another() -> None:
    device = hypothetical_machine("rtx-4090", 64 * GIBIBYTE, 0)
    asked = Constraints(gpu_memory_bytes=GIBIBYTE)
    remedy = plan(LADDER[:1], model_by_id("llama-2-7b"), device, asked).verdicts[0].remedies[0]
    assert remedy.text.endswith("GiB more GPU memory, which the device has: raise the limit")
    assert not remedy.gpu_id


def test_a_card_proposed_under_a_limit_on_time_is_no_slower() -> None:
    small = replace(hypothetical_machine("h100-sxm", 64 * GIBIBYTE, 0), gpu_safe_bytes=2**30)
    for seconds, expected in ((0.0, "rtx-3060-12gb"), (3600.0, "h100-sxm")):
        asked = Constraints(max_step_seconds=seconds, headroom_fraction=0.0)
        verdict = plan(LADDER[3:4], model_by_id("qwen2.5-7b"), small, asked).verdicts[0]
        gpus = [remedy.gpu_id for remedy in verdict.remedies if remedy.gpu_id]
        assert gpus == [expected]
