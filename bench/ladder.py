"""Every row of the ladder against its video memory: `python -m bench.ladder [--tiers 1,8]`.

Each row's plan is the planner's choice for a card of exactly the row's memory. The streaming
executor then runs it under fake tensors, with few layers and chunks, and the row follows from that
(bench/ladder_measure.py). Some rows are run whole to check it. Weights, optimizer states and the
CUDA context are computed. Writes `bench/results/ladder.json`; exit status 1 when a row is outside.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import logging

from bench.ladder_measure import CHUNKS, Extended, extended, measure, slope
from bench.ladder_plans import (
    CARD,
    DISK_BYTES,
    HOST_BYTES,
    Planned,
    Subject,
    plan_row,
    plan_set,
    runtime_bytes,
    subjects,
)
from bench.machine import describe_machine
from bench.memory import SETS
from services.planner.ladder import Tier, load_ladder
from services.planner.options import BasePrecision, OptimizationSet, Place

RESULTS = Path(__file__).parent / "results" / "ladder.json"
# Rows that are run whole as well, in a minute or two each.
CHECKED = (("phi-2", 3), ("phi-2 grouped-query", 3), ("qwen2.5-1.5b", 4))
# Modes of the growth section: where the keys of the layer at work are, and a set that has them
# there and everything else that grows with the window off the device.
MODES = {
    "keys on the device": SETS["streaming selective on host"].chosen,
    "keys on the host": SETS["streaming with keys on host"].chosen,
}
_GROWTH_CHUNK, _GROWTH_LAYERS = 2048, 2
# Keys and values in 16 bit, and their gradients in fp32, of one channel.
BYTES_PER_KEY_CHANNEL = 2 * 2 + 2 * 4


def row_of(planned: Planned, found: Extended) -> dict[str, Any]:
    """A row as it is written; see `device_part` for what of it is measured."""
    tier, chosen, memory = planned.tier, planned.chosen, planned.candidate.memory
    device = device_part(planned, found)
    return {
        "model": planned.subject.name,
        **_identity(tier),
        **device,
        "inside": device["device_bytes"] <= tier.reference_vram_bytes,
        **_away_part(planned, found),
        "base_precision": chosen.base_precision.value,
        "placement": placement(chosen),
        "chunk_tokens": memory.chunk_tokens,
        "loss_tile_rows": memory.loss_tile_rows,
        "key_value_heads": planned.message.execution.key_value_head_count
        or planned.subject.shape.key_value_head_count,
        "optimizations": [one.id for one in planned.message.optimizations],
        "measured_layers": list(found.layers),
        "measured_tokens": list(found.tokens),
    }


def _identity(tier: Tier) -> dict[str, Any]:
    return {
        "tier": tier.tier,
        "tokens": tier.tokens,
        "context_tokens": tier.context_tokens,
        "target_tokens": tier.target_tokens,
        "lora_rank": tier.lora_rank,
        "vram_bytes": tier.reference_vram_bytes,
    }


def device_part(planned: Planned, found: Extended) -> dict[str, Any]:
    """Device bytes: what was computed, what was measured, and the plan's own figures.

    working_bytes: measured, the peak beyond weights and adapters. measured_static_bytes: weights
    and adapters as they were measured in 16 bit, beside the computed ones; None under NF4, which
    cannot be faked: its weights are computed, and a weight that is made again is counted in full
    and in planned_working_bytes.
    """
    static, memory = planned.static(), planned.candidate.memory.device
    is_nf4 = planned.chosen.base_precision is BasePrecision.NF4
    computed = {
        "weights_bytes": int(static.base_model),
        "adapters_bytes": int(static.lora),
        "optimizer_bytes": int(static.optimizer),
        "runtime_bytes": runtime_bytes(),
        "dequantised_bytes": int(static.dequantised),
    }
    total = sum(computed.values()) + found.usage.working_bytes
    planned_total = memory.total_bytes + runtime_bytes()
    standing = sum(memory.lines[name] for name in ("base_model", "lora", "optimizer"))
    planned_working = memory.total_bytes - standing
    working = found.usage.working_bytes + computed["dequantised_bytes"]
    return {
        "device_bytes": total,
        "planned_device_bytes": planned_total,
        "error_percent": _percent(planned_total, total),
        **computed,
        "measured_static_bytes": None if is_nf4 else found.usage.static_bytes,
        "working_bytes": found.usage.working_bytes,
        "planned_working_bytes": planned_working,
        "working_error_percent": _percent(planned_working, working),
        "planned_peak_phase": memory.peak_phase,
        "measured_phases": found.usage.phases,
        "lines": {**memory.lines, "runtime": runtime_bytes()},
    }


def _away_part(planned: Planned, found: Extended) -> dict[str, Any]:
    """Host and disk bytes in a step: stores and page files measured, the rest computed.

    The planner's figures count whole pinned slabs. `planned_host_bytes` is the highest phase, which
    may be the one that reads the weights.
    """
    memory, static = planned.candidate.memory, planned.static()
    weights, process = int(static.host_weights), planned.machine.process_overhead_bytes
    checkpoint = int(static.lora + static.optimizer)
    return {
        "host_bytes": found.usage.stores_bytes + weights + process,
        "planned_host_bytes": memory.host.total_bytes,
        "planned_host_step_bytes": memory.host.phases["backward"],
        "host_stores_bytes": found.usage.stores_bytes,
        "host_weights_bytes": weights,
        "host_process_bytes": process,
        "disk_bytes": found.usage.disk_bytes + checkpoint,
        "planned_disk_bytes": memory.disk.total_bytes,
        "disk_stores_bytes": found.usage.disk_bytes,
        "checkpoint_bytes": checkpoint,
    }


def refused_row(subject: Subject, tier: Tier, remedy: str) -> dict[str, Any]:
    """A row that no set fits."""
    identity = {"model": subject.name, **_identity(tier)}
    return {**identity, "device_bytes": None, "inside": False, "remedy": remedy}


def placement(chosen: OptimizationSet) -> dict[str, str]:
    """Where everything waits; what is made again is left out."""
    places = {
        "weights": chosen.weights,
        "layer_inputs": chosen.layer_inputs,
        "attention_outputs": chosen.attention_outputs,
        "kept_keys": chosen.kept_keys,
        "hidden_states": chosen.hidden_gradients,
        "keys_at_work": chosen.key_values,
    }
    return {name: one.name.lower() for name, one in places.items() if one is not Place.NOWHERE}


def check_row(planned: Planned, found: Extended) -> dict[str, Any]:
    """The row run whole, beside what its short steps gave."""
    whole = measure(planned, planned.subject.shape.layer_count, planned.tier.tokens)
    names = ("static_bytes", "working_bytes", "stores_bytes", "disk_bytes")
    return {
        "model": planned.subject.name,
        "tier": planned.tier.tier,
        "layers": planned.subject.shape.layer_count,
        "tokens": planned.tier.tokens,
        **{f"measured_{name}": getattr(whole, name) for name in names},
        **{f"extended_{name}": getattr(found.usage, name) for name in names},
        "error_percent": _percent(found.usage.working_bytes, whole.working_bytes),
    }


def growth_row(
    subject: Subject, mode: str, chunk_tokens: int = _GROWTH_CHUNK, layers: int = _GROWTH_LAYERS
) -> dict[str, Any]:
    """Device bytes a token that a window adds, in one mode, beside what it should be."""
    chosen, lengths = MODES[mode], [chunks * chunk_tokens for chunks in CHUNKS]
    tier = Tier(0, lengths[-1] - lengths[-1] // 8, lengths[-1] // 8, lora_rank=4)
    planned = plan_set(subject, tier, chosen, chunk_tokens)
    on_device = chosen.key_values is Place.DEVICE
    return {
        "model": subject.name,
        "mode": mode,
        "measured_bytes_per_token": slope({n: measure(planned, layers, n) for n in lengths}),
        "expected_bytes_per_token": on_device * BYTES_PER_KEY_CHANNEL * subject.key_value_width,
        "tokens": lengths,
        "layers": layers,
    }


def _percent(predicted: int, measured: int) -> float:
    return 100 * (predicted / measured - 1)


def run(chosen: Sequence[Subject], tiers: Sequence[Tier]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Everything in the order it is measured: the section it belongs to, and a row of it."""
    for subject in chosen:
        for tier in tiers:
            planned = plan_row(subject, tier)
            if isinstance(planned, str):
                yield "rows", refused_row(subject, tier, planned)
                continue
            found = extended(planned)
            yield "rows", row_of(planned, found)
            if (subject.name, tier.tier) in CHECKED:
                yield "checks", check_row(planned, found)
        for mode in MODES:
            yield "growth", growth_row(subject, mode)


