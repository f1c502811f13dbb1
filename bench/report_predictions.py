"""Sections of docs/benchmarks.md that put predictions beside measurements: memory, time, ladder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bench.report_facts import facts
from bench.report_text import (
    NOT_MEASURED,
    Body,
    Document,
    Errors,
    Row,
    count,
    error_percent,
    errors_of,
    gigabytes,
    goal_table,
    listed,
    noise_limits,
    percent,
    seconds,
    share,
    significant,
    size,
    span,
    summarise,
    table,
    unsigned_percent,
    values,
)

EXECUTORS = ("resident", "streaming")
DEVICE = ("predicted_bytes", "measured_bytes")
_HOST = ("predicted_host_bytes", "measured_host_bytes")
SECONDS = ("predicted_seconds", "measured_seconds")
_BOUNDED = ("low", "measured_seconds", "high")
_PLANNED = ("planned_device_bytes", "device_bytes")
# Parts of a ladder row that no step is run for, by field.
_COMPUTED = {
    "weights_bytes": "weights", "optimizer_bytes": "optimizer states",
    "runtime_bytes": "the CUDA context",
}  # fmt: skip


def executor_of(row: Row) -> str:
    """The executor of a memory or time case: by its own field, or by the name of its set."""
    named = row.get("executor")
    if named:
        return str(named)
    return EXECUTORS[1] if str(row.get("set", "")).startswith(EXECUTORS[1]) else EXECUTORS[0]


def by(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    """The rows by a key, in the order they come."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def memory(document: Document) -> Body:
    """Device bytes, and host bytes where some were measured."""
    rows = document.get("cases", [])
    errors = errors_of(rows, *DEVICE)
    if not errors:
        return Body(f"The file has no cases: {NOT_MEASURED}.")
    found, worst = summarise(errors), worst_of(rows, *DEVICE)
    finding = (
        f"{found.count} cases: median error {unsigned_percent(found.median)}, "
        f"worst {unsigned_percent(found.worst)} ({_memory_case(worst)}), "
        f"mean {percent(found.mean)}, lowest {percent(found.lowest)}."
    )
    scope = (
        f"{len(set(values(rows, 'model')))} models, tiers {_tiers(rows)} of the ladder, windows of "
        f"{span(values(rows, 'tokens'))} tokens."
    )
    return Body(finding, [scope, _memory_table(rows)], list(_memory_limits(rows)))


def _tiers(rows: Sequence[Row]) -> str:
    return listed(str(tier) for tier in sorted(set(values(rows, "tier"))))


def worst_of(rows: Sequence[Row], predicted: str, measured: str) -> Row:
    """The row whose error is largest either way."""
    return max(rows, key=lambda row: abs(error_percent(row, predicted, measured) or 0.0))


def _memory_case(row: Row) -> str:
    return f"{row.get('model')}, tier {row.get('tier')}, {row.get('set')}"


def _memory_table(rows: Sequence[Row]) -> str:
    lines: list[tuple[str, ...]] = []
    for executor, of_executor in by(rows, executor_of).items():
        lines += _error_lines(f"**{executor}**", "**all**", of_executor, DEVICE)
        for name, of_set in by(of_executor, lambda row: str(row.get("set"))).items():
            lines += _error_lines(executor, name, of_set, DEVICE)
        lines += _error_lines(executor, "host memory, 1 GiB and more", _on_host(of_executor), _HOST)
    heads = ("executor", "set", "cases", "median error", "worst", "mean", "lowest")
    return table(heads, lines)


def _error_lines(
    executor: str, name: str, rows: Sequence[Row], fields: tuple[str, str]
) -> Iterator[tuple[str, ...]]:
    errors = errors_of(rows, *fields)
    if errors:
        yield executor, name, *_error_cells(summarise(errors))


def _error_cells(found: Errors) -> tuple[str, ...]:
    sizes = (unsigned_percent(found.median), unsigned_percent(found.worst))
    return count(found.count), *sizes, percent(found.mean), percent(found.lowest)


def _on_host(rows: Sequence[Row]) -> list[Row]:
    """Those whose step leaves enough on the host to matter."""
    return [row for row in rows if row.get("measured_host_bytes", 0) >= 2**30]


