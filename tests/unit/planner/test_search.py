"""The search: what is chosen, what is refused and why, and what must hold for every machine."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.planner.budgets import Constraints
from services.planner.evaluation import Totals, evaluate
from services.planner.grids import OPT_IN, Grid, choice, grid_of
from services.planner.ladder import Tier, load_ladder
from services.planner.machine import Machine, hypothetical_machine
from services.planner.memory import Sizing
from services.planner.models import ModelShape, catalogue, model_by_id
from services.planner.options import Executor, Place, Policy
from services.planner.remedies import Resource
from services.planner.search import Search, plan
from services.planner.streaming_memory import chunk_lengths
from services.planner.verdicts import Result
from tests.support.machines import GIBIBYTE, machine

LADDER = load_ladder()
MODELS = st.sampled_from([m for m in catalogue().values() if m.parameter_count < 9e9])
BYTES = st.integers(min_value=0, max_value=512 * GIBIBYTE)


def search(model_id: str, constraints: Constraints = Constraints(), **sizes: int) -> Result:  # noqa: B008
    return plan(LADDER, model_by_id(model_id), machine(**sizes), constraints)


def sets_for(device: Machine, model: ModelShape, *, exact_only: bool = False) -> Grid:
    wanted = choice(device, model, resident=True, streaming=True, exact_too=exact_only)
    assert wanted is not None
    return grid_of(wanted)


def tier_of(result: Result) -> int:
    return result.chosen.tier.tier if result.chosen else 0


def test_the_highest_tier_that_fits_is_chosen_with_its_fastest_set() -> None:
    result = search("qwen2.5-1.5b")
    assert result.chosen is not None
    fitting = [verdict.tier.tier for verdict in result.verdicts if verdict.fits]
    assert tier_of(result) == max(fitting)
    assert [verdict.tier for verdict in result.verdicts] == list(LADDER)
    sizing = Sizing(device_budget=result.budget.gpu_bytes)
    model = model_by_id("qwen2.5-1.5b")
    rivals = [
        evaluate(result.chosen.tier, chosen, model, machine(), sizing)
        for chosen in sets_for(machine(), model).sets
        if not set(chosen.lossy_ids) & set(OPT_IN) and Place.DISK not in chosen.places
    ]
    fast = [
        rival.cost.seconds
        for rival in rivals
        if rival.memory.device.total_bytes <= result.budget.gpu_bytes
        and rival.memory.host.total_bytes <= result.budget.host_bytes
    ]
    assert result.chosen.cost.seconds == pytest.approx(min(fast))


def test_a_short_tier_of_a_users_own_is_not_preferred_for_its_number() -> None:
    ladder = (*LADDER, Tier(100, 1000, 100, 8, custom=True))
    result = plan(ladder, model_by_id("qwen2.5-1.5b"), machine(), Constraints())
    assert tier_of(result) == tier_of(search("qwen2.5-1.5b"))
    assert result.verdicts[-1].fits


def test_plans_are_deterministic() -> None:
    assert search("phi-2") == search("phi-2")


def test_headroom_is_taken_off_both_budgets() -> None:
    budget = search("phi-2", Constraints(headroom_fraction=0.5)).budget
    assert budget.gpu_bytes == 12 * GIBIBYTE
    assert budget.host_bytes == 32 * GIBIBYTE
    assert search("phi-2").budget.gpu_bytes == int(24 * GIBIBYTE * 0.88)


def test_a_fixed_tier_is_chosen_or_nothing() -> None:
    assert tier_of(search("qwen2.5-1.5b", Constraints(tier=2))) == 2
    assert tier_of(search("qwen2.5-1.5b", Constraints(tier=11))) == 0


@pytest.mark.parametrize(
    ("sizes", "constraints", "resource"),
    [
        ({"gpu_bytes": GIBIBYTE // 2}, Constraints(), Resource.GPU_MEMORY),
        ({"host_bytes": GIBIBYTE // 2}, Constraints(), Resource.HOST_MEMORY),
        ({}, Constraints(host_memory_bytes=GIBIBYTE // 2), Resource.HOST_MEMORY),
        ({}, Constraints(disk_bytes=1000), Resource.DISK),
        ({"disk_bytes": 1000}, Constraints(), Resource.DISK),
        ({}, Constraints(max_step_seconds=1e-6), Resource.TIME),
    ],
)
def test_a_refusal_names_what_binds_and_by_how_much(
    sizes: dict[str, int], constraints: Constraints, resource: Resource
) -> None:
    result = search("phi-2", constraints, **sizes)
    verdict = result.verdicts[0]
    assert result.chosen is None
    assert verdict.binding is resource
    assert verdict.remedy
    assert verdict.candidate is not None
    if resource is Resource.TIME:
        assert verdict.shortfall_seconds == pytest.approx(verdict.candidate.cost.seconds, rel=1e-3)
    else:
        assert verdict.shortfall_bytes > 0


def test_in_one_pool_host_memory_binds_whatever_is_missing() -> None:
    device = machine(2 * GIBIBYTE, 64 * GIBIBYTE, on_cpu=True)
    verdict = plan(LADDER, model_by_id("phi-2"), device, Constraints()).verdicts[5]
    assert verdict.binding is Resource.HOST_MEMORY
    assert verdict.candidate is not None
    assert verdict.candidate.memory.device.total_bytes == verdict.shortfall_bytes + int(
        2 * GIBIBYTE * 0.88
    )
    assert verdict.remedy.endswith("more host memory")


def test_the_shortfall_is_exactly_what_is_missing() -> None:
    small = search("phi-2", gpu_bytes=GIBIBYTE // 2).verdicts[3]
    assert small.binding is Resource.GPU_MEMORY
    needed = math.ceil((GIBIBYTE // 2 * 0.88 + small.shortfall_bytes + 1) / 0.88)
    assert (
        plan(LADDER, model_by_id("phi-2"), machine(gpu_bytes=needed), Constraints())
        .verdicts[3]
        .fits
    )


def test_a_sliding_window_shorter_than_the_tier_needs_the_streaming_executor() -> None:
    result = search("starcoder2-3b")
    assert result.chosen is not None
    assert all(v.totals.chosen.streaming for v in result.verdicts if v.totals)
    resident = replace(result.chosen.chosen, executor=Executor.RESIDENT)
    judge = Search(model_by_id("starcoder2-3b"), machine(), Constraints()).judge
    verdict = judge(result.chosen.tier, resident, Sizing())
    assert verdict.binding is Resource.SOFTWARE
    assert "4096 tokens only" in verdict.remedy


def test_a_window_takes_less_time_than_full_attention() -> None:
    model, tier = model_by_id("starcoder2-3b"), LADDER[7]
    chosen = search("starcoder2-3b").verdicts[7].candidate.chosen
    assert chosen.streaming
    # Every layer attends once forward.
    chosen = replace(
        chosen, policy=Policy.SELECTIVE, attention_outputs=Place.HOST, layer_input_interval=1
    )
    without = replace(model, windowed=(False,) * model.layer_count, sliding_window=0)
    windowed, full = (evaluate(tier, chosen, one, machine()) for one in (model, without))
    # Of the last layer, chunks without targets have no queries.
    chunk, layers = windowed.memory.chunk_tokens, model.layer_count
    idle = (tier.context_tokens - 1) // chunk * chunk
    in_windows = layers * 4096 * (2 * tier.tokens - 4096) - 4096 * (2 * idle - 4096)
    ratio = windowed.cost.lines["attention"] / full.cost.lines["attention"]
    assert full.memory.chunk_tokens == chunk
    assert ratio == pytest.approx(in_windows / (layers * tier.tokens**2 - idle**2))


def test_without_a_fused_kernel_nothing_fits() -> None:
    without = machine(kernels=("sdpa_math",))
    result = plan(LADDER, model_by_id("phi-2"), without, Constraints())
    assert {verdict.binding for verdict in result.verdicts} == {Resource.SOFTWARE}
    assert result.chosen is None


def test_without_bitsandbytes_nothing_is_quantised() -> None:
    without = machine(has_bitsandbytes=False)
    sets = sets_for(without, model_by_id("qwen2.5-1.5b")).sets
    assert sets
    assert all(chosen.exact for chosen in sets)


def test_the_remedy_names_a_card_that_does_it() -> None:
    verdict = search("llama-2-7b", gpu_bytes=GIBIBYTE // 2).verdicts[2]
    assert verdict.candidate is not None
    card = verdict.remedy.partition("a card like ")[2]
    enough = hypothetical_machine(card, 256 * GIBIBYTE, 0)
    again = plan(LADDER, model_by_id("llama-2-7b"), enough, Constraints())
    assert again.verdicts[2].fits


@given(model=MODELS, gpu=BYTES, more=BYTES, host=BYTES)
@settings(deadline=None, max_examples=25)
def test_more_gpu_memory_never_lowers_the_tier(model, gpu: int, more: int, host: int) -> None:  # type: ignore[no-untyped-def]
    def tier(gpu_bytes: int) -> int:
        return tier_of(plan(LADDER, model, machine(gpu_bytes, host), Constraints()))

    assert tier(gpu) <= tier(gpu + more)


@given(
    model=MODELS,
    context=st.integers(256, 2**22),
    target=st.integers(1, 2**19),
    more=st.integers(0, 2**22),
    rank=st.integers(1, 64),
    on_cpu=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_a_longer_context_never_takes_less(model, context, target, more, rank, on_cpu) -> None:  # type: ignore[no-untyped-def]
    device = machine(on_cpu=on_cpu)
    sets = sets_for(device, model).sets
    for chosen in sets[:: max(1, len(sets) // 12)]:
        short = evaluate(Tier(1, context, target, rank), chosen, model, device)
        long = evaluate(Tier(1, context + more, target, rank), chosen, model, device)
        assert long.memory.device.total_bytes >= short.memory.device.total_bytes
        assert long.memory.host.total_bytes >= short.memory.host.total_bytes
        # Tokens in a chunk of their own, without targets, spare the last layer their queries: the
        # first token of a second chunk really makes a step shorter, by less than a layer.
        assert long.cost.seconds >= short.cost.seconds * (1 - 1 / model.layer_count)


@given(
    model=MODELS,
    gpu=BYTES,
    host=BYTES,
    headroom=st.floats(0, 0.9),
    seconds=st.floats(0, 1e6),
    exact_only=st.booleans(),
    tier=st.integers(0, 11),
    on_cpu=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_every_answer_is_sound(  # type: ignore[no-untyped-def]
    model, gpu, host, headroom, seconds, exact_only, tier, on_cpu
) -> None:
    constraints = Constraints(
        headroom_fraction=headroom, max_step_seconds=seconds, exact_only=exact_only, tier=tier
    )
    result = plan(LADDER, model, machine(gpu, host, on_cpu=on_cpu), constraints)
    for verdict in result.verdicts:
        assert verdict.shortfall_bytes >= 0
        assert verdict.shortfall_seconds >= 0
        assert bool(verdict.remedy) != verdict.fits
        candidate = verdict.candidate
        assert candidate is not None
        assert candidate.chosen.exact or not exact_only
        assert math.isfinite(candidate.cost.seconds)
        assert all(line >= 0 for line in candidate.cost.lines.values())
        for estimate in (candidate.memory.device, candidate.memory.host, candidate.memory.disk):
            assert sum(estimate.lines.values()) == estimate.total_bytes
            assert min(estimate.lines.values()) >= 0
        if verdict.fits:
            assert candidate.memory.device.total_bytes <= result.budget.gpu_bytes
            assert candidate.memory.host.total_bytes <= result.budget.host_bytes
            assert not seconds or candidate.cost.seconds <= seconds
    if result.chosen is not None:
        assert tier in (0, result.chosen.tier.tier)


@pytest.mark.parametrize("forbidden", ["qlora-4bit", "adamw-8bit"])
def test_what_is_forbidden_is_in_no_plan(forbidden: str) -> None:
    constraints = Constraints(forbidden=frozenset({forbidden}))
    result = plan(LADDER, model_by_id("llama-2-7b"), machine(), constraints)
    for verdict in result.verdicts:
        if verdict.fits:
            assert forbidden not in verdict.totals.chosen.lossy_ids
    assert result.chosen is not None


def test_device_memory_may_be_limited() -> None:
    whole = plan(LADDER, model_by_id("qwen2.5-1.5b"), machine(), Constraints())
    limit = whole.budget.gpu_safe_bytes // 3
    less = plan(LADDER, model_by_id("qwen2.5-1.5b"), machine(), Constraints(gpu_memory_bytes=limit))
    assert less.budget.gpu_safe_bytes == limit
    assert less.chosen is None or less.chosen.memory.device.total_bytes <= less.budget.gpu_bytes
    more = Constraints(gpu_memory_bytes=10 * whole.budget.gpu_safe_bytes)
    assert plan(LADDER, model_by_id("qwen2.5-1.5b"), machine(), more).budget == whole.budget


def slow_products(gpu_bytes: int) -> Machine:
    """Every product costs a millisecond besides: long chunks pay."""
    device = machine(gpu_bytes=gpu_bytes)
    rates = {
        size: replace(of_dtype, operation_overhead_seconds=1e-3)
        for size, of_dtype in device.rates.by_element_bytes.items()
    }
    return replace(device, rates=replace(device.rates, by_element_bytes=rates))


@pytest.mark.parametrize("gibibytes", [6, 8, 12, 24])
def test_the_chunk_is_the_fastest_that_fits(gibibytes: int) -> None:
    device, model = slow_products(gibibytes * GIBIBYTE), model_by_id("qwen2.5-1.5b")
    search = Search(model, device, Constraints())
    result = plan(LADDER, model, device, Constraints())
    assert result.chosen is not None
    tier, chosen = result.chosen.tier, result.chosen.chosen
    assert chosen.streaming
    budget = result.budget
    seconds = {}
    for chunk in chunk_lengths(tier.tokens, keys_on_device=chosen.key_values is Place.DEVICE):
        rival = search.evaluation.one(tier, chosen, Sizing(chunk_tokens=chunk))
        if rival.memory.device.total_bytes <= budget.gpu_bytes and (
            rival.memory.host.total_bytes <= budget.host_bytes
        ):
            seconds[chunk] = rival.cost.seconds
    assert result.chosen.cost.seconds <= 1.0102 * min(seconds.values())
    # An estimate of the set and the row of the tier say what the plan says.
    assert search.judge(tier, chosen, Sizing()).totals == Totals.of(result.chosen)
    verdict = next(one for one in result.verdicts if one.tier == tier)
    assert verdict.totals == Totals.of(result.chosen)
    assert verdict.fits


@pytest.mark.parametrize("gpu_id", ["rtx-2060-super", "rtx-3090", "h100-sxm"])
@pytest.mark.parametrize("number", [1, 4, 8])
def test_time_is_not_bought_with_exactness_or_a_disk(gpu_id: str, number: int) -> None:
    """Another set is taken for its time only if it is no lossier and wears no disk."""
    model = model_by_id("qwen2.5-1.5b")
    card = hypothetical_machine(gpu_id, 128 * GIBIBYTE, 2**40)
    constraints = Constraints(tier=number)
    result = plan(LADDER, model, card, constraints)
    judged = Search(model, card, constraints).judge_all(LADDER)[number - 1]
    assert result.chosen is not None
    assert judged.totals is not None
    planned, first = result.chosen.chosen, judged.totals.chosen
    assert set(planned.lossy_ids) <= set(first.lossy_ids)
    assert Place.DISK not in planned.places or Place.DISK in first.places
    assert result.chosen.cost.seconds <= 1.0102 * judged.totals.seconds


def test_a_short_window_on_a_fast_card_is_one_chunk() -> None:
    """What Python asks for takes longer than the kernels."""
    card = hypothetical_machine("h100-sxm", 128 * GIBIBYTE, 0)
    chosen = plan(LADDER, model_by_id("qwen2.5-1.5b"), card, Constraints(tier=2)).chosen
    assert chosen is not None
    if chosen.chosen.streaming:
        assert chosen.memory.chunk_tokens == chosen.tier.tokens


def test_a_chunk_that_saves_nothing_does_not_grow() -> None:
    """The card table has one rate for all sizes."""
    result = search("qwen2.5-1.5b")
    assert result.chosen is not None
    evaluation = Search(model_by_id("qwen2.5-1.5b"), machine(), Constraints()).evaluation
    sized = evaluation.one(
        result.chosen.tier, result.chosen.chosen, evaluation.sizing(result.budget.gpu_bytes)
    )
    assert result.chosen.memory.chunk_tokens == sized.memory.chunk_tokens


@pytest.mark.parametrize(
    ("model_id", "gpu_id", "number"),
    [
        ("qwen2.5-1.5b", "rtx-3090", 8),
        ("phi-3-mini-4k", "t4", 9),
        ("gemma-3-270m", "rtx-2060-super", 5),
        ("gemma-7b", "l4", 7),
        ("smollm2-1.7b", "rtx-4060-ti-16gb", 10),
        ("llama-3.2-3b", "h200", 7),
    ],
)
def test_on_a_card_of_the_table_no_chunk_is_three_percent_faster(
    model_id: str, gpu_id: str, number: int
) -> None:
    """Lengths are compared only where another one could spare something."""
    model, card = model_by_id(model_id), hypothetical_machine(gpu_id, 128 * GIBIBYTE, 2**41)
    result = plan(LADDER, model, card, Constraints(tier=number))
    assert result.chosen is not None
    tier, chosen = result.chosen.tier, result.chosen.chosen
    assert chosen.streaming
    evaluation = Search(model, card, Constraints()).evaluation
    lengths = chunk_lengths(tier.tokens, keys_on_device=chosen.key_values is Place.DEVICE)
    rivals = [evaluation.one(tier, chosen, Sizing(chunk_tokens=chunk)) for chunk in lengths]
    seconds = [
        rival.cost.seconds for rival in rivals
        if rival.memory.device.total_bytes <= result.budget.gpu_bytes
        and rival.memory.host.total_bytes <= result.budget.host_bytes
    ]  # fmt: skip
    assert result.chosen.cost.seconds <= 1.03 * min(seconds)


def test_lengths_of_chunks_are_powers_of_two_and_the_window() -> None:
    assert chunk_lengths(100, keys_on_device=True) == (100,)
    assert chunk_lengths(1000, keys_on_device=True) == (256, 512, 1000)
    assert chunk_lengths(1024, keys_on_device=True) == (256, 512, 1024)
    assert chunk_lengths(10**6, keys_on_device=True)[-1] == 16384
    assert chunk_lengths(10**6, keys_on_device=False)[-1] == 32768
