"""A plan, an estimate and a comparison as people see them."""

from __future__ import annotations

import pytest

from elite.planner.v1 import planner_pb2 as pb
from elite_cli.render.comparison import render_comparison
from elite_cli.render.plan import render_estimate, render_headline, render_plan_response
from tests.support import plan_responses as made
from tests.support.terminal import plain_text_of, text_of

WIDTHS = [80, 100, 120]


def plan_text(response: pb.PlanResponse, width: int) -> str:
    return text_of(lambda console: render_plan_response(console, response), width)


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("width", WIDTHS)
def test_a_plan(width: int) -> None:
    text = plan_text(made.plan_response(schedule=True), width)
    for expected in (
        "Qwen2.5 1.5B", "RTX 3090", ">8", "chosen", "lacks 27.0 GiB host",
        "base model", "LoRA parameters", "keys and values", "total", "headroom",
        "formula-activations", "14.3 of 20.0 GiB", "36.0 of 50.0 GiB", "120 of 900 GiB",
        "QLoRA 4-bit (lossy)", "note: figures of the card table",
        "1 h 30 min (1 h 15 min to 2 h): attention 1 h 6 min",
        "210 steps in 12 d 13 h (10 d 11 h to 16 d 17 h), 118 M tokens, 105 kWh at most",
        "then 10 steps at tier 4 (10 min), then 200 steps at tier 8",
        "4.00 GiB a window, 840 GiB in all", "in chunks of 8,192 tokens",
        "layer inputs in host memory as int8, keys and values on the device",
        "attention outputs on disk", "rank 8 on q_proj, v_proj",
        "memory calibrated on 3 runs (x 1.010), time calibrated on 4 runs (x 0.930)",
        "Tier 9: lacks 27.0 GiB host memory. Any one of these would make it fit: "
        "- allow activations-4bit, which is lossy - 29.0 GB more host memory",
    ):  # fmt: skip
        assert expected in words(text), expected
    assert text.count("fits") == 7
    assert len(text.splitlines()) <= (59 if width < 100 else 56)


def test_a_wide_table_has_targets_and_remedies() -> None:
    response = made.plan_response()
    assert "4,194,304 + 524,288" in plan_text(response, 100)
    assert "lacks 81.0 GiB host: allow activations-4bit" in plan_text(response, 130)
    assert plan_text(response, 100).count("allow activations-4bit") == 1


def test_tiers_are_drawn_against_the_budget() -> None:
    lines = plan_text(made.plan_response(), 100).splitlines()
    rows = {
        line.split()[0]: line
        for line in lines
        if "," in line and "+" in line and "Tier" not in line
    }
    marks = {line.index("│") for line in rows.values()}
    assert len(marks) == 1, "one scale for all"
    assert "█" in rows[">8"]
    assert "▒▒│" in rows["9"]
    assert rows["11"].index("▶") > marks.pop()


def test_what_does_not_apply_is_not_said() -> None:
    text = plan_text(made.plan_response(one_pool=True, highest=4), 80)
    for absent in ("whole run", "calibrat", "warning", "writes", "chunks", "GPU"):
        assert absent not in text
    assert "resident: the whole window at once" in text
    assert "device and host in one" in text
    assert "It would fit with this change: 29.0 GB more host memory" in words(text)


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_fits(width: int) -> None:
    text = words(plan_text(made.plan_response(highest=0), width))
    assert "Nothing fits." in text
    assert "Tier 1, the smallest asked for: lacks 27.0 GiB host memory." in text
    assert "- allow activations-4bit, which is lossy" in text


def test_a_tier_that_was_asked_for_says_why_it_does_not_fit() -> None:
    response = made.plan_response(highest=0)
    text = words(text_of(lambda console: render_plan_response(console, response, asked=3), 120))
    assert "Tier 3: lacks" in text
    assert "the smallest asked for" not in text
    assert "Nothing fits" not in text


