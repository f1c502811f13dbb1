"""Runs a planned row: the model loaded and set up as the engine does it, then optimiser steps.

Shapes: B batch (1), S tokens of the window.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bench import gpu_device
from bench.gpu_device import Peaks
from bench.gpu_extrapolation import Share, Stages
from bench.gpu_models import (
    SEED,
    ClockedExecutor,
    SampledExecutor,
    StageClock,
    model_on_host,
    random_window,
)
from bench.gpu_plans import RowPlan
from services.profiler.probes.compute import synchronise
from services.trainer.engine.adapters import trainable_parameters
from services.trainer.engine.apply_plan import apply_plan
from services.trainer.engine.dataset import TokenSequence, Windows
from services.trainer.engine.executors import Executor, make_executor
from services.trainer.engine.executors.streaming import StreamingExecutor
from services.trainer.engine.memory_tracking import host_peak_bytes
from services.trainer.engine.models import DTYPES
from services.trainer.engine.optimizer import make_optimizer
from services.trainer.engine.specification import Training
from services.trainer.engine.step_meter import LOSS
from services.trainer.engine.streaming.settings import StreamingSettings
from services.trainer.engine.training import Stepper, initial_loss_scale

_HOST = torch.device("cpu")
# A schedule needs an end; no row gets there.
_STEPS = 1_000_000
# Steps shorter than this are repeated, and the stages are timed in a step of their own: waiting for
# the device at every layer would slow them down.
_SHORT_SECONDS = 5.0
_ROUNDS = 3


@dataclass(slots=True)
class Ran:
    """What a row took. Peaks are of loading and setting up, and of the steps; None on a CPU.

    samples: seconds of steps. stages: of one step, None for the resident executor. loss: None where
    chunks were left out. outside_bytes: device memory that torch's allocator does not hold.
    """

    attention_kernel: str = ""
    setup_seconds: float = 0.0
    samples: list[float] = field(default_factory=list)
    stages: Stages | None = None
    share: Share = field(default_factory=Share)
    loss: float | None = None
    load_peaks: Peaks | None = None
    step_peaks: Peaks | None = None
    allocation_retries: int | None = None
    outside_bytes: int | None = None
    host_peak_bytes: int = 0


def run_row(
    row: RowPlan, config: Mapping[str, Any], device: torch.device, cap_bytes: int | None,
    note: Callable[[Ran], None],
) -> Ran:  # fmt: skip
    """Loads and steps what the row's plan says. config: of the model at that depth.

    cap_bytes: most that torch's allocator may hold; None: whatever there is. note: hears of what is
    known so far. Raises what the engine raises, out of memory included.
    """
    model = model_on_host(config, DTYPES[row.message.execution.compute_dtype], device)
    gpu_device.reset_peaks(device)
    if cap_bytes is not None:
        gpu_device.limit_memory(device, cap_bytes)
    ran, retries = Ran(), gpu_device.allocation_retries(device)
    started = time.perf_counter()
    ran.attention_kernel = apply_plan(model, row.message, device, SEED).attention_kernel
    ran.load_peaks = gpu_device.read_peaks(device)
    stepper = _stepper(model, row)
    synchronise(device)
    ran.setup_seconds = time.perf_counter() - started
    note(ran)
    gpu_device.reset_peaks(device)
    _step(stepper, row, device, ran)
    ran.step_peaks = gpu_device.read_peaks(device)
    after = gpu_device.allocation_retries(device)
    ran.allocation_retries = None if after is None else after - (retries or 0)
    if device.type == "cuda":
        ran.outside_bytes = gpu_device.outside_allocator_bytes(device)
    ran.host_peak_bytes = host_peak_bytes()
    return ran


def _stepper(model: Any, row: RowPlan) -> Stepper:
    """The engine's stepper over random tokens; one window is one step."""
    plan, training = row.message, Training(steps=_STEPS)
    tokens = random_window(plan)[0].numpy().astype(np.uint32)
    sequence = TokenSequence(tokens, np.array([0]), np.array([len(tokens)]))
    parameters = trainable_parameters(model)
    return Stepper(
        executor=_executor(model, row),
        optimizer=make_optimizer(plan.execution.optimizer, parameters, training),
        parameters=parameters,
        windows=Windows(sequence, plan.context_tokens, plan.target_tokens),
        training=training,
        device=_HOST,  # token ids stay there
        loss_scale=initial_loss_scale(DTYPES[plan.execution.compute_dtype]),
    )


def _executor(model: Any, row: RowPlan) -> Executor:
    """The plan's, or the same with stages and chunks told apart where something is left out."""
    if not row.is_reduced:
        return make_executor(model, row.message)
    return SampledExecutor(model, StreamingSettings.of(row.message), row.sampled_chunks)


def _step(stepper: Stepper, row: RowPlan, device: torch.device, ran: Ran) -> None:
    """A short window to warm up, then steps: three and one with a clock, or one with a clock."""
    _warm_up(stepper, row)
    has_stages, is_short = row.full.chosen.streaming, row.expected_seconds < _SHORT_SECONDS
    if is_short and not row.is_reduced:
        stepper.run(0)  # makes the optimizer's states
        ran.samples = [_timed(stepper, device, ran) for _ in range(_ROUNDS)]
    elif not has_stages:
        ran.samples = [_timed(stepper, device, ran)]
    if has_stages:
        _clocked(stepper, row, device, ran)
    if row.sampled_chunks:
        ran.loss = None


def _warm_up(stepper: Stepper, row: RowPlan) -> None:
    """Targets and one chunk before them: every kernel runs, and little else."""
    plan = row.message
    chunk_tokens = int(plan.execution.streaming.chunk_tokens) or int(plan.target_tokens)
    window_bs = random_window(plan)[:, : int(plan.target_tokens) + chunk_tokens]
    stepper.executor.step(window_bs, 1.0)
    for parameter in stepper.parameters:
        parameter.grad = None


def _clocked(stepper: Stepper, row: RowPlan, device: torch.device, ran: Ran) -> None:
    """One step, stage by stage; it is the sample where there is no other."""
    clock, executor = StageClock(device), stepper.executor
    assert isinstance(executor, StreamingExecutor)
    stepper.executor = ClockedExecutor(executor, clock)
    executor.phases.take()
    seconds = _timed(stepper, device, ran)
    ran.samples = ran.samples or [seconds]
    made_again: Mapping[int, float] = {}
    if isinstance(executor, SampledExecutor):
        made_again, ran.share = dict(executor.made_again_seconds), executor.share
    interval = int(row.message.execution.layer_input_interval) or 1
    other = max(0.0, seconds - sum(clock.seconds))
    loss = executor.phases.take()[LOSS]
    ran.stages = Stages(tuple(clock.seconds), loss, other, made_again, interval)


def _timed(stepper: Stepper, device: torch.device, ran: Ran) -> float:
    synchronise(device)
    started = time.perf_counter()
    ran.loss = stepper.run(0).loss
    synchronise(device)
    return time.perf_counter() - started
