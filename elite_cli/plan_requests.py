"""From planning options, as written on the command line, to parts of the planner's requests."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from elite.planner.v1 import planner_pb2
from elite_cli.errors import bad_option
from elite_cli.model_reference import ModelChoice
from elite_cli.options import (
    AdapterDtype,
    AdapterOptions,
    ChoiceOptions,
    LimitOptions,
    MachineOptions,
    ObjectiveName,
    ScheduleOptions,
)
from elite_cli.quantities import LONGEST_RUN_SECONDS, parse_duration, parse_size

OBJECTIVES = {
    ObjectiveName.MAX_CONTEXT: planner_pb2.OBJECTIVE_MAX_CONTEXT,
    ObjectiveName.FASTEST: planner_pb2.OBJECTIVE_FASTEST,
}
ALL_CARDS = "all"
_STAGE = re.compile(r"(?P<tier>[0-9]+):(?P<steps>[0-9]+)")


@dataclass(frozen=True)
class PlanOptions:
    """The planning options of a command line, sizes and durations still as written."""

    machine: MachineOptions = field(default_factory=MachineOptions)
    limits: LimitOptions = field(default_factory=LimitOptions)
    choice: ChoiceOptions = field(default_factory=ChoiceOptions)
    adapters: AdapterOptions = field(default_factory=AdapterOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    explain: bool = False


def model_reference(model: ModelChoice) -> planner_pb2.ModelReference:
    """The model as the planner's requests name it."""
    if model.config_json:
        return planner_pb2.ModelReference(config_json=model.config_json)
    return planner_pb2.ModelReference(model_id=model.model_id)


def constraints(options: PlanOptions, *, given_host: bool) -> planner_pb2.Constraints:
    """What the plan must keep to. Raises `CliError` naming the option that is wrong.

    given_host: --host-ram and --disk describe a machine and limit nothing.
    """
    machine, limits, choice = options.machine, options.limits, options.choice
    message = planner_pb2.Constraints(
        exact_only=choice.exact_only,
        tier=choice.tier or 0,
        allowed_lossy_ids=choice.allow or (),
        forbidden_lossy_ids=choice.forbid or (),
        gpu_memory_bytes=size(machine.gpu_ram, "--gpu-ram"),
    )
    if limits.max_step_seconds:
        message.max_step_seconds = parse_duration(limits.max_step_seconds, "--max-step-seconds")
    if limits.max_run_time:
        message.max_run_seconds = parse_duration(
            limits.max_run_time, "--max-run-time", LONGEST_RUN_SECONDS
        )
    if machine.headroom is not None:
        message.headroom_fraction = machine.headroom
    if machine.device is not None:
        message.device_index = machine.device
    if not given_host:
        message.host_memory_bytes = size(machine.host_ram, "--host-ram")
        message.disk_bytes = size(machine.disk, "--disk")
    return message


def size(text: str, option: str) -> int:
    """Bytes of an option that may be left out: 0 then."""
    return parse_size(text, option) if text else 0


def adapters(options: AdapterOptions) -> planner_pb2.Adapters | None:
    """What is trained; None where nothing was asked for. Raises `CliError`."""
    if options == AdapterOptions():
        return None
    float32 = options.adapter_dtype is AdapterDtype.FLOAT32
    return planner_pb2.Adapters(
        target_modules=names(options.target_modules, "--target-modules"),
        dtype=planner_pb2.DTYPE_FLOAT32 if float32 else planner_pb2.DTYPE_UNSPECIFIED,
        dropout=options.dropout,
        rank=options.rank or 0,
    )


def names(text: str, option: str) -> list[str]:
    """The names of "a,b"; none of "". Raises `CliError` for an empty one between commas."""
    found = [part.strip() for part in text.split(",")] if text else []
    if not all(found):
        raise bad_option(option, f"{text!r} has an empty name", "give names with commas between")
    return found


def schedule(options: ScheduleOptions) -> planner_pb2.Schedule | None:
    """How long the run is; None where nothing was said. Raises `CliError` for a bad --stage."""
    message = planner_pb2.Schedule(
        steps=options.steps or 0,
        epochs=options.epochs or 0.0,
        dataset_tokens=options.dataset_tokens or 0,
        curriculum=[_stage(text) for text in options.stage or ()],
    )
    # One window a step is the default, and says nothing of how long the run is.
    if options.accumulate > 1:
        message.gradient_accumulation_steps = options.accumulate
    return message if message.ByteSize() else None


def _stage(text: str) -> planner_pb2.CurriculumStage:
    match = _STAGE.fullmatch(text.strip())
    if match is None:
        raise bad_option("--stage", f"{text!r} is not TIER:STEPS", "give it as in 5:200")
    tier, steps = int(match["tier"]), int(match["steps"])
    if not 0 < tier < 2**32 or not 0 < steps < 2**63:
        raise bad_option("--stage", f"{text!r} is out of range", "give it as in 5:200")
    return planner_pb2.CurriculumStage(tier=tier, steps=steps)


def compared_cards(text: str) -> list[str]:
    """Card ids of --compare; none stands for all of the table. Raises `CliError`."""
    if not text.strip():
        raise bad_option("--compare", "is empty", f"give ids from `elite gpus`, or {ALL_CARDS}")
    return [] if text.strip().lower() == ALL_CARDS else names(text, "--compare")
