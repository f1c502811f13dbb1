"""From the planner's results to the messages of its proto."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial

from elite.planner.v1 import planner_pb2 as pb
from elite.profiler.v1 import profiler_pb2
from services.planner import cost, memory
from services.planner.adapters import Adapters
from services.planner.budgets import Budget
from services.planner.calibration import UNCALIBRATED, Correction
from services.planner.catalogue import optimizations
from services.planner.evaluation import Candidate
from services.planner.explanation import Derivation
from services.planner.gpus import GpuCard
from services.planner.ladder import Tier
from services.planner.machine import ComputeDtype, DeviceKind, Machine
from services.planner.models import ModelShape
from services.planner.options import (
    BasePrecision,
    Codec,
    OptimizationSet,
    Place,
    Policy,
)
from services.planner.remedies import Remedy, Resource
from services.planner.schedule import RunCost, start_seconds
from services.planner.verdicts import Verdict

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
# The longest text of a field, as planner.proto has it.
_LONGEST_TEXT = 4096
_CODECS = {Codec.EXACT: pb.CODEC_EXACT, Codec.INT8: pb.CODEC_INT8, Codec.NF4: pb.CODEC_NF4}
_PLACES = {
    Place.NOWHERE: pb.PLACEMENT_UNSPECIFIED,
    Place.DEVICE: pb.PLACEMENT_DEVICE,
    Place.HOST: pb.PLACEMENT_HOST,
    Place.DISK: pb.PLACEMENT_DISK,
}
_POLICIES = {
    Policy.KEEP_ALL: pb.CHECKPOINT_POLICY_NONE,
    Policy.EVERY_LAYER: pb.CHECKPOINT_POLICY_EVERY_LAYER,
    Policy.SELECTIVE: pb.CHECKPOINT_POLICY_SELECTIVE,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a plan is told from, beside its candidate."""

    model: ModelShape
    machine: Machine
    budget: Budget
    adapters: Adapters
    correction: Correction = UNCALIBRATED
    run: RunCost | None = None
    derivations: tuple[Derivation, ...] = ()


def plan_message(candidate: Candidate, answer: Answer) -> pb.Plan:
    """Everything the engine needs, and what the run is predicted to take."""
    tier, chosen, taken = candidate.tier, candidate.chosen, candidate.memory
    model, machine, budget = answer.model, answer.machine, answer.budget
    formulas = partial(memory.formula_ids, streaming=chosen.streaming)
    message = pb.Plan(
        tier=tier.tier,
        context_tokens=tier.context_tokens,
        target_tokens=tier.target_tokens,
        model=model_message(model),
        lora=_lora(tier, model, answer.adapters),
        execution=_execution(chosen, taken),
        optimizations=_applied(chosen.ids(model)),
        gpu_memory=_memory(taken.device, budget.gpu_bytes, formulas("gpu")),
        host_memory=_memory(taken.host, budget.host_bytes, formulas("host")),
        disk=_memory(taken.disk, budget.disk_bytes, formulas("disk")),
        step_seconds=candidate.cost.seconds,
        step_seconds_low=candidate.cost.low,
        step_seconds_high=candidate.cost.high,
        time_lines=[
            pb.TimeLine(name=name, seconds=seconds, formula_id=cost.FORMULAS[name])
            for name, seconds in candidate.cost.lines.items()
            if seconds > 0
        ],
        start_seconds=start_seconds(model, candidate, machine),
        disk_written_bytes_per_step=int(candidate.cost.disk_written_bytes),
        power_watts=machine.power_watts,
        device_kind=_DEVICE_KINDS[machine.device_kind],
        device_index=machine.device_index,
        derivations=[_derivation(one) for one in answer.derivations],
        planned_on=pb.PlannedOn(
            device_name=machine.device_name,
            driver_version=machine.driver_version,
            torch_version=machine.torch_version,
        ),
    )
    if answer.run is not None:
        message.run.CopyFrom(_run_cost(answer.run))
    learned = answer.correction
    if learned.memory_runs or learned.time_runs:
        message.calibration.CopyFrom(
            pb.Calibration(
                memory_run_count=learned.memory_runs, time_run_count=learned.time_runs,
                memory_factor=learned.memory_factor, time_factor=learned.time_factor,
            )
        )  # fmt: skip
    return message


def _lora(tier: Tier, model: ModelShape, adapters: Adapters) -> pb.Lora:
    rank = adapters.rank or tier.lora_rank
    targets = [linear for linear in model.linears if adapters.targets(linear.name)]
    width = sum(linear.inputs + linear.outputs for linear in targets)
    return pb.Lora(
        rank=rank,
        alpha=_ALPHA_PER_RANK * rank,
        target_modules=[linear.name for linear in targets],
        parameter_count=model.layer_count * rank * width,
        dtype=pb.DTYPE_FLOAT32 if adapters.float32 else pb.DTYPE_UNSPECIFIED,
        dropout=adapters.dropout,
    )


