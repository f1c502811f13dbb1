"""From options to a run: the plan, the specification, CreateRun."""

from __future__ import annotations

import json
import math
import uuid
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.json_format import ParseDict, ParseError

from elite.planner.v1 import planner_pb2
from elite.trainer.v1 import trainer_pb2
from elite_cli.client import ServiceClient
from elite_cli.errors import bad_option
from elite_cli.quantities import LONGEST_RUN_SECONDS, parse_duration


@dataclass(frozen=True)
class TrainOptions:
    """What to train on and how. None: the trainer's default, as the proto says."""

    data: str
    steps: int
    learning_rate: float | None = None
    warmup_steps: int = 0
    accumulate: int = 1
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    held_out: float | None = None
    evaluation_windows: int | None = None
    checkpoint_every: int = 0
    seed: int = 0
    name: str = ""
    checkpoint_every_seconds: int | None = None
    priority: int = 0
    max_run_seconds: int = 0


def run_spec(
    options: TrainOptions,
    plan: planner_pb2.Plan,
    model_folder: Path | None,
    planned_by: planner_pb2.PlanRequest | None = None,
) -> trainer_pb2.RunSpec:
    """The specification of a run. Local paths become absolute.

    planned_by: what the plan is the answer to; with it a worker can plan again.
    """
    training = trainer_pb2.TrainingSettings(
        steps=options.steps,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps,
        gradient_accumulation_steps=options.accumulate,
        seed=options.seed,
        checkpoint_every_steps=options.checkpoint_every,
        checkpoint_every_seconds=options.checkpoint_every_seconds,
        evaluation_windows=options.evaluation_windows,
    )
    data = trainer_pb2.DataSource(
        path=str(Path(options.data).expanduser().absolute()) if options.data else "",
        include_globs=options.include,
        exclude_globs=options.exclude,
        held_out_fraction=options.held_out,
    )
    return trainer_pb2.RunSpec(
        display_name=options.name,
        plan=plan,
        model_path=str(model_folder or ""),
        data=data,
        training=training,
        planned_by=planned_by,
        priority=options.priority,
        max_run_seconds=options.max_run_seconds,
    )


def run_limit(stop_after: str) -> int:
    """Whole seconds of --stop-after; 0 without it. Raises `CliError`."""
    if not stop_after:
        return 0
    return math.ceil(parse_duration(stop_after, "--stop-after", LONGEST_RUN_SECONDS))


def create_run(
    trainer: ServiceClient, spec: trainer_pb2.RunSpec, request_id: str
) -> trainer_pb2.CreateRunResponse:
    """Asks for the run; an id is made up when none is given. Raises `CallError`."""
    request = trainer_pb2.CreateRunRequest(request_id=request_id or uuid.uuid4().hex, spec=spec)
    response: trainer_pb2.CreateRunResponse = trainer.call("CreateRun", request)
    return response


def read_plan(path: Path) -> planner_pb2.Plan:
    """A plan from a file: what `elite plan --json` printed, or one Plan of its own.

    Raises `CliError` naming --plan.
    """
    fix = "give a file made with `elite plan --json`"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        is_response = isinstance(found, dict) and "tiers" in found
        content = found.get("chosen") if is_response else found
        if content is None:
            raise bad_option("--plan", f"in {path} nothing fits", "make a plan that fits")
        return ParseDict(content, planner_pb2.Plan())
    except OSError as error:
        raise bad_option("--plan", f"cannot read {path}: {error.strerror}", fix) from error
    except (ValueError, ParseError) as error:
        raise bad_option("--plan", f"{path} holds no plan ({error})", fix) from error
