"""Loss of a chunk's target rows, and its gradient with respect to the last layer's output.

Shapes: B batch, S tokens of the window, C tokens of a chunk, R rows of a tile, E hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from services.trainer.engine.loss import OutputHead, cross_entropy_tile
from services.trainer.engine.streaming.chunks import Chunk
from services.trainer.engine.streaming.model_parts import ModelParts


@dataclass(frozen=True, slots=True)
class TargetLoss:
    """Final norm, head and cross-entropy, `tile_rows` rows at a time."""

    parts: ModelParts
    head: OutputHead
    target_tokens: int
    tile_rows: int

    def rows(self, chunk: Chunk, tokens: int) -> range:
        """Positions of the chunk whose next token is a target, in a window of so many tokens."""
        first = tokens - self.target_tokens - 1
        return range(max(chunk.begin, first), min(chunk.end, tokens - 1))

    def of_chunk(
        self, hidden_bce: torch.Tensor, window_bs: torch.Tensor, chunk: Chunk,
        gradient_bce: torch.Tensor | None = None, gradient_scale: float = 1.0,
    ) -> torch.Tensor:  # fmt: skip
        """The chunk's share of the mean loss over all target tokens.

        gradient_bce: its target rows become `gradient_scale` times the gradient of the whole loss.
        """
        total = torch.zeros((), dtype=torch.float32, device=hidden_bce.device)
        for tile in self._tiles(self.rows(chunk, window_bs.shape[1]), window_bs.shape[0]):
            own = slice(tile.start - chunk.begin, tile.stop - chunk.begin)
            gradient_bre = None if gradient_bce is None else gradient_bce[:, own]
            total += self._tile(hidden_bce[:, own], window_bs, tile, gradient_bre, gradient_scale)
        return total

    def _tiles(self, rows: range, batch: int) -> Iterator[range]:
        step = max(1, self.tile_rows // batch)
        for begin in range(rows.start, rows.stop, step):
            yield range(begin, min(begin + step, rows.stop))

    def _tile(
        self, hidden_bre: torch.Tensor, window_bs: torch.Tensor, tile: range,
        gradient_bre: torch.Tensor | None, gradient_scale: float,
    ) -> torch.Tensor:  # fmt: skip
        """The tile's share of the loss; fills its gradient."""
        device = hidden_bre.device
        token_ids = window_bs[:, tile.start : tile.stop].to(device, non_blocking=True)
        targets = window_bs[:, tile.start + 1 : tile.stop + 1].to(device, non_blocking=True)
        row_count = len(window_bs) * self.target_tokens
        wants_gradient = gradient_bre is not None
        with torch.set_grad_enabled(wants_gradient):
            leaf = hidden_bre.detach().requires_grad_(wants_gradient)
            normed_bre = self.parts.finish(leaf, token_ids, tile.start)
        with torch.no_grad():
            rows = normed_bre.detach().flatten(0, 1)
            gradient = torch.empty_like(rows) if wants_gradient else None
            loss = cross_entropy_tile(
                rows, targets.reshape(-1), self.head, row_count, gradient, gradient_scale
            )
        if gradient is not None and gradient_bre is not None:
            (found,) = torch.autograd.grad(normed_bre, leaf, gradient.view_as(normed_bre))
            gradient_bre.copy_(found)
        return loss / row_count
