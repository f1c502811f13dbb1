"""Section of docs/benchmarks.md on a GPU: rows of the ladder, speed, attention, gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bench.report_text import (
    Body,
    Document,
    Row,
    count,
    gigabytes,
    goal_table,
    listed,
    percent,
    seconds,
    share,
    significant,
    table,
)

_TERA = 1e12


def gpu(document: Document) -> Body:
    """What a card did, beside what was planned for it. Sections that are missing are left out."""
    rows, speed = document.get("rows", []), document.get("speed", [])
    blocks = [
        *_environment(document.get("environment", {})),
        *([goal_table(document["goals"])] if document.get("goals") else []),
        *(_memory(rows) if rows else []),
        *(_times(rows) if rows else []),
        *(_speed(speed) if speed else []),
        *_attention(document.get("rates", {}).get("block_attention", [])),
        *_gradients(document.get("gradients", {})),
        *_overlap(document.get("overlap", {})),
    ]
    return Body(_finding(rows, document), blocks, list(_limits(rows, document)))


def _finding(rows: Sequence[Row], document: Document) -> str:
    card = document.get("environment", {}).get("card") or "A GPU that the file does not name"
    if not rows:
        return f"{card}: no row of the ladder was measured."
    inside = [row for row in rows if row.get("inside_vram")]
    words = f"{card}: {len(inside)} of {len(rows)} rows ran inside their VRAM"
    whole = [row for row in rows if not _is_reduced(row) and row.get("model_flops_utilisation")]
    if not whole:
        return f"{words}."
    longest = max(whole, key=lambda row: int(row["tokens"]))
    return (
        f"{words}. {count(longest['tokens'])} tokens in {gigabytes(longest['vram_bytes'])}, all "
        f"{longest['layers']} layers: {seconds(longest['step_seconds'])} a step, model FLOPs "
        f"{longest['model_flops_utilisation']:.2f} of the fastest product's."
    )


def _environment(found: Document) -> Iterator[str]:
    if not found:
        return
    packages = found.get("packages", {})
    facts = [
        f"driver {found.get('driver_version')}", f"CUDA {found.get('cuda')}",
        *(f"{name} {version}" for name, version in packages.items()),
        f"{gigabytes(found.get('total_memory_bytes'))} on the card",
        f"{gigabytes(found.get('context_bytes'))} of it taken by the CUDA context",
        f"{gigabytes(found.get('host_memory_bytes'))} in the host",
    ]  # fmt: skip
    yield f"Measured with {', '.join(facts)}."


def _is_reduced(row: Row) -> bool:
    return row.get("extrapolated_step_seconds") is not None


def _run(row: Row) -> str:
    """What of the row was run."""
    if not _is_reduced(row):
        return "all"
    chunks = f", {row['sampled_chunks']} of {row['chunks']} chunks" if row["sampled_chunks"] else ""
    return f"{row['layers']} of {row['full_layers']} layers{chunks}"


def _memory(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "Memory, of what was run. The cap is what torch's allocator may hold: the row's VRAM, less "
        "the CUDA context and less what missing layers would take. The error is the plan's, "
        "libraries' workspaces taken off the peak."
    )
    heads = (
        "tier", "tokens", "run", "VRAM", "cap", "planned", "peak allocated", "error",
        "peak reserved", "with the context", "host planned", "host peak", "retries",
    )  # fmt: skip
    yield table(heads, [
        (
            str(row["tier"]), count(row["tokens"]), _run(row), gigabytes(row["vram_bytes"]),
            gigabytes(row["cap_bytes"]), gigabytes(row["planned_bytes"]),
            gigabytes(row["peak_allocated_bytes"]), percent(row["error_percent"]),
            gigabytes(row["peak_reserved_bytes"]), gigabytes(row["process_bytes"]),
            gigabytes(row["planned_host_bytes"]), gigabytes(row["host_peak_resident_bytes"]),
            count(row["allocation_retries"]),
        )
        for row in rows
    ])  # fmt: skip


def _times(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "Time of a step at full depth over the whole window: measured where all was run, else "
        "extrapolated from the layers and chunks that were. MFU counts no recomputation, HFU all "
        "that runs; both are of the fastest product that was measured."
    )
    heads = (
        "tier", "chunk", "planned", "by the card table", "step", "planned over it", "tokens/s",
        "MFU", "HFU", "settings",
    )  # fmt: skip
    yield table(heads, [
        (
            str(row["tier"]), count(row["chunk_tokens"]), seconds(row["planned_step_seconds"]),
            seconds(row["planned_step_seconds_by_card_table"]), _step(row),
            significant(row["planned_over_measured"]), significant(row["tokens_per_second"]),
            significant(row["model_flops_utilisation"]),
            significant(row["hardware_flops_utilisation"]), ", ".join(row["optimizations"]),
        )
        for row in rows
    ])  # fmt: skip


def _step(row: Row) -> str:
    if _is_reduced(row):
        return f"{seconds(row['extrapolated_step_seconds'])}, extrapolated"
    return seconds(row["step_seconds"])


def _speed(lengths: Sequence[Row]) -> Iterator[str]:
    yield (
        "Streaming beside stock transformers, PEFT and gradient checkpointing: all layers, "
        "everything on the device, the median of rounds in turns. Peaks include the weights."
    )
    heads = (
        "tokens", "chunk", "stock", "streaming", "time over stock", "stock's peak",
        "streaming's peak", "memory over stock", "streaming's MFU",
    )  # fmt: skip
    yield table(heads, [
        (
            count(row["tokens"]), count(row["chunk_tokens"]),
            *(_rounds(row[name]) for name in ("stock", "streaming")),
            significant(row["time_over_stock"]),
            *(_peak(row[name]) for name in ("stock", "streaming")),
            significant(row["memory_over_stock"]),
            significant(row["streaming"].get("model_flops_utilisation")),
        )
        for row in lengths
    ])  # fmt: skip


def _rounds(one: Row) -> str:
    if one.get("error"):
        return "out of memory"
    low, high = min(one["samples"]), max(one["samples"])
    return f"{seconds(one['step_seconds'])} ({seconds(low)} to {seconds(high)})"


def _peak(one: Row) -> str:
    return "out of memory" if one.get("error") else gigabytes(one["peak_bytes"])


def _attention(kernels: Sequence[Row]) -> Iterator[str]:
    ran = [row for row in kernels if row.get("forward")]
    if not ran:
        return
    yield (
        "Attention as the streaming executor calls it: a chunk of queries over a block of keys, 12 "
        "query heads sharing 2 key-value heads of 128, in TFLOP/s."
    )
    heads = ("kernel", "queries", "keys forward", "forward", "keys backward", "backward",
             "workspace of backward")  # fmt: skip
    yield table(heads, [
        (
            row["kernel"], count(row["query_tokens"]), count(row["key_tokens"]["forward"]),
            significant(row["forward"] / _TERA), count(row["key_tokens"]["backward"]),
            significant(row["backward"] / _TERA), gigabytes(row["workspace_bytes"]),
        )
        for row in ran
    ])  # fmt: skip


def _gradients(found: Document) -> Iterator[str]:
    if not found:
        return
    yield (
        f"Adapters' gradients in bfloat16 against stock in fp32: {found['layers']} layers, "
        f"{count(found['tokens'])} tokens in chunks of {count(found['chunk_tokens'])}. Rounding "
        f"makes stock's own differ by {significant(found['stock']['relative_error'])} of their "
        f"norm, in fp32 streaming's differ by "
        f"{significant(found['streaming_float32']['relative_error'])}."
    )
    yield table(("streaming with", "relative error", "over stock's"), [
        (
            row["variant"], significant(row.get("relative_error")),
            f"{row['error_over_stock']:.4f}" if row.get("error_over_stock") else row["reason"],
        )
        for row in found["streaming"]
    ])  # fmt: skip


def _overlap(found: Document) -> Iterator[str]:
    if not found.get("overlap"):
        return
    yield (
        f"Copies: {count(found['tokens'])} tokens in chunks of {count(found['chunk_tokens'])}, "
        f"{found['layers']} layers, every store on the host. "
        f"{share(found['overlap']['both'])} of the time of copies ran beside kernels."
    )
    heads = ("phase", "wall", "kernels", "to the device", "to the host", "neither")
    names = ("seconds", "kernels_seconds", "to_device_seconds", "to_host_seconds", "idle_seconds")
    yield table(heads, [
        (phase.replace("_", " "), *(seconds(part.get(name)) for name in names))
        for phase, part in found["phases"].items()
    ])  # fmt: skip


def _limits(rows: Sequence[Row], document: Document) -> Iterator[str]:
    reduced = [str(row["tier"]) for row in rows if _is_reduced(row)]
    if reduced:
        yield f"Extrapolated, not run whole: tiers {listed(reduced)}."
    for part, verb in (("skipped", "Not measured"), ("failed", "Failed")):
        left: list[dict[str, Any]] = document.get(part, [])
        if left:
            yield f"{verb}: {listed(row['section'] for row in left)}."
    yield from document.get("notes", ())
    once = [str(row["tier"]) for row in rows if len(row.get("samples", ())) == 1]
    if once:
        yield f"One step each, without a spread: tiers {listed(once)}."
