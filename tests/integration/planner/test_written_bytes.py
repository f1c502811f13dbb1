"""How many bytes of results the planner counts beside those that a step makes.

On a CPU pages of large ones are new, and cost more than the arithmetic.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench import steps
from bench.gpu_models import random_window
from bench.gpu_plans import fast_machine, plan_message
from bench.speed import Subject
from services.planner.adapters import EVERY_LINEAR
from services.planner.evaluation import Evaluation
from services.planner.ladder import Tier
from services.planner.machine import ComputeDtype
from services.planner.memory import Sizing
from services.planner.options import BasePrecision, OptimizationSet, Policy
from services.planner.time_terms import time_terms
from services.trainer.engine.executors import make_executor

_TIER = Tier(1, 248, 8, 4)
_SIZES = {
    "hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "vocab_size": 256,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
_FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"hidden_act": "silu"},
    "llama": {"hidden_act": "silu"},
    "phi": {"hidden_act": "gelu_new", "num_key_value_heads": 4, "tie_word_embeddings": False},
    "gemma3_text": {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 16},
}


class ResultBytes(TorchDispatchMode):
    """Adds up the bytes of all storages that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id_ for id_ in map(_storage_of, tree_leaves((args, kwargs or {}))) if id_}
        result = func(*args, **(kwargs or {}))
        made = {_storage_of(leaf): leaf for leaf in tree_leaves(result)}
        for storage, leaf in made.items():
            if storage and storage not in given:
                self.total += leaf.untyped_storage().nbytes()
        return result


def _storage_of(leaf: Any) -> int:
    return leaf.untyped_storage()._cdata if isinstance(leaf, torch.Tensor) else 0


def result_bytes(subject: Subject, chosen: OptimizationSet) -> int:
    """Of one resident step."""
    machine = fast_machine("cpu", 2**33, "sdpa_flash")
    candidate = Evaluation(subject.shape, machine).one(_TIER, chosen, Sizing())
    plan = plan_message(subject.shape, machine, candidate)
    executor = make_executor(steps.load(subject.config, plan), plan)
    with ResultBytes() as found:
        executor.step(random_window(plan), 1.0)
    return found.total


@pytest.mark.parametrize("policy", [Policy.EVERY_LAYER, Policy.KEEP_ALL])
@pytest.mark.parametrize("family", _FAMILIES)
def test_results_of_a_layer_are_those_that_are_counted(family: str, policy: Policy) -> None:
    steps.register_attention()
    chosen = OptimizationSet(
        base_precision=BasePrecision.FULL, dtype=ComputeDtype.BFLOAT16, policy=policy,
        attention_kernel="sdpa_flash", adamw_8bit=False,
    )  # fmt: skip
    config = {"model_type": family, **_SIZES, **_FAMILIES[family]}
    deep, shallow = (Subject(family, {**config, "num_hidden_layers": n}) for n in (4, 2))
    found = (result_bytes(deep, chosen) - result_bytes(shallow, chosen)) / 2
    rates = fast_machine("cpu", 2**33, "sdpa_flash").rates
    counted = time_terms(deep.shape, chosen, EVERY_LINEAR, rates).written.values()
    forwards = 1 if policy is Policy.KEEP_ALL else 2
    expected = sum(forwards * forward + backward for forward, backward in counted)
    assert expected * _TIER.tokens == pytest.approx(found, rel=0.15)
