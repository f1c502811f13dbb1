"""Steps of tiny models of several families, whose work is counted beside what the planner says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench import steps
from bench.gpu_models import random_window
from bench.gpu_plans import plan_message
from bench.speed import Subject
from services.planner.evaluation import Candidate, Evaluation
from services.planner.ladder import Tier
from services.planner.machine import ComputeDtype, Machine
from services.planner.memory import Sizing
from services.planner.options import BasePrecision, OptimizationSet, Policy
from services.trainer.engine.executors import make_executor

_SIZES = {
    "hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "vocab_size": 256,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"hidden_act": "silu"},
    "llama": {"hidden_act": "silu"},
    "phi": {"hidden_act": "gelu_new", "num_key_value_heads": 4, "tie_word_embeddings": False},
    "phi3": {"hidden_act": "silu", "pad_token_id": 0},
    "gemma3_text": {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 16},
}


def tiny_subject(family: str, layers: int) -> Subject:
    """A model of a family of `FAMILIES`."""
    config = {"model_type": family, "num_hidden_layers": layers, **_SIZES, **FAMILIES[family]}
    return Subject(family, config)


def resident_set(dtype: ComputeDtype, policy: Policy) -> OptimizationSet:
    """Unquantised weights under the resident executor."""
    return OptimizationSet(
        base_precision=BasePrecision.FULL, dtype=dtype, policy=policy,
        attention_kernel="sdpa_flash", adamw_8bit=False,
    )  # fmt: skip


def resident_step(
    subject: Subject, tier: Tier, chosen: OptimizationSet, machine: Machine
) -> tuple[Candidate, Callable[[], object]]:
    """What the planner says of a step on the CPU, and the step itself, ready to run."""
    steps.register_attention()
    candidate = Evaluation(subject.shape, machine).one(tier, chosen, Sizing())
    plan = plan_message(subject.shape, machine, candidate)
    executor, window = make_executor(steps.load(subject.config, plan), plan), random_window(plan)
    return candidate, lambda: executor.step(window, 1.0)
