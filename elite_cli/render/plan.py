"""A plan for people: every tier's verdict, then what the chosen one takes."""

from __future__ import annotations

from rich.console import Console, RenderableType
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
from elite_cli.render.bars import is_plain, total_bar
from elite_cli.render.facts import facts
from elite_cli.render.memory import render_memory
from elite_cli.render.tables import NARROW_COLUMNS, new_table
from elite_cli.render.verdicts import remedy_texts, short_remedy, verdict_text

# From this width on the tier table has room for what would help.
_WIDE_COLUMNS = 125
_BAR_COLUMNS, _NARROW_BAR_COLUMNS = 13, 9


def render_plan_response(
    console: Console, response: planner_pb2.PlanResponse, asked: int = 0
) -> None:
    """Prints the tier table and the chosen plan, or plainly that nothing fits.

    asked: the one tier that was asked for; 0 where any will do.
    """
    _render_subject(console, response.model, response.budget)
    chosen = response.chosen.tier if response.HasField("chosen") else 0
    console.print(_tier_table(console, response, chosen))
    console.print()
    if chosen:
        render_chosen(console, response.chosen, response.budget)
        _render_next(console, response, chosen)
    else:
        _render_nothing_fits(console, response, asked)
    render_notes(console, list(response.notes))
    _render_derivations(console, response.chosen, response.budget)


def render_estimate(console: Console, response: planner_pb2.EstimateResponse) -> None:
    """Prints what the tier takes and whether it fits."""
    _render_subject(console, response.plan.model, response.budget)
    render_chosen(console, response.plan, response.budget)
    verdict = response.verdict
    text = escape(verdict_text(verdict, response.budget))
    _render_remedies(console, f"\n[bold]{text[:1].upper() + text[1:]}.[/bold]", verdict)
    render_notes(console, list(response.notes))
    _render_derivations(console, response.plan, response.budget)


def _render_subject(
    console: Console,
    model: planner_pb2.ModelSummary,
    budget: planner_pb2.Budget,
    gap: str = "\n",
) -> None:
    console.print(f"{model_title(model)} on [bold]{escape(budget.device_name)}[/bold]")
    console.print(_budget_text(budget) + gap)


def model_title(model: planner_pb2.ModelSummary) -> str:
    """ "Qwen2.5 1.5B (1.54 B parameters)"."""
    name = model.display_name or model.model_id or model.model_type
    return f"[bold]{escape(name)}[/bold] ({format_parameters(model.parameter_count)} parameters)"


def _budget_text(budget: planner_pb2.Budget) -> str:
    kept = f"{budget.headroom_fraction:.0%} kept free"
    memory = format_share(budget.gpu_bytes, budget.gpu_safe_bytes)
    if budget.gpu_memory_is_host_memory:
        return f"Budget: {memory} memory, device and host in one, {kept}"
    host = format_share(budget.host_bytes, budget.host_safe_bytes)
    return f"Budget: {memory} GPU, {host} host memory, {kept}"


