"""The tiled loss against torch's own, and what it takes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer.engine.loss import OutputHead, tiled_cross_entropy
from services.trainer.engine.memory_tracking import StorageTracker

HIDDEN, VOCABULARY = 16, 50


def expected(hidden: torch.Tensor, targets: torch.Tensor, head: OutputHead) -> torch.Tensor:
    logits = torch.nn.functional.linear(hidden, head.weight_ve, head.bias_v).float() * head.scale
    if head.soft_cap:
        logits = head.soft_cap * torch.tanh(logits / head.soft_cap)
    return torch.nn.functional.cross_entropy(logits, targets)


@settings(deadline=None)
@given(
    rows=st.integers(1, 20),
    tile_rows=st.integers(1, 25),
    with_bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.25, 3.0]),
    soft_cap=st.sampled_from([0.0, 2.0, 30.0]),
)
def test_loss_and_gradient_are_exact(rows, tile_rows, with_bias, scale, soft_cap) -> None:
    generator = torch.Generator().manual_seed(rows)
    bias = torch.randn(VOCABULARY, generator=generator) if with_bias else None
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    head = OutputHead(weight, bias, scale, soft_cap)
    targets = torch.randint(0, VOCABULARY, (rows,), generator=generator)
    hidden = torch.randn(rows, HIDDEN, generator=generator, requires_grad=True)
    reference = hidden.detach().clone().requires_grad_()
    loss = tiled_cross_entropy(hidden, targets, head, tile_rows)
    (loss * 2.5).backward()
    (expected(reference, targets, head) * 2.5).backward()
    torch.testing.assert_close(loss, expected(reference, targets, head), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(hidden.grad, reference.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tile_rows", [64, 512])
def test_a_scale_lifts_the_gradient_of_many_rows_before_float16_rounds_it(tile_rows: int) -> None:
    rows, vocabulary, scale = 4096, 512, 4096.0
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(vocabulary, HIDDEN, generator=generator)
    hidden = torch.randn(rows, HIDDEN, generator=generator)
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    exact = hidden.half().float().requires_grad_()
    expected(exact, targets, OutputHead(weight.half().float())).backward()
    rounded = hidden.half().requires_grad_()
    head = OutputHead(weight.half())
    tiled_cross_entropy(rounded, targets, head, tile_rows, scale).backward()
    difference = (rounded.grad.float() / scale - exact.grad).norm() / exact.grad.norm()
    assert difference < 2e-3


def test_large_logits_do_not_overflow() -> None:
    hidden = torch.full((2, HIDDEN), 100.0, requires_grad=True)
    head = OutputHead(torch.linspace(-9, 9, VOCABULARY)[:, None].repeat(1, HIDDEN))
    loss = tiled_cross_entropy(hidden, torch.tensor([VOCABULARY - 1, 0]), head, 1)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(hidden.grad).all()


def test_without_gradients_none_is_computed() -> None:
    hidden = torch.randn(4, HIDDEN)
    head = OutputHead(torch.randn(VOCABULARY, HIDDEN))
    with torch.no_grad():
        loss = tiled_cross_entropy(hidden, torch.zeros(4, dtype=torch.long), head, 2)
    assert not loss.requires_grad


@pytest.mark.parametrize(("dtype", "bytes_per_logit"), [(torch.bfloat16, 6), (torch.float32, 4)])
def test_one_tile_of_logits_is_all_it_takes(dtype: torch.dtype, bytes_per_logit: int) -> None:
    rows, tile_rows, vocabulary = 64, 8, 4000
    head = OutputHead(torch.randn(vocabulary, HIDDEN, dtype=dtype))
    hidden = torch.randn(rows, HIDDEN, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, vocabulary, (rows,))
    with StorageTracker() as tracker:
        tiled_cross_entropy(hidden, targets, head, tile_rows).backward()
    tile_bytes = bytes_per_logit * tile_rows * vocabulary
    gradient_bytes = 2 * hidden.numel() * hidden.element_size()
    assert tile_bytes <= tracker.peak_bytes <= tile_bytes + gradient_bytes + 4096
