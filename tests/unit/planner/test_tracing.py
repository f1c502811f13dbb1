"""Numbers that remember, and the explanations made of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.planner.arithmetic import (
    ceiling_divide,
    maximum,
    minimum,
    power_of_two_from,
    where,
    whole,
)
from services.planner.evaluation import Evaluation
from services.planner.explanation import derivations
from services.planner.memory import Sizing
from services.planner.models import model_by_id
from services.planner.options import OptimizationSet
from services.planner.streaming_memory import slabs
from services.planner.tracing import Traced
from tests.support.machines import machine
from tests.unit.planner.test_cost import STREAMED
from tests.unit.planner.test_memory import FRUGAL, PLAIN, TIER

FUNCTIONS = {"ceil": math.ceil, "power_of_two": power_of_two_from, "slabs": slabs}
S, H = Traced(10, "S"), Traced(3, "h")


@pytest.mark.parametrize(
    ("number", "expression", "numbers"),
    [
        (S * (H + 2), "S * (h + 2)", "10 * (3 + 2)"),
        (S - (H - 2), "S - (h - 2)", "10 - (3 - 2)"),
        (S / (H * 2), "S / (h * 2)", "10 / (3 * 2)"),
        (S * 1 + 0, "S", "10"),
        (0 * S + H, "h", "3"),
        (S**2 * H, "S^2 * h", "10^2 * 3"),
        (maximum(S, H * 4), "max(S, h * 4)", "max(10, 3 * 4)"),
        (minimum(S, 4), "min(S, 4)", "min(10, 4)"),
        (ceiling_divide(S, H), "ceil(S / h)", "ceil(10 / 3)"),
        (whole(S * 0.25), "round(S * 0.25)", "round(10 * 0.25)"),
        (where(True, S, H), "S", "10"),
        (S * (S // H), "S * (S // h)", "10 * (10 // 3)"),
        (S // H * 2, "(S // h) * 2", "(10 // 3) * 2"),
        (S - S // H, "S - S // h", "10 - 10 // 3"),
    ],
)
def test_an_expression_is_written_as_people_write_it(
    number: Traced, expression: str, numbers: str
) -> None:
    assert (number.expression, number.numbers) == (expression, numbers)


@given(st.integers(0, 99), st.integers(1, 99), st.integers(0, 99))
def test_the_numbers_come_to_the_value(a: int, b: int, c: int) -> None:
    x, y, z = Traced(a, "a"), Traced(b, "b"), Traced(c, "c")
    for number in (
        x * (y + z) - z / y,
        (x - y) - (z - x),
        x / (y / (z + 1)),
        x - y * z + 1,
        x * (x // y * y),
        x // y * (z // y),
        x // y // (z + 1),
        x * z // y,
    ):
        assert eval(number.numbers) == pytest.approx(number.value)


@pytest.mark.parametrize("chosen", [PLAIN, FRUGAL, STREAMED])
def test_an_explanation_comes_to_the_figures_of_the_plan(chosen: OptimizationSet) -> None:
    device = machine()
    evaluation = Evaluation(model_by_id("qwen2.5-1.5b"), device)
    candidate = evaluation.one(TIER, chosen, Sizing())
    found = {(one.budget, one.line): one for one in derivations(candidate, evaluation, device)}
    for budget, estimate in (
        ("gpu", candidate.memory.device),
        ("host", candidate.memory.host),
        ("disk", candidate.memory.disk),
    ):
        for line, size in estimate.lines.items():
            assert (budget, line) in found or size == 0
            if size:
                assert found[budget, line].value == pytest.approx(size)
    for line, seconds in candidate.cost.lines.items():
        if seconds:
            assert found["time", line].value == pytest.approx(seconds)
    for one in found.values():
        # Printed rates have six digits.
        assert eval(one.with_numbers, FUNCTIONS) == pytest.approx(one.value, rel=1e-4)
    assert "S" in found["gpu", "kv"].expression
    assert "4608" in found["gpu", "kv"].with_numbers
