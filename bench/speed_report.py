"""What `python -m bench.speed` writes and prints of what it measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.speed_worker import STREAMING, Timed, Weighed

# Most that streaming may take, as a share of stock: figure, tokens, share.
GOALS = (("time", 4096, 1.0), ("time", 16384, 0.75), ("memory", 16384, 0.5))


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


def ratio_row(stock: Mapping[str, Any], streaming: Mapping[str, Any]) -> dict[str, Any]:
    """Streaming over stock, from their cases: of each round, lowest, median and highest."""
    ratios = [b / a for a, b in zip(stock["samples"], streaming["samples"], strict=True)]
    return {
        **{key: stock[key] for key in ("model", "dtype", "tokens")},
        "time": statistics.median(ratios),
        "time_lowest": min(ratios),
        "time_highest": max(ratios),
        "memory": streaming["peak_bytes"] / stock["peak_bytes"],
    }


def goal_lines(ratios: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What was to be reached and whether it was, for every model that was measured there."""
    for figure, tokens, most in GOALS:
        for row in ratios:
            if row["tokens"] == tokens:
                met = "met" if row[figure] <= most else "NOT met"
                goal = f"{figure} at {tokens:,} tokens at most {most:.2f} of stock's"
                yield f"{goal}: {met}, {row[figure]:.2f} ({row['model']}, {row['dtype']})"


def show(document: Mapping[str, Any]) -> None:
    """Prints the table, the goals and what was left out."""
    heads = ("stock s", "stream s", "time", "lowest", "highest", "stock MB", "stream MB", "memory")
    columns = " ".join(f"{head:>9}" for head in (*heads, "spread", "CPU", "chunk"))
    print(f"{'model':18} {'dtype':8} {'tokens':>7} {columns}")
    cases = document["cases"]
    for ratio, stock, streaming in zip(document["ratios"], cases[::2], cases[1::2], strict=True):
        figures = (
            f"{stock['step_seconds']:.3f}", f"{streaming['step_seconds']:.3f}",
            f"{ratio['time']:.2f}", f"{ratio['time_lowest']:.2f}", f"{ratio['time_highest']:.2f}",
            f"{stock['peak_bytes'] / 1e6:,.0f}", f"{streaming['peak_bytes'] / 1e6:,.0f}",
            f"{ratio['memory']:.2f}", f"{max(stock['spread'], streaming['spread']):.0%}",
            f"{min(stock['cpu_share'], streaming['cpu_share']):.0%}",
            f"{streaming['chunk_tokens']:,}",
        )  # fmt: skip
        name = f"{stock['model']}, {stock['layers']} L"
        values = " ".join(f"{figure:>9}" for figure in figures)
        print(f"{name:18} {stock['dtype']:8} {stock['tokens']:>7,} {values}")
    for line in goal_lines(document["ratios"]):
        print(line)
    for left in document["left_out"]:
        print(f"left out: {left['model']} at {left['tokens']:,} tokens, {left['reason']}")
