"""One optimiser step, and the ways it can go wrong."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from elite.trainer.v1 import trainer_pb2
from services.trainer.engine.dataset import TokenSequence, Windows
from services.trainer.engine.failures import EngineError
from services.trainer.engine.specification import Training
from services.trainer.engine.training import Stepper, evaluate, initial_loss_scale

CPU = torch.device("cpu")


class LinearExecutor:
    """Loss: the weight times the window's first token. `overflow_above` plays float16."""

    def __init__(self, weight: torch.nn.Parameter, overflow_above: float = math.inf) -> None:
        self.weight, self.overflow_above = weight, overflow_above
        self.seen: list[int] = []
        self.drawn: list[float] = []  # at random, as dropout does

    def step(
        self,
        window_bs: torch.Tensor,
        gradient_scale: float,
        journal: object = None,  # noqa: ARG002
    ) -> float:
        self.seen.append(int(window_bs[0, 0]))
        self.drawn.append(float(torch.rand(())))
        loss = self.weight * float(window_bs[0, 0])
        (loss * gradient_scale).backward()
        if gradient_scale > self.overflow_above:
            self.weight.grad.fill_(math.inf)
        return float(loss)

    def evaluate(self, window_bs: torch.Tensor) -> float:
        return float(window_bs[0, 0])


def windows() -> Windows:
    tokens = np.arange(1, 102, dtype=np.uint16)
    return Windows(TokenSequence(tokens, np.array([0]), np.array([101])), 1, 1)


def a_stepper(weight: float = 1.0, scale: float = 1.0, overflow_above: float = math.inf, **options):
    parameter = torch.nn.Parameter(torch.tensor(weight))
    training = Training(steps=10, learning_rate=0.5, max_gradient_norm=0.0, **options)
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    executor = LinearExecutor(parameter, overflow_above)
    return Stepper(executor, optimizer, [parameter], windows(), training, CPU, scale)


def test_accumulation_is_the_mean_of_different_windows() -> None:
    stepper = a_stepper(gradient_accumulation_steps=4)
    result = stepper.run(0)
    seen = stepper.executor.seen
    assert len(set(seen)) == 4
    assert result.loss == pytest.approx(sum(seen) / 4)
    assert result.gradient_norm == pytest.approx(sum(seen) / 4)
    assert float(stepper.parameters[0].detach()) == pytest.approx(1.0 - 0.5 * sum(seen) / 4)
    assert stepper.parameters[0].grad is None


def test_clipping_and_update_are_timed() -> None:
    stepper = a_stepper(gradient_accumulation_steps=2)
    started = time.perf_counter()
    stepper.run(0)
    seconds = time.perf_counter() - started
    phases = stepper.phases.take()
    assert set(phases) == {"optimizer"}
    assert 0 < phases["optimizer"] < seconds


def test_a_step_sees_the_same_windows_whenever_it_runs() -> None:
    first, later = a_stepper(), a_stepper()
    for step in range(5):
        first.run(step)
    later.run(4)
    assert first.executor.seen[4] == later.executor.seen[0]


def test_what_dropout_drops_depends_on_the_window_alone() -> None:
    first, later, other = (a_stepper(gradient_accumulation_steps=2, seed=n) for n in (0, 0, 1))
    for step in range(5):
        first.run(step)
    torch.rand(7)
    later.run(4)
    assert later.executor.drawn == first.executor.drawn[8:]
    assert len(set(first.executor.drawn)) == 10
    other.run(4)
    assert other.executor.drawn != later.executor.drawn
    again = a_stepper(scale=initial_loss_scale(torch.float16), overflow_above=1024.0)
    again.run(0)
    assert len(again.executor.drawn) > 1
    assert len(set(again.executor.drawn)) == 1


def test_overflow_lowers_the_scale_and_loses_no_step() -> None:
    stepper = a_stepper(scale=initial_loss_scale(torch.float16), overflow_above=1024.0)
    expected = a_stepper().run(0)
    assert stepper.run(0) == expected
    assert stepper.loss_scale == 1024.0
    assert len(set(stepper.executor.seen)) == 1


@pytest.mark.parametrize("options", [{"weight": math.nan}, {"overflow_above": 0.0}])
def test_divergence_names_the_step_and_leaves_the_weights(options) -> None:
    stepper = a_stepper(**options)
    before = stepper.parameters[0].detach().clone()
    with pytest.raises(
        EngineError, match=r"is (nan|inf) at step 7: lower .*learning_rate"
    ) as error:
        stepper.run(6)
    assert error.value.cause == trainer_pb2.FAILURE_CAUSE_DIVERGED
    torch.testing.assert_close(stepper.parameters[0].detach(), before, equal_nan=True)


def test_only_float16_is_scaled() -> None:
    assert initial_loss_scale(torch.bfloat16) == initial_loss_scale(torch.float32) == 1.0
    assert initial_loss_scale(torch.float16) > 1.0


def test_evaluation_is_the_mean_over_windows() -> None:
    chosen = windows().spread(3)
    mean = sum(int(window[0]) for window in chosen) / 3
    assert evaluate(a_stepper().executor, chosen, CPU) == pytest.approx(mean)
