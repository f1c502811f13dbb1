"""AdamW in 32 or 8 bits, its schedule, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import bitsandbytes as bnb
import torch

from elite.planner.v1 import planner_pb2
from services.trainer.engine.failures import INTERNAL, EngineError
from services.trainer.engine.specification import Training

# Tables that the 8-bit optimizer makes again by itself and shares between parameters.
_SHARED_TABLES = ("qmap1", "qmap2")

State = dict[str, torch.Tensor]


def make_optimizer(
    kind: planner_pb2.OptimizerKind,
    parameters: Sequence[torch.nn.Parameter],
    training: Training,
) -> torch.optim.Optimizer:
    """The optimizer the plan names. Raises `EngineError` for one this engine does not know.

    States are fp32 where they are not in 8 bits: bitsandbytes' are for 16-bit parameters, torch's
    are as the parameters. In float16 its epsilon is 0 and squares of gradients are, and in bfloat16
    the mean of squares cannot shrink by a thousandth.
    """
    kinds: dict[planner_pb2.OptimizerKind, type[torch.optim.Optimizer]] = {
        planner_pb2.OPTIMIZER_KIND_ADAMW_8BIT: bnb.optim.AdamW8bit,
        planner_pb2.OPTIMIZER_KIND_ADAMW: torch.optim.AdamW
        if all(parameter.dtype == torch.float32 for parameter in parameters)
        else bnb.optim.AdamW,
    }
    if kind not in kinds:
        raise EngineError(INTERNAL, f"plan.execution.optimizer is {kind}", "plan again")
    options: dict[str, Any] = {
        "lr": training.learning_rate,
        "weight_decay": training.weight_decay,
    }
    return kinds[kind](parameters, **options)


def learning_rate_at(step: int, training: Training) -> float:
    """Linear warm-up to the peak, then a cosine to zero. `step` counts from 0.

    No step has rate zero: the warm-up starts above it and the cosine ends before it.
    """
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / (training.steps - training.warmup_steps)
    return training.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def clip_gradients(
    parameters: Sequence[torch.nn.Parameter], *, max_norm: float, gradient_scale: float
) -> float:
    """Takes `gradient_scale` out of the gradients, clips their norm, and returns it unclipped.

    `max_norm` 0 does not clip. Norms are fp32: a 16-bit norm overflows first. When the norm is not
    finite the gradients are left as they are.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    norm = float(torch.linalg.vector_norm(torch.stack(norms))) / gradient_scale
    if not math.isfinite(norm):
        return norm
    factor = min(1.0, max_norm / (norm + 1e-6)) if max_norm > 0 else 1.0
    if factor != gradient_scale:
        torch._foreach_mul_(gradients, factor / gradient_scale)
    return norm


def optimizer_state(optimizer: torch.optim.Optimizer) -> State:
    """All state as tensors named "<index of the parameter>.<name>"."""
    state: State = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state[parameter].items():
            if name not in _SHARED_TABLES:
                state[f"{index}.{name}"] = torch.as_tensor(value).detach().cpu()
    return state


def restore_optimizer_state(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Puts back what `optimizer_state` took, to the last bit.

    `load_state_dict` is not used: it casts state to the parameters' dtype.
    """
    for index, parameter in enumerate(_parameters(optimizer)):
        prefix = f"{index}."
        saved: dict[str, Any] = {
            k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)
        }
        if not saved:
            continue  # before the first step there is none
        if isinstance(optimizer, bnb.optim.optimizer.Optimizer8bit):
            optimizer.init_state(optimizer.param_groups[0], parameter, 0, index)
            saved["step"] = int(saved["step"])
        elif "step" in saved:
            saved["step"] = saved["step"].cpu()
        for name, value in saved.items():
            is_on_device = isinstance(value, torch.Tensor) and name != "step"
            optimizer.state[parameter][name] = value.to(parameter.device) if is_on_device else value


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
