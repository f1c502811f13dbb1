"""Cards ranked: what each of them fits, and what the others lack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from elite.planner.v1 import planner_pb2
from elite_cli.quantities import (
    format_bytes,
    format_count,
    format_duration,
    format_energy,
    format_share,
)
from elite_cli.render.plan import model_title, render_notes
from elite_cli.render.tables import NARROW_COLUMNS, new_table
from elite_cli.render.verdicts import remedy_texts, verdict_text

# From these widths on the bounds of a step have room, and all columns have with a schedule.
_MIDDLE_COLUMNS, _WIDE_COLUMNS = 110, 140
# Of more cards than this, their number is given and notes on single ones are left out.
_MOST_CARDS_NAMED = 4


def render_comparison(console: Console, response: planner_pb2.WhatIfResponse) -> None:
    """Prints the ranking, then what does not fit and why, then the notes."""
    ranked = list(enumerate(response.alternatives, start=1))
    fitting = [(rank, card) for rank, card in ranked if card.HasField("chosen")]
    refused = [(rank, card) for rank, card in ranked if not card.HasField("chosen")]
    console.print(f"{model_title(response.model)} on {len(ranked)} cards, best first\n")
    if fitting:
        console.print(_fitting_table(console.width, fitting))
    else:
        console.print("[bold red]No card fits.[/bold red]")
    if refused:
        console.print()
        console.print(_refused_table(refused))
    render_notes(console, [*response.notes, *_notes_by_card(response)])


@dataclass(frozen=True)
class _Column:
    heading: str
    # The narrowest terminal that has room for it, without a schedule and with one.
    from_width: tuple[int, int]
    text: Callable[[planner_pb2.Plan], str]
    needs_run: bool = False


def _tier(plan: planner_pb2.Plan) -> str:
    return f"{plan.tier}"


def _gpu_share(plan: planner_pb2.Plan) -> str:
    memory = plan.gpu_memory
    return format_share(memory.total_bytes, memory.total_bytes + memory.headroom_bytes)


def _step_range(plan: planner_pb2.Plan) -> str:
    if not plan.step_seconds_high:
        return ""
    low, high = plan.step_seconds_low, plan.step_seconds_high
    return f"{format_duration(low)} to {format_duration(high)}"


def _size(size: int) -> str:
    return format_bytes(size) if size else "-"


_ALWAYS = (0, 0)
_COLUMNS = (
    _Column("tier", _ALWAYS, _tier),
    _Column("context", _ALWAYS, lambda plan: format_count(plan.context_tokens)),
    _Column("GPU", _ALWAYS, lambda plan: format_bytes(plan.gpu_memory.total_bytes)),
    _Column("GPU of budget", (NARROW_COLUMNS, _WIDE_COLUMNS), _gpu_share),
    _Column("host", _ALWAYS, lambda plan: _size(plan.host_memory.total_bytes)),
    _Column("disk", (0, NARROW_COLUMNS), lambda plan: _size(plan.disk.total_bytes)),
    _Column("step", _ALWAYS, lambda plan: format_duration(plan.step_seconds)),
    _Column("low to high", (_MIDDLE_COLUMNS, _WIDE_COLUMNS), _step_range),
    _Column("run", _ALWAYS, lambda plan: format_duration(plan.run.seconds), needs_run=True),
    _Column(
        "energy", (NARROW_COLUMNS, NARROW_COLUMNS),
        lambda plan: format_energy(plan.run.energy_joules) if plan.run.energy_joules else "-",
        needs_run=True,
    ),
)  # fmt: skip


def _shown_columns(width: int, *, has_run: bool) -> list[_Column]:
    shown = [
        column
        for column in _COLUMNS
        if column.from_width[has_run] <= width and (has_run or not column.needs_run)
    ]
    # The share of the budget says what is used, too.
    if any(column.text is _gpu_share for column in shown):
        shown = [column for column in shown if column.heading != "GPU"]
    return shown


def _fitting_table(width: int, cards: list[tuple[int, planner_pb2.Alternative]]) -> Table:
    columns = _shown_columns(width, has_run=any(card.chosen.HasField("run") for _, card in cards))
    table = new_table()
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("card", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for rank, card in cards:
        figures = [column.text(card.chosen) for column in columns]
        table.add_row(str(rank), escape(card.gpu_id), *figures)
    return table


def _refused_table(cards: list[tuple[int, planner_pb2.Alternative]]) -> Table:
    """Every card here has a GPU of its own, so that no budget is needed to name resources."""
    table = new_table()
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("does not fit", no_wrap=True)
    table.add_column("tier", justify="right", no_wrap=True)
    table.add_column("GPU", justify="right", no_wrap=True)
    table.add_column("why")
    table.add_column("would help", overflow="fold")
    for rank, card in cards:
        verdict = card.verdict
        table.add_row(
            str(rank), escape(card.gpu_id), str(verdict.tier), format_bytes(verdict.gpu_bytes),
            escape(verdict_text(verdict, planner_pb2.Budget())),
            escape(next(iter(remedy_texts(verdict)), "")),
        )  # fmt: skip
    return table


def _notes_by_card(response: planner_pb2.WhatIfResponse) -> list[str]:
    """Notes on some cards, each once, with the cards; of many cards, what holds for several."""
    cards: dict[str, list[str]] = {}
    for alternative in response.alternatives:
        for text in alternative.notes:
            cards.setdefault(text, []).append(alternative.gpu_id)
    few = len(response.alternatives) <= _MOST_CARDS_NAMED
    return [f"{_named(ids)}: {text}" for text, ids in cards.items() if few or len(ids) > 1]


def _named(ids: list[str]) -> str:
    return ", ".join(ids) if len(ids) <= _MOST_CARDS_NAMED else f"{len(ids)} cards"
