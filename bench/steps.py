"""Optimiser steps of the engine without a run: random weights, random tokens, its own `Stepper`.

Shapes: B batch (1), S tokens of the window.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from bench.step_worker import Timed
from elite.planner.v1 import planner_pb2
from services.common.engine_process import (
    CHUNK_BLOCK_BYTES,
    LARGE_BLOCK_BYTES,
    available_cores,
    return_freed_memory,
)
from services.trainer.engine.adapters import trainable_parameters
from services.trainer.engine.apply_plan import apply_plan
from services.trainer.engine.attention import ATTENTION_NAME, register_attention
from services.trainer.engine.dataset import TokenSequence, Windows
from services.trainer.engine.executors import make_executor
from services.trainer.engine.models import DTYPES
from services.trainer.engine.optimizer import make_optimizer
from services.trainer.engine.specification import Training
from services.trainer.engine.training import Stepper, initial_loss_scale

_CPU = torch.device("cpu")
_SEED = 0
# A run never gets there: the learning rate's schedule needs an end.
_STEPS = 1_000_000
# A product is thin when one of its sides is at most this: adapters' ranks are, windows are not.
_THIN = 32
_MATMULS = frozenset(
    {"aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::_addmm_activation"}
)
_ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"
_OPTIMIZER_STEP = "Optimizer.step#"
_OTHERS_SHOWN = 12


def set_up_process(*, streaming: bool = False) -> None:
    """Threads and allocator as the engine has them for an executor."""
    torch.set_num_threads(available_cores())
    return_freed_memory(CHUNK_BLOCK_BYTES if streaming else LARGE_BLOCK_BYTES)
    register_attention()


def load(config: Mapping[str, Any], plan: planner_pb2.Plan) -> Any:
    """A model of random weights as `apply_plan` leaves it, adapters inside."""
    dtype = DTYPES[plan.execution.compute_dtype]
    torch.manual_seed(_SEED)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), dtype=dtype, attn_implementation=ATTENTION_NAME
    ).requires_grad_(False)
    apply_plan(model, plan, _CPU, _SEED)
    return model


def stepper(
    model: Any, plan: planner_pb2.Plan, vocabulary: int, page_folder: Path | None = None
) -> Stepper:
    """The engine's stepper over random tokens; one window is one step."""
    length = plan.context_tokens + plan.target_tokens
    tokens = np.random.default_rng(_SEED).integers(0, vocabulary, length).astype(np.uint32)
    sequence = TokenSequence(tokens, np.array([0]), np.array([length]))
    parameters = trainable_parameters(model)
    training = Training(steps=_STEPS)
    return Stepper(
        executor=make_executor(model, plan, page_folder),
        optimizer=make_optimizer(plan.execution.optimizer, parameters, training),
        parameters=parameters,
        windows=Windows(sequence, plan.context_tokens, plan.target_tokens),
        training=training,
        device=_CPU,
        loss_scale=initial_loss_scale(DTYPES[plan.execution.compute_dtype]),
    )


def timed_step(subject: Stepper) -> Timed:
    """One optimiser step: window, forward, backward, clipping, update."""
    started, worked = time.perf_counter(), time.process_time()
    subject.run(0)
    seconds = time.perf_counter() - started
    return Timed(seconds, (time.process_time() - worked) / (seconds * torch.get_num_threads()))


def step_lines(subject: Stepper, vocabulary: int) -> dict[str, Any]:
    """Seconds of one step by group of operators, and the largest operators of the last group.

    matmul: linear modules forward and backward; thin_matmul: their adapters; head_matmul: the
    output head; optimizer: its update; everything_else: norms, activations, copies, the loss.
    """
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        subject.run(0)
    lines = dict.fromkeys(
        ("matmul", "thin_matmul", "head_matmul", "attention_forward", "attention_backward",
         "optimizer", "everything_else"), 0.0,
    )  # fmt: skip
    others: dict[str, float] = {}
    for event in recorded.key_averages(group_by_input_shape=True):
        if event.key.startswith(_OPTIMIZER_STEP):
            lines["optimizer"] += event.cpu_time_total / 1e6
        group = group_of(event.key, event.input_shapes, vocabulary)
        lines[group] += event.self_cpu_time_total / 1e6
        if group == "everything_else":
            others[event.key] = others.get(event.key, 0.0) + event.self_cpu_time_total / 1e6
    lines["everything_else"] -= lines["optimizer"]  # made of the same element-wise operators
    largest = sorted(others.items(), key=lambda item: -item[1])[:_OTHERS_SHOWN]
    return {**lines, "largest_others": dict(largest)}


def group_of(operator: str, shapes: list[list[int]], vocabulary: int) -> str:
    """Group of an operator, by its name and the shapes of its inputs."""
    if operator.startswith(_ATTENTION):
        return "attention_backward" if operator.endswith("_backward") else "attention_forward"
    if operator not in _MATMULS:
        return "everything_else"
    sides = [side for shape in shapes for side in shape]
    if vocabulary in sides:
        return "head_matmul"
    return "thin_matmul" if min(sides) <= _THIN else "matmul"
