"""`elite plan` and `elite estimate`: what fits, what it takes, and why the rest does not fit."""

from __future__ import annotations

from typing import Annotated

import typer

from elite_cli import options as o
from elite_cli.errors import ExitCode


def plan(
    context: typer.Context,
    model: o.Model,
    gpu: o.Gpu = "",
    host_ram: o.HostRam = "",
    disk: o.DiskSize = "",
    max_step_seconds: o.MaxStepSeconds = "",
    exact_only: o.ExactOnly = False,
    tier: o.Tier = None,
    headroom: o.Headroom = None,
    objective: o.Objective = o.ObjectiveName.MAX_CONTEXT,
    device: o.DeviceIndex = None,
    json: o.Json = False,
) -> None:
    """Choose the longest context that fits, for this machine or for a card you name.

    Exits with 1 when nothing fits. `--json` prints what `elite train --plan` takes.
    """
    from elite_cli.connections import Connections
    from elite_cli.model_reference import read_model
    from elite_cli.output import output_console, print_json
    from elite_cli.planning import PlanOptions, make_plan

    choice = read_model(model)
    plan_options = PlanOptions(
        gpu, host_ram, disk, max_step_seconds, exact_only, tier, headroom, objective, device
    )
    with Connections(context.obj) as connections:
        response = make_plan(connections, choice, plan_options)
    if json:
        print_json(response)
    else:
        from elite_cli.render.plan import render_plan_response

        render_plan_response(output_console(), response)
    if not response.HasField("chosen"):
        raise typer.Exit(ExitCode.FAILURE)


def estimate(
    context: typer.Context,
    model: o.Model,
    tier: Annotated[int, typer.Option(min=1, help="A tier from `elite tiers`.")],
    optimization: Annotated[
        list[str] | None,
        typer.Option(help="An id from `elite optimizations`; repeat it. Those not named are off."),
    ] = None,
    gpu: o.Gpu = "",
    host_ram: o.HostRam = "",
    disk: o.DiskSize = "",
    max_step_seconds: o.MaxStepSeconds = "",
    headroom: o.Headroom = None,
    device: o.DeviceIndex = None,
    json: o.Json = False,
) -> None:
    """Cost one tier under exactly the optimisations you name; choose nothing.

    Exits with 1 when it does not fit.
    """
    from elite_cli.connections import Connections
    from elite_cli.model_reference import read_model
    from elite_cli.output import output_console, print_json
    from elite_cli.planning import PlanOptions, make_estimate

    choice = read_model(model)
    plan_options = PlanOptions(
        gpu, host_ram, disk, max_step_seconds, headroom=headroom, device=device
    )
    with Connections(context.obj) as connections:
        response = make_estimate(connections, choice, plan_options, tier, optimization or [])
    if json:
        print_json(response)
    else:
        from elite_cli.render.plan import render_estimate

        render_estimate(output_console(), response)
    if not response.verdict.fits:
        raise typer.Exit(ExitCode.FAILURE)
