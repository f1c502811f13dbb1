"""One optimiser step: windows through the executor, clipping, update, and what can go wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from services.trainer.engine.dataset import Windows
from services.trainer.engine.executors import Executor
from services.trainer.engine.failures import DIVERGED, EngineError
from services.trainer.engine.optimizer import clip_gradients, learning_rate_at
from services.trainer.engine.specification import Training
from services.trainer.engine.step_meter import OPTIMIZER, PhaseClock
from services.trainer.engine.streaming.step_journal import StepJournal

# float16 loses gradients below 6e-8; this lifts them, and is halved when the largest overflow.
FLOAT16_LOSS_SCALE = 4096.0


def initial_loss_scale(compute_dtype: torch.dtype) -> float:
    """The first loss scale for a compute dtype; only float16 needs one."""
    return FLOAT16_LOSS_SCALE if compute_dtype == torch.float16 else 1.0


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step did. The norm is the gradient's before clipping."""

    loss: float
    gradient_norm: float
    learning_rate: float


@dataclass
class Stepper:
    """Everything a step needs. `loss_scale` is the only thing steps change here.

    journal: where steps are saved in the middle, if they are. phases: the executor's clock.
    """

    executor: Executor
    optimizer: torch.optim.Optimizer
    parameters: Sequence[torch.nn.Parameter]
    windows: Windows
    training: Training
    device: torch.device
    loss_scale: float
    journal: StepJournal | None = None
    phases: PhaseClock = field(default_factory=PhaseClock)

    def run(self, step: int) -> StepResult:
        """Runs step number `step`, from 0.

        Raises `EngineError` (DIVERGED), with the weights as they were, when the loss or the
        gradient is not finite.
        """
        loss, norm = self._gradients(step)
        while not math.isfinite(norm) and self.loss_scale > 1.0:  # float16 overflow: try smaller
            self.loss_scale /= 2
            loss, norm = self._gradients(step)
        if not math.isfinite(norm):
            raise self._diverged(step, "gradient norm", norm)
        rate = learning_rate_at(step, self.training)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self.phases.timed(OPTIMIZER):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss, norm, rate)

    def _gradients(self, step: int) -> tuple[float, float]:
        """Mean loss and gradient norm of the step's windows; the gradients stay in `.grad`."""
        self.optimizer.zero_grad(set_to_none=True)
        count, losses = self.training.gradient_accumulation_steps, self._losses_so_far(step)
        for index in range(len(losses), count):
            number = step * count + index
            window = self.windows.in_training_order(number, self.training.seed)
            seed_dropout(self.training.seed, number)
            if self.journal:
                self.journal.begin_window(losses)
            batch, scale = as_batch(window, self.device), self.loss_scale / count
            losses.append(self.executor.step(batch, scale, self.journal))
            if not math.isfinite(losses[-1]):
                raise self._diverged(step, "loss", losses[-1])
        with self.phases.timed(OPTIMIZER):
            norm = clip_gradients(
                self.parameters,
                max_norm=self.training.max_gradient_norm,
                gradient_scale=self.loss_scale,
            )
        return sum(losses) / count, norm

    def _losses_so_far(self, step: int) -> list[float]:
        """Of windows that an earlier process did; their gradients are in `.grad`."""
        if not self.journal:
            return []
        losses, self.loss_scale = self.journal.begin_step(step, self.loss_scale, self.parameters)
        return losses

    def _diverged(self, step: int, what: str, value: float) -> EngineError:
        problem = f"the {what} is {value} at step {step + 1}"
        rate = learning_rate_at(step, self.training)
        fix = (
            f"lower training.learning_rate ({rate:.3g} at this step); earlier checkpoints are kept"
        )
        return EngineError(DIVERGED, problem, fix)


def seed_dropout(seed: int, window: int) -> None:
    """Makes what dropout drops depend on the window alone.

    So a step that is done again, by a resumed run or with a smaller loss scale, drops the same, on
    every device, and no generator's state has to be kept.
    """
    mixed = np.random.SeedSequence([seed, window]).generate_state(1, np.uint64)
    torch.manual_seed(int(mixed[0]))


def evaluate(
    executor: Executor, windows: Sequence[npt.NDArray[np.int64]], device: torch.device
) -> float:
    """Mean loss over windows."""
    return sum(executor.evaluate(as_batch(w, device)) for w in windows) / len(windows)


def as_batch(window: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """(S,) token ids as a (1, S) batch on the device."""
    return torch.from_numpy(window)[None].to(device)
