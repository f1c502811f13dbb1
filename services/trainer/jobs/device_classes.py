"""Which workers can run a plan: those with the kind of device it was made for."""

from __future__ import annotations

import re
from pathlib import Path

from elite.planner.v1 import planner_pb2
from elite.profiler.v1 import profiler_pb2

CPU = "cpu"
# What NVIDIA's kernel driver says of its GPUs.
_DRIVER = Path("/proc/driver/nvidia/gpus")
_ANY_GPU = "gpu"


def device_class_of(plan: planner_pb2.Plan) -> str:
    """The class "cpu", or the GPU the plan names: "nvidia-geforce-rtx-3090"."""
    if plan.device_kind == profiler_pb2.DEVICE_KIND_CPU:
        return CPU
    return class_of_name(plan.planned_on.device_name) or _ANY_GPU


def class_of_name(device_name: str) -> str:
    """The class of a GPU by the name its driver gives it."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")


def device_classes_here(driver: Path = _DRIVER) -> tuple[str, ...]:
    """The classes of this machine's GPUs, and "cpu"."""
    names = set()
    for path in driver.glob("*/information"):
        for line in path.read_text().splitlines():
            label, _, name = line.partition(":")
            if label.strip() == "Model":
                names.add(class_of_name(name))
    return (*sorted(names), CPU)
