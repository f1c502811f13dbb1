"""From the messages of the planner's proto to what its functions take."""

from __future__ import annotations

import difflib

from elite.planner.v1 import planner_pb2 as pb
from services.common.errors import ErrorReason, ServiceError, invalid_field
from services.planner.catalogue import optimizations
from services.planner.gpus import gpu_cards
from services.planner.ladder import Tier
from services.planner.machine import (
    FUSED_KERNELS,
    ComputeDtype,
    DeviceKind,
    Machine,
    hypothetical_machine,
)
from services.planner.models import ModelShape, model_by_id, model_from_config
from services.planner.options import (
    ACTIVATION_OFFLOAD,
    ADAMW_8BIT,
    CHECKPOINTING,
    FLASH_ATTENTION,
    MIXED_PRECISION,
    QLORA,
    TILED_LOSS,
    BasePrecision,
    OptimizationSet,
)
from services.planner.profiles import machine_from_profile
from services.planner.search import DEFAULT_HEADROOM, Constraints

_IDS = "optimization_ids"
_AVAILABLE = ("applied", "offered")


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
        raise _unknown("machine.hypothetical.gpu_id", wanted.gpu_id, list(gpu_cards()), "ListGpus")
    return hypothetical_machine(wanted.gpu_id, wanted.host_memory_bytes, wanted.disk_free_bytes)


def read_model(reference: pb.ModelReference) -> ModelShape:
    """The model of a request. Raises `ServiceError` naming the field that is wrong."""
    if reference.WhichOneof("source") == "model_id":
        return model_by_id(reference.model_id)
    return model_from_config(reference.config_json)


def read_constraints(message: pb.Constraints, ladder: tuple[Tier, ...]) -> Constraints:
    """The constraints of a request. Raises `ServiceError` for a tier the ladder lacks."""
    if message.tier:
        find_tier(ladder, message.tier, "constraints.tier")
    has_headroom = message.HasField("headroom_fraction")
    return Constraints(
        host_memory_bytes=message.host_memory_bytes,
        disk_bytes=message.disk_bytes,
        max_step_seconds=message.max_step_seconds,
        exact_only=message.exact_only,
        tier=message.tier,
        headroom_fraction=message.headroom_fraction if has_headroom else DEFAULT_HEADROOM,
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


def read_set(ids: list[str], machine: Machine, exact_only: bool) -> OptimizationSet:
    """The set that has exactly these optimisations on.

    Raises `ServiceError` naming the id that is unknown, not built, or impossible here.
    """
    for index, name in enumerate(ids):
        _check_id(f"{_IDS}[{index}]", name, exact_only)
    on = frozenset(ids)
    sixteen_bit = machine.dtypes[0] if MIXED_PRECISION in on else ComputeDtype.FLOAT32
    chosen = OptimizationSet(
        base_precision=BasePrecision.NF4 if QLORA in on else BasePrecision.FULL,
        dtype=sixteen_bit,
        checkpointing=CHECKPOINTING in on,
        layer_inputs_on_host=ACTIVATION_OFFLOAD in on,
        adamw_8bit=ADAMW_8BIT in on,
        tiled_loss=TILED_LOSS in on,
        attention_kernel=_kernel(FLASH_ATTENTION in on, machine),
    )
    _check_legal(chosen, ids, machine)
    return chosen


def _check_id(field: str, name: str, exact_only: bool) -> None:
    row = optimizations().get(name)
    if row is None:
        raise _unknown(field, name, list(optimizations()), "ListOptimizations")
    if row.status not in _AVAILABLE:
        raise invalid_field(field, f"{name} is {row.status}, not available", "leave it out")
    if exact_only and not row.exact:
        problem = f"{name} is lossy and constraints.exact_only is set"
        raise invalid_field(field, problem, "drop one of them")


def _kernel(flash: bool, machine: Machine) -> str:
    """Flash if it was asked for, else the best other fused kernel that works."""
    working = [name for name in FUSED_KERNELS if name in machine.attention_kernels]
    wanted = [name for name in working if (name == "sdpa_flash") == flash]
    if wanted:
        return wanted[0]
    if flash:
        problem = f"{machine.device_name} has no working flash kernel"
        fix = f"leave {FLASH_ATTENTION} out"
    else:
        problem = f"{machine.device_name} has no working fused kernel but flash"
        fix = f"add {FLASH_ATTENTION}"
    raise invalid_field(_IDS, problem, fix, reason=ErrorReason.PRECONDITION_FAILED)


def _check_legal(chosen: OptimizationSet, ids: list[str], machine: Machine) -> None:
    if chosen.dtype not in machine.dtypes:
        problem = f"fp32 compute is not supported on {machine.device_name}"
        raise invalid_field(_IDS, problem, f"add {MIXED_PRECISION}")
    if chosen.layer_inputs_on_host and not chosen.checkpointing:
        problem = f"{ACTIVATION_OFFLOAD} moves what {CHECKPOINTING} keeps"
        raise invalid_field(_at(ids, ACTIVATION_OFFLOAD), problem, f"add {CHECKPOINTING}")
    on_card = machine.device_kind is DeviceKind.CUDA and not machine.shared_memory
    if chosen.layer_inputs_on_host and not on_card:
        problem = f"{machine.device_name} computes in host memory already"
        raise invalid_field(_at(ids, ACTIVATION_OFFLOAD), problem, "leave it out")
    needs_bitsandbytes = [name for name in (QLORA, ADAMW_8BIT) if name in ids]
    if needs_bitsandbytes and not machine.has_bitsandbytes:
        problem = f"{needs_bitsandbytes[0]} needs bitsandbytes, which the profile does not list"
        raise invalid_field(
            _at(ids, needs_bitsandbytes[0]), problem, "install it and profile again"
        )


def _at(ids: list[str], name: str) -> str:
    return f"{_IDS}[{ids.index(name)}]"


def _unknown(field: str, name: str, known: list[str], listing: str) -> ServiceError:
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return invalid_field(
        field, f"{name!r} is unknown", f"{hint}{listing} has all ids", reason=ErrorReason.NOT_FOUND
    )
