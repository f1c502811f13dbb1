"""The demo: a local stack of its own, the real services, a real run."""

from __future__ import annotations

import shutil
import sysconfig
import time
from pathlib import Path

from rich.console import Console

from elite.planner.v1 import planner_pb2
from elite.trainer.v1 import trainer_pb2
from elite_cli.commands.up import stack_options
from elite_cli.connections import Connections
from elite_cli.endpoints import LOCK_FILE, stack_is_running
from elite_cli.errors import CliError, bad_option
from elite_cli.model_reference import read_model
from elite_cli.options import ChoiceOptions, LimitOptions
from elite_cli.output import note, output_console
from elite_cli.plan_requests import PlanOptions
from elite_cli.planning import Planned, make_plan
from elite_cli.quantities import format_duration
from elite_cli.render.plan import render_plan_response
from elite_cli.render.profile import render_profile
from elite_cli.settings import PLANNER, PROFILER, TRAINER, CliSettings
from elite_cli.stack.local_stack import LocalStack
from elite_cli.stack.process_group import termination_as_interrupt
from elite_cli.stress import run_stress_test
from elite_cli.training import TrainOptions, create_run, run_spec
from elite_cli.watch import watch_run

# What steps and evaluations together may take. Starting, measuring, reading the data and stopping
# come on top, and the whole demo is to stay below five minutes on two slow cores.
TRAINING_SECONDS = 170.0
FEWEST_STEPS = 2
MOST_STEPS = 12
# One held-out window, before and after, forward only: measured at 0.65 to 0.75 steps on CPUs.
EVALUATIONS_IN_STEPS = 0.75

# High for LoRA, because the steps are so few.
LEARNING_RATE = 5e-4
EVALUATION_WINDOWS = 1

# The library's modules. Its folders hold its tests, and packages of others, among the rest.
EXCLUDED = ("*/*",)


def run_demo(settings: CliSettings, directory: Path, model: str) -> None:
    """Runs it. Raises `CliError` when any part fails; everything is stopped then, too."""
    started = time.monotonic()
    directory = directory.expanduser().absolute()
    empty_folder(directory)
    console = output_console()
    with termination_as_interrupt():
        with LocalStack(stack_options(directory, port_base=0), note) as stack:
            with Connections(_of(stack, settings)) as connections:
                _profile_plan_train(console, connections, model)
            stack.check()
        _report_end(console, stack, time.monotonic() - started)


def empty_folder(directory: Path) -> None:
    """Makes way for a fresh demo; refuses to empty one that no earlier demo has made."""
    if stack_is_running(directory):
        raise bad_option("--directory", f"a demo is running in {directory}", "wait for its end")
    if (directory / LOCK_FILE).exists():
        shutil.rmtree(directory)
    elif directory.is_dir() and any(directory.iterdir()):
        problem = f"{directory} is not empty and not from a demo"
        raise bad_option("--directory", problem, "give a new folder")


def _of(stack: LocalStack, settings: CliSettings) -> CliSettings:
    addresses = stack.endpoints.addresses
    return CliSettings(
        profiler_address=addresses[PROFILER],
        planner_address=addresses[PLANNER],
        trainer_address=addresses[TRAINER],
        state_directory_option=stack.options.state_directory,
        verbose=settings.verbose,
    )


def _profile_plan_train(console: Console, connections: Connections, model: str) -> None:
    _heading(console, "This machine, measured")
    profile = run_stress_test(connections.profiler, quick=True)
    console.print()
    render_profile(console, profile)
    _heading(console, f"The plan, for steps of at most {format_duration(_longest_step())}")
    planned = _plan(connections, model)
    response = planned.response
    render_plan_response(console, response)
    if not response.HasField("chosen"):
        raise CliError("no tier fits this machine, so there is nothing to train")
    _heading(console, "Training on Python's standard library")
    options = train_options(response.chosen)
    spec = run_spec(options, response.chosen, None, planned.request)
    run = create_run(connections.trainer, spec, "").run
    note(f"Run {run.run_id}: {options.steps} steps over {options.data}")
    _check_outcome(watch_run(connections.trainer, run.run_id, json=False))


def _heading(console: Console, text: str) -> None:
    console.print()
    console.rule(f"[bold]{text}[/bold]", align="left")
    console.print()


def _longest_step() -> float:
    return TRAINING_SECONDS / (FEWEST_STEPS + EVALUATIONS_IN_STEPS)


def _plan(connections: Connections, model: str) -> Planned:
    """A plan whose steps leave time for a few; on a very slow machine tier 1 all the same."""
    choice = read_model(model)
    limits = LimitOptions(max_step_seconds=f"{_longest_step():.0f}")
    planned = make_plan(connections, choice, PlanOptions(limits=limits))
    if planned.response.HasField("chosen"):
        return planned
    note("This machine is too slow for that: tier 1 is planned without a limit.")
    first = ChoiceOptions(tier=1)
    return make_plan(connections, choice, PlanOptions(choice=first))


def train_options(plan: planner_pb2.Plan) -> TrainOptions:
    """As many steps as there is time for, over the modules of the standard library."""
    steps = int(TRAINING_SECONDS / max(plan.step_seconds, 0.001) - EVALUATIONS_IN_STEPS)
    return TrainOptions(
        data=sysconfig.get_path("stdlib"),
        steps=min(MOST_STEPS, max(FEWEST_STEPS, steps)),
        learning_rate=LEARNING_RATE,
        include=("*.py",),
        exclude=EXCLUDED,
        evaluation_windows=EVALUATION_WINDOWS,
        name="demo",
    )


def _check_outcome(run: trainer_pb2.Run) -> None:
    if not Path(run.adapter_path).is_dir():
        raise CliError(f"the run succeeded, but there is no adapter at {run.adapter_path!r}")


def _report_end(console: Console, stack: LocalStack, seconds: float) -> None:
    left = stack.living_processes()
    if left:
        raise CliError(f"processes are left behind: {', '.join(map(str, left))}")
    console.print(
        f"\nThe demo took {format_duration(seconds)}; no process is left. "
        f"Logs: {stack.logs_directory}",
        soft_wrap=True,
    )
