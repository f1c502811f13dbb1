"""Cards side by side: the context each one reaches, and how long a step takes there."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from elite.planner.v1 import planner_pb2
from elite_cli.charts.axes import SMALL_FONT_SIZE, new_figure, plain
from elite_cli.palette import BLUE, DOES_NOT_FIT, ORANGE
from elite_cli.quantities import format_count, format_duration
from elite_cli.render.verdicts import verdict_text

# Round durations for the ticks of a logarithmic axis.
_TICK_SECONDS = (
    0.001, 0.01, 0.1, 1, 10, 60, 600, 3600, 6 * 3600, 86400, 7 * 86400, 30 * 86400, 365 * 86400,
    3650 * 86400, 36500 * 86400,
)  # fmt: skip


def comparison_figure(response: planner_pb2.WhatIfResponse) -> Figure:
    """Best card first: context at the left, step time at the right."""
    cards = response.alternatives
    name = response.model.display_name or response.model.model_id or response.model.model_type
    title = f"{name}: what each card reaches"
    figure = new_figure(title, 14.0, max(3.2, 0.36 * len(cards) + 1.6))
    left, right = figure.subplots(1, 2, sharey=True)
    plain(left, "Longest context, tokens")
    plain(right, "Time of a step there, from low to high")
    for row, card in enumerate(cards):
        if card.HasField("chosen"):
            _draw_card(left, right, row, card.chosen)
        else:
            text = f"tier {card.verdict.tier} {verdict_text(card.verdict, planner_pb2.Budget())}"
            left.text(0.01, row, text, transform=left.get_yaxis_transform(), va="center",
                      fontsize=SMALL_FONT_SIZE, color=DOES_NOT_FIT)  # fmt: skip
    left.set_yticks(range(len(cards)), [card.gpu_id for card in cards])
    left.set_ylim(len(cards) - 0.4, -0.6)
    chosen = [card.chosen for card in cards if card.HasField("chosen")]
    _scale_contexts(left, [plan.context_tokens for plan in chosen])
    if chosen:
        _scale_durations(right, chosen)
    else:
        right.set_visible(False)
    return figure


def _draw_card(left: Axes, right: Axes, row: int, plan: planner_pb2.Plan) -> None:
    left.barh(row, plan.context_tokens, height=0.62, color=BLUE)
    text = f"{format_count(plan.context_tokens)} (tier {plan.tier})"
    left.annotate(text, (plan.context_tokens, row), xytext=(5, 0), textcoords="offset points",
                  va="center", fontsize=SMALL_FONT_SIZE)  # fmt: skip
    right.barh(row, plan.step_seconds, height=0.62, color=ORANGE)
    low, high = _bounds(plan)
    right.plot([low, high], [row, row], color="black", linewidth=1.4, marker="|")
    right.annotate(format_duration(plan.step_seconds), (high, row), xytext=(7, 0),
                   textcoords="offset points", va="center", fontsize=SMALL_FONT_SIZE)  # fmt: skip


def _bounds(plan: planner_pb2.Plan) -> tuple[float, float]:
    if not plan.step_seconds_high:
        return plan.step_seconds, plan.step_seconds
    return plan.step_seconds_low, plan.step_seconds_high


def _scale_contexts(axes: Axes, tokens: list[int]) -> None:
    """From half the shortest context, with room for text after the longest."""
    smallest, largest = min(tokens, default=1), max(tokens, default=1)
    axes.set_xscale("log", base=2)
    axes.set_xlim(smallest / 2, largest * 4)
    axes.set_xticks(sorted(set(tokens)), [format_count(count) for count in sorted(set(tokens))])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)


def _scale_durations(axes: Axes, plans: list[planner_pb2.Plan]) -> None:
    bounds = [_bounds(plan) for plan in plans]
    low = max(min(low for low, _ in bounds), 1e-4) / 2
    high = max(high for _, high in bounds) * 2.5
    axes.set_xscale("log")
    axes.set_xlim(low, max(high, 2 * low))
    ticks = [seconds for seconds in _TICK_SECONDS if low <= seconds <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: format_duration(seconds)))
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
