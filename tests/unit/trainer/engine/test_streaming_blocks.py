"""Blocks cover causal attention exactly once, and their merged attention is plain attention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer.engine.failures import EngineError
from services.trainer.engine.streaming import kernels
from services.trainer.engine.streaming.block_attention import attend, attend_backward
from services.trainer.engine.streaming.blocks import Block, BlockShape, causal_blocks
from services.trainer.engine.streaming.chunks import chunks_of
from services.trainer.engine.streaming.kernels import KERNELS, Heads, choose_kernel
from services.trainer.engine.streaming.key_memory import DeviceKeys

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def covered(block: Block, tokens: int) -> torch.Tensor:
    """Which (query, key) pairs a block takes part in, (S, S)."""
    pairs = torch.zeros(tokens, tokens, dtype=torch.int)
    shape = (block.query_end - block.query_begin, block.key_end - block.key_begin)
    inside = torch.ones(shape, dtype=torch.int)
    if block.shape is not BlockShape.FULL:
        assert shape[0] == shape[1], "is_causal is for squares"
        inside = inside.tril() if block.shape is BlockShape.CAUSAL else inside.triu()
    pairs[block.query_begin : block.query_end, block.key_begin : block.key_end] = inside
    return pairs


def causal(tokens: int, window: int | None) -> torch.Tensor:
    query, key = torch.arange(tokens)[:, None], torch.arange(tokens)[None]
    return (key <= query) & (key > query - (window or tokens))


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 40), chunk=st.integers(1, 45), extra=st.integers(0, 20),
    window=st.none() | st.integers(1, 45),
)  # fmt: skip
def test_every_pair_is_in_exactly_one_block(tokens, chunk, extra, window) -> None:
    pairs = torch.zeros(tokens, tokens, dtype=torch.int)
    longest = chunk + extra
    for one in chunks_of(tokens, chunk):
        for block in causal_blocks(one.begin, one.end, window, longest):
            assert 0 < block.key_end - block.key_begin <= longest
            assert one.begin <= block.query_begin < block.query_end <= one.end
            pairs += covered(block, tokens)
    assert torch.equal(pairs, causal(tokens, window).int())


def test_a_sliding_window_skips_what_is_out_of_it() -> None:
    blocks = list(causal_blocks(9_000, 10_000, 1_500, 1_000))
    assert min(block.key_begin for block in blocks) == 7_501


def test_kernels_that_cannot_are_refused_with_their_reasons() -> None:
    heads = Heads(torch.device("cpu"), torch.float32, 4, 2, 8)
    with pytest.raises(EngineError, match=r"sdpa_cudnn.*it runs on CUDA only"):
        choose_kernel("sdpa_cudnn", heads)
    with pytest.raises(EngineError, match=r"'sdpa_math'.*has sdpa_cudnn, sdpa_efficient, sdpa_fl"):
        choose_kernel("sdpa_math", heads)


def kernels_here() -> list[int]:
    """Numbers of the kernels that run on this machine's device."""
    heads = Heads(DEVICE, torch.bfloat16, 4, 2, 64)
    return [i for i, kernel in enumerate(KERNELS) if not kernel.refusal(heads)]


@pytest.mark.parametrize("window", [None, 2, 7, 50])
@pytest.mark.parametrize("number", kernels_here())
def test_blocks_together_are_plain_attention(number: int, window: int | None) -> None:
    """On the CPU in fp32; on a GPU in bfloat16, which every kernel there has."""
    on_cpu = DEVICE.type == "cpu"
    dtype, tolerance = (torch.float32, 1e-5) if on_cpu else (torch.bfloat16, 2e-2)
    tokens, generator = 61, torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    q, dy = random(2, tokens, 4, 64), random(2, tokens, 4, 64)
    k, v = random(2, tokens, 2, 64), random(2, tokens, 2, 64)
    expected = _plain(q, k, v, dy, window)
    found = _in_blocks(KERNELS[number], q, k, v, dy, window)
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) <= tolerance


