"""The device a plan is for, and what the engine asks of the CPU and of the C library."""

from __future__ import annotations

import os
import platform

import torch

from elite.planner.v1 import planner_pb2
from elite.profiler.v1 import profiler_pb2
from services.common.engine_process import available_cores
from services.trainer.engine.failures import INTERNAL, EngineError


def device_of(plan: planner_pb2.Plan) -> torch.device:
    """The plan's device. Raises `EngineError` when this process cannot see it."""
    if plan.device_kind != profiler_pb2.DEVICE_KIND_CUDA:
        return torch.device("cpu")
    if plan.device_index >= torch.cuda.device_count():
        seen = torch.cuda.device_count()
        problem = f"the plan is for CUDA device {plan.device_index}; torch sees {seen}"
        raise EngineError(INTERNAL, problem, "plan for this machine's profile")
    device = torch.device("cuda", plan.device_index)
    torch.cuda.set_device(device)
    return device


def device_name(device: torch.device) -> str:
    """Name of the device for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def use_available_cores() -> None:
    """One torch thread a core this process may use; an OMP_NUM_THREADS of the user's stands."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cores())
