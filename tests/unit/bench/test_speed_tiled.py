"""Stock training in DeepSpeed's tiles is stock training."""

from __future__ import annotations

import pytest
import torch

from bench import speed
from bench.speed_steps import Stock, random_window
from services.planner.machine import ComputeDtype, DeviceKind
from services.trainer.engine.adapters import trainable_parameters

pytest.importorskip("deepspeed", reason="DeepSpeed is no dependency of this project")


def test_tiles_change_neither_loss_nor_gradients() -> None:
    from bench.speed_tiled import Tiled

    subject = speed.Subject.of("llama-2x64")
    setting = speed.Setting(ComputeDtype.FLOAT32, DeviceKind.CPU, 2**33, 1)
    plan = speed.plan_for(subject, 200, setting)  # four tiles, the last one shorter
    losses, gradients = [], []
    for make in (Stock, Tiled):
        contender = make(subject.config, plan, torch.device("cpu"))
        contender.prepare(plan)
        losses.append(contender.step(random_window(plan)))
        gradients.append([p.grad for p in trainable_parameters(contender.model)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-7)
