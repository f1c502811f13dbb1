"""`elite plan` and `elite estimate`: what fits, what it takes, and why the rest does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elite_cli import options as o
from elite_cli.errors import ExitCode
from elite_cli.option_groups import in_groups

if TYPE_CHECKING:
    from elite.planner.v1 import planner_pb2


@in_groups
def plan(
    context: typer.Context,
    model: o.Model,
    *,
    compare: o.Compare = None,
    machine: o.MachineOptions,
    limits: o.LimitOptions,
    choice: o.ChoiceOptions,
    schedule: o.ScheduleOptions,
    adapters: o.AdapterOptions,
    explain: o.Explain = False,
    chart: o.Chart = None,
    json: o.Json = False,
) -> None:
    """Choose the longest context that fits, for this machine or for a card you name.

    Exits with 1 when nothing fits. `--json` prints what `elite train --plan` takes.
    """
    from elite_cli.connections import Connections
    from elite_cli.model_reference import read_model
    from elite_cli.plan_requests import PlanOptions
    from elite_cli.planning import compare_cards, make_plan

    if chart is not None:
        from elite_cli.charts.files import check_path

        check_path(chart)
    reference = read_model(model)
    options = PlanOptions(machine, limits, choice, adapters, schedule, explain)
    with Connections(context.obj) as connections:
        if compare is not None:
            cards = compare_cards(connections, reference, options, compare)
            fits = _show_cards(cards, json, chart)
        else:
            planned = make_plan(connections, reference, options)
            fits = _show_plan(planned.response, choice.tier or 0, json, chart)
    if not fits:
        raise typer.Exit(ExitCode.FAILURE)


def _show_plan(
    response: planner_pb2.PlanResponse, asked: int, json: bool, chart: Path | None
) -> bool:
    """Prints and draws a plan; True when a tier, or the one that was asked for, fits."""
    from elite_cli.output import output_console, print_json

    if json:
        print_json(response)
    else:
        from elite_cli.render.plan import render_plan_response

        render_plan_response(output_console(), response, asked)
    if chart is not None:
        from elite_cli.charts.files import save
        from elite_cli.charts.plan import plan_figure

        save(plan_figure(response), chart)
    return response.HasField("chosen")


def _show_cards(response: planner_pb2.WhatIfResponse, json: bool, chart: Path | None) -> bool:
    """Prints and draws a comparison; True when a card fits something."""
    from elite_cli.output import output_console, print_json

    if json:
        print_json(response)
    else:
        from elite_cli.render.comparison import render_comparison

        render_comparison(output_console(), response)
    if chart is not None:
        from elite_cli.charts.comparison import comparison_figure
        from elite_cli.charts.files import save

        save(comparison_figure(response), chart)
    return any(alternative.HasField("chosen") for alternative in response.alternatives)


@in_groups
def estimate(
    context: typer.Context,
    model: o.Model,
    tier: Annotated[
        int, typer.Option(min=1, max=o.LARGEST_COUNT, help="A tier from `elite tiers`.")
    ],
    optimization: Annotated[
        list[str] | None,
        typer.Option(help="An id from `elite optimizations`; repeat it. Those not named are off."),
    ] = None,
    *,
    machine: o.MachineOptions,
    limits: o.LimitOptions,
    schedule: o.ScheduleOptions,
    adapters: o.AdapterOptions,
    explain: o.Explain = False,
    json: o.Json = False,
) -> None:
    """Cost one tier under exactly the optimisations you name; choose nothing.

    Exits with 1 when it does not fit.
    """
    from elite_cli.connections import Connections
    from elite_cli.model_reference import read_model
    from elite_cli.output import output_console, print_json
    from elite_cli.plan_requests import PlanOptions
    from elite_cli.planning import make_estimate

    reference = read_model(model)
    options = PlanOptions(machine, limits, adapters=adapters, schedule=schedule, explain=explain)
    with Connections(context.obj) as connections:
        response = make_estimate(connections, reference, options, tier, optimization or [])
    if json:
        print_json(response)
    else:
        from elite_cli.render.plan import render_estimate

        render_estimate(output_console(), response)
    if not response.verdict.fits:
        raise typer.Exit(ExitCode.FAILURE)
