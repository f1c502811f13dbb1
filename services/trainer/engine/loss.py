"""Linear head and cross-entropy over tiles of rows, without ever holding all logits.

The gradient of the hidden rows is computed in the forward pass, tile by tile (the idea of fused
linear cross-entropy, as in Liger, https://arxiv.org/abs/2410.10989), because the head is frozen
and nothing else needs the logits.

Shapes: R target rows, T rows of a tile, E hidden, V vocabulary. Beyond its arguments it takes
2*R*E bytes for the gradient and, for one tile, 6*T*V bytes in 16 bits (logits and their fp32 copy,
then the fp32 probabilities and their 16-bit copy), 4*T*V in fp32; soft-capping adds 4*T*V.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from services.trainer.engine.failures import BAD_MODEL, EngineError


@dataclass(frozen=True)
class OutputHead:
    """From hidden rows to logits, as the model's family does it: scale * (W h + b), soft-capped."""

    weight_ve: torch.Tensor
    bias_v: torch.Tensor | None = None
    scale: float = 1.0
    # Gemma 2: logits become cap * tanh(logits / cap). 0: off.
    soft_cap: float = 0.0

    @classmethod
    def of(cls, model: Any) -> OutputHead:
        """The head of a Hugging Face causal language model. Raises `EngineError` (BAD_MODEL)."""
        head = model.get_output_embeddings()
        config = model.config.get_text_config()
        if not isinstance(head, torch.nn.Linear):
            raise EngineError(
                BAD_MODEL, f"{config.model_type} has no linear head", "choose another"
            )
        scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
        scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
        soft_cap = getattr(config, "final_logit_softcapping", None) or 0.0
        return cls(head.weight, head.bias, float(scale), float(soft_cap))

    def linear(self, hidden_te: torch.Tensor) -> torch.Tensor:
        """(T, E) rows to (T, V) products, before scale and cap, in the dtype of the weights."""
        return torch.nn.functional.linear(hidden_te, self.weight_ve, self.bias_v)

    def transform_(self, logits_tv: torch.Tensor) -> torch.Tensor | None:
        """Scales and caps in place; returns the cap's derivative where there is a cap."""
        if self.scale != 1.0:
            logits_tv.mul_(self.scale)
        if not self.soft_cap:
            return None
        logits_tv.div_(self.soft_cap).tanh_()
        derivative = logits_tv.square().neg_().add_(1.0)
        logits_tv.mul_(self.soft_cap)
        return derivative


def tiled_cross_entropy(
    hidden_re: torch.Tensor, targets_r: torch.Tensor, head: OutputHead, tile_rows: int,
    gradient_scale: float = 1.0,
) -> torch.Tensor:  # fmt: skip
    """Mean cross-entropy of the rows' predictions, in fp32.

    Its gradient, of `hidden_re` only, is `gradient_scale` times that of the loss.
    """
    apply: Callable[..., torch.Tensor] = _TiledCrossEntropy.apply
    return apply(hidden_re, targets_r, head, tile_rows, gradient_scale)


class _TiledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_re: torch.Tensor,
        targets_r: torch.Tensor,
        head: OutputHead,
        tile_rows: int,
        gradient_scale: float,
    ) -> torch.Tensor:
        """The mean loss of rows `hidden_re` (R, E); gradients are made with it, tile by tile."""
        row_count = len(hidden_re)
        total = torch.zeros((), dtype=torch.float32, device=hidden_re.device)
        gradient_re = torch.empty_like(hidden_re) if ctx.needs_input_grad[0] else None
        for begin in range(0, row_count, tile_rows):
            rows = slice(begin, begin + tile_rows)
            tile_gradient = None if gradient_re is None else gradient_re[rows]
            total += cross_entropy_tile(
                hidden_re[rows], targets_r[rows], head, row_count, tile_gradient, gradient_scale
            )
        if gradient_re is not None:
            ctx.save_for_backward(gradient_re)
        return total / row_count

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradient of the rows, (R, E)."""
        (gradient_re,) = ctx.saved_tensors
        return gradient_re * gradients[0].to(gradient_re.dtype), None, None, None, None


def cross_entropy_tile(
    hidden_te: torch.Tensor,
    targets_t: torch.Tensor,
    head: OutputHead,
    row_count: int,
    gradient_te: torch.Tensor | None,
    gradient_scale: float = 1.0,
) -> torch.Tensor:
    """Sum of the tile's losses; fills the gradient of the mean over all rows, where wanted.

    Works in place: the logits become probabilities, and these the gradient of the logits. It is
    scaled in fp32: of a mean over many rows little is left in float16.
    """
    scores_tv = head.linear(hidden_te).float()
    cap_derivative_tv = head.transform_(scores_tv)
    scores_tv -= scores_tv.amax(dim=1, keepdim=True)
    row_indices = torch.arange(len(targets_t), device=targets_t.device)
    target_scores_t = scores_tv[row_indices, targets_t]
    scores_tv.exp_()
    normalisers_t = scores_tv.sum(dim=1)
    loss = (normalisers_t.log() - target_scores_t).sum()
    if gradient_te is not None:
        scores_tv /= normalisers_t[:, None]
        scores_tv[row_indices, targets_t] -= 1.0
        if cap_derivative_tv is not None:
            scores_tv *= cap_derivative_tv
        scores_tv *= head.scale * gradient_scale / row_count
        torch.mm(scores_tv.to(hidden_te.dtype), head.weight_ve, out=gradient_te)
    return loss
