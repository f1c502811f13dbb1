"""One layer's attention, chunk by chunk: what a call does in each part of a step.

Shapes: B batch, C tokens of a chunk, S tokens of the window, H query heads, G KV heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from services.common.engine_process import KEY_CHUNKS
from services.trainer.engine.streaming.block_attention import (
    Attended,
    attend,
    attend_backward,
)
from services.trainer.engine.streaming.blocks import Block, causal_blocks
from services.trainer.engine.streaming.chunks import Chunk
from services.trainer.engine.streaming.kernels import Kernel
from services.trainer.engine.streaming.key_memory import KeyMemory, Pair


@dataclass(frozen=True, slots=True)
class ChunkAttention:
    """A chunk's place in its layer."""

    kernel: Kernel
    keys: KeyMemory
    chunk: Chunk
    # Most tokens of a chunk.
    chunk_tokens: int

    def write(self, key_bgcd: torch.Tensor, value_bgcd: torch.Tensor) -> None:
        """Puts the chunk's keys and values where later chunks find them."""
        self.keys.write(self.chunk, key_bgcd, value_bgcd)

    def attend(self, query_bhcd: torch.Tensor, window: int | None, scale: float) -> Attended:
        """Attention over everything written so far."""
        longest = self.keys.longest_block
        if self.kernel.repeats_heads:
            longest = min(self.chunk_tokens, longest)
        blocks = self._blocks(window, longest)
        return attend(self.kernel, query_bhcd, self.keys, blocks, self.chunk.begin, scale)

    def attend_backward(
        self, gradient_bchd: torch.Tensor, query_bhcd: torch.Tensor, attended: Attended,
        window: int | None, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        """Gradient of the queries; those of keys and values go into `keys`."""
        # Gradients of a block's keys take memory.
        chunks = 1 if self.kernel.repeats_heads else KEY_CHUNKS[query_bhcd.device.type]
        longest = min(chunks * self.chunk_tokens, self.keys.longest_block)
        blocks = self._blocks(window, longest)
        return attend_backward(
            self.kernel, gradient_bchd, query_bhcd, attended, self.keys, blocks,
            self.chunk.begin, scale,
        )  # fmt: skip

    def key_gradients(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of the chunk's keys and values, (B, G, C, D), after all later chunks."""
        dk, dv = (total.to(dtype) for total in self.keys.gradients_of(self.chunk))
        return dk, dv

    def _blocks(self, window: int | None, longest: int) -> list[Block]:
        return list(causal_blocks(self.chunk.begin, self.chunk.end, window, longest))


class KeysReady(Exception):  # noqa: N818 - a way out of the layer, not an error
    """The layer has made the chunk's keys and values, and nothing else of it is wanted."""

    def __init__(self, key_bgcd: torch.Tensor, value_bgcd: torch.Tensor) -> None:
        super().__init__()
        self.tensors = (key_bgcd, value_bgcd)


@dataclass(frozen=True, slots=True)
class KeysOnly:
    """Writes keys and values, and leaves the layer with `KeysReady`."""

    at: ChunkAttention

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,  # noqa: ARG002
        window: int | None, scale: float,  # noqa: ARG002
    ) -> torch.Tensor:  # fmt: skip
        """Raises `KeysReady`."""
        self.at.write(key.detach(), value.detach())
        raise KeysReady(key, value)


@dataclass(frozen=True, slots=True)
class Forward:
    """Attends, without gradients; `keep` gets what it was given and what it found."""

    at: ChunkAttention
    keep: Callable[[Pair, Attended], None] | None = None

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        window: int | None, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        """The output, (B, C, H, D)."""
        self.at.write(key, value)
        attended = self.at.attend(query, window, scale)
        if self.keep is not None:
            self.keep((key, value), attended)
        return attended.output_bchd


@dataclass(frozen=True, slots=True)
class Known:
    """Attention whose output is known from before."""

    attended: Attended

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,  # noqa: ARG002
        window: int | None, scale: float,  # noqa: ARG002
    ) -> torch.Tensor:  # fmt: skip
        """The output, (B, C, H, D)."""
        return self.attended.output_bchd


@dataclass(frozen=True, slots=True)
class Replay:
    """Attends under autograd; `stored` is what forward found, or None to find it again."""

    at: ChunkAttention
    stored: Attended | None

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        window: int | None, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        """The output, (B, C, H, D)."""
        apply: Callable[..., torch.Tensor] = _ReplayedAttention.apply
        return apply(query, key, value, self, window, scale)


class _ReplayedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        replay: Replay, window: int | None, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        """The output, (B, C, H, D), of query (B, H, C, D), key and value (B, G, C, D)."""
        replay.at.write(key, value)
        attended = replay.stored or replay.at.attend(query, window, scale)
        ctx.save_for_backward(query, attended.output_bchd, attended.lse_bhc)
        ctx.at, ctx.window, ctx.scale = replay.at, window, scale
        return attended.output_bchd

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of query, key and value; those of later chunks' keys are in already."""
        query, output, lse = ctx.saved_tensors
        at: ChunkAttention = ctx.at
        attended = Attended(output, lse)
        dq = at.attend_backward(gradients[0], query, attended, ctx.window, ctx.scale)
        dk, dv = at.key_gradients(query.dtype)
        return dq, dk, dv, None, None, None
