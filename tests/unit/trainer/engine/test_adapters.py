"""Adapters: where they are, what dropout does to them, and what is not saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from elite.planner.v1 import planner_pb2
from elite.trainer.v1 import trainer_pb2
from services.trainer.engine.adapters import trainable_parameters, write_adapter_weights
from services.trainer.engine.apply_plan import apply_plan
from services.trainer.engine.attention import ATTENTION_NAME, register_attention
from services.trainer.engine.executors import make_executor
from services.trainer.engine.failures import EngineError
from tests.fixtures.engine import LLAMA_LINEARS, a_plan, tiny_config, tiny_model

CPU = torch.device("cpu")
WINDOW = torch.randint(0, 320, (1, 64), generator=torch.Generator().manual_seed(3))


def dropping(policy: int) -> tuple[object, object]:
    """A model whose adapters drop half of their inputs, and its executor."""
    register_attention()
    model = tiny_model().requires_grad_(False)
    model.set_attn_implementation(ATTENTION_NAME)
    plan = a_plan(tiny_config(), LLAMA_LINEARS, checkpoint_policy=policy)
    plan.lora.dropout = 0.5
    apply_plan(model.eval(), plan, CPU, seed=1)
    generator = torch.Generator().manual_seed(0)
    for parameter in trainable_parameters(model):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model, make_executor(model, plan)


def test_an_evaluation_drops_nothing_and_training_goes_on_dropping() -> None:
    _, executor = dropping(planner_pb2.CHECKPOINT_POLICY_NONE)
    assert len({executor.evaluate(WINDOW) for _ in range(4)}) == 1
    assert len({executor.step(WINDOW, 1.0) for _ in range(4)}) == 4


@pytest.mark.parametrize(
    "policy",
    [planner_pb2.CHECKPOINT_POLICY_EVERY_LAYER, planner_pb2.CHECKPOINT_POLICY_SELECTIVE],
)
def test_a_recompute_drops_what_the_forward_dropped(policy: int) -> None:
    found = []
    for one in (planner_pb2.CHECKPOINT_POLICY_NONE, policy):
        model, executor = dropping(one)
        torch.manual_seed(5)
        executor.step(WINDOW, 1.0)
        found.append([parameter.grad for parameter in trainable_parameters(model)])
    for expected, gradient in zip(*found, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


def test_an_adapter_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    model, _ = dropping(planner_pb2.CHECKPOINT_POLICY_NONE)
    write_adapter_weights(model, tmp_path)
    trainable_parameters(model)[3].data[0, 0] = torch.nan
    with pytest.raises(EngineError, match=r"not finite in .*lora_.*: lower training") as error:
        write_adapter_weights(model, tmp_path)
    assert error.value.cause == trainer_pb2.FAILURE_CAUSE_DIVERGED
