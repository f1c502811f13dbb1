"""From the planner's results to the messages of its proto."""

from __future__ import annotations

from elite.planner.v1 import planner_pb2 as pb
from elite.profiler.v1 import profiler_pb2
from services.planner import cost, memory
from services.planner.catalogue import optimizations
from services.planner.gpus import GpuCard
from services.planner.ladder import Tier
from services.planner.machine import ComputeDtype, DeviceKind, Machine
from services.planner.models import ModelShape
from services.planner.options import BasePrecision, OptimizationSet
from services.planner.search import Budget, Candidate, Resource, Verdict

DTYPES = {
    ComputeDtype.BFLOAT16: pb.DTYPE_BFLOAT16,
    ComputeDtype.FLOAT16: pb.DTYPE_FLOAT16,
    ComputeDtype.FLOAT32: pb.DTYPE_FLOAT32,
}
_DEVICE_KINDS = {
    DeviceKind.CUDA: profiler_pb2.DEVICE_KIND_CUDA,
    DeviceKind.CPU: profiler_pb2.DEVICE_KIND_CPU,
}
_RESOURCES = {
    None: pb.RESOURCE_UNSPECIFIED,
    Resource.GPU_MEMORY: pb.RESOURCE_GPU_MEMORY,
    Resource.HOST_MEMORY: pb.RESOURCE_HOST_MEMORY,
    Resource.DISK: pb.RESOURCE_DISK,
    Resource.TIME: pb.RESOURCE_TIME,
    Resource.SOFTWARE: pb.RESOURCE_SOFTWARE,
}
# LoRA's scale is alpha over rank; twice the rank is usual (arXiv 2106.09685 uses a constant).
_ALPHA_PER_RANK = 2.0


def plan_message(
    candidate: Candidate, model: ModelShape, machine: Machine, budget: Budget
) -> pb.Plan:
    """Everything the engine needs, and what the run is predicted to take."""
    tier, chosen, taken = candidate.tier, candidate.chosen, candidate.memory
    rows = optimizations()
    return pb.Plan(
        tier=tier.tier,
        context_tokens=tier.context_tokens,
        target_tokens=tier.target_tokens,
        model=model_message(model),
        lora=pb.Lora(
            rank=tier.lora_rank,
            alpha=_ALPHA_PER_RANK * tier.lora_rank,
            target_modules=[linear.name for linear in model.linears],
            parameter_count=model.lora_parameters(tier.lora_rank),
        ),
        execution=_execution(chosen, taken.loss_tile_rows),
        optimizations=[
            pb.AppliedOptimization(id=name, name=rows[name].name, exact=rows[name].exact)
            for name in chosen.ids(model)
        ],
        gpu_memory=_memory(taken.device, budget.gpu_bytes),
        host_memory=_memory(taken.host, budget.host_bytes),
        disk=_memory(taken.disk, budget.disk_bytes),
        step_seconds=candidate.cost.seconds,
        time_lines=[
            pb.TimeLine(name=name, seconds=seconds, formula_id=cost.FORMULAS[name])
            for name, seconds in candidate.cost.lines.items()
        ],
        device_kind=_DEVICE_KINDS[machine.device_kind],
        device_index=machine.device_index,
    )


def _execution(chosen: OptimizationSet, loss_tile_rows: int) -> pb.Execution:
    nf4 = chosen.base_precision is BasePrecision.NF4
    return pb.Execution(
        executor=pb.EXECUTOR_RESIDENT,
        base_precision=pb.BASE_PRECISION_NF4 if nf4 else pb.BASE_PRECISION_FULL,
        compute_dtype=DTYPES[chosen.dtype],
        checkpoint_policy=pb.CHECKPOINT_POLICY_EVERY_LAYER
        if chosen.checkpointing
        else pb.CHECKPOINT_POLICY_NONE,
        layer_inputs=pb.Store(
            placement=pb.PLACEMENT_HOST if chosen.layer_inputs_on_host else pb.PLACEMENT_DEVICE
        ),
        loss_tile_rows=loss_tile_rows,
        optimizer=pb.OPTIMIZER_KIND_ADAMW_8BIT if chosen.adamw_8bit else pb.OPTIMIZER_KIND_ADAMW,
        attention_kernel=chosen.attention_kernel,
    )


def _memory(estimate: memory.MemoryEstimate, budget_bytes: int) -> pb.MemoryEstimate:
    return pb.MemoryEstimate(
        total_bytes=estimate.total_bytes,
        lines=[
            pb.MemoryLine(name=name, bytes=size, formula_id=memory.FORMULAS[name])
            for name, size in estimate.lines.items()
        ],
        peak_phase=estimate.peak_phase,
        phases=[pb.PhaseTotal(phase=phase, bytes=size) for phase, size in estimate.phases.items()],
        headroom_bytes=max(0, budget_bytes - estimate.total_bytes),
    )


