"""From the messages of the planner's proto to what its functions take."""

from __future__ import annotations

import difflib

from elite.planner.v1 import planner_pb2 as pb
from services.common.errors import ErrorReason, ServiceError, invalid_field
from services.planner.adapters import Adapters
from services.planner.budgets import DEFAULT_HEADROOM, Constraints
from services.planner.catalogue import optimizations
from services.planner.gpus import GpuCard, gpu_cards
from services.planner.grids import OPT_IN
from services.planner.ladder import Tier
from services.planner.machine import ComputeDtype, Machine, hypothetical_machine
from services.planner.models import ModelShape, model_by_id, model_from_config
from services.planner.profiles import machine_from_profile
from services.planner.schedule import Schedule, Stage

# So much of a name that a refusal shows: a longer one would push out the fix.
_MOST_OF_A_NAME = 80


def read_machine(machine: pb.Machine, constraints: pb.Constraints) -> Machine:
    """The machine of a request. Raises `ServiceError` naming what is wrong with it."""
    if machine.WhichOneof("source") == "profile":
        index = constraints.device_index if constraints.HasField("device_index") else None
        return machine_from_profile(machine.profile, index)
    wanted = machine.hypothetical
    if constraints.HasField("device_index") and constraints.device_index:
        problem = f"is {constraints.device_index}; a hypothetical machine has one device"
        raise invalid_field("constraints.device_index", problem, "leave it out")
    if wanted.gpu_id not in gpu_cards():
        raise unknown("machine.hypothetical.gpu_id", wanted.gpu_id, list(gpu_cards()), "ListGpus")
    return hypothetical_machine(wanted.gpu_id, wanted.host_memory_bytes, wanted.disk_free_bytes)


def read_cards(request: pb.WhatIfRequest) -> list[GpuCard]:
    """The cards of a request, all of the table when it names none. Raises `ServiceError`."""
    if request.constraints.device_index:
        problem = "picks a device of a profile, and every card here is alone in its host"
        raise invalid_field("constraints.device_index", problem, "leave it out")
    cards = gpu_cards()
    for index, gpu_id in enumerate(request.gpu_ids):
        if gpu_id not in cards:
            raise unknown(f"gpu_ids[{index}]", gpu_id, list(cards), "ListGpus")
    return [cards[gpu_id] for gpu_id in dict.fromkeys(request.gpu_ids)] or list(cards.values())


def machine_with(card: GpuCard, request: pb.WhatIfRequest) -> Machine:
    """The request's host with this card in it."""
    return hypothetical_machine(card.gpu_id, request.host_memory_bytes, request.disk_free_bytes)


def read_model(reference: pb.ModelReference) -> ModelShape:
    """The model of a request. Raises `ServiceError` naming the field that is wrong."""
    if reference.WhichOneof("source") == "model_id":
        return model_by_id(reference.model_id)
    return model_from_config(reference.config_json)


def read_constraints(
    message: pb.Constraints, ladder: tuple[Tier, ...], schedule: Schedule | None = None
) -> Constraints:
    """The constraints of a request. Raises `ServiceError` naming the one that cannot be."""
    if message.tier:
        find_tier(ladder, message.tier, "constraints.tier")
    for index, name in enumerate(message.allowed_lossy_ids):
        if name not in OPT_IN:
            raise unknown(f"constraints.allowed_lossy_ids[{index}]", name, list(OPT_IN), "")
    lossy = [name for name, row in optimizations().items() if not row.exact]
    for index, name in enumerate(message.forbidden_lossy_ids):
        if name not in lossy:
            raise unknown(f"constraints.forbidden_lossy_ids[{index}]", name, lossy, "")
        if name in message.allowed_lossy_ids:
            problem = f"names {name}, which constraints.allowed_lossy_ids names too"
            raise invalid_field("constraints.forbidden_lossy_ids", problem, "drop one of them")
    if message.exact_only and message.allowed_lossy_ids:
        problem = "names lossy optimisations and constraints.exact_only is set"
        raise invalid_field("constraints.allowed_lossy_ids", problem, "drop one of them")
    if message.max_run_seconds and schedule is None:
        problem = "limits the whole run, and the request has no schedule"
        raise invalid_field("constraints.max_run_seconds", problem, "give schedule.steps or epochs")
    has_headroom = message.HasField("headroom_fraction")
    return Constraints(
        gpu_memory_bytes=message.gpu_memory_bytes,
        host_memory_bytes=message.host_memory_bytes,
        disk_bytes=message.disk_bytes,
        max_step_seconds=message.max_step_seconds,
        exact_only=message.exact_only,
        tier=message.tier,
        headroom_fraction=message.headroom_fraction if has_headroom else DEFAULT_HEADROOM,
        max_run_seconds=message.max_run_seconds,
        schedule=schedule,
        allowed=frozenset(message.allowed_lossy_ids),
        forbidden=frozenset(message.forbidden_lossy_ids),
    )


