"""Sets of a request: by the ids of what is on, or setting by setting."""

from __future__ import annotations

from elite.planner.v1 import planner_pb2 as pb
from services.common.errors import ErrorReason, ServiceError, invalid_field
from services.planner import options as o
from services.planner.attention_kernels import FUSED_KERNELS, kernels_for
from services.planner.catalogue import optimizations
from services.planner.machine import ComputeDtype, Machine
from services.planner.memory import Sizing
from services.planner.models import ModelShape
from services.planner.options import BasePrecision, Codec, Executor, OptimizationSet, Place, Policy
from services.planner.requests import unknown

_IDS = "optimization_ids"
_AVAILABLE = ("applied", "offered")
_CODECS = {pb.CODEC_UNSPECIFIED: Codec.EXACT, pb.CODEC_EXACT: Codec.EXACT,
           pb.CODEC_INT8: Codec.INT8, pb.CODEC_NF4: Codec.NF4}  # fmt: skip
_POLICIES = {
    pb.CHECKPOINT_POLICY_NONE: Policy.KEEP_ALL,
    pb.CHECKPOINT_POLICY_EVERY_LAYER: Policy.EVERY_LAYER,
    pb.CHECKPOINT_POLICY_SELECTIVE: Policy.SELECTIVE,
}
_DTYPES = {
    pb.DTYPE_BFLOAT16: ComputeDtype.BFLOAT16,
    pb.DTYPE_FLOAT16: ComputeDtype.FLOAT16,
    pb.DTYPE_FLOAT32: ComputeDtype.FLOAT32,
}
# Layers between two kept inputs when only the id is given.
_SQRT_INTERVAL = 4


def read_chosen(
    request: pb.EstimateRequest, model: ModelShape, machine: Machine
) -> tuple[OptimizationSet, Sizing]:
    """The set of a request, and the sizes it gives. Raises `ServiceError` as the two below do."""
    exact_only, ids = request.constraints.exact_only, list(request.optimization_ids)
    if not request.HasField("execution"):
        return read_set(ids, model, machine, exact_only=exact_only), Sizing()
    if ids:
        problem = "names optimisations, and execution says everything setting by setting"
        raise invalid_field(_IDS, problem, "drop one of them")
    return read_execution(request.execution, model, machine, exact_only=exact_only)


def read_set(
    ids: list[str], model: ModelShape, machine: Machine, *, exact_only: bool
) -> OptimizationSet:
    """The set that has exactly these optimisations on.

    Raises `ServiceError` naming the id that is unknown, declined, or impossible here.
    """
    for index, name in enumerate(ids):
        _check_id(f"{_IDS}[{index}]", name, exact_only=exact_only)
    chosen = _from_ids(frozenset(ids), model, machine)
    refused = o.refusal(chosen, machine)
    if refused:
        name, problem, fix = refused
        raise invalid_field(f"{_IDS}[{ids.index(name)}]" if name in ids else _IDS, problem, fix)
    return chosen


def read_execution(
    execution: pb.Execution, model: ModelShape, machine: Machine, *, exact_only: bool
) -> tuple[OptimizationSet, Sizing]:
    """The set and the sizes an `Execution` describes, setting by setting.

    Raises `ServiceError` naming `execution` and what cannot be.
    """
    streaming = execution.streaming
    on_device = int(Place.DEVICE)
    outputs = streaming.attention_outputs.placement
    if execution.executor == pb.EXECUTOR_RESIDENT:
        keeps = execution.checkpoint_policy == pb.CHECKPOINT_POLICY_SELECTIVE
        outputs = pb.PLACEMENT_DEVICE if keeps else pb.PLACEMENT_UNSPECIFIED
    chosen = OptimizationSet(
        base_precision=BasePrecision.NF4
        if execution.base_precision == pb.BASE_PRECISION_NF4
        else BasePrecision.FULL,
        dtype=_DTYPES[execution.compute_dtype],
        attention_kernel=_checked_kernel(execution.attention_kernel, model, machine),
        executor=Executor.STREAMING
        if execution.executor == pb.EXECUTOR_STREAMING
        else Executor.RESIDENT,
        policy=_POLICIES[execution.checkpoint_policy],
        layer_inputs=Place(execution.layer_inputs.placement or on_device),
        layer_input_interval=execution.layer_input_interval or 1,
        codec=_CODECS[execution.layer_inputs.codec],
        attention_outputs=Place(outputs),
        kept_keys=Place(streaming.kept_keys.placement),
        hidden_gradients=Place(streaming.hidden_gradients.placement or on_device),
        key_values=Place(streaming.key_values.placement or on_device),
        weights=Place(execution.weight_placement or on_device),
        key_value_heads=_checked_heads(execution.key_value_head_count, model),
        adamw_8bit=execution.optimizer == pb.OPTIMIZER_KIND_ADAMW_8BIT,
        tiled_loss=True,
    )
    refused = o.refusal(chosen, machine)
    if refused:
        raise invalid_field("execution", refused[1], refused[2])
    if exact_only and not chosen.exact:
        problem = f"has {', '.join(chosen.lossy_ids)}, and constraints.exact_only is set"
        raise invalid_field("execution", problem, "drop one of them")
    if chosen.streaming and not streaming.chunk_tokens:
        problem = "is missing, and the streaming executor works in chunks"
        raise invalid_field("execution.streaming.chunk_tokens", problem, "give tokens, as 4096")
    sizing = Sizing(chunk_tokens=streaming.chunk_tokens, tile_rows=execution.loss_tile_rows)
    return chosen, sizing


