"""The pictures of docs/benchmarks.md, drawn from results files.

Every function takes a document and gives a figure, or None where the document has nothing to draw.
What differs in colour differs in marker or place as well.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.report_measurements import by_subject, by_tokens, executors_of, speed_cases
from bench.report_predictions import (
    DEVICE,
    EXECUTORS,
    SECONDS,
    by,
    executor_of,
    is_inside,
)
from bench.report_text import (
    Document,
    Row,
    count,
    error_percent,
    errors_of,
    values,
)
from elite_cli.charts.axes import SMALL_FONT_SIZE, new_figure, plain, verdict_bar, whole_bytes
from elite_cli.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

_COLOURS = (ORANGE, BLUE, GREEN, PURPLE, VERMILION, SKY)
_MARKERS = ("o", "s", "^", "D", "v", "P")
_GRID = "#dddddd"
_DARK = "#222222"
_POINT_SIZE = 22
# Points of one set spread over so much of its row, in the order of their errors.
_ROW_SHARE = 0.7


def memory(document: Document) -> Figure | None:
    """Errors of every case, set by set: sorted points, with a bar at the median."""
    rows = [row for row in document.get("cases", []) if error_percent(row, *DEVICE) is not None]
    if not rows:
        return None
    ordered = sorted(rows, key=executor_of)
    sets = by(ordered, lambda row: str(row.get("set")))
    figure = new_figure("Device memory: predicted over measured, less one", 9.5, _rows_high(sets))
    axes = figure.subplots()
    plain(axes, "one point a case, sorted within its set; right of zero: predicted too much")
    for position, of_set in enumerate(sets.values()):
        _draw_errors(axes, position, of_set)
    axes.axvline(0, color=_DARK, linewidth=0.8, zorder=1)
    axes.set_yticks(range(len(sets)), list(sets))
    axes.invert_yaxis()
    axes.set_xlabel("error in percent", fontsize=SMALL_FONT_SIZE)
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    _legend(figure, [_dot(name, index) for index, name in enumerate(EXECUTORS)
                   if name in {executor_of(row) for row in rows}])  # fmt: skip
    return figure


def _rows_high(rows: Mapping[str, object]) -> float:
    return 1.6 + 0.45 * len(rows)


def _draw_errors(axes: Axes, position: int, rows: Sequence[Row]) -> None:
    errors = sorted(errors_of(rows, *DEVICE))
    step = _ROW_SHARE / max(1, len(errors) - 1)
    heights = [position + _ROW_SHARE / 2 - step * index for index in range(len(errors))]
    index = _index(executor_of(rows[0]), EXECUTORS)
    axes.scatter(errors, heights, s=_POINT_SIZE, linewidths=0, zorder=2, **_look(index))
    middle = statistics.median(errors)
    axes.plot([middle] * 2, [position - 0.42, position + 0.42], color=_DARK, linewidth=1.2)


def time(document: Document) -> Figure | None:
    """Predicted against measured seconds: points near the diagonal, bars from low to high."""
    rows = [row for row in document.get("cases", []) if error_percent(row, *SECONDS) is not None]
    if not rows:
        return None
    figure = new_figure("Time of a step: predicted against measured", 6.8, 6.2)
    axes = figure.subplots()
    plain(axes, "bars: from the low to the high prediction")
    ends = [row[name] for row in rows for name in SECONDS]
    ends += values(rows, "low") + values(rows, "high")
    limits = (min(ends) * 0.8, max(ends) * 1.25)
    axes.plot(limits, limits, color=GREY, linewidth=1.0, zorder=1)
    groups = by(rows, lambda row: str(row.get("model")))
    for index, of_model in enumerate(groups.values()):
        _draw_times(axes, of_model, index)
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
    _second_ticks(axes, limits)
    axes.set_xlabel("measured seconds a step", fontsize=SMALL_FONT_SIZE)
    axes.set_ylabel("predicted seconds a step", fontsize=SMALL_FONT_SIZE)
    axes.set_aspect("equal")
    axes.grid(color=_GRID, linewidth=0.6)
    dots = [_dot(name, index) for index, name in enumerate(groups)]
    _legend(figure, [*dots, Line2D([], [], color=GREY, label="predicted as measured")])
    return figure


def _draw_times(axes: Axes, rows: Sequence[Row], index: int) -> None:
    for row in rows:
        measured, predicted = row["measured_seconds"], row["predicted_seconds"]
        low, high = row.get("low"), row.get("high")
        if low is not None and high is not None:
            colour = _look(index)["color"]
            axes.plot([measured] * 2, [low, high], color=colour, alpha=0.45, linewidth=2)
        axes.scatter(
            [measured], [predicted], s=1.6 * _POINT_SIZE, linewidths=0, zorder=3, **_look(index)
        )


def _second_ticks(axes: Axes, limits: tuple[float, float]) -> None:
    ticks = [
        lead * 10.0**power
        for power in range(-4, 7)
        for lead in (1, 2, 5)
        if limits[0] <= lead * 10.0**power <= limits[1]
    ]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def speed(document: Document) -> Figure | None:
    """Seconds and peak memory by tokens for every executor, a row of panels a model."""
    subjects = by_subject(speed_cases(document))
    if not subjects:
        return None
    title = "A training step by executor: median of rounds, bars from fastest to slowest"
    figure = new_figure(title, 10.5, 0.6 + 4.2 * len(subjects))
    panels = figure.subplots(len(subjects), 2, squeeze=False, sharex="row")
    for (left, right), (name, rows) in zip(panels, subjects.items(), strict=True):
        plain(left, f"{name}: time")
        plain(right, "peak memory of tensors, weights included")
        for index, executor in enumerate(_all_executors(subjects)):
            _draw_line(left, rows, executor, "step_seconds", index)
            _draw_line(right, rows, executor, "peak_bytes", index)
        for axes in (left, right):
            _token_axis(axes, by_tokens(rows))
        _log_axis(left, "seconds a step", lambda value, _: f"{value:g}")
        _log_axis(right, "bytes at the peak", lambda value, _: whole_bytes(value))
    names = _all_executors(subjects)
    _legend(figure, [_dot(name, index) for index, name in enumerate(names)])
    return figure


def _all_executors(subjects: Mapping[str, Sequence[Row]]) -> list[str]:
    return executors_of([row for rows in subjects.values() for row in rows])


def _draw_line(axes: Axes, rows: Sequence[Row], executor: str, figure: str, index: int) -> None:
    """A line through the lengths that have the figure; bars over the rounds of seconds."""
    found = sorted(
        (row for row in rows if row["executor"] == executor and row.get(figure) is not None),
        key=lambda row: int(row["tokens"]),
    )
    tokens = [row["tokens"] for row in found]
    axes.plot(tokens, [row[figure] for row in found], markersize=6, **_look(index))
    for row in found:
        if figure == "step_seconds" and row.get("samples"):
            ends = min(row["samples"]), max(row["samples"])
            axes.vlines(row["tokens"], *ends, color=_look(index)["color"], linewidth=2, alpha=0.45)


def _token_axis(axes: Axes, lengths: Mapping[int, object]) -> None:
    """A logarithmic x axis with the lengths that were measured."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(lengths)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: count(tokens)))
    axes.set_xlabel("tokens of the window", fontsize=SMALL_FONT_SIZE)