def test_time_and_software_verdicts() -> None:
    response = made.plan_response(highest=0)
    first, second = response.tiers[:2]
    first.binding_resource, first.shortfall_bytes = pb.RESOURCE_TIME, 0
    first.shortfall_seconds = 90
    second.binding_resource, second.shortfall_bytes = pb.RESOURCE_SOFTWARE, 0
    text = plan_text(response, 120)
    assert "1 min 30 s too slow" in text
    assert "software is missing" in text


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("fits", [True, False])
def test_an_estimate(width: int, fits: bool) -> None:
    response = made.estimate_response(fits=fits, schedule=True)
    text = text_of(lambda console: render_estimate(console, response), width)
    assert "whole run" in text
    assert ("Lacks 27.0 GiB host memory." in text) is not fits
    assert ("Fits." in text) is fits
    assert ("Any one of these" in text) is not fits


def test_an_unknown_disk_has_no_bar() -> None:
    response = made.plan_response()
    response.budget.disk_bytes = 0
    (line,) = [line for line in plan_text(response, 100).splitlines() if line.startswith("disk  ")]
    assert line.split() == ["disk", "120", "GiB"]


def test_plans_of_before_have_no_bounds() -> None:
    response = made.plan_response()
    response.chosen.step_seconds_low = response.chosen.step_seconds_high = 0
    assert "step time      1 h 30 min: attention" in plan_text(response, 100)


def test_the_headline_is_short() -> None:
    response = made.plan_response(schedule=True)
    text = text_of(lambda console: render_headline(console, response), 120)
    assert "12 d 13 h in all" in text
    assert len(text.splitlines()) <= 6


@pytest.mark.parametrize("width", WIDTHS)
def test_derivations_show_formula_numbers_and_result(width: int) -> None:
    response = made.plan_response()
    response.chosen.derivations.extend(made.derivations())
    text = words(plan_text(response, width))
    for expected in (
        "GPU memory, in the phase: backward keys and values (streaming-keys) = 1.69 GiB "
        "(1,811,939,328 bytes) = S * 12 * k = 589824 * 12 * 256",
        "Host memory, in the phase: forward runtime (runtime) = 3.00 GiB "
        "(3,221,225,472 bytes) = 3221225472 Time of a step",
        "attention (attention-flops) = 30.5 s = 2 * q * S^2 / rate",
        "+ 589824 * 39 * 1536",
    ):
        assert expected in text, expected


def test_only_ascii_where_nothing_else_can_be_printed() -> None:
    response = made.plan_response(schedule=True)
    text = plain_text_of(lambda console: render_plan_response(console, response), 100)
    for mark in ("#", "=", "%", "-"):
        assert mark * 3 in next(line for line in text.splitlines() if line.startswith("GPU  "))
    assert "xx|xx>" in text


@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize("width", [*WIDTHS, 140])
def test_a_comparison(width: int, schedule: bool) -> None:
    response = made.what_if_response(schedule=schedule)
    text = text_of(lambda console: render_comparison(console, response), width)
    for expected in (
        "on 4 cards", "1 h200", "2 a100-80gb", "2,097,152", "14.3", "36.0 GiB", "1 h 30 min",
        "3 rtx-4090 1 81.9 MiB lacks 27.0 GiB host", "note: h200: of h200",
    ):  # fmt: skip
        assert expected in words(text), expected
    assert ("12 d 13 h" in text) is schedule
    assert ("1 h 15 min to 2 h" in text) is (width >= (140 if schedule else 110))
    assert "…" not in text


def test_a_comparison_of_many_cards_leaves_out_notes_on_single_ones() -> None:
    response = made.what_if_response()
    for alternative in list(response.alternatives) * 3:
        response.alternatives.add().CopyFrom(alternative)
    for index, alternative in enumerate(response.alternatives):
        alternative.notes[:] = [f"only {index}", "on all of them"]
    text = text_of(lambda console: render_comparison(console, response), 100)
    assert "note: 16 cards: on all of them" in text
    assert "only 1" not in text


def test_no_card_fits() -> None:
    response = made.what_if_response(fitting=0)
    text = text_of(lambda console: render_comparison(console, response), 80)
    assert "No card fits." in text
    assert "context" not in text
