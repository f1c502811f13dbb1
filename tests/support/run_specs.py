"""Requests that the trainer accepts, for tests to bend."""

from __future__ import annotations

from pathlib import Path

from elite.planner.v1 import planner_pb2
from elite.profiler.v1 import profiler_pb2
from elite.trainer.v1 import trainer_pb2

CONTEXT_TOKENS = 48
TARGET_TOKENS = 16


def a_plan() -> planner_pb2.Plan:
    """A plan for a tiny model whose weights come from a package."""
    plan = planner_pb2.Plan(
        tier=1,
        context_tokens=CONTEXT_TOKENS,
        target_tokens=TARGET_TOKENS,
        model=planner_pb2.ModelSummary(
            model_id="tiny",
            model_type="llama",
            parameter_count=1000,
            layer_count=2,
            hidden_size=32,
            intermediate_size=64,
            query_head_count=4,
            key_value_head_count=2,
            head_size=8,
            vocabulary_size=256,
        ),
        lora=planner_pb2.Lora(rank=2, alpha=4, target_modules=["q_proj"]),
        execution=planner_pb2.Execution(
            executor=planner_pb2.EXECUTOR_RESIDENT,
            base_precision=planner_pb2.BASE_PRECISION_FULL,
            compute_dtype=planner_pb2.DTYPE_FLOAT32,
            checkpoint_policy=planner_pb2.CHECKPOINT_POLICY_EVERY_LAYER,
            layer_inputs=planner_pb2.Store(placement=planner_pb2.PLACEMENT_DEVICE),
            loss_tile_rows=16,
            optimizer=planner_pb2.OPTIMIZER_KIND_ADAMW,
        ),
        gpu_memory=planner_pb2.MemoryEstimate(total_bytes=1100),
        step_seconds=0.1,
        device_kind=profiler_pb2.DEVICE_KIND_CPU,
    )
    plan.model.weights.package.distribution = "tiny-weights"
    return plan


def a_spec(data: Path, orders: str = "succeed", steps: int = 3) -> trainer_pb2.RunSpec:
    """A run over `data`; `orders` is what the fake engine shall do."""
    return trainer_pb2.RunSpec(
        display_name=orders,
        plan=a_plan(),
        data=trainer_pb2.DataSource(path=str(data)),
        training=trainer_pb2.TrainingSettings(steps=steps),
    )


def write_corpus(folder: Path, files: int = 4) -> Path:
    """A few source files, many windows long."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(files):
        (folder / f"module_{index}.py").write_text(f"value_{index} = {index}\n" * 200)
    return folder