def _log_axis(axes: Axes, label: str, shown: Callable[[float, int], str]) -> None:
    """A logarithmic y axis with a line at powers of two."""
    axes.set_yscale("log", base=2)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(shown))
    axes.set_ylabel(label, fontsize=SMALL_FONT_SIZE)
    axes.grid(color=_GRID, linewidth=0.6)


def ladder(document: Document) -> Figure | None:
    """Device bytes of every tier as bars, its video memory as marks; a panel a model."""
    rows = [row for row in document.get("rows", []) if None not in _bytes_of(row)]
    if not rows:
        return None
    models = by(rows, lambda row: str(row.get("model")))
    figure = new_figure("The ladder: memory on the device against the card's", 10.5,
                        0.8 + 2.7 * len(models))  # fmt: skip
    panels = figure.subplots(len(models), 1, squeeze=False, sharex=True)
    for (axes,), (name, of_model) in zip(panels, models.items(), strict=True):
        plain(axes, name)
        _draw_tiers(axes, of_model)
    tiers = sorted({int(row["tier"]) for row in rows})
    last: Axes = panels[-1][0]
    last.set_xticks(tiers)
    last.set_xlabel("tier", fontsize=SMALL_FONT_SIZE)
    _legend(figure, [
        Patch(label="device memory of a step, inside", **verdict_bar(fits=True)),
        *([] if all(is_inside(row) for row in rows)
          else [Patch(label="outside", **verdict_bar(fits=False))]),
        Line2D([], [], color=_DARK, linewidth=2, label="video memory of the row's card"),
    ])  # fmt: skip
    return figure