def _tier_table(console: Console, response: planner_pb2.PlanResponse, chosen: int) -> Table:
    narrow, wide = console.width < NARROW_COLUMNS, console.width >= _WIDE_COLUMNS
    budget = response.budget
    one_pool = budget.gpu_memory_is_host_memory
    table = new_table()
    table.add_column("tier", justify="right", no_wrap=True)
    table.add_column("context" if narrow else "context + target", justify="right", no_wrap=True)
    if not narrow:
        table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("memory" if one_pool else "GPU", justify="right", no_wrap=True)
    table.add_column("budget" if narrow else f"of {format_bytes(budget.gpu_bytes)}", no_wrap=True)
    if not one_pool:
        table.add_column("host", justify="right", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("verdict")
    for verdict in response.tiers:
        is_chosen = verdict.tier == chosen
        context, target = map(format_count, (verdict.context_tokens, verdict.target_tokens))
        bar = total_bar(
            verdict.gpu_bytes, budget.gpu_bytes, _NARROW_BAR_COLUMNS if narrow else _BAR_COLUMNS,
            fits=verdict.fits, plain=is_plain(console),
        )  # fmt: skip
        row: list[RenderableType] = [
            f"{'>' if is_chosen else ''}{verdict.tier}",
            *([context] if narrow else [f"{context} + {target}", str(verdict.lora_rank)]),
            format_bytes(verdict.gpu_bytes),
            bar,
            *([] if one_pool else [format_bytes(verdict.host_bytes)]),
            format_duration(verdict.step_seconds),
            escape(_verdict_cell(verdict, budget, chosen, wide=wide)),
        ]
        table.add_row(*row, style="bold green" if is_chosen else "" if verdict.fits else "dim")
    return table


def _verdict_cell(
    verdict: planner_pb2.TierVerdict,
    budget: planner_pb2.Budget,
    chosen: int,
    *,
    wide: bool,
) -> str:
    text = verdict_text(verdict, budget, chosen, short=True)
    remedy = short_remedy(verdict) if wide else ""
    return f"{text}: {remedy}" if remedy else text


def render_headline(console: Console, response: planner_pb2.PlanResponse) -> None:
    """Prints the chosen plan in three lines, and the notes."""
    _render_subject(console, response.model, response.budget, gap="")
    plan = response.chosen
    host = "" if response.budget.gpu_memory_is_host_memory else (
        f", {format_bytes(plan.host_memory.total_bytes)} host memory")  # fmt: skip
    run = f", {format_duration(plan.run.seconds)} in all" if plan.HasField("run") else ""
    memory = format_bytes(plan.gpu_memory.total_bytes)
    console.print(f"{_headline(plan)}{run}, {memory} memory{host}")
    render_notes(console, list(response.notes))


def _headline(plan: planner_pb2.Plan) -> str:
    return (
        f"[bold]Tier {plan.tier}[/bold]: {format_count(plan.context_tokens)} context + "
        f"{format_count(plan.target_tokens)} target tokens, LoRA rank {plan.lora.rank}, "
        f"{format_duration(plan.step_seconds)} a step"
    )


def render_chosen(console: Console, plan: planner_pb2.Plan, budget: planner_pb2.Budget) -> None:
    """Prints one plan: memory by line, time, settings."""
    console.print(_headline(plan) + "\n")
    render_memory(console, plan, budget)
    console.print()
    console.print(facts(plan))


def _render_next(console: Console, response: planner_pb2.PlanResponse, chosen: int) -> None:
    """What stands between the chosen tier and the one above."""
    above = next((tier for tier in response.tiers if tier.tier > chosen and not tier.fits), None)
    if above is None:
        return
    reason = escape(verdict_text(above, response.budget))
    _render_remedies(console, f"\n[bold]Tier {above.tier}[/bold]: {reason}.", above)


def _render_remedies(console: Console, reason: str, verdict: planner_pb2.TierVerdict) -> None:
    """Prints why a tier does not fit, and what would make it fit."""
    texts = [escape(text) for text in remedy_texts(verdict)]
    if len(texts) == 1:
        console.print(f"{reason} It would fit with this change: {texts[0]}")
    elif texts:
        console.print(f"{reason} Any one of these would make it fit:")
        for text in texts:
            console.print(f"  - {text}")
    else:
        console.print(reason)


def _render_nothing_fits(console: Console, response: planner_pb2.PlanResponse, asked: int) -> None:
    """Why the tier that was asked for does not fit, or the smallest one."""
    if asked:
        verdict = next((one for one in response.tiers if one.tier == asked), None)
        name = f"Tier {asked}"
    else:
        console.print("[bold red]Nothing fits.[/bold red]")
        verdict = next(iter(response.tiers), None)
        name = f"Tier {verdict.tier}, the smallest asked for" if verdict else ""
    if verdict is not None:
        reason = escape(verdict_text(verdict, response.budget))
        _render_remedies(console, f"[bold]{name}[/bold]: {reason}.", verdict)


def render_notes(console: Console, notes: list[str]) -> None:
    """Prints what the reader should know beside the figures."""
    if notes:
        console.print()
    for text in notes:
        console.print(f"[yellow]note:[/yellow] {escape(text)}")


def _render_derivations(
    console: Console, plan: planner_pb2.Plan, budget: planner_pb2.Budget
) -> None:
    if plan.derivations:
        from elite_cli.render.derivations import render_derivations

        render_derivations(console, plan, budget)
