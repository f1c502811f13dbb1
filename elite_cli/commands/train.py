"""`elite train`: plan, create a run, watch it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from elite_cli import options as o
from elite_cli.errors import CliError, bad_option
from elite_cli.option_groups import in_groups

if TYPE_CHECKING:
    from elite.planner.v1 import planner_pb2
    from elite_cli.connections import Connections
    from elite_cli.model_reference import ModelChoice
    from elite_cli.plan_requests import PlanOptions


@in_groups
def train(  # its options are the command's interface, hence the length
    context: typer.Context,
    data: o.Data,
    steps: o.Steps,
    *,
    model: o.Model = "",
    plan: o.PlanFile = None,
    learning_rate: o.LearningRate = None,
    warmup_steps: o.WarmupSteps = 0,
    accumulate: o.Accumulate = 1,
    include: o.Include = None,
    exclude: o.Exclude = None,
    held_out: o.HeldOut = None,
    evaluation_windows: o.EvaluationWindows = None,
    checkpoint_every: o.CheckpointEvery = 0,
    checkpoint_every_seconds: o.CheckpointEverySeconds = None,
    seed: o.Seed = 0,
    name: o.Name = "",
    priority: o.Priority = 0,
    stop_after: o.StopAfter = "",
    request_id: o.RequestId = "",
    watch: o.Watch = True,
    machine: o.MachineOptions,
    limits: o.LimitOptions,
    choice: o.ChoiceOptions,
    adapters: o.AdapterOptions,
    json: o.Json = False,
) -> None:
    """Train LoRA adapters with the longest context that fits this machine.

    Ctrl-C while watching detaches: the run goes on and the command exits with 130. With --json:
    the CreateRun response, then one event of WatchRun a line.
    """
    from elite_cli.connections import Connections
    from elite_cli.model_reference import ModelChoice, read_model
    from elite_cli.plan_requests import PlanOptions
    from elite_cli.training import TrainOptions, create_run, run_limit, run_spec

    schedule = o.ScheduleOptions(steps=steps, accumulate=accumulate)
    plan_options = PlanOptions(machine, limits, choice, adapters, schedule)
    _refuse_contradictions(model, plan, plan_options)
    reference = read_model(model) if model else ModelChoice()
    train_options = TrainOptions(
        data, steps, learning_rate, warmup_steps, accumulate, tuple(include or ()),
        tuple(exclude or ()), held_out, evaluation_windows, checkpoint_every, seed, name,
        checkpoint_every_seconds, priority, run_limit(stop_after),
    )  # fmt: skip
    with Connections(context.obj) as connections:
        trainer = connections.trainer  # before anything slow: without one there is no run
        chosen, planned_by = _plan_for(connections, plan, reference, plan_options, show=not json)
        spec = run_spec(train_options, chosen, reference.folder, planned_by)
        response = create_run(trainer, spec, request_id)
        _announce(response.run.run_id, watch, json, response)
        if watch:
            from elite_cli.watch import watch_or_detach

            watch_or_detach(trainer, response.run.run_id, json)


def _refuse_contradictions(model: str, plan: Path | None, options: PlanOptions) -> None:
    from elite_cli.plan_requests import PlanOptions

    if plan is None and not model:
        raise bad_option("--model", "is missing", "give --model, or a plan made before with --plan")
    none = PlanOptions(schedule=options.schedule)
    if plan is not None and options != none:
        problem = "is given together with options that make a plan"
        raise bad_option("--plan", problem, "leave --plan or those options out")


def _plan_for(
    connections: Connections,
    plan_file: Path | None,
    model: ModelChoice,
    options: PlanOptions,
    *,
    show: bool,
) -> tuple[planner_pb2.Plan, planner_pb2.PlanRequest | None]:
    from elite_cli.output import error_console
    from elite_cli.planning import make_plan
    from elite_cli.render.plan import render_headline, render_plan_response
    from elite_cli.training import read_plan

    if plan_file is not None:
        return read_plan(plan_file), None
    planned = make_plan(connections, model, options)
    response = planned.response
    if not response.HasField("chosen"):
        render_plan_response(error_console(), response, options.choice.tier or 0)
        raise CliError("no tier fits, so there is nothing to train")
    if show:
        render_headline(error_console(), response)
    return response.chosen, planned.request


def _announce(run_id: str, watch: bool, json: bool, response: object) -> None:
    from elite_cli.output import note, output_console, print_json, print_json_line

    if json:
        (print_json_line if watch else print_json)(response)  # type: ignore[arg-type]
    elif watch:
        note(f"Run {run_id}; Ctrl-C leaves it running.")
    else:
        output_console().print(f"Run {run_id} is queued; watch it: elite runs watch {run_id}")
