"""The device a plan is for, and what the engine asks of the CPU and of the C library."""

from __future__ import annotations

import ctypes
import math
import os
import platform
from pathlib import Path

import torch

from elite.planner.v1 import planner_pb2
from elite.profiler.v1 import profiler_pb2
from services.trainer.engine.failures import INTERNAL, EngineError

# From malloc.h: blocks of this size and more get a mapping of their own.
_M_MMAP_THRESHOLD = -3
LARGE_BLOCK_BYTES = 1024 * 1024


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


def return_freed_memory() -> None:
    """Makes glibc give large freed blocks back at once instead of keeping them for later.

    Without it the resident set of a CPU run grows by half beyond its tensors, and then no memory
    plan for the host can be right. Other C libraries have no such switch and need none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


def available_cores(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores of the affinity mask, no more than the cgroup's quota (cgroup v2 `cpu.max`)."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = cpu_max.read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        return cores
