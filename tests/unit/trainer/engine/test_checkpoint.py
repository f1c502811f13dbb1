"""Checkpoints: newest two, verified, and only for the run they belong to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from elite.trainer.v1 import trainer_pb2
from services.trainer.engine.adapters import add_adapters, trainable_parameters
from services.trainer.engine.checkpoint import (
    CheckpointStore,
    Identity,
    Position,
    check_identity,
    load_checkpoint,
)
from services.trainer.engine.failures import EngineError
from services.trainer.engine.optimizer import make_optimizer
from services.trainer.engine.specification import Training
from services.trainer.jobs.fence import Fence
from tests.fixtures.engine import LLAMA_LINEARS, a_plan, tiny_config, tiny_model

PLAN = a_plan(tiny_config(), LLAMA_LINEARS)
IDENTITY = Identity.of(PLAN, "data", "weights", seed=1)
CONVERTED = a_plan(tiny_config(), LLAMA_LINEARS, key_value_head_count=1)


def a_run(seed: int = 1):
    model = add_adapters(tiny_model().requires_grad_(False), PLAN.lora, torch.bfloat16, seed)
    parameters = trainable_parameters(model)
    return model, make_optimizer(PLAN.execution.optimizer, parameters, Training(steps=9))


def stepped(model, optimizer) -> None:
    for parameter in trainable_parameters(model):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def test_a_checkpoint_puts_back_weights_and_state(tmp_path: Path) -> None:
    model, optimizer = a_run()
    stepped(model, optimizer)
    store = CheckpointStore(Fence(tmp_path, 0))
    folder, size_bytes = store.save(model, optimizer, Position(1, 1.0), IDENTITY)
    assert size_bytes == sum(path.stat().st_size for path in folder.iterdir())
    stepped(model, optimizer)

    other, other_optimizer = a_run(seed=2)
    position = load_checkpoint(store.newest_good(), other, other_optimizer)
    assert position == Position(1, 1.0)
    stepped(other, other_optimizer)
    for left, right in zip(trainable_parameters(model), trainable_parameters(other), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_two_are_kept_and_a_broken_one_is_passed_over(tmp_path: Path) -> None:
    model, optimizer = a_run()
    store = CheckpointStore(Fence(tmp_path, 0))
    assert not store.exists()
    assert store.newest_good() is None
    for step in (2, 4, 10):
        store.save(model, optimizer, Position(step, 1.0), IDENTITY)
    root = tmp_path / "checkpoints"
    assert sorted(path.name for path in root.iterdir()) == ["step-00000004", "step-00000010"]
    os.truncate(root / "step-00000010" / "adapter_model.safetensors", 100)
    (root / "step-00000012.tmp-77").mkdir()  # left by a killed writer
    assert store.newest_good().name == "step-00000004"


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        (Identity.of(PLAN, "other data", "weights", seed=1), trainer_pb2.FAILURE_CAUSE_BAD_DATA),
        (
            Identity.of(PLAN, "data", "other weights", seed=1),
            trainer_pb2.FAILURE_CAUSE_BAD_MODEL,
        ),
        (Identity.of(PLAN, "data", "weights", seed=2), trainer_pb2.FAILURE_CAUSE_INTERNAL),
        (Identity.of(CONVERTED, "data", "weights", seed=1), trainer_pb2.FAILURE_CAUSE_INTERNAL),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, changed, cause) -> None:
    model, optimizer = a_run()
    store = CheckpointStore(Fence(tmp_path, 0))
    store.save(model, optimizer, Position(1, 1.0), IDENTITY)
    with pytest.raises(EngineError, match=r"cannot be continued: .* changed since") as error:
        check_identity(store.newest_good(), changed)
    assert error.value.cause == cause
