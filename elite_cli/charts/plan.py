"""A plan as a picture: every tier against the budget, and the chosen one line by line."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from elite.planner.v1 import planner_pb2
from elite_cli.charts.axes import (
    FONT_SIZE,
    SMALL_FONT_SIZE,
    legend_below,
    log_byte_axis,
    new_figure,
    plain,
    verdict_bar,
)
from elite_cli.palette import line_colour
from elite_cli.quantities import format_bytes, format_count, format_duration
from elite_cli.render.facts import run_text, time_range
from elite_cli.render.memory import Pool, pool_share, pools
from elite_cli.render.names import line_name
from elite_cli.render.verdicts import remedy_texts, verdict_text

# Of a longer ladder the tiers nearest to the chosen one are drawn.
_MOST_TIERS = 40
# Above the first tier.
_HEAD_ROW = -0.75
# A segment narrower than this share of the axis has no room for its size.
_ROOM_FOR_TEXT = 0.11
_TEXT_CHARACTERS = 84
_ROWS_PER_LINE_OF_TEXT = 0.27
# Right ends of the columns of text beside the tiers' bars, in widths of the axes.
_TEXT_COLUMNS = (1.17, 1.38)


def plan_figure(response: planner_pb2.PlanResponse) -> Figure:
    """All tiers at the left, the chosen plan at the right."""
    tiers = _drawn_tiers(response)
    name = response.model.display_name or response.model.model_id or response.model.model_type
    height = max(5.5, 0.36 * len(tiers) + 1.8)
    figure = new_figure(f"{name} on {response.budget.device_name}", 14.5, height)
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.05))
    _draw_tiers(left, response, tiers)
    if response.HasField("chosen"):
        _draw_chosen(right, response.chosen, response.budget)
    else:
        _say_nothing_fits(right, response)
    return figure


def _drawn_tiers(response: planner_pb2.PlanResponse) -> Sequence[planner_pb2.TierVerdict]:
    numbers = [verdict.tier for verdict in response.tiers]
    middle = numbers.index(response.chosen.tier) if response.HasField("chosen") else 0
    first = max(0, min(middle - _MOST_TIERS // 2, len(numbers) - _MOST_TIERS))
    return response.tiers[first : first + _MOST_TIERS]


def _draw_tiers(
    axes: Axes, response: planner_pb2.PlanResponse, tiers: Sequence[planner_pb2.TierVerdict]
) -> None:
    budget, one_pool = response.budget.gpu_bytes, response.budget.gpu_memory_is_host_memory
    plain(axes, f"Peak {'memory' if one_pool else 'GPU memory'} by tier, and the time of a step")
    sizes = [max(verdict.gpu_bytes, 1) for verdict in tiers]
    for row, (verdict, size) in enumerate(zip(tiers, sizes, strict=True)):
        axes.barh(row, size, height=0.66, **verdict_bar(fits=verdict.fits))
    log_byte_axis(axes, min(*sizes, max(budget, 1)), max(*sizes, budget))
    axes.axvline(budget, color="black", linewidth=1.4, linestyle="--")
    axes.annotate(
        f"budget {format_bytes(budget)}", (budget, _HEAD_ROW), xytext=(4, 0),
        textcoords="offset points", fontsize=SMALL_FONT_SIZE, va="center",
    )  # fmt: skip
    axes.set_ylim(len(tiers) - 0.4, _HEAD_ROW - 0.45)
    _write_beside(axes, response, tiers)
    kinds = (("fits", True), ("does not fit", False))
    legend_below(axes, [Patch(label=label, **verdict_bar(fits=fits)) for label, fits in kinds], 2)


def _write_beside(
    axes: Axes, response: planner_pb2.PlanResponse, tiers: Sequence[planner_pb2.TierVerdict]
) -> None:
    """Names of the tiers at the left, their figures in columns at the right."""
    axes.set_yticks(range(len(tiers)), [_tier_label(verdict) for verdict in tiers])
    chosen = response.chosen.tier if response.HasField("chosen") else 0
    for verdict, label in zip(tiers, axes.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if verdict.tier == chosen else "normal")
    rows = [
        (row, format_bytes(verdict.gpu_bytes), format_duration(verdict.step_seconds))
        for row, verdict in enumerate(tiers)
    ]
    for row, *texts in [(_HEAD_ROW, "peak", "step"), *rows]:
        for column, text in zip(_TEXT_COLUMNS, texts, strict=True):
            axes.text(
                column, row, text, transform=axes.get_yaxis_transform(), ha="right", va="center",
                fontsize=SMALL_FONT_SIZE, fontweight="bold" if row == _HEAD_ROW else "normal",
            )  # fmt: skip


def _tier_label(verdict: planner_pb2.TierVerdict) -> str:
    return f"tier {verdict.tier}: {format_count(verdict.context_tokens)}"


def _draw_chosen(axes: Axes, plan: planner_pb2.Plan, budget: planner_pb2.Budget) -> None:
    context = format_count(plan.context_tokens)
    plain(axes, f"Tier {plan.tier}, {context} tokens: what it takes of each budget")
    found = pools(plan, budget)
    longest = max(_share(pool.estimate.total_bytes, pool) for pool in found)
    edge = max(1.0, longest)
    for row, pool in enumerate(found):
        _draw_pool(axes, row, pool, edge)
    ends = (-0.7, len(found) - 0.65)  # not through the text below
    axes.plot((1.0, 1.0), ends, color="black", linewidth=1.4, linestyle="--")
    axes.set_xlim(0, edge * 1.01)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlabel("of the budget", fontsize=SMALL_FONT_SIZE, loc="right")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_yticks(range(len(found)), [pool.name for pool in found], fontsize=FONT_SIZE)
    text = _plan_text(plan)
    axes.set_ylim(len(found) - 0.5 + _ROWS_PER_LINE_OF_TEXT * (text.count("\n") + 1), -0.75)
    names = dict.fromkeys(line.name for pool in found for line in pool.estimate.lines if line.bytes)
    legend_below(axes, [Patch(color=line_colour(name), label=line_name(name)) for name in names], 4)
    axes.text(
        0.0, 0.02, text, transform=axes.transAxes, va="bottom",
        fontsize=SMALL_FONT_SIZE, linespacing=1.5,
    )  # fmt: skip


def _draw_pool(axes: Axes, row: int, pool: Pool, edge: float) -> None:
    start = 0.0
    for line in pool.estimate.lines:
        share = _share(line.bytes, pool)
        colour = line_colour(line.name)
        axes.barh(row, share, left=start, height=0.5, color=colour, edgecolor="white",
                  linewidth=0.5)  # fmt: skip
        if share > _ROOM_FOR_TEXT * edge:
            axes.text(
                start + share / 2, row, format_bytes(line.bytes), ha="center", va="center",
                fontsize=SMALL_FONT_SIZE, color="white" if _is_dark(colour) else "black",
            )  # fmt: skip
        start += share
    unknown = "" if pool.budget_bytes else ", of an unknown budget"
    axes.text(0.0, row - 0.32, pool_share(pool) + unknown, fontsize=FONT_SIZE, va="bottom")


def _share(size: int, pool: Pool) -> float:
    """Of the budget; none where it is unknown."""
    return size / pool.budget_bytes if pool.budget_bytes else 0.0


def _is_dark(colour: str) -> bool:
    """Whether white text reads better on it (relative luminance, ITU-R BT.709)."""
    red, green, blue = (int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5


def _plan_text(plan: planner_pb2.Plan) -> str:
    step = time_range(plan.step_seconds, plan.step_seconds_low, plan.step_seconds_high)
    lines = [f"A step takes {step}"]
    if plan.HasField("run"):
        lines.append(run_text(plan))
    return _wrapped(lines)


def _wrapped(lines: list[str]) -> str:
    return "\n".join(textwrap.fill(line, _TEXT_CHARACTERS) for line in lines)


def _say_nothing_fits(axes: Axes, response: planner_pb2.PlanResponse) -> None:
    axes.axis("off")
    lines = ["Nothing fits."]
    for verdict in response.tiers[:1]:
        lines.append(f"Tier {verdict.tier} {verdict_text(verdict, response.budget)}.")
        lines += [f"- {text}" for text in remedy_texts(verdict)]
    axes.text(
        0.02, 0.95, _wrapped(lines), transform=axes.transAxes, va="top", fontsize=FONT_SIZE + 2,
        linespacing=1.6,
    )  # fmt: skip