@pytest.mark.parametrize("pieces", [1, 2, 4])
@pytest.mark.parametrize(("heads", "key_value_heads"), [(9, 3), (4, 4), (5, 1)])
def test_queries_in_pieces_have_the_same_gradients(
    pieces: int, heads: int, key_value_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a block of earlier keys, of another length than its queries."""
    asked: list[tuple[int, ...]] = []

    def cut(*of: int) -> int:
        asked.append(of)
        return pieces

    monkeypatch.setattr(kernels, "query_pieces", cut)
    generator = torch.Generator().manual_seed(2)
    q, dy = (torch.randn(1, 16, heads, 8, generator=generator) for _ in "qy")
    k, v = (torch.randn(1, 24, key_value_heads, 8, generator=generator) for _ in "kv")
    leaves = [tensor.transpose(1, 2).requires_grad_() for tensor in (q, k, v)]
    gradient = dy.transpose(1, 2)
    output = torch.nn.functional.scaled_dot_product_attention(*leaves, scale=0.3, enable_gqa=True)
    expected = torch.autograd.grad(output, leaves, gradient)
    kernel = kernels.CpuFlash()
    q, k, v = (leaf.detach() for leaf in leaves)
    found, lse = kernel.forward(q, k, v, is_causal=False, scale=0.3)
    gradients = kernel.backward(gradient, q, k, v, found, lse, is_causal=False, scale=0.3)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    # The queries' gradients are laid out by token, as they are added up.
    assert gradients[0].transpose(1, 2).is_contiguous()
    assert asked == [(key_value_heads, torch.get_num_threads(), 16)]


def test_masks_and_batches_are_left_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "query_pieces", lambda *_: 2)
    kernel = kernels.CpuFlash()
    for batch, is_causal in ((2, False), (1, True)):
        q, k, v, dy = (torch.randn(batch, 2, 8, 8) for _ in range(4))
        output, lse = kernel.forward(q, k, v, is_causal, 0.3)
        dq, dk, _ = kernel.backward(dy, q, k, v, output, lse, is_causal, 0.3)
        leaves = [tensor.requires_grad_() for tensor in (q, k)]
        whole = torch.nn.functional.scaled_dot_product_attention(
            *leaves, v, is_causal=is_causal, scale=0.3
        )
        for ours, theirs in zip((dq, dk), torch.autograd.grad(whole, leaves, dy), strict=True):
            torch.testing.assert_close(ours, theirs)


def _plain(q, k, v, dy, window) -> list[torch.Tensor]:
    q, k, v = (tensor.float().requires_grad_() for tensor in (q, k, v))
    grouped = (tensor.repeat_interleave(2, dim=2).transpose(1, 2) for tensor in (k, v))
    mask = causal(q.shape[1], window).to(DEVICE)
    output = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), *grouped, attn_mask=mask, scale=0.1
    ).transpose(1, 2)
    return [output, *torch.autograd.grad(output, (q, k, v), dy.float())]


def _in_blocks(kernel, q, k, v, dy, window) -> list[torch.Tensor]:
    keys = DeviceKeys(Heads(q.device, q.dtype, 4, 2, 64), 2, q.shape[1])
    keys.start_gradients()
    outputs, gradients, chunks = [], [], chunks_of(q.shape[1], 16)
    for chunk in chunks:
        rows = slice(chunk.begin, chunk.end)
        keys.write(chunk, k[:, rows].transpose(1, 2), v[:, rows].transpose(1, 2))
        query = q[:, rows].transpose(1, 2)
        blocks = list(causal_blocks(chunk.begin, chunk.end, window, 16))
        attended = attend(kernel, query, keys, blocks, chunk.begin, 0.1)
        outputs.append(attended.output_bchd)
        gradient = attend_backward(
            kernel, dy[:, rows], query, attended, keys, blocks, chunk.begin, 0.1
        )
        gradients.append(gradient.transpose(1, 2))
    found = [torch.cat(outputs, 1), torch.cat(gradients, 1)]
    for parts in zip(*(keys.gradients_of(chunk) for chunk in chunks), strict=True):
        found.append(torch.cat(parts, 2).transpose(1, 2))
    return [tensor.float() for tensor in found]