def _memory_limits(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "Measured is the engine's own step under fake tensors on the CPU, storage by storage. "
        "Workspaces inside kernels and what an allocator rounds up or cannot reuse are in neither "
        "figure. On a GPU: see [below](#gpu)."
    )
    yield (
        "The formulas were written with these measurements at hand: the errors say how well they "
        "describe these families, not how well they would do on one that nobody looked at."
    )
    yield (
        "Optimizer states are in neither figure, and weights are in the compute dtype: steps with "
        "4-bit weights were not measured."
    )
    for executor in EXECUTORS:
        if executor not in {executor_of(row) for row in rows}:
            yield f"The {executor} executor has no case in this file: {NOT_MEASURED}."
    layers = values([row for row in rows if executor_of(row) == EXECUTORS[1]], "layers")
    if layers:
        yield f"Streaming cases have {span(layers)} layers, not the models' own: they are alike."
    if _on_host(rows):
        yield (
            "Host memory is predicted and measured as torch pins it, every allocation rounded up "
            "to a power of two."
        )
    yield "No noise: the same step has the same bytes every time."


def time(document: Document) -> Body:
    """Seconds of a step."""
    rows = document.get("cases", [])
    errors = errors_of(rows, *SECONDS)
    if not errors:
        return Body(f"The file has no cases: {NOT_MEASURED}.")
    found, worst = summarise(errors), worst_of(rows, *SECONDS)
    bounded = [row for row in rows if all(row.get(name) is not None for name in _BOUNDED)]
    inside = sum(row["low"] <= row["measured_seconds"] <= row["high"] for row in bounded)
    finding = (
        f"{found.count} cases: mean absolute error {unsigned_percent(found.mean_absolute, 1)}, "
        f"median {unsigned_percent(found.median, 1)}, mean {percent(found.mean, 1)}, "
        f"worst {unsigned_percent(found.worst, 1)} ({_time_case(worst)})."
    )
    if bounded:
        finding += f" {inside} of {len(bounded)} lie between the low and the high time."
    return Body(finding, [_time_table(rows)], list(_time_limits(document, worst)))


def _time_case(row: Row) -> str:
    return f"{row.get('model')}, {count(row.get('tokens'))} tokens, {row.get('set')}"


def _time_table(rows: Sequence[Row]) -> str:
    heads = (
        "model", "layers", "tokens", "dtype", "set", "predicted", "low to high", "measured",
        "error", "spread", "cores used",
    )  # fmt: skip
    return table(heads, [_time_line(row) for row in rows])


def _time_line(row: Row) -> tuple[str, ...]:
    return (
        str(row.get("model", "")), count(row.get("layers")), count(row.get("tokens")),
        str(row.get("dtype", "")), str(row.get("set", "")), seconds(row.get("predicted_seconds")),
        f"{seconds(row.get('low'))} to {seconds(row.get('high'))}",
        seconds(row.get("measured_seconds")), percent(error_percent(row, *SECONDS), 1),
        share(row.get("spread")), share(row.get("cpu_share")),
    )  # fmt: skip


def _time_limits(document: Document, worst: Row) -> Iterator[str]:
    rows = document["cases"]
    yield (
        "The formulas were written with such measurements at hand: the errors say how well they "
        "describe these families, not how well they would do on one that nobody looked at."
    )
    yield from noise_limits(rows)
    if worst.get("spread") is not None:
        yield f"The worst case's own steps differ by {share(worst['spread'])} of their median."
    for when, kinds in document.get("drift", {}).items():
        ratios = listed(
            f"{kind} {significant(ratio.get('median'))} "
            f"({significant(ratio.get('lowest'))} to {significant(ratio.get('highest'))})"
            for kind, ratio in kinds.items()
        )
        yield (
            f"The machine changed meanwhile: rates measured {when} the steps, over those the "
            f"predictions rest on: {ratios}."
        )
    yield (
        f"Whole models were not timed: cases have {span(values(rows, 'layers'))} layers, "
        "so that rounds of all cases fit into minutes."
    )
    for executor in EXECUTORS:
        if executor not in {executor_of(row) for row in rows}:
            yield f"The {executor} executor has no case in this file: {NOT_MEASURED}."
    untested = _untested_lines(rows)
    if untested:
        yield f"Lines of the prediction that are zero in every case, and so untested: {untested}."


def _untested_lines(rows: Sequence[Row]) -> str:
    lines = values(rows, "predicted_lines")
    names = dict.fromkeys(name for one in lines for name in one)
    return listed(name for name in names if not any(one.get(name) for one in lines))