def _from_ids(on: frozenset[str], model: ModelShape, machine: Machine) -> OptimizationSet:
    sixteen_bit = machine.dtypes[0] if o.MIXED_PRECISION in on else ComputeDtype.FLOAT32
    selective = o.SELECTIVE_CHECKPOINTING in on
    policy = Policy.EVERY_LAYER if o.CHECKPOINTING in on else Policy.KEEP_ALL
    inputs = Place.DEVICE
    if o.DISK_OFFLOAD in on:
        inputs = Place.DISK
    elif o.ACTIVATION_OFFLOAD in on:
        inputs = Place.HOST
    codec = Codec.NF4 if o.ACTIVATIONS_4BIT in on else Codec.EXACT
    heads = _conversion(model) if o.GROUPED_QUERY_CONVERSION in on else 0
    outputs = inputs if selective else Place.NOWHERE
    key_values = Place.HOST if o.PAGED_ATTENTION in on else Place.DEVICE
    streams, own_memory = o.STREAMING in on, machine.has_own_memory
    keys = o.kept_keys_place(
        outputs, key_values, model.query_head_count, heads or model.key_value_head_count
    )
    hidden = o.hidden_states_place(inputs, has_own_memory=own_memory)
    return OptimizationSet(
        base_precision=BasePrecision.NF4 if o.QLORA in on else BasePrecision.FULL,
        dtype=sixteen_bit,
        attention_kernel=_kernel(o.FLASH_ATTENTION in on, model, machine),
        executor=Executor.STREAMING if o.STREAMING in on else Executor.RESIDENT,
        policy=Policy.SELECTIVE if selective else policy,
        layer_inputs=inputs,
        layer_input_interval=_SQRT_INTERVAL if o.SQRT_CHECKPOINTING in on else 1,
        codec=Codec.INT8 if o.ACTIVATIONS_8BIT in on else codec,
        attention_outputs=outputs,
        kept_keys=keys if streams else Place.NOWHERE,
        hidden_gradients=hidden if streams else Place.DEVICE,
        key_values=key_values,
        weights=Place.HOST if o.WEIGHT_STREAMING in on else Place.DEVICE,
        key_value_heads=heads,
        adamw_8bit=o.ADAMW_8BIT in on,
        tiled_loss=o.TILED_LOSS in on,
    )


def _conversion(model: ModelShape) -> int:
    heads = model.convertible_key_value_heads
    if not heads:
        problem = (
            f"{o.GROUPED_QUERY_CONVERSION} pools the key and value heads of a model that has as "
            f"many as query heads; {model.display_name} has {model.key_value_head_count} of "
            f"{model.query_head_count}"
        )
        raise invalid_field(_IDS, problem, "leave it out")
    return heads


def _checked_heads(heads: int, model: ModelShape) -> int:
    if heads and (heads > model.key_value_head_count or model.key_value_head_count % heads):
        problem = f"is {heads}, which does not divide {model.key_value_head_count}"
        raise invalid_field(
            "execution.key_value_head_count", problem, "0 leaves the model as it is"
        )
    return heads if heads != model.key_value_head_count else 0


def _checked_kernel(name: str, model: ModelShape, machine: Machine) -> str:
    working = kernels_for(machine.attention_kernels, model.head_size)
    if name not in working:
        heads = f"for heads of {model.head_size} on {machine.device_name}"
        problem = f"is {name!r}, which does not work {heads}"
        fix = f"one of {', '.join(working) or 'none: run `elite profile --stress`'}"
        raise invalid_field("execution.attention_kernel", problem, fix)
    return name


def _check_id(field: str, name: str, *, exact_only: bool) -> None:
    row = optimizations().get(name)
    if row is None:
        raise unknown(field, name, list(optimizations()), "ListOptimizations")
    if row.status not in _AVAILABLE:
        raise invalid_field(field, f"{name} is {row.status}, not available", "leave it out")
    if exact_only and not row.exact:
        problem = f"{name} is lossy and constraints.exact_only is set"
        raise invalid_field(field, problem, "drop one of them")


def _kernel(flash: bool, model: ModelShape, machine: Machine) -> str:
    """The fastest flash kernel if that was asked for, else the other fused one."""
    working = kernels_for(machine.attention_kernels, model.head_size)
    wanted = [name for name in working if FUSED_KERNELS[name].shares_keys == flash]
    if wanted:
        return wanted[0]
    raise _no_kernel(flash, machine)


def _no_kernel(flash: bool, machine: Machine) -> ServiceError:
    if flash:
        problem = f"{machine.device_name} has no working flash kernel"
        fix = f"leave {o.FLASH_ATTENTION} out"
    else:
        problem = f"{machine.device_name} has no working fused kernel but flash"
        fix = f"add {o.FLASH_ATTENTION}"
    return invalid_field(_IDS, problem, fix, reason=ErrorReason.PRECONDITION_FAILED)
