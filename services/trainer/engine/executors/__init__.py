"""Ways to run one training step. The plan chooses; all give the same loss and gradients."""

from __future__ import annotations

from typing import Protocol

import torch


class Executor(Protocol):
    """Runs windows through the model. B is 1: one window at a time."""

    def step(self, window_bs: torch.Tensor, gradient_scale: float) -> float:
        """Loss of a window; adds `gradient_scale` times its gradient to the adapters' `.grad`."""
        ...

    def evaluate(self, window_bs: torch.Tensor) -> float:
        """Loss of a window, without gradients."""
        ...
