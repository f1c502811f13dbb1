"""Linear head and cross-entropy over the target rows, tile by tile.

Shapes: N target rows, T rows of one tile, E hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

# From hidden rows (T, E) to logits (T, V): the model's own head, scaling and soft-cap.
Head = Callable[[torch.Tensor], torch.Tensor]


class _TiledCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of head(hidden_NE) against labels_N.

    The gradient of the hidden rows is made in the forward pass, one tile at a time, so that no more
    than one tile of logits ever exists; backward only scales it. The head itself is frozen.
    The idea is Liger's fused linear cross-entropy (arXiv 2410.10989); the tiles here go through the
    model's own head, so families that scale or cap their logits need no special case.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NE: torch.Tensor, labels_N: torch.Tensor, head: Head, tile_rows: int
    ) -> torch.Tensor:
        """The mean loss, in fp32."""
        count = labels_N.shape[0]
        gradient_NE = torch.empty_like(hidden_NE)
        total = hidden_NE.new_zeros((), dtype=torch.float32)
        for start in range(0, count, tile_rows):
            rows = slice(start, start + tile_rows)
            with torch.enable_grad():
                tile_TE = hidden_NE[rows].detach().requires_grad_()
                loss = F.cross_entropy(head(tile_TE).float(), labels_N[rows], reduction="sum")
            (tile_gradient_TE,) = torch.autograd.grad(loss, tile_TE)
            gradient_NE[rows] = tile_gradient_TE.div_(count)
            total += loss.detach()
            del loss, tile_TE, tile_gradient_TE
        ctx.save_for_backward(gradient_NE)
        return total / count

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """The stored gradient, scaled by what comes in."""
        (gradient_NE,) = ctx.saved_tensors
        return gradient_NE.mul_(gradient), None, None, None


def tiled_cross_entropy(
    hidden_NE: torch.Tensor, labels_N: torch.Tensor, head: Head, tile_rows: int
) -> torch.Tensor:
    """Mean cross-entropy over N rows with at most `tile_rows` rows of logits at a time.

    Works with and without gradients; backward may run once.
    """
    if torch.is_grad_enabled():
        loss: torch.Tensor = _TiledCrossEntropy.apply(hidden_NE, labels_N, head, tile_rows)
        return loss
    total = hidden_NE.new_zeros((), dtype=torch.float32)
    for start in range(0, labels_N.shape[0], tile_rows):
        rows = slice(start, start + tile_rows)
        total += F.cross_entropy(head(hidden_NE[rows]).float(), labels_N[rows], reduction="sum")
    return total / labels_N.shape[0]