def verdict_message(verdict: Verdict, model: ModelShape) -> pb.TierVerdict:
    """The verdict on one tier."""
    tier, candidate = verdict.tier, verdict.candidate
    message = pb.TierVerdict(
        tier=tier.tier,
        context_tokens=tier.context_tokens,
        target_tokens=tier.target_tokens,
        lora_rank=tier.lora_rank,
        fits=verdict.fits,
        binding_resource=_RESOURCES[verdict.binding],
        shortfall_bytes=verdict.shortfall_bytes,
        shortfall_seconds=verdict.shortfall_seconds,
        remedy=verdict.remedy,
    )
    if candidate is not None:
        message.gpu_bytes = candidate.memory.device.total_bytes
        message.host_bytes = candidate.memory.host.total_bytes
        message.disk_bytes = candidate.memory.disk.total_bytes
        message.step_seconds = candidate.cost.seconds
        message.optimization_ids.extend(candidate.chosen.ids(model))
    return message


def budget_message(budget: Budget, machine: Machine) -> pb.Budget:
    """Safe memory less headroom."""
    return pb.Budget(
        gpu_bytes=budget.gpu_bytes,
        host_bytes=budget.host_bytes,
        disk_bytes=budget.disk_bytes,
        headroom_fraction=budget.headroom_fraction,
        gpu_safe_bytes=budget.gpu_safe_bytes,
        host_safe_bytes=budget.host_safe_bytes,
        gpu_memory_is_host_memory=budget.one_pool,
        device_name=machine.device_name,
    )


def model_message(model: ModelShape) -> pb.ModelSummary:
    """A model's identity and sizes."""
    return pb.ModelSummary(
        model_id=model.model_id,
        model_type=model.architecture.model_type,
        parameter_count=model.parameter_count,
        layer_count=model.layer_count,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        query_head_count=model.query_head_count,
        key_value_head_count=model.key_value_head_count,
        head_size=model.head_size,
        vocabulary_size=model.vocabulary_size,
        tied_embeddings=model.tied_embeddings,
        max_position_embeddings=model.max_position_embeddings,
        weights=_weights(model),
        display_name=model.display_name,
    )


def _weights(model: ModelShape) -> pb.WeightSource:
    source = model.weights
    if source.distribution:
        package = pb.PackagedWeights(distribution=source.distribution, file=source.file)
        return pb.WeightSource(package=package)
    return pb.WeightSource(hub_id=source.hub_id) if source.hub_id else pb.WeightSource()


def tier_message(tier: Tier) -> pb.Tier:
    """One row of the ladder."""
    return pb.Tier(
        tier=tier.tier,
        context_tokens=tier.context_tokens,
        target_tokens=tier.target_tokens,
        lora_rank=tier.lora_rank,
        context_multiple=tier.context_multiple,
        lines_of_code=tier.lines_of_code,
        reference_vram_bytes=tier.reference_vram_bytes,
        custom=tier.custom,
    )


def gpu_message(card: GpuCard) -> pb.Gpu:
    """One card of the table."""
    major, minor = card.compute_capability
    generation, width = card.pcie_generation, card.pcie_width
    return pb.Gpu(
        gpu_id=card.gpu_id,
        name=card.name,
        memory_bytes=card.visible_bytes,
        compute_capability=profiler_pb2.ComputeCapability(major=major, minor=minor),
        bfloat16_flops_per_second=card.bfloat16_flops_per_second,
        float16_flops_per_second=card.float16_flops_per_second,
        memory_bandwidth_bytes_per_second=card.memory_bandwidth,
        pcie=profiler_pb2.PcieLink(
            generation_current=generation,
            generation_max=generation,
            width_current=width,
            width_max=width,
        ),
        host_to_device_pinned_bytes_per_second=card.host_to_device_pinned,
        advice=card.advice,
    )


def optimization_messages() -> list[pb.Optimization]:
    """The whole catalogue."""
    return [
        pb.Optimization(
            id=name,
            name=row.name,
            description=row.description,
            exact=row.exact,
            status=f"OPTIMIZATION_STATUS_{row.status.upper()}",
            reason=row.reason,
            requirements=row.requirements,
            memory_effect=row.memory_effect,
            time_effect=row.time_effect,
        )
        for name, row in optimizations().items()
    ]
