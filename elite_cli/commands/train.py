"""`elite train`: plan, create a run, watch it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elite_cli import options as o
from elite_cli.errors import CliError, bad_option

if TYPE_CHECKING:
    from elite.planner.v1 import planner_pb2
    from elite_cli.connections import Connections
    from elite_cli.model_reference import ModelChoice
    from elite_cli.planning import PlanOptions


def train(  # its options are the command's interface, hence the length
    context: typer.Context,
    data: Annotated[str, typer.Option(help="Folder of source files, on the trainer's machine.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")],
    model: o.Model = "",
    plan: Annotated[
        Path | None, typer.Option(help="Use this plan, made with `elite plan --json`.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak. Default: 2e-4.")] = None,
    warmup_steps: Annotated[int, typer.Option(min=0, help="Steps of linear warm-up.")] = 0,
    include: Annotated[
        list[str] | None, typer.Option(help="File name pattern to take, as in '*.py'; repeat it.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Path pattern to leave out, as in 'test/*'; repeat it.")
    ] = None,
    held_out: Annotated[
        float | None, typer.Option(help="Share of files kept for evaluation. Default: 0.05.")
    ] = None,
    evaluation_windows: Annotated[
        int | None, typer.Option(min=0, help="Held-out windows evaluated. Default: 4.")
    ] = None,
    checkpoint_every: Annotated[
        int, typer.Option(min=0, help="Steps between checkpoints; 0: one at the end.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    name: Annotated[str, typer.Option(help="A name for people.")] = "",
    request_id: Annotated[
        str, typer.Option(help="The same id gives the same run, however often it is sent.")
    ] = "",
    watch: Annotated[
        bool, typer.Option("--watch/--detach", help="Follow the run, or leave it to the worker.")
    ] = True,
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
    """Train LoRA adapters with the longest context that fits this machine.

    Ctrl-C while watching detaches: the run goes on and the command exits with 130. With --json:
    the CreateRun response, then one event of WatchRun a line.
    """
    from elite_cli.connections import Connections
    from elite_cli.model_reference import ModelChoice, read_model
    from elite_cli.planning import PlanOptions
    from elite_cli.training import TrainOptions, create_run, run_spec

    plan_options = PlanOptions(
        gpu, host_ram, disk, max_step_seconds, exact_only, tier, headroom, objective, device
    )
    _refuse_contradictions(model, plan, plan_options)
    choice = read_model(model) if model else ModelChoice()
    train_options = TrainOptions(
        data, steps, learning_rate, warmup_steps, tuple(include or ()), tuple(exclude or ()),
        held_out, evaluation_windows, checkpoint_every, seed, name,
    )  # fmt: skip
    with Connections(context.obj) as connections:
        trainer = connections.trainer  # before anything slow: without one there is no run
        chosen = _plan_for(connections, plan, choice, plan_options, show=not json)
        response = create_run(trainer, run_spec(train_options, chosen, choice.folder), request_id)
        _announce(response.run.run_id, watch, json, response)
        if watch:
            from elite_cli.watch import watch_or_detach

            watch_or_detach(trainer, response.run.run_id, json)


def _refuse_contradictions(model: str, plan: Path | None, options: PlanOptions) -> None:
    from elite_cli.planning import PlanOptions

    if plan is None and not model:
        raise bad_option("--model", "is missing", "give --model, or a plan made before with --plan")
    if plan is not None and options != PlanOptions():
        problem = "is given together with options that make a plan"
        raise bad_option("--plan", problem, "leave --plan or those options out")


def _plan_for(
    connections: Connections,
    plan_file: Path | None,
    model: ModelChoice,
    options: PlanOptions,
    *,
    show: bool,
) -> planner_pb2.Plan:
    from elite_cli.output import error_console
    from elite_cli.planning import make_plan
    from elite_cli.render.plan import render_headline, render_plan_response
    from elite_cli.training import read_plan

    if plan_file is not None:
        return read_plan(plan_file)
    response = make_plan(connections, model, options)
    if not response.HasField("chosen"):
        render_plan_response(error_console(), response)
        raise CliError("no tier fits, so there is nothing to train")
    if show:
        render_headline(error_console(), response)
    return response.chosen


def _announce(run_id: str, watch: bool, json: bool, response: object) -> None:
    from elite_cli.output import note, output_console, print_json, print_json_line

    if json:
        (print_json_line if watch else print_json)(response)  # type: ignore[arg-type]
    elif watch:
        note(f"Run {run_id}; Ctrl-C leaves it running.")
    else:
        output_console().print(f"Run {run_id} is queued; watch it: elite runs watch {run_id}")
