"""Memory as bars of characters: read as well without colours as with them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from rich.console import Console
from rich.text import Text

from elite.planner.v1 import planner_pb2
from elite_cli.palette import DOES_NOT_FIT, FITS, line_colour

# One character for each line, so that segments differ in black and white too.
_GLYPHS = {
    "base_model": "█", "activations": "▒", "kv": "▓", "buffers": "░", "lora": "▌",
    "gradients": "▚", "optimizer": "▄", "runtime": "▞",
}  # fmt: skip
_PLAIN_GLYPHS = {
    "base_model": "#", "activations": "=", "kv": "%", "buffers": "-", "lora": "l",
    "gradients": "g", "optimizer": "o", "runtime": "+",
}  # fmt: skip
_EIGHTHS = " ▏▎▍▌▋▊▉█"
# A bar goes on to so many budgets; what goes on beyond ends in an arrow.
_MOST_BUDGETS = 1.3


def is_plain(console: Console) -> bool:
    """True where only ASCII can be printed."""
    return console.options.ascii_only


def line_glyph(name: str, *, plain: bool) -> str:
    """The character of a memory line."""
    return _PLAIN_GLYPHS.get(name, "?") if plain else _GLYPHS.get(name, "▖")


def glyph_text(name: str, *, plain: bool) -> Text:
    """The same in its colour, for a legend."""
    return Text(line_glyph(name, plain=plain), style=line_colour(name))


def total_bar(total: int, budget: int, width: int, *, fits: bool, plain: bool) -> Text:
    """One figure against its budget, which is marked; `width` characters."""
    # Bars below one another are drawn to one scale.
    scale = _Scale(total, budget, width, least=_MOST_BUDGETS)
    filled = min(total / scale.bytes_per_cell, scale.cells)
    whole, style = int(filled), FITS if fits else DOES_NOT_FIT
    if plain:
        characters = ("#" if fits else "x") * max(round(filled), total > 0)
    else:
        # What does not fit is hatched.
        last = _EIGHTHS[int((filled - whole) * 8)] if fits else "▒" if filled - whole > 0.5 else ""
        characters = ("█" if fits else "▒") * whole + last.strip()
        characters = characters or ("▏" if total else "")
    return scale.drawn(Text(characters, style=style), plain=plain)


def stacked_bar(
    lines: Sequence[planner_pb2.MemoryLine], budget: int, width: int, *, plain: bool
) -> Text:
    """Lines end to end against their budget, which is marked; `width` characters."""
    scale = _Scale(sum(line.bytes for line in lines), budget, width, least=1.0)
    ends = accumulate(line.bytes for line in lines)
    bar, filled = Text(), 0
    for line, end in zip(lines, ends, strict=True):
        cell = min(round(end / scale.bytes_per_cell), scale.cells)
        bar.append(
            line_glyph(line.name, plain=plain) * (cell - filled),
            style=line_colour(line.name),
        )
        filled = cell
    return scale.drawn(bar, plain=plain)


class _Scale:
    """Bytes to cells, with one cell for the mark of the budget; no mark where it is unknown."""

    def __init__(self, total: int, budget: int, width: int, least: float) -> None:
        most = budget * _MOST_BUDGETS if budget else total
        shown = max(budget * least, min(total, most))
        self.cells = max(1, width - 1)
        self.bytes_per_cell = max(shown, 1) / self.cells
        # What is over the budget goes on behind the mark, however short the bar.
        last = self.cells - 1 if total > budget else self.cells
        self._mark = min(round(budget / self.bytes_per_cell), last) if budget else None
        self._capped = total > shown

    def drawn(self, bar: Text, *, plain: bool) -> Text:
        """The bar, filled up with blanks, marked, and with an arrow where it goes on."""
        bar.truncate(self.cells, pad=True)
        if self._capped:
            bar = bar[:-1].append(">" if plain else "▶", style=DOES_NOT_FIT)
        if self._mark is None:
            return bar.append(" ")
        mark = Text("|" if plain else "│", style="bold")
        return Text.assemble(bar[: self._mark], mark, bar[self._mark :])