@cache
def _applied(ids: tuple[str, ...]) -> tuple[pb.AppliedOptimization, ...]:
    rows = optimizations()
    return tuple(
        pb.AppliedOptimization(id=name, name=rows[name].name, exact=rows[name].exact)
        for name in ids
    )


def _execution(chosen: OptimizationSet, taken: memory.RunMemory) -> pb.Execution:
    nf4 = chosen.base_precision is BasePrecision.NF4
    streaming = _streaming(chosen, taken) if chosen.streaming else None
    inputs = pb.Store(placement=_PLACES[chosen.layer_inputs], codec=_CODECS[chosen.codec])
    return pb.Execution(
        executor=pb.EXECUTOR_STREAMING if chosen.streaming else pb.EXECUTOR_RESIDENT,
        base_precision=pb.BASE_PRECISION_NF4 if nf4 else pb.BASE_PRECISION_FULL,
        compute_dtype=DTYPES[chosen.dtype],
        checkpoint_policy=_POLICIES[chosen.policy],
        layer_inputs=inputs if chosen.checkpointing else None,
        layer_input_interval=chosen.layer_input_interval,
        loss_tile_rows=taken.loss_tile_rows,
        optimizer=pb.OPTIMIZER_KIND_ADAMW_8BIT if chosen.adamw_8bit else pb.OPTIMIZER_KIND_ADAMW,
        attention_kernel=chosen.attention_kernel,
        weight_placement=_PLACES[chosen.weights],
        key_value_head_count=chosen.key_value_heads,
        streaming=streaming,
    )


def _streaming(chosen: OptimizationSet, taken: memory.RunMemory) -> pb.Streaming:
    def exact(place: Place) -> pb.Store:
        """A store whose pages are as they were computed."""
        return pb.Store(placement=_PLACES[place], codec=pb.CODEC_EXACT)

    return pb.Streaming(
        chunk_tokens=taken.chunk_tokens,
        page_tokens=taken.chunk_tokens,
        key_values=exact(chosen.key_values),
        attention_outputs=exact(chosen.attention_outputs),
        kept_keys=exact(chosen.kept_keys),
        hidden_gradients=exact(chosen.hidden_gradients),
    )


def _run_cost(run: RunCost) -> pb.RunCost:
    return pb.RunCost(
        steps=run.steps,
        seconds=run.seconds,
        seconds_low=run.low,
        seconds_high=run.high,
        energy_joules=run.energy_joules,
        disk_written_bytes=run.disk_written_bytes,
        trained_tokens=run.trained_tokens,
        stages=[
            pb.RunStage(
                tier=stage.tier, steps=stage.steps, step_seconds=stage.step_seconds,
                seconds=stage.seconds,
            )
            for stage in run.stages
        ],
    )  # fmt: skip


def _derivation(derivation: Derivation) -> pb.Derivation:
    return pb.Derivation(
        budget=derivation.budget,
        line=derivation.line,
        formula_id=derivation.formula_id,
        expression=_clipped(derivation.expression),
        with_numbers=_clipped(derivation.with_numbers),
        value=derivation.value,
    )


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."


def _memory(
    estimate: memory.MemoryEstimate, budget_bytes: int, formulas: Mapping[str, str]
) -> pb.MemoryEstimate:
    return pb.MemoryEstimate(
        total_bytes=estimate.total_bytes,
        lines=[
            pb.MemoryLine(name=name, bytes=size, formula_id=formulas[name])
            for name, size in estimate.lines.items()
        ],
        peak_phase=estimate.peak_phase,
        phases=[pb.PhaseTotal(phase=phase, bytes=size) for phase, size in estimate.phases.items()],
        headroom_bytes=max(0, budget_bytes - estimate.total_bytes),
    )


def verdict_message(
    verdict: Verdict, model: ModelShape, run_seconds: float = 0.0
) -> pb.TierVerdict:
    """The verdict on one tier."""
    tier, totals = verdict.tier, verdict.totals
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
        remedies=[_remedy(remedy) for remedy in verdict.remedies],
        run_seconds=run_seconds,
    )
    if totals is not None:
        message.gpu_bytes = totals.device_bytes
        message.host_bytes = totals.host_bytes
        message.disk_bytes = totals.disk_bytes
        message.step_seconds = totals.seconds
        message.step_seconds_low = totals.low
        message.step_seconds_high = totals.high
        message.optimization_ids.extend(totals.chosen.ids(model))
    return message


def _remedy(remedy: Remedy) -> pb.Remedy:
    return pb.Remedy(
        text=remedy.text,
        resource=_RESOURCES[remedy.resource],
        bytes=remedy.bytes,
        seconds=remedy.seconds,
        gpu_id=remedy.gpu_id,
        optimization_id=remedy.optimization_id,
    )


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
        power_limit_watts=card.power_limit_watts,
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
