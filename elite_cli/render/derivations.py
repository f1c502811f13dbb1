"""How every figure of a plan came about: formula, numbers, result."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from elite.planner.v1 import planner_pb2
from elite_cli.quantities import format_bytes, format_count, format_duration
from elite_cli.render.names import line_name

_TITLES = {"gpu": "GPU memory", "host": "Host memory", "disk": "Disk", "time": "Time of a step"}


def render_derivations(
    console: Console, plan: planner_pb2.Plan, budget: planner_pb2.Budget
) -> None:
    """Prints the derivations of a plan, one budget after the other."""
    for name, lines in groupby(plan.derivations, lambda line: line.budget):
        console.print(f"\n[bold]{escape(_title(name, plan, budget))}[/bold]")
        for line in lines:
            _render(console, line)


def _title(name: str, plan: planner_pb2.Plan, budget: planner_pb2.Budget) -> str:
    one_pool = budget.gpu_memory_is_host_memory and name == "gpu"
    title = "Memory of the tensors" if one_pool else _TITLES.get(name, name)
    estimates = {"gpu": plan.gpu_memory, "host": plan.host_memory, "disk": plan.disk}
    phase = estimates[name].peak_phase if name in estimates else ""
    return f"{title}, in the phase: {line_name(phase)}" if phase else title


def _render(console: Console, line: planner_pb2.Derivation) -> None:
    formula = f"[dim]({escape(line.formula_id)})[/dim]"
    console.print(f"  [cyan]{escape(line_name(line.line))}[/cyan] {formula} = {_result(line)}")
    # A constant is its own expression.
    for text in dict.fromkeys((line.expression, line.with_numbers)):
        console.print(Padding(f"= {escape(text)}", (0, 0, 0, 6)))


def _result(line: planner_pb2.Derivation) -> str:
    if line.budget == "time":
        return f"{line.value:.6g} s" + (
            f" ({format_duration(line.value)})" if line.value >= 60 else ""
        )
    return f"{format_bytes(line.value)} ({format_count(round(line.value))} bytes)"
