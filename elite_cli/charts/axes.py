"""What both charts share: a figure, an axis of bytes, the look."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from elite_cli.palette import DOES_NOT_FIT, FITS
from elite_cli.quantities import format_bytes

FONT_SIZE = 10
SMALL_FONT_SIZE = 9
_TITLE_FONT_SIZE = 13
_DARK = "#222222"
_MOST_TICKS = 7


def new_figure(title: str, width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, that finds room for its labels by itself."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=_TITLE_FONT_SIZE, fontweight="bold", color=_DARK)
    return figure


def plain(axes: Axes, title: str) -> None:
    """No frame, small labels, a title at the left."""
    axes.set_title(title, loc="left", fontsize=FONT_SIZE + 1, color=_DARK)
    axes.tick_params(labelsize=SMALL_FONT_SIZE, length=0, colors=_DARK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_axisbelow(True)


def legend_below(axes: Axes, handles: Sequence[Patch], columns: int) -> None:
    """A legend under the axis."""
    axes.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=columns,
        frameon=False, fontsize=SMALL_FONT_SIZE,
    )  # fmt: skip


def verdict_bar(*, fits: bool) -> dict[str, Any]:
    """How a bar looks: what does not fit differs in hatching, not by colour alone."""
    if fits:
        return {"color": FITS}
    return {"facecolor": "white", "edgecolor": DOES_NOT_FIT, "hatch": "////", "linewidth": 1.0}


def log_byte_axis(axes: Axes, smallest: float, largest: float) -> None:
    """A logarithmic x axis of binary units around these sizes."""
    low, high = math.floor(math.log2(smallest)) - 1, math.ceil(math.log2(largest)) + 1
    step = math.ceil((high - low) / _MOST_TICKS)
    axes.set_xscale("log", base=2)
    axes.set_xlim(2.0**low, 2.0**high)
    axes.xaxis.set_major_locator(FixedLocator([2.0**power for power in range(low, high + 1, step)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: whole_bytes(size)))
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)


def whole_bytes(size: float) -> str:
    """ "16 GiB" for "16.0 GiB": a tick."""
    number, unit = format_bytes(size).split()
    return f"{float(number):g} {unit}"