def shown(section: str, row: Mapping[str, Any]) -> str:
    """A line for people."""
    name = f"{row['model']:20}"
    if section == "growth":
        return (
            f"{name} {row['mode']}: {row['measured_bytes_per_token']:,.3f} bytes a token, "
            f"expected {row['expected_bytes_per_token']:,}"
        )
    name += f" tier {row['tier']:2} {row['tokens']:9,} tokens"
    if section == "checks":
        return (
            f"{name} run whole: {row['measured_working_bytes'] / 1e9:.3f} GB beyond weights, "
            f"extended {row['extended_working_bytes'] / 1e9:.3f} GB ({row['error_percent']:+.3f} %)"
        )
    if row["device_bytes"] is None:
        return f"{name} fits no set: {row['remedy']}"
    places = "; ".join(
        f"{place}: {', '.join(name for name, where in row['placement'].items() if where == place)}"
        for place in dict.fromkeys(row["placement"].values())
    ).replace("_", " ")
    return (
        f"{name} {row['device_bytes'] / 1e9:6.2f} of {row['vram_bytes'] / 1e9:2.0f} GB "
        f"{'inside ' if row['inside'] else 'OUTSIDE'} ({row['error_percent']:+.2f} %) "
        f"host {row['host_bytes'] / 2**30:6.1f} GiB disk {row['disk_bytes'] / 2**30:7.1f} GiB "
        f"{row['base_precision']} {places}"
    )