def read_adapters(message: pb.Adapters, model: ModelShape, machine: Machine) -> Adapters:
    """The adapters of a request. Raises `ServiceError` naming the module or dtype that is wrong."""
    names = [linear.name for linear in model.linears]
    for index, name in enumerate(message.target_modules):
        if name not in names:
            raise unknown(f"adapters.target_modules[{index}]", name, names, "")
    sixteen_bit = {pb.DTYPE_BFLOAT16: ComputeDtype.BFLOAT16, pb.DTYPE_FLOAT16: ComputeDtype.FLOAT16}
    wanted = sixteen_bit.get(message.dtype)
    if wanted is not None and wanted not in machine.dtypes:
        problem = f"is {wanted.value}, in which {machine.device_name} does not compute"
        raise invalid_field("adapters.dtype", problem, "leave it out, or give DTYPE_FLOAT32")
    return Adapters(
        target_modules=tuple(message.target_modules),
        float32=message.dtype == pb.DTYPE_FLOAT32,
        dropout=message.dropout,
        rank=message.rank,
    )


def read_schedule(message: pb.Schedule, ladder: tuple[Tier, ...]) -> Schedule:
    """The schedule of a request. Raises `ServiceError` for lengths that contradict or lack."""
    if message.steps and message.epochs:
        problem = "are both given: steps and epochs each say how long the run is"
        raise invalid_field("schedule", problem, "drop one of them")
    if not message.steps and not message.epochs:
        raise invalid_field("schedule.steps", "is missing", "give steps, or epochs")
    if message.epochs and not message.dataset_tokens:
        problem = "is missing, and schedule.epochs counts passes over the data"
        raise invalid_field("schedule.dataset_tokens", problem, "give the tokens of the data")
    stages = tuple(
        Stage(find_tier(ladder, stage.tier, f"schedule.curriculum[{index}].tier"), stage.steps)
        for index, stage in enumerate(message.curriculum)
    )
    return Schedule(
        steps=message.steps,
        epochs=message.epochs,
        dataset_tokens=message.dataset_tokens,
        accumulation=message.gradient_accumulation_steps or 1,
        curriculum=stages,
    )


def check_objective(objective: pb.Objective, constraints: Constraints) -> None:
    """Raises `ServiceError` when the fastest set is asked for without saying at which tier."""
    if objective == pb.OBJECTIVE_FASTEST and not constraints.tier:
        problem = "is missing, and OBJECTIVE_FASTEST compares sets at one tier"
        raise invalid_field("constraints.tier", problem, "give a tier from ListTiers")


def find_tier(ladder: tuple[Tier, ...], number: int, field: str) -> Tier:
    """A tier by its number. Raises `ServiceError` naming `field` and the tiers there are."""
    for tier in ladder:
        if tier.tier == number:
            return tier
    numbers = ", ".join(str(tier.tier) for tier in ladder)
    raise invalid_field(field, f"is {number}, which is not a tier", f"the ladder has {numbers}")


def unknown(field: str, name: str, known: list[str], listing: str) -> ServiceError:
    """The error for a name that is not among those known, with close ones."""
    name = name[:_MOST_OF_A_NAME]
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    where = f"{listing} has all ids" if listing else f"one of {', '.join(known)}"
    problem = f"{name!r} is unknown"
    return invalid_field(field, problem, f"{hint}{where}", reason=ErrorReason.NOT_FOUND)
