"""How many operations of products the planner counts beside those that a step asks torch for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from bench import steps
from bench.gpu_models import random_window
from bench.gpu_plans import fast_machine, plan_message
from bench.speed import Subject
from services.planner.evaluation import Evaluation
from services.planner.ladder import Tier
from services.planner.machine import ComputeDtype
from services.planner.memory import Sizing
from services.planner.options import BasePrecision, OptimizationSet, Policy
from services.planner.rates import Rates, single_rates
from services.trainer.engine.executors import make_executor

# From rank 16 on, thin products take as long as they have operations.
_TIER = Tier(1, 248, 8, 16)
_SIZES = {
    "hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "vocab_size": 256,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_act": "silu"},
    "phi": {"hidden_act": "gelu_new", "num_key_value_heads": 4, "tie_word_embeddings": False},
    "phi3": {"hidden_act": "silu", "pad_token_id": 0},
    "gemma3_text": {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 16},
}
_ONE_A_SECOND = single_rates(1.0, [(1.0, 1.0)], 1.0, thin=1.0)


@pytest.mark.parametrize("layers", [2, 4])
@pytest.mark.parametrize("policy", [Policy.EVERY_LAYER, Policy.KEEP_ALL])
@pytest.mark.parametrize("family", _FAMILIES)
def test_products_of_a_resident_step_are_those_that_are_counted(
    family: str, policy: Policy, layers: int
) -> None:
    steps.register_attention()
    config = {"model_type": family, "num_hidden_layers": layers, **_SIZES, **_FAMILIES[family]}
    subject = Subject(family, config)
    chosen = OptimizationSet(
        base_precision=BasePrecision.FULL, dtype=ComputeDtype.FLOAT32, policy=policy,
        attention_kernel="sdpa_flash", adamw_8bit=False,
    )  # fmt: skip
    machine = replace(
        fast_machine("cpu", 2**33, "sdpa_flash"), rates=Rates({4: _ONE_A_SECOND}, 1.0, 1.0, 1.0)
    )
    candidate = Evaluation(subject.shape, machine).one(_TIER, chosen, Sizing())
    plan = plan_message(subject.shape, machine, candidate)
    executor = make_executor(steps.load(config, plan), plan)
    with FlopCounterMode(display=False) as counter:
        executor.step(random_window(plan), 1.0)
    found = sum(
        count for operation, count in counter.get_flop_counts()["Global"].items()
        if "mm" in str(operation)
    )  # fmt: skip
    head = 2 * 2 * subject.shape.embedding_parameters * _TIER.target_tokens
    counted = float(candidate.cost.lines["linear"])
    # Gradients that adapters' first matrices leave out too are not counted.
    assert counted == pytest.approx(found - head, rel=0.03)