def ladder(document: Document) -> Body:
    """Device bytes of every tier against its video memory."""
    rows = [row for row in document.get("rows", []) if row.get("device_bytes") is not None]
    if not rows:
        return Body(f"The file has no rows: {NOT_MEASURED}.")
    judged = [row for row in rows if row.get("vram_bytes") is not None]
    outside = [row for row in judged if not is_inside(row)]
    finding = f"{len(judged) - len(outside)} of {len(judged)} rows take no more than their card has"
    if outside:
        finding += f"; outside: {listed(_ladder_row(row) for row in outside)}"
    errors = errors_of(rows, *_PLANNED)
    if errors:
        found = summarise(errors)
        finding += (
            f". Planned against measured: median error {unsigned_percent(found.median)}, "
            f"worst {unsigned_percent(found.worst)}, lowest {percent(found.lowest)}"
        )
    blocks = [_ladder_table(rows)]
    if document.get("growth"):
        blocks += ["What grows with the window, in bytes a token:", *facts(document["growth"])]
    return Body(f"{finding}.", blocks, list(_ladder_limits(rows)))


def is_inside(row: Row) -> bool:
    """Whether a ladder row fits its video memory; both must be there."""
    return bool(row["device_bytes"] <= row["vram_bytes"])


def _ladder_row(row: Row) -> str:
    return f"{row.get('model')} at tier {row.get('tier')}"


def _ladder_table(rows: Sequence[Row]) -> str:
    heads = (
        "model", "tier", "device", "of", "inside", "planned", "error", "host", "disk",
    )  # fmt: skip
    return table(heads, [_ladder_line(row) for row in rows])


def _ladder_line(row: Row) -> tuple[str, ...]:
    vram = row.get("vram_bytes")
    inside = NOT_MEASURED if vram is None else "yes" if is_inside(row) else "**no**"
    return (
        str(row.get("model", "")), str(row.get("tier", "")), gigabytes(row["device_bytes"]),
        gigabytes(vram), inside, gigabytes(row.get("planned_device_bytes")),
        percent(error_percent(row, *_PLANNED)), size(row.get("host_bytes")),
        size(row.get("disk_bytes")),
    )  # fmt: skip


def _ladder_limits(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "No card was used: the executor ran under fake tensors on the CPU. Workspaces inside "
        "kernels and an allocator's rounding are not in these figures."
    )
    tokens, layers = values(rows, "measured_tokens"), values(rows, "measured_layers")
    if tokens and layers:
        yield (
            f"Steps of {_numbers(layers)} layers and {_numbers(tokens)} tokens were measured; what "
            "grows with either was extrapolated to the row."
        )
    computed = [words for name, words in _COMPUTED.items() if values(rows, name)]
    if computed:
        yield f"Computed, not measured: {listed(computed)}."
    yield "Time is not in this table: what fits may take days a step."


def choices(document: Document) -> Body:
    """The planner's choice beside the fastest of everything that fits."""
    rows = document.get("cases", [])
    if not rows:
        return Body(f"The file has no cases: {NOT_MEASURED}.")
    found = (f"{row['ratio']:.3f} (of {count(row['ways'])} ways that fit)" for row in rows)
    finding = (
        f"{len(rows)} cases, the choice's time over the fastest way's: {', '.join(found)}. "
        f"Rounds in turns: {listed(count(row['rounds']) for row in rows)}."
    )
    blocks = [block for row in rows for block in (f"{row['case']}:", _finalists(row))]
    limits = [
        "A way that was not among the fastest of the first steps ran one step only.",
        "On the CPU: device memory is host memory, and nothing waits on the way to a device.",
    ]
    return Body(finding, [goal_table(document["goals"]), *blocks], limits)


def _finalists(case: Row) -> str:
    rows = sorted(case["finalists"], key=lambda row: float(row["median_seconds"]))
    chosen = case["choice"]
    return table(
        ("way", "predicted", "measured", "lowest", "highest", "device"),
        (
            (
                f"{row['set']} (the planner's)" if row["set"] == chosen else row["set"],
                seconds(row["predicted_seconds"]), seconds(row["median_seconds"]),
                seconds(min(row["samples"])), seconds(max(row["samples"])),
                gigabytes(row["device_bytes"]),
            )
            for row in rows
        ),
    )  # fmt: skip


def _numbers(found: Sequence[float | Sequence[float]]) -> str:
    """The span of fields that hold a number or a list of them."""
    return span(
        number for one in found for number in (one if isinstance(one, list | tuple) else (one,))
    )
