"""Schedule, clipping, and optimizer state that survives to the last bit."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elite.planner.v1 import planner_pb2
from services.trainer.engine.failures import EngineError
from services.trainer.engine.optimizer import (
    clip_gradients,
    learning_rate_at,
    make_optimizer,
    optimizer_state,
    restore_optimizer_state,
)
from services.trainer.engine.specification import Training

ADAMW_8BIT = planner_pb2.OPTIMIZER_KIND_ADAMW_8BIT
ADAMW = planner_pb2.OPTIMIZER_KIND_ADAMW


@given(steps=st.integers(1, 200), warmup=st.integers(0, 199))
def test_the_schedule_rises_to_its_peak_then_falls_and_never_reaches_zero(steps, warmup) -> None:
    training = Training(steps=steps, warmup_steps=min(warmup, steps - 1), learning_rate=1.0)
    rates = [learning_rate_at(step, training) for step in range(steps)]
    peak = max(0, training.warmup_steps - 1)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[peak] == pytest.approx(1.0)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def parameters_with_gradients(dtype: torch.dtype, scale: float = 1.0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for size in (100, 8192):  # below and above the size from which states have 8 bits
        parameter = torch.nn.Parameter(torch.randn(size, generator=generator).to(dtype))
        parameter.grad = (scale * torch.randn(size, generator=generator)).to(dtype)
        made.append(parameter)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_clipping_returns_the_norm_and_keeps_to_the_limit(dtype: torch.dtype) -> None:
    parameters = parameters_with_gradients(dtype)
    expected = float(torch.cat([p.grad.float() for p in parameters]).norm())
    norm = clip_gradients(parameters, max_norm=1.0, gradient_scale=1.0)
    assert norm == pytest.approx(expected, rel=1e-4)
    clipped = float(torch.cat([p.grad.float() for p in parameters]).norm())
    assert clipped == pytest.approx(1.0, rel=0.01)


def test_norm_zero_does_not_clip_and_the_scale_is_taken_out() -> None:
    plain, scaled = (parameters_with_gradients(torch.float32, scale) for scale in (1.0, 64.0))
    norm = clip_gradients(scaled, max_norm=0.0, gradient_scale=64.0)
    assert norm == pytest.approx(clip_gradients(plain, max_norm=0.0, gradient_scale=1.0), rel=1e-5)
    for left, right in zip(plain, scaled, strict=True):
        torch.testing.assert_close(left.grad, right.grad)


def test_a_16_bit_norm_does_not_overflow() -> None:
    parameter = torch.nn.Parameter(torch.zeros(10_000, dtype=torch.float16))
    parameter.grad = torch.full_like(parameter, 1000.0)  # norm 1e5, above float16's 65504
    assert clip_gradients([parameter], max_norm=1.0, gradient_scale=1.0) == pytest.approx(
        1e5, rel=1e-4
    )
    assert torch.isfinite(parameter.grad).all()


def test_the_8_bit_optimizer_really_has_8_bit_state() -> None:
    parameters = parameters_with_gradients(torch.bfloat16)
    optimizer = make_optimizer(ADAMW_8BIT, parameters, Training(steps=1))
    assert isinstance(optimizer, bnb.optim.AdamW8bit)
    optimizer.step()
    assert optimizer.state[parameters[0]]["state1"].dtype == torch.float32
    assert optimizer.state[parameters[1]]["state1"].dtype == torch.uint8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_32_bit_optimizer_is_as_exact_for_16_bit_parameters(dtype: torch.dtype) -> None:
    def update(dtype: torch.dtype, optimizer) -> tuple[torch.Tensor, torch.Tensor]:
        parameter = torch.nn.Parameter(torch.zeros(8, 8, dtype=dtype))
        made = optimizer([parameter])
        for step in range(30):
            # Squares are below what float16 has, and in the first step there is no gradient.
            parameter.grad = torch.full_like(parameter, 1e-4 * step)
            made.step()
        return parameter.detach().float(), made.state[parameter]

    training = Training(steps=1, learning_rate=1e-3, weight_decay=0.0)
    found, state = update(dtype, lambda parameters: make_optimizer(ADAMW, parameters, training))
    expected, _ = update(torch.float32, lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.0))
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=0)
    assert {v.dtype for v in state.values() if isinstance(v, torch.Tensor)} == {torch.float32}


@pytest.mark.parametrize("kind", [ADAMW, ADAMW_8BIT])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_restored_state_continues_bit_for_bit(kind: int, dtype: torch.dtype) -> None:
    training = Training(steps=1, learning_rate=0.01, weight_decay=0.1)

    def run(steps: int, parameters: list[torch.nn.Parameter], optimizer) -> None:
        for _ in range(steps):
            for parameter in parameters:
                parameter.grad = (parameter.detach() * 0.3).contiguous()
            optimizer.step()

    whole = parameters_with_gradients(dtype)
    optimizer = make_optimizer(kind, whole, training)
    run(3, whole, optimizer)
    state = {name: tensor.clone() for name, tensor in optimizer_state(optimizer).items()}
    resumed = [torch.nn.Parameter(parameter.detach().clone()) for parameter in whole]
    run(3, whole, optimizer)

    second = make_optimizer(kind, resumed, training)
    restore_optimizer_state(second, state)
    run(3, resumed, second)
    for left, right in zip(whole, resumed, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(EngineError, match="optimizer is 0"):
        make_optimizer(planner_pb2.OPTIMIZER_KIND_UNSPECIFIED, [], Training(steps=1))