def _bytes_of(row: Row) -> tuple[float | None, float | None]:
    return row.get("device_bytes"), row.get("vram_bytes")


def _draw_tiers(axes: Axes, rows: Sequence[Row]) -> None:
    for row in rows:
        tier, fits = int(row["tier"]), is_inside(row)
        axes.bar(tier, row["device_bytes"] / 1e9, width=0.62, **verdict_bar(fits=fits))
        axes.hlines(row["vram_bytes"] / 1e9, tier - 0.42, tier + 0.42, color=_DARK, linewidth=2)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("GB (10⁹ bytes)", fontsize=SMALL_FONT_SIZE)
    axes.grid(axis="y", color=_GRID, linewidth=0.6)


def profile(document: Document) -> Figure | None:
    """Seconds of a streaming step by phase, a bar each, stacked by kind of work; a panel a case."""
    cases = document.get("cases", [])
    if not cases:
        return None
    figure = new_figure("Where a streaming step's time goes", 10.5, 0.8 + 2.0 * len(cases))
    panels = figure.subplots(len(cases), 1, squeeze=False)
    kinds = list(
        dict.fromkeys(kind for case in cases for p in case["phases"].values() for kind in p)
    )
    for (axes,), case in zip(panels, cases, strict=True):
        plain(axes, f"{case['model']}, {count(case['tokens'])} tokens")
        _draw_phases(axes, case["phases"], kinds)
    panels[-1][0].set_xlabel("seconds", fontsize=SMALL_FONT_SIZE)
    _legend(figure, [Patch(label=kind, **_fill(place)) for place, kind in enumerate(kinds)])
    return figure


def _draw_phases(
    axes: Axes, phases: Mapping[str, Mapping[str, float]], kinds: Sequence[str]
) -> None:
    for position, found in enumerate(phases.values()):
        begin = 0.0
        for place, kind in enumerate(kinds):
            axes.barh(position, found.get(kind, 0.0), left=begin, height=0.62, **_fill(place))
            begin += found.get(kind, 0.0)
    axes.set_yticks(range(len(phases)), list(phases))
    axes.invert_yaxis()
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def _fill(place: int) -> dict[str, Any]:
    """Of a part of a bar, by its place in the legend."""
    hatches = ("", "///", "...", "xxx", "\\\\\\")
    colour = _COLOURS[place % len(_COLOURS)]
    return {
        "facecolor": colour, "edgecolor": "white", "linewidth": 0.0,
        "hatch": hatches[place % len(hatches)],
    }  # fmt: skip


def _index(name: str, names: Sequence[str]) -> int:
    return names.index(name) if name in names else len(names)


def _dot(name: str, index: int) -> Line2D:
    """A legend's entry."""
    return Line2D([], [], linestyle="", markersize=6, label=name, **_look(index))


def _look(index: int) -> dict[str, Any]:
    """Colour and marker by place in the legend."""
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
    }


def _legend(figure: Figure, handles: Sequence[Line2D | Patch]) -> None:
    """Under everything."""
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, frameon=False,
        fontsize=SMALL_FONT_SIZE,
    )  # fmt: skip
