"""What `python -m bench.speed` writes and prints of what it measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.speed_worker import STOCK, STREAMING, Timed, Weighed

# Most that streaming may take, as a share of stock: figure, tokens, share.
GOALS = (
    ("time", 4096, 0.9), ("time", 16384, 0.65), ("time", 32768, 0.65), ("time", 65536, 0.65),
    ("memory", 16384, 0.4),
)  # fmt: skip

# What tells the rows of a table from those of another measurement.
_KEYS = {
    "cases": ("model", "dtype", "tokens"), "ratios": ("model", "dtype", "tokens"),
    "left_out": ("model", "tokens"),
}  # fmt: skip


@dataclass(slots=True)
class Measured:
    """What one executor took at one length."""

    executor: str
    weighed: Weighed
    timed: list[Timed] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        """Of every round."""
        return [step.seconds for step in self.timed]


def case_row(case: Mapping[str, Any], measured: Measured, chunk_tokens: int) -> dict[str, Any]:
    """One case as it is written: model, layers, dtype and tokens, then what was measured.

    spread: slowest less fastest step, over the median. cpu_share: of all cores, what the steps got;
    well below 1 on a machine that does something else, and then the case says little.
    """
    seconds = measured.seconds
    median = statistics.median(seconds)
    return {
        **case,
        "executor": measured.executor,
        "step_seconds": median,
        "samples": seconds,
        "spread": (max(seconds) - min(seconds)) / median,
        "peak_bytes": measured.weighed.peak_bytes,
        "static_bytes": measured.weighed.static_bytes,
        "loss": measured.weighed.loss,
        "cpu_share": statistics.median(step.cpu_share for step in measured.timed),
        **({"chunk_tokens": chunk_tokens} if measured.executor == STREAMING else {}),
    }


def ratio_rows(cases: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Streaming over every other at one length: of each round, lowest, median and highest."""
    *others, streaming = cases
    for other in others:
        ratios = [b / a for a, b in zip(other["samples"], streaming["samples"], strict=True)]
        yield {
            **{key: other[key] for key in ("model", "dtype", "tokens")},
            "over": other["executor"],
            "time": statistics.median(ratios),
            "time_lowest": min(ratios),
            "time_highest": max(ratios),
            "memory": streaming["peak_bytes"] / other["peak_bytes"],
        }


def goals(ratios: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was to be reached and whether it was, for every model that was measured there."""
    return [
        {"name": f"{figure} over stock's at {tokens:,} tokens, {row['model']}, {row['dtype']}",
         "at_most": most, "measured": row[figure], "met": row[figure] <= most}
        for figure, tokens, most in GOALS
        for row in ratios
        if row["tokens"] == tokens and row["over"] == STOCK
    ]  # fmt: skip


def added_to(earlier: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """What was found now, and what earlier runs found of other models, dtypes and lengths."""
    both: dict[str, list[Mapping[str, Any]]] = {}
    for table, keys in _KEYS.items():
        rows = [row for row in found["cases"] + found["left_out"] if row.keys() >= set(keys)]
        now = {tuple(row[key] for key in keys) for row in rows}
        kept = [row for row in earlier[table] if tuple(row[key] for key in keys) not in now]
        both[table] = sorted([*kept, *found[table]], key=lambda row: int(row["tokens"]))
    machine = {**earlier["machine"], **found["machine"]}
    return {"machine": machine, **both, "goals": goals(both["ratios"])}


def show(document: Mapping[str, Any]) -> None:
    """Prints the table, the goals and what was left out."""
    heads = ("seconds", "spread", "CPU", "MB", "chunk")
    print(f"{'model':18} {'tokens':>7} {'executor':16} {' '.join(f'{h:>9}' for h in heads)}")
    for case in document["cases"]:
        figures = (
            f"{case['step_seconds']:.3f}", f"{case['spread']:.0%}", f"{case['cpu_share']:.0%}",
            f"{case['peak_bytes'] / 1e6:,.0f}", f"{case.get('chunk_tokens', 0) or '':}",
        )  # fmt: skip
        name = f"{case['model']}, {case['layers']} L"
        values = " ".join(f"{figure:>9}" for figure in figures)
        print(f"{name:18} {case['tokens']:>7,} {case['executor']:16} {values}")
    for ratio in document["ratios"]:
        print(
            f"{ratio['model']:18} {ratio['tokens']:>7,} streaming over {ratio['over']}: time "
            f"{ratio['time']:.2f} ({ratio['time_lowest']:.2f} to {ratio['time_highest']:.2f}), "
            f"memory {ratio['memory']:.2f}"
        )
    for goal in document["goals"]:
        met = "met" if goal["met"] else "NOT met"
        print(f"{goal['name']}: at most {goal['at_most']:.2f}, {goal['measured']:.2f}: {met}")
    for left in document["left_out"]:
        print(f"left out: {left['model']} at {left['tokens']:,} tokens, {left['reason']}")
