"""What all sections of docs/benchmarks.md share: their parts, figures in words, summaries."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from elite_cli.quantities import format_bytes

Document = Mapping[str, Any]
Row = Mapping[str, Any]

NOT_MEASURED = "not measured"
# From here on, units of three digits need no decimals.
_WHOLE_FROM, _ONE_DECIMAL_FROM, _TWO_DECIMALS_FROM = 100.0, 10.0, 1.0


@dataclass(frozen=True, slots=True)
class Body:
    """What a section says of a results file.

    finding: one line, computed. blocks: Markdown paragraphs and tables. limits: what the figures do
    not cover, and how sure they are.
    """

    finding: str
    blocks: Sequence[str] = ()
    limits: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors in percent: how many, typical, worst, biased, and the one lowest."""

    count: int
    median: float
    mean_absolute: float
    worst: float
    mean: float
    lowest: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median over rounds of one figure over another; lowest and highest are None without rounds."""

    median: float
    lowest: float | None = field(default=None)
    highest: float | None = field(default=None)

    def __str__(self) -> str:
        """ "0.86 (0.85 to 0.94)"."""
        if self.lowest is None or self.highest is None:
            return f"{self.median:.2f}"
        return f"{self.median:.2f} ({self.lowest:.2f} to {self.highest:.2f})"


def summarise(errors: Sequence[float]) -> Errors:
    """Of errors in percent, at least one. Raises `ValueError` for none."""
    if not errors:
        raise ValueError("no errors to sum up")
    sizes = [abs(error) for error in errors]
    return Errors(
        len(errors), statistics.median(sizes), statistics.mean(sizes), max(sizes),
        statistics.mean(errors), min(errors),
    )  # fmt: skip


def error_percent(row: Row, predicted: str, measured: str) -> float | None:
    """Predicted over measured, less one, in percent; None where one of them is missing or zero."""
    above, below = row.get(predicted), row.get(measured)
    return 100 * (above / below - 1) if above is not None and below else None


def errors_of(rows: Iterable[Row], predicted: str, measured: str) -> list[float]:
    """The errors of the rows that have both figures."""
    errors = (error_percent(row, predicted, measured) for row in rows)
    return [error for error in errors if error is not None]


def ratio_of(base: Row, other: Row, samples: str, figure: str) -> Ratio | None:
    """The other's figure over the base's: round by round where both have the same rounds.

    Else of the two figures, without a range; None where there are none.
    """
    rounds = list(zip(base.get(samples) or (), other.get(samples) or (), strict=False))
    if rounds and len(base[samples]) == len(other[samples]):
        shares = [above / below for below, above in rounds]
        return Ratio(statistics.median(shares), min(shares), max(shares))
    above, below = other.get(figure), base.get(figure)
    return Ratio(above / below) if above is not None and below else None


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def count(number: float | None) -> str:
    """ "32 768"."""
    return NOT_MEASURED if number is None else f"{number:,.0f}".replace(",", " ")


def significant(number: float | None) -> str:
    """Three significant digits or all before the point: "0.0123", "1.71", "16.9", "1 234"."""
    if number is None:
        return NOT_MEASURED
    size = abs(number)
    if size >= _WHOLE_FROM:
        return count(number)
    if size >= _TWO_DECIMALS_FROM:
        return f"{number:.1f}" if size >= _ONE_DECIMAL_FROM else f"{number:.2f}"
    return f"{number:.3g}"


def seconds(number: float | None) -> str:
    """ "16.9 s", "5.86 ms"."""
    if number is None:
        return NOT_MEASURED
    if 0 < abs(number) < 1:
        return f"{significant(1e3 * number)} ms"
    return f"{significant(number)} s"


def size(number: float | None) -> str:
    """ "1.25 GiB"."""
    return NOT_MEASURED if number is None else format_bytes(number)


def gigabytes(number: float | None) -> str:
    """ "7.21 GB", of 10^9 bytes."""
    return NOT_MEASURED if number is None else f"{number / 1e9:.2f} GB"


def percent(number: float | None, decimals: int = 2) -> str:
    """ "+0.09 %", with its sign, and zero without one."""
    if number is None:
        return NOT_MEASURED
    rounded = round(number, decimals)
    return f"{rounded:+.{decimals}f} %" if rounded else f"{0:.{decimals}f} %"


def unsigned_percent(number: float | None, decimals: int = 2) -> str:
    """ "0.07 %"."""
    return NOT_MEASURED if number is None else f"{number:.{decimals}f} %"


def share(part: float | None) -> str:
    """ "32 %" of 0.32."""
    return NOT_MEASURED if part is None else f"{100 * part:.0f} %"


def listed(words: Iterable[str]) -> str:
    """ "a, b and c", each once, in the order they come."""
    once = list(dict.fromkeys(words))
    if len(once) < 2:
        return "".join(once)
    return f"{', '.join(once[:-1])} and {once[-1]}"


def span(numbers: Iterable[float]) -> str:
    """ "512 to 8 192", or the one there is."""
    found = sorted(set(numbers))
    if not found:
        return NOT_MEASURED
    if len(found) == 1:
        return count(found[0])
    return f"{count(found[0])} to {count(found[-1])}"


def values(rows: Iterable[Row], name: str) -> list[Any]:
    """The field of the rows that have it."""
    return [row[name] for row in rows if row.get(name) is not None]


def noise_limits(rows: Sequence[Row]) -> Iterator[str]:
    """How many rounds, how much they differ, and how much of the machine the steps got."""
    rounds = span(len(samples) for samples in values(rows, "samples"))
    spreads, shares = values(rows, "spread"), values(rows, "cpu_share")
    if spreads:
        of_rounds = "" if rounds == NOT_MEASURED else f" of {rounds} rounds"
        yield (
            f"Noise: slowest less fastest{of_rounds}, over the median, is "
            f"{share(statistics.median(spreads))} in the median case and {share(max(spreads))} "
            "in the worst."
        )
    if shares:
        yield (
            f"Processor time: a case's steps used {share(min(shares))} of what the cores have at "
            f"the least, {share(statistics.median(shares))} in the median case. What lacks went to "
            "other processes or to waiting."
        )


def goal_table(goals: Document | Sequence[Row]) -> str:
    """Goals of a results file beside what was measured; empty when it has none.

    Each has `at_most` or `at_least`, `measured` and `met`, and is named by its key or its `name`.
    """
    named = goals.items() if isinstance(goals, Mapping) else [(_name(row), row) for row in goals]
    rows = [
        (name.replace("_", " "), limit, significant(goal.get("measured")), _met(goal))
        for name, goal in named
        if (limit := _limit(goal))
    ]
    return table(("goal", "limit", "measured", "met"), rows) if rows else ""


def _name(goal: Row) -> str:
    """The goal's own name, or the words and numbers that set it apart."""
    if goal.get("name"):
        return str(goal["name"])
    outcome = ("at_most", "at_least", "measured", "met")
    parts = [(key, value) for key, value in goal.items() if key not in outcome]
    return ", ".join(
        f"{key} {count(value)}" if isinstance(value, int | float) else str(value)
        for key, value in parts
    )


def _limit(goal: Row) -> str:
    for kind in ("at_most", "at_least"):
        if goal.get(kind) is not None:
            return f"{kind.replace('_', ' ')} {significant(goal[kind])}"
    return ""


def _met(goal: Row) -> str:
    met = goal.get("met")
    return NOT_MEASURED if met is None else "yes" if met else "**no**"
