"""The resident executor: stock forward and backward, the whole window on the device.

Shapes: B batch (1), S tokens of the window, R target rows, E hidden.
"""

from __future__ import annotations

from typing import Any

import torch

from elite.planner.v1 import planner_pb2
from services.trainer.engine.adapters import without_dropout
from services.trainer.engine.attention import attention_kernel
from services.trainer.engine.decoder import last_hidden_states
from services.trainer.engine.loss import OutputHead, tiled_cross_entropy
from services.trainer.engine.step_meter import BACKWARD, FORWARD, LOSS, StepMeter
from services.trainer.engine.streaming.step_journal import StepJournal


class ResidentExecutor:
    """Autograd through the model as `apply_plan` left it, then the tiled loss on the targets."""

    def __init__(self, model: Any, plan: planner_pb2.Plan, meter: StepMeter | None = None) -> None:
        """`model` is the Hugging Face model with its adapters inside. meter: measures the steps."""
        self._model = model
        self._head = OutputHead.of(model)
        self._target_tokens = int(plan.target_tokens)
        self._tile_rows = int(plan.execution.loss_tile_rows)
        self._kernel = plan.execution.attention_kernel
        self._phases = (meter or StepMeter(self._head.weight_ve.device)).phases

    def step(
        self, window_bs: torch.Tensor, gradient_scale: float, journal: StepJournal | None = None
    ) -> float:
        """Loss of a window; adds `gradient_scale` times its gradient to the adapters' `.grad`."""
        assert journal is None, "a resident step has no boundaries"
        loss = self.backward(window_bs, gradient_scale)
        self._phases.settle()
        return float(loss)

    def backward(self, window_bs: torch.Tensor, gradient_scale: float) -> torch.Tensor:
        """The same, with the loss left on the device."""
        # Backward recomputes the layers, so it needs the same kernel.
        with attention_kernel(self._kernel):
            loss = self._timed_loss(window_bs, gradient_scale)
            with self._phases.timed(BACKWARD):
                loss.backward()
        return loss.detach()

    def evaluate(self, window_bs: torch.Tensor) -> float:
        """Loss of a window, without gradients and without dropout."""
        with torch.no_grad(), attention_kernel(self._kernel), without_dropout(self._model):
            return float(self._loss(self._target_states(window_bs), window_bs))

    def _timed_loss(self, window_bs: torch.Tensor, gradient_scale: float) -> torch.Tensor:
        """The loss. Hidden states end with this call: backward needs their memory."""
        with self._phases.timed(FORWARD):
            hidden_re = self._target_states(window_bs)
        with self._phases.timed(LOSS):
            return self._loss(hidden_re, window_bs, gradient_scale)

    def _target_states(self, window_bs: torch.Tensor) -> torch.Tensor:
        """Hidden states that predict the targets, (R, E)."""
        hidden_bse = last_hidden_states(self._model, window_bs.to(self._head.weight_ve.device))
        # The token at position p is predicted at p - 1.
        return hidden_bse[0, -self._target_tokens - 1 : -1]

    def _loss(
        self, hidden_re: torch.Tensor, window_bs: torch.Tensor, gradient_scale: float = 1.0
    ) -> torch.Tensor:
        targets_r = window_bs[0, -self._target_tokens :].to(hidden_re.device)
        return tiled_cross_entropy(
            hidden_re, targets_r, self._head, self._tile_rows, gradient_scale
        )
