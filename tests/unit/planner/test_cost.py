"""The time model: FLOPs, rates, transfers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.planner.cost import (
    FORMULAS,
    attention_flops,
    attention_rate,
    linear_flops,
    step_cost,
)
from services.planner.ladder import Tier
from services.planner.machine import ComputeDtype
from services.planner.models import model_by_id
from tests.support.machines import machine
from tests.unit.planner.test_memory import FRUGAL, PLAIN, TIER

MODEL = model_by_id("qwen2.5-1.5b")


def test_linear_work_is_six_per_weight_with_recompute_and_four_without() -> None:
    adapters = MODEL.lora_parameters(8)
    with_recompute = linear_flops(MODEL, TIER, PLAIN)
    assert with_recompute == TIER.tokens * (6 * MODEL.linear_weights + 8 * adapters)
    without = linear_flops(MODEL, TIER, replace(PLAIN, checkpointing=False))
    assert without == TIER.tokens * (4 * MODEL.linear_weights + 6 * adapters)


def test_attention_work_grows_with_the_square() -> None:
    once = attention_flops(MODEL, TIER, PLAIN)
    assert once == pytest.approx(28 * 2 * 1536 * 4608**2 * 4.5)
    twice = Tier(1, 2 * TIER.context_tokens, 2 * TIER.target_tokens, 8)
    assert attention_flops(MODEL, twice, PLAIN) == pytest.approx(4 * once)


@pytest.mark.parametrize(
    ("tokens", "rate"), [(512, 20e12), (1024, 20e12), (2560, 25e12), (4096, 30e12), (10**6, 30e12)]
)
def test_attention_rate_is_interpolated_and_clamped(tokens: int, rate: float) -> None:
    tier = Tier(1, tokens - 1, 1, 8)
    assert attention_rate(machine().rates, tier) == pytest.approx(rate)


def test_fp32_runs_at_fp32_rates() -> None:
    half = step_cost(MODEL, TIER, PLAIN, machine()).lines
    single = step_cost(MODEL, TIER, replace(PLAIN, dtype=ComputeDtype.FLOAT32), machine()).lines
    assert single["linear"] == pytest.approx(5 * half["linear"])
    assert single["attention"] == half["attention"]


def test_lines_are_those_that_cost_something() -> None:
    plain = step_cost(MODEL, TIER, PLAIN, machine())
    assert set(plain.lines) == {"linear", "attention", "elementwise", "loss", "optimizer"}
    everything = step_cost(MODEL, TIER, replace(FRUGAL, layer_inputs_on_host=True), machine())
    assert set(everything.lines) == set(FORMULAS)
    moved = 28 * 4608 * 1536 * 2
    assert everything.lines["transfer"] == pytest.approx(2 * moved / 20e9)
    assert everything.seconds == pytest.approx(sum(everything.lines.values()))
