"""The planner's catalogues for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from elite.planner.v1 import planner_pb2
from elite_cli.quantities import format_bytes, format_count, format_parameters, format_rate
from elite_cli.render.names import optimization_status_name
from elite_cli.render.tables import NARROW_COLUMNS, new_table


def render_tiers(console: Console, response: planner_pb2.ListTiersResponse) -> None:
    """Prints the ladder."""
    table = new_table()
    for heading in ("tier", "context", "target", "rank", "times 256", "lines of code", "card"):
        table.add_column(heading, justify="right", no_wrap=True)
    for tier in response.tiers:
        card = format_bytes(tier.reference_vram_bytes) if tier.reference_vram_bytes else ""
        table.add_row(
            f"{tier.tier}*" if tier.custom else str(tier.tier),
            format_count(tier.context_tokens), format_count(tier.target_tokens),
            str(tier.lora_rank), f"{tier.context_multiple}x",
            format_count(tier.lines_of_code), card,
        )  # fmt: skip
    console.print(table)
    console.print(
        "\ncard: the video memory the ladder was drawn up for; `elite plan` computes yours"
    )
    if any(tier.custom for tier in response.tiers):
        console.print("*: added by configuration")


def render_models(console: Console, response: planner_pb2.ListModelsResponse) -> None:
    """Prints the models."""
    narrow = console.width < NARROW_COLUMNS
    shape = () if narrow else ("layers", "hidden", "heads")
    table = new_table()
    table.add_column("model", no_wrap=True)
    for heading in ("parameters", *shape, "positions"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("weights", overflow="fold")
    for model in response.models:
        heads = f"{model.query_head_count}/{model.key_value_head_count}"
        numbers = (str(model.layer_count), str(model.hidden_size), heads)
        table.add_row(
            escape(model.model_id), format_parameters(model.parameter_count),
            *(() if narrow else numbers),
            format_count(model.max_position_embeddings), escape(_weights(model)),
        )  # fmt: skip
    console.print(table)
    explained = "" if narrow else "heads: query/key-value; "
    console.print(f"\n{explained}positions: the context the model was trained for")


def _weights(model: planner_pb2.ModelSummary) -> str:
    if model.weights.HasField("package"):
        return f"package {model.weights.package.distribution}"
    return model.weights.hub_id


def render_gpus(console: Console, response: planner_pb2.ListGpusResponse) -> None:
    """Prints the cards, with advice where there is room for it."""
    narrow = console.width < NARROW_COLUMNS
    table = new_table()
    table.add_column("gpu", no_wrap=True)
    for heading in ("memory", "capability", "16-bit", "bandwidth", "PCIe"):
        table.add_column(heading, justify="right", no_wrap=True)
    if not narrow:
        table.add_column("advice")
    for gpu in response.gpus:
        flops = gpu.bfloat16_flops_per_second or gpu.float16_flops_per_second
        table.add_row(
            escape(gpu.gpu_id), format_bytes(gpu.memory_bytes),
            f"{gpu.compute_capability.major}.{gpu.compute_capability.minor}",
            format_rate(flops, "FLOP/s"),
            format_rate(gpu.memory_bandwidth_bytes_per_second, "B/s"),
            f"{gpu.pcie.generation_max}x{gpu.pcie.width_max}",
            *(() if narrow else (escape(gpu.advice),)),
        )  # fmt: skip
    console.print(table)
    if narrow:
        console.print(f"\nwith advice: --json, or a terminal of {NARROW_COLUMNS} columns")


def render_optimizations(console: Console, response: planner_pb2.ListOptimizationsResponse) -> None:
    """Prints the optimisations; those not applied with the reason."""
    table = new_table()
    table.add_column("optimisation", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("exact", no_wrap=True)
    table.add_column("what it does")
    for item in response.optimizations:
        text = item.description + (f" Not applied: {item.reason}" if item.reason else "")
        table.add_row(
            escape(item.id), optimization_status_name(item.status),
            "yes" if item.exact else "lossy", escape(text),
        )  # fmt: skip
    console.print(table)


RENDERERS: Mapping[str, Callable[[Console, Any], None]] = {
    "ListTiers": render_tiers,
    "ListModels": render_models,
    "ListGpus": render_gpus,
    "ListOptimizations": render_optimizations,
}