def document_of(chosen: Sequence[Subject], tiers: Sequence[Tier]) -> dict[str, Any]:
    """Runs everything, prints each line as it comes."""
    sections: dict[str, list[dict[str, Any]]] = {"rows": [], "checks": [], "growth": []}
    for section, row in run(chosen, tiers):
        sections[section].append(row)
        print(shown(section, row), flush=True)
    assumed = {
        "host_memory_bytes": HOST_BYTES, "disk_bytes": DISK_BYTES, "rates_of_card": CARD,
        "runtime_bytes": runtime_bytes(),
    }  # fmt: skip
    return {"machine": describe_machine(), "assumed": assumed, **sections}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; 1 when a row is outside its video memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names, ladder = subjects(), load_ladder()
    parser.add_argument("--models", default=",".join(names), help=f"of: {', '.join(names)}")
    parser.add_argument("--tiers", default=",".join(str(tier.tier) for tier in ladder))
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    unknown = set(given.models.split(",")) - set(names)
    if unknown:
        parser.error(f"--models: {', '.join(sorted(unknown))}: give any of {', '.join(names)}")
    tiers = [int(number) for number in given.tiers.split(",")]
    logging.set_verbosity_error()
    document = document_of(
        [names[name] for name in given.models.split(",")],
        [tier for tier in ladder if tier.tier in tiers],
    )
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(document, indent=1) + "\n")
    inside = [row["inside"] for row in document["rows"]]
    print(f"{sum(inside)} of {len(inside)} rows inside")
    return 0 if all(inside) else 1


if __name__ == "__main__":
    sys.exit(main())
