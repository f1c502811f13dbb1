"""The memory of one plan: bars against the budgets, and a table by line that is their legend."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from elite.planner.v1 import planner_pb2
from elite_cli.quantities import format_bytes, format_share
from elite_cli.render.bars import glyph_text, is_plain, stacked_bar
from elite_cli.render.names import line_name
from elite_cli.render.tables import facts_table, new_table

_WIDEST_BAR = 72
# Between the three columns and after the last.
_GAPS = 6


@dataclass(frozen=True)
class Pool:
    """One budget: what it is called, what the plan takes of it, how much there is."""

    name: str
    estimate: planner_pb2.MemoryEstimate
    budget_bytes: int


def pools(plan: planner_pb2.Plan, budget: planner_pb2.Budget) -> list[Pool]:
    """The budgets that a plan takes anything of.

    Where device and host share one pool, the first is the device's part of the second.
    """
    one_pool = budget.gpu_memory_is_host_memory
    found = [
        Pool("tensors" if one_pool else "GPU", plan.gpu_memory, budget.gpu_bytes),
        Pool("with process" if one_pool else "host", plan.host_memory, budget.host_bytes),
        Pool("disk", plan.disk, budget.disk_bytes),
    ]
    return [pool for pool in found if pool.estimate.total_bytes]


def render_memory(console: Console, plan: planner_pb2.Plan, budget: planner_pb2.Budget) -> None:
    """Prints the bars and the table."""
    found = pools(plan, budget)
    plain = is_plain(console)
    bars = facts_table()
    bars.columns[1].no_wrap = True
    beside = max(len(pool.name) for pool in found) + max(len(pool_share(pool)) for pool in found)
    width = max(1, min(_WIDEST_BAR, console.width - beside - _GAPS))
    for pool in found:
        lines = pool.estimate.lines if pool.budget_bytes else ()
        bar = stacked_bar(lines, pool.budget_bytes, width, plain=plain)
        bars.add_row(pool.name, bar, pool_share(pool))
    console.print(bars)
    console.print()
    console.print(_table(found, plain=plain))


def pool_share(pool: Pool) -> str:
    """ "14.3 of 20.0 GiB"; the total alone where the budget is unknown."""
    total = pool.estimate.total_bytes
    return format_share(total, pool.budget_bytes) if pool.budget_bytes else format_bytes(total)


def _table(found: list[Pool], *, plain: bool) -> Table:
    table = new_table()
    table.add_column("", no_wrap=True)
    table.add_column("memory at the peak", no_wrap=True)
    for pool in found:
        table.add_column(pool.name, justify="right", no_wrap=True)
    table.add_column("formula", style="dim", overflow="fold")
    for name in _line_names(found):
        sizes, formulas = zip(*(_cell(pool, name) for pool in found), strict=True)
        table.add_row(
            glyph_text(name, plain=plain), escape(line_name(name)), *sizes,
            escape(", ".join(dict.fromkeys(filter(None, formulas)))),
        )  # fmt: skip
    table.add_section()
    totals = [f"[bold]{format_bytes(pool.estimate.total_bytes)}[/bold]" for pool in found]
    table.add_row("", "[bold]total[/bold]", *totals, "")
    phases = [escape(line_name(pool.estimate.peak_phase)) for pool in found]
    table.add_row("", "in the phase", *phases, "")
    left = [
        format_bytes(pool.estimate.headroom_bytes) if pool.budget_bytes else "unknown"
        for pool in found
    ]
    table.add_row("", "headroom", *left, "budget less total")
    return table


def _line_names(found: list[Pool]) -> list[str]:
    """Names of the lines that take anything, each once, in the order they come."""
    lines = [line for pool in found for line in pool.estimate.lines if line.bytes]
    return list(dict.fromkeys(line.name for line in lines))


def _cell(pool: Pool, name: str) -> tuple[str, str]:
    """Size and formula of a line; empty where the pool has none."""
    for line in pool.estimate.lines:
        if line.name == name and line.bytes:
            return format_bytes(line.bytes), line.formula_id
    return "", ""
