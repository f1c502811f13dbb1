"""What `python -m bench.gpu` prints of its results file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_NOTHING = "-"


def show(document: Mapping[str, Any]) -> None:
    """Prints the rows, the comparison, the goals, and what is missing."""
    for line in lines(document):
        print(line)


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """The same, line by line."""
    yield from _rows(document.get("rows", []))
    yield from _speed(document.get("speed", []))
    overlap = document.get("overlap", {}).get("overlap")
    if overlap:
        yield f"copies beside kernels: {_figure(overlap['both'], '.0%')}"
    for name, goal in document.get("goals", {}).items():
        bound = "at_most" if "at_most" in goal else "at_least"
        limit = f"{bound.replace('_', ' ')} {goal[bound]}"
        met = {True: "met", False: "NOT met", None: "not told"}[goal["met"]]
        yield f"{name.replace('_', ' ')} {limit}: {met}, {_figure(goal['measured'], '.3g')}"
    for failed in document.get("failed", []):
        yield f"failed: {failed['section']}: {failed['error']}"
    for skipped in document.get("skipped", []):
        yield f"skipped: {skipped['section']}: {skipped['reason']}"


def _rows(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    heads = ("tier", "tokens", "layers", "planned GB", "peak GB", "VRAM GB", "step s", "MFU", "HFU")
    if rows:
        yield " ".join(f"{head:>10}" for head in heads)
    for row in rows:
        seconds = row["extrapolated_step_seconds"] or row["step_seconds"]
        figures = (
            str(row["tier"]), f"{row['tokens']:,}", f"{row['layers']}/{row['full_layers']}",
            f"{row['planned_bytes'] / 1e9:.2f}", _gigabytes(row["peak_allocated_bytes"]),
            _gigabytes(row["vram_bytes"]), f"{seconds:.4g}",
            _figure(row["model_flops_utilisation"], ".2f"),
            _figure(row["hardware_flops_utilisation"], ".2f"),
        )  # fmt: skip
        note = " (extrapolated)" if row["extrapolated_step_seconds"] else ""
        yield " ".join(f"{figure:>10}" for figure in figures) + note


def _speed(lengths: list[Mapping[str, Any]]) -> Iterator[str]:
    for row in lengths:
        both = (row["stock"], row["streaming"])
        seconds = [_figure(one.get("step_seconds"), ".3f") for one in both]
        peaks = [_gigabytes(one.get("peak_bytes")) for one in both]
        yield (
            f"{row['tokens']:,} tokens: stock {seconds[0]} s and {peaks[0]} GB, "
            f"streaming {seconds[1]} s and {peaks[1]} GB"
        )


def _gigabytes(size: float | None) -> str:
    return _figure(None if size is None else size / 1e9, ".2f")


def _figure(value: float | None, form: str) -> str:
    return _NOTHING if value is None else format(value, form)
