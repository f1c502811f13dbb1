"""Exact attention of a chunk of queries over all keys so far, block by block.

Forward merges the blocks' outputs by their log-sum-exp, in fp32. Backward gives every block the
output and log-sum-exp over all blocks, which makes each block's gradient its exact share
(Liu et al. 2023, https://arxiv.org/abs/2310.01889).

Shapes: B batch, C queries of the chunk, S queries or K keys of a block, H query heads, G KV heads,
D head dim.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from services.trainer.engine.streaming.blocks import Block, BlockShape
from services.trainer.engine.streaming.kernels import Kernel
from services.trainer.engine.streaming.key_memory import KeyMemory


@dataclass(frozen=True, slots=True)
class Attended:
    """What attention returned for a chunk: output in the compute dtype, log-sum-exp in fp32."""

    output_bchd: torch.Tensor
    lse_bhc: torch.Tensor


def attend(
    kernel: Kernel, query_bhcd: torch.Tensor, keys: KeyMemory, blocks: Iterable[Block],
    begin: int, scale: float,
) -> Attended:  # fmt: skip
    """Attention of the chunk that begins at token `begin` over `blocks`."""
    batch, heads, length, head_dim = query_bhcd.shape
    blocks = list(blocks)
    if len(blocks) == 1:
        output, lse = _forward(kernel, query_bhcd, keys, blocks[0], scale)
        return Attended(output.transpose(1, 2).contiguous(), lse)
    # The first block of every query begins from nothing: e ** -inf is its weight there.
    total = query_bhcd.new_zeros((batch, length, heads, head_dim), dtype=torch.float32)
    lse = query_bhcd.new_full((batch, heads, length), -torch.inf, dtype=torch.float32)
    for block in blocks:
        queries = slice(block.query_begin - begin, block.query_end - begin)
        found = _forward(kernel, query_bhcd[:, :, queries], keys, block, scale)
        _merge(total[:, queries].transpose(1, 2), lse[:, :, queries], *found)
    return Attended(total.to(query_bhcd.dtype), lse)


def attend_backward(
    kernel: Kernel, gradient_bchd: torch.Tensor, query_bhcd: torch.Tensor, attended: Attended,
    keys: KeyMemory, blocks: Iterable[Block], begin: int, scale: float,
) -> torch.Tensor:  # fmt: skip
    """Gradient of the chunk's queries, (B, H, C, D); adds those of keys and values to `keys`."""
    batch, heads, length, head_dim = query_bhcd.shape
    gradient_bhcd = gradient_bchd.transpose(1, 2)
    output_bhcd = attended.output_bchd.transpose(1, 2)
    total = query_bhcd.new_zeros((batch, length, heads, head_dim), dtype=torch.float32)
    for block in blocks:
        queries = slice(block.query_begin - begin, block.query_end - begin)
        of_queries = (gradient_bhcd, query_bhcd, output_bhcd, attended.lse_bhc)
        dy, q, output, lse = (_ordered(tensor[:, :, queries], block) for tensor in of_queries)
        k, v = (_ordered(tensor, block) for tensor in keys.of(block))
        is_causal = block.shape is not BlockShape.FULL
        dq, dk, dv = kernel.backward(dy, q, k, v, output, lse, is_causal, scale)
        total[:, queries].transpose(1, 2).add_(_ordered(dq, block))
        keys.add_gradients(block, _ordered(dk, block), _ordered(dv, block))
        del dq, dk, dv
    return total.to(query_bhcd.dtype).transpose(1, 2)


def _forward(
    kernel: Kernel, query: torch.Tensor, keys: KeyMemory, block: Block, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """A block's output (B, H, S, D) and log-sum-exp (B, H, S), in the order of the tokens."""
    k, v = (_ordered(tensor, block) for tensor in keys.of(block))
    is_causal = block.shape is not BlockShape.FULL
    output, lse = kernel.forward(_ordered(query, block), k, v, is_causal, scale)
    return _ordered(output, block), _ordered(lse, block)


def _ordered(tensor: torch.Tensor, block: Block) -> torch.Tensor:
    """The tensor with its tokens (dimension 2) as the kernel has to see them, or back."""
    return tensor.flip(2) if block.shape is BlockShape.REVERSED else tensor


def _merge(
    total: torch.Tensor, total_lse: torch.Tensor, output: torch.Tensor, lse: torch.Tensor
) -> None:
    """Adds a block's output to the running one, in place: softmax over the union of their keys."""
    share = torch.sigmoid(lse - total_lse).unsqueeze(-1)
    total.mul_(1 - share).addcmul_(output, share)
    total_lse.copy_(torch.logaddexp(total_lse, lse))
