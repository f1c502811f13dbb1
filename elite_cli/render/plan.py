"""A plan for people: every tier's verdict, then what the chosen one takes."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from elite.planner.v1 import planner_pb2
from elite_cli.quantities import (
    format_bytes,
    format_count,
    format_duration,
    format_parameters,
    format_share,
)
from elite_cli.render.names import resource_name
from elite_cli.render.tables import NARROW_COLUMNS, facts_table, new_table

_LINE_NAMES = {
    "base_model": "base model",
    "lora": "LoRA parameters",
    "activations": "activations",
    "kv": "KV",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "buffers": "buffers",
    "runtime": "runtime",
}


def render_plan_response(console: Console, response: planner_pb2.PlanResponse) -> None:
    """Prints the tier table and the chosen plan, or plainly that nothing fits."""
    _render_subject(console, response.model, response.budget)
    chosen = response.chosen.tier if response.HasField("chosen") else 0
    console.print(_tier_table(response, chosen, narrow=console.width < NARROW_COLUMNS))
    console.print()
    if chosen:
        render_chosen(console, response.chosen, response.budget)
        _render_next(console, response, chosen)
    else:
        _render_nothing_fits(console, response)
    _render_notes(console, list(response.notes))


def render_estimate(console: Console, response: planner_pb2.EstimateResponse) -> None:
    """Prints what the tier takes and whether it fits."""
    _render_subject(console, response.plan.model, response.budget)
    render_chosen(console, response.plan, response.budget)
    verdict = response.verdict
    console.print(f"\n[bold]{escape(_verdict_text(verdict, response.budget))}[/bold]")
    if verdict.remedy:
        console.print(escape(verdict.remedy))
    _render_notes(console, list(response.notes))


def _render_subject(
    console: Console,
    model: planner_pb2.ModelSummary,
    budget: planner_pb2.Budget,
    gap: str = "\n",
) -> None:
    name = model.display_name or model.model_id or model.model_type
    console.print(
        f"[bold]{escape(name)}[/bold] ({format_parameters(model.parameter_count)} parameters) "
        f"on [bold]{escape(budget.device_name)}[/bold]"
    )
    console.print(_budget_text(budget) + gap)


def _budget_text(budget: planner_pb2.Budget) -> str:
    kept = f"{budget.headroom_fraction:.0%} kept free"
    memory = format_share(budget.gpu_bytes, budget.gpu_safe_bytes)
    if budget.gpu_memory_is_host_memory:
        return f"Budget: {memory} memory, device and host in one, {kept}"
    host = format_share(budget.host_bytes, budget.host_safe_bytes)
    return f"Budget: {memory} GPU, {host} host memory, {kept}"


def _tier_table(response: planner_pb2.PlanResponse, chosen: int, *, narrow: bool) -> Table:
    one_pool = response.budget.gpu_memory_is_host_memory
    table = new_table()
    table.add_column("tier", justify="right", no_wrap=True)
    table.add_column("context + target", justify="right", no_wrap=True)
    if not narrow:
        table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("memory" if one_pool else "GPU", justify="right", no_wrap=True)
    if not one_pool:
        table.add_column("host", justify="right", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("verdict")
    for verdict in response.tiers:
        is_chosen = verdict.tier == chosen
        style = "bold green" if is_chosen else "" if verdict.fits else "dim"
        mark = ">" if is_chosen else ""
        row = [
            f"{mark}{verdict.tier}",
            f"{format_count(verdict.context_tokens)} + {format_count(verdict.target_tokens)}",
            *([] if narrow else [str(verdict.lora_rank)]),
            format_bytes(verdict.gpu_bytes),
            *([] if one_pool else [format_bytes(verdict.host_bytes)]),
            format_duration(verdict.step_seconds),
            escape(_verdict_text(verdict, response.budget, chosen, short=narrow)),
        ]
        table.add_row(*row, style=style)
    return table


def _verdict_text(
    verdict: planner_pb2.TierVerdict,
    budget: planner_pb2.Budget,
    chosen: int = 0,
    *,
    short: bool = False,
) -> str:
    if verdict.fits:
        return "chosen" if verdict.tier == chosen else "fits"
    resource = resource_name(verdict.binding_resource, budget)
    if short:
        resource = resource.removesuffix(" memory")
    if verdict.shortfall_bytes:
        return f"lacks {format_bytes(verdict.shortfall_bytes)} {resource}"
    if verdict.shortfall_seconds:
        return f"{format_duration(verdict.shortfall_seconds)} too slow"
    return f"{resource} is missing"


def render_headline(console: Console, response: planner_pb2.PlanResponse) -> None:
    """Prints the chosen plan in three lines, and the notes."""
    _render_subject(console, response.model, response.budget, gap="")
    plan = response.chosen
    host = "" if response.budget.gpu_memory_is_host_memory else (
        f", {format_bytes(plan.host_memory.total_bytes)} host memory")  # fmt: skip
    console.print(f"{_headline(plan)}, {format_bytes(plan.gpu_memory.total_bytes)} memory{host}")
    _render_notes(console, list(response.notes))


def _headline(plan: planner_pb2.Plan) -> str:
    return (
        f"[bold]Tier {plan.tier}[/bold]: {format_count(plan.context_tokens)} context + "
        f"{format_count(plan.target_tokens)} target tokens, LoRA rank {plan.lora.rank}, "
        f"{format_duration(plan.step_seconds)} a step"
    )


def render_chosen(console: Console, plan: planner_pb2.Plan, budget: planner_pb2.Budget) -> None:
    """Prints one plan: memory by line, time, optimisations."""
    console.print(_headline(plan) + "\n")
    one_pool = budget.gpu_memory_is_host_memory
    console.print(
        _memory_table("memory" if one_pool else "GPU memory", plan.gpu_memory, all_lines=True)
    )
    console.print()
    if plan.host_memory.total_bytes:
        title = "host memory, the above included" if one_pool else "host memory"
        console.print(_memory_table(title, plan.host_memory))
        console.print()
    table = facts_table()
    if plan.disk.total_bytes:
        table.add_row("disk", format_bytes(plan.disk.total_bytes))
    table.add_row("step time", _step_time(plan))
    table.add_row("optimisations", escape(_optimizations(plan)))
    console.print(table)


def _memory_table(
    title: str, estimate: planner_pb2.MemoryEstimate, *, all_lines: bool = False
) -> Table:
    lines = [line for line in estimate.lines if line.bytes or all_lines]
    table = new_table()
    table.add_column(title, no_wrap=True, min_width=22)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("formula", style="dim", overflow="fold")
    for line in lines:
        name = _LINE_NAMES.get(line.name, line.name.replace("_", " "))
        table.add_row(escape(name), format_bytes(line.bytes), escape(line.formula_id))
    table.add_section()
    peak = f"peak, in the {estimate.peak_phase} phase" if estimate.peak_phase else ""
    table.add_row("[bold]total[/bold]", f"[bold]{format_bytes(estimate.total_bytes)}[/bold]", peak)
    table.add_row("headroom", format_bytes(estimate.headroom_bytes), "budget less total")
    return table


def _step_time(plan: planner_pb2.Plan) -> str:
    parts = [f"{line.name} {format_duration(line.seconds)}" for line in plan.time_lines]
    total = format_duration(plan.step_seconds)
    return f"{total} ({', '.join(parts)})" if parts else total


def _optimizations(plan: planner_pb2.Plan) -> str:
    names = [
        (item.name or item.id) + ("" if item.exact else " (lossy)") for item in plan.optimizations
    ]
    return ", ".join(names) or "none"


def _render_next(console: Console, response: planner_pb2.PlanResponse, chosen: int) -> None:
    """What stands between the chosen tier and the one above."""
    above = next((tier for tier in response.tiers if tier.tier > chosen and not tier.fits), None)
    if above is not None and above.remedy:
        console.print(f"\n[bold]For tier {above.tier}[/bold]: {escape(above.remedy)}")


def _render_nothing_fits(console: Console, response: planner_pb2.PlanResponse) -> None:
    console.print("[bold red]Nothing fits.[/bold red]")
    for verdict in response.tiers[:1]:
        reason = _verdict_text(verdict, response.budget)
        console.print(f"Tier {verdict.tier}, the smallest asked for: {escape(reason)}.")
        if verdict.remedy:
            console.print(escape(verdict.remedy))


def _render_notes(console: Console, notes: list[str]) -> None:
    if notes:
        console.print()
    for text in notes:
        console.print(f"[yellow]note:[/yellow] {escape(text)}")
