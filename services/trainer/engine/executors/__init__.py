"""Ways to run one training step. The plan chooses; all give the same loss and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from elite.planner.v1 import planner_pb2
from services.trainer.engine.executors.resident import ResidentExecutor
from services.trainer.engine.executors.streaming import StreamingExecutor
from services.trainer.engine.failures import INTERNAL, EngineError
from services.trainer.engine.step_meter import StepMeter
from services.trainer.engine.streaming.settings import StreamingSettings
from services.trainer.engine.streaming.step_journal import StepJournal


class Executor(Protocol):
    """Runs windows through the model. B is 1: one window at a time; its ids are on the host."""

    def step(
        self, window_bs: torch.Tensor, gradient_scale: float, journal: StepJournal | None = None
    ) -> float:
        """Loss of a window; adds `gradient_scale` times its gradient to the adapters' `.grad`.

        journal: told of every layer that is done, for an executor whose steps can be saved there.
        """
        ...

    def backward(self, window_bs: torch.Tensor, gradient_scale: float) -> torch.Tensor:
        """The same, with the loss left on the device."""
        ...

    def evaluate(self, window_bs: torch.Tensor) -> float:
        """Loss of a window, without gradients."""
        ...


def make_executor(
    model: Any, plan: planner_pb2.Plan, page_folder: Path | None = None,
    journal_folder: Path | None = None, meter: StepMeter | None = None,
) -> Executor:  # fmt: skip
    """The executor the plan names, for the Hugging Face model that `apply_plan` has changed.

    page_folder: where page files go; journal_folder: those of a step that is saved in the middle;
    meter: measures the steps.
    Raises `EngineError` for an executor this engine does not
    know, and for a disk without room.
    """
    if plan.execution.executor == planner_pb2.EXECUTOR_RESIDENT:
        return ResidentExecutor(model, plan, meter)
    if plan.execution.executor == planner_pb2.EXECUTOR_STREAMING:
        settings = StreamingSettings.of(plan, page_folder, journal_folder)
        return StreamingExecutor(model, settings, meter)
    raise EngineError(
        INTERNAL, f"plan.execution.executor is {plan.execution.executor}", "plan again"
    )
