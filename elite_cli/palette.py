"""Colours that people with and without colour blindness tell apart (Okabe and Ito, 2008)."""

from __future__ import annotations

BLUE, SKY, GREEN, ORANGE = "#0072B2", "#56B4E9", "#009E73", "#E69F00"
VERMILION, PURPLE, YELLOW, GREY = "#D55E00", "#CC79A7", "#F0E442", "#999999"

FITS = BLUE
DOES_NOT_FIT = VERMILION
_OTHER_LINE = GREY

_LINES = {
    "base_model": BLUE, "activations": ORANGE, "kv": SKY, "buffers": YELLOW, "lora": PURPLE,
    "gradients": VERMILION, "optimizer": GREEN, "runtime": GREY,
}  # fmt: skip


def line_colour(name: str) -> str:
    """The colour of a memory line; grey for one not known here."""
    return _LINES.get(name, _OTHER_LINE)
