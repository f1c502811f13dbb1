"""Draws the dashboards from what a Prometheus knows: pictures for the documentation.

`python -m deploy.monitoring.grafana.pictures --prometheus URL --run RUN_ID --minutes 5 FOLDER`

They show the dashboards' queries and real data, not Grafana's look. Panels without data say so.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, PercentFormatter

from deploy.monitoring.grafana.dashboards import DASHBOARDS
from deploy.monitoring.grafana.panels import Dashboard, Panel
from elite_cli.charts.axes import SMALL_FONT_SIZE, new_figure, plain
from elite_cli.charts.files import save
from elite_cli.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

_COLUMNS = 3
_PANEL_INCHES = (4.6, 2.7)
_POINTS = 120
_MOST_SERIES = 8
_LONGEST_LEGEND = 44
_BAR = 0.55
_FEWEST_BARS = 4
_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY)
_UNITS = {"bytes": "B", "Bps": "B/s", "flops": "FLOP/s", "s": "s", "reqps": "/s"}


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its name, times in seconds and values."""

    legend: str
    times: list[float]
    values: list[float]


@dataclass(frozen=True, slots=True)
class Source:
    """A Prometheus, and the time and the run that the pictures are of."""

    url: str
    run_id: str
    start: float
    end: float

    def series(self, panel: Panel) -> list[Series]:
        """What the panel's queries find. Raises `URLError`."""
        return [
            Series(_legend(query.legend, found["metric"]), *_points(found["values"]))
            for query in panel.queries
            for found in self._range(query.expression)
        ]

    def _range(self, expression: str) -> list[dict[str, Any]]:
        span = f"{max(1, math.ceil(self.end - self.start))}s"
        variables = {"$run": self.run_id, "$__rate_interval": "30s", "$__range": span}
        for name, value in variables.items():
            expression = expression.replace(name, value)
        step = max(1.0, (self.end - self.start) / _POINTS)
        query = urllib.parse.urlencode(
            {"query": expression, "start": self.start, "end": self.end, "step": step}
        )
        with urllib.request.urlopen(f"{self.url}/api/v1/query_range?{query}") as response:
            found: list[dict[str, Any]] = json.load(response)["data"]["result"]
        return found


def draw(dashboard: Dashboard, source: Source) -> Figure:
    """All its panels, three beside one another."""
    panels = dashboard.panels()
    rows = math.ceil(len(panels) / _COLUMNS)
    width, height = _PANEL_INCHES[0] * _COLUMNS, _PANEL_INCHES[1] * rows + 0.4
    figure = new_figure(dashboard.title, width, height)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for panel, one in zip(panels, axes, strict=False):
        _draw_panel(one, panel, source)
    for one in axes[len(panels) :]:
        one.set_axis_off()
    return figure


def _draw_panel(axes: Axes, panel: Panel, source: Source) -> None:
    plain(axes, panel.title)
    everything = source.series(panel)
    found = [one for one in everything if not all(map(math.isnan, one.values))][:_MOST_SERIES]
    if not found:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no data", ha="center", color=GREY,
                  transform=axes.transAxes, fontsize=SMALL_FONT_SIZE)  # fmt: skip
    elif panel.kind in ("stat", "bargauge"):
        _bars(axes, found, panel.unit)
    elif panel.kind == "state-timeline":
        _bands(axes, found, source)
    else:
        _lines(axes, found, panel.unit, source)


def _lines(axes: Axes, found: Sequence[Series], unit: str, source: Source) -> None:
    for number, series in enumerate(found):
        times = [moment - source.start for moment in series.times]
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(times, series.values, label=series.legend, color=colour, linewidth=1.4)
    axes.set_xlim(0, source.end - source.start)
    axes.yaxis.set_major_formatter(_formatter(unit))
    axes.xaxis.set_major_formatter(EngFormatter("s", sep=" "))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.legend(loc="best", frameon=False, fontsize=SMALL_FONT_SIZE - 2)


def _bands(axes: Axes, found: Sequence[Series], source: Source) -> None:
    """A band for each, while it is 1."""
    for number, one in enumerate(found):
        until = [*one.times[1:], one.times[-1]]
        bands = [(begin - source.start, end - begin)
                 for begin, end, value in zip(one.times, until, one.values, strict=True)
                 if value == 1]  # fmt: skip
        axes.broken_barh(bands, (number - _BAR / 2, _BAR), color=BLUE, linewidth=0)
    _one_below_another(axes, found)
    axes.set_xlim(0, source.end - source.start)
    axes.xaxis.set_major_formatter(EngFormatter("s", sep=" "))


def _bars(axes: Axes, found: Sequence[Series], unit: str) -> None:
    """The last value of each."""
    values = [one.values[-1] for one in found]
    axes.barh(range(len(found)), values, color=BLUE, height=_BAR)
    _one_below_another(axes, found)
    axes.set_xlim(0, 1.05 * max(values) or 1)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(_formatter(unit))


def _one_below_another(axes: Axes, found: Sequence[Series]) -> None:
    """Names at the left; few bars stay slim."""
    names = [one.legend for one in found]
    axes.set_yticks(range(len(found)), names, fontsize=SMALL_FONT_SIZE - 2)
    axes.set_ylim(max(len(found), _FEWEST_BARS) - 0.5, -0.5)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)


def _formatter(unit: str) -> FuncFormatter | EngFormatter | PercentFormatter:
    if unit == "percentunit":
        return PercentFormatter(1.0)
    return EngFormatter(_UNITS.get(unit, ""), sep=" ")


def _legend(pattern: str, labels: dict[str, str]) -> str:
    text = re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), pattern).strip()
    return text if len(text) <= _LONGEST_LEGEND else text[: _LONGEST_LEGEND - 1] + "…"


def _points(pairs: Sequence[tuple[float, str]]) -> tuple[list[float], list[float]]:
    return [float(moment) for moment, _ in pairs], [float(value) for _, value in pairs]


def draw_all(source: Source, folder: Path) -> None:
    """Writes one SVG for each dashboard. Raises `URLError`."""
    folder.mkdir(parents=True, exist_ok=True)
    for dashboard in DASHBOARDS:
        save(draw(dashboard, source), folder / f"{dashboard.uid}.svg")


def main() -> int:
    """Reads the command line and draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="its address")
    parser.add_argument("--run", required=True, help="the run that the dashboard Runs shows")
    parser.add_argument("--minutes", type=float, default=5.0, help="so far back from now")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    options = parser.parse_args()
    now = time.time()
    source = Source(options.prometheus, options.run, now - 60 * options.minutes, now)
    draw_all(source, options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
