"""The device under test: what the driver says of it, its context, and the allocator's figures."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import Any

import torch

from bench.gpu_plans import Device, fastest_kernels, rates_from
from bench.gpu_settings import NO_CUDA, Settings
from bench.speed_steps import find_device
from services.planner.attention_kernels import FLASH
from services.profiler.probes.compute import load_kernels

# What is asked, and what it is called here.
_DRIVER_FIELDS = {
    "driver_version": "driver_version",
    "power.limit": "power_limit_watts",
    "clocks.max.sm": "highest_clock_megahertz",
    "pcie.link.gen.max": "pcie_generation",
}
_DRIVER_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Peaks:
    """Allocator's figures since `reset_peaks`; bytes handed out, and held from the driver."""

    allocated_bytes: int
    reserved_bytes: int


def open_device() -> torch.device:
    """The device, with its context and its libraries loaded: later figures move less."""
    device = find_device()
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
        load_kernels(device)
    return device


def describe(device: torch.device) -> Device:
    """The card as plans for a smaller one need it.

    After `open_device`. context_bytes: what is in use that torch's allocator does not hold, so that
    what other processes have is in it: measure alone.
    """
    properties = torch.cuda.get_device_properties(device)
    return Device(
        properties.name, (properties.major, properties.minor), properties.total_memory,
        outside_allocator_bytes(device), torch.cuda.memory_allocated(device),
    )  # fmt: skip


def outside_allocator_bytes(device: torch.device) -> int:
    """Device memory in use that torch's allocator does not hold: context, kernels, libraries."""
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return int(total_bytes - free_bytes - torch.cuda.memory_reserved(device))


def kernel_for(device: torch.device, settings: Settings) -> str:
    """The attention kernel of sections that leave no choice: the named one, else the fastest."""
    if settings.attention_kernel or device.type != "cuda":
        return settings.attention_kernel or FLASH
    capability = torch.cuda.get_device_capability(device)
    return fastest_kernels(rates_from(settings.so_far), capability)[0]


def limit_memory(device: torch.device, cap_bytes: int) -> None:
    """Lets torch's allocator hold no more than this. Raises `RuntimeError` beyond the card's."""
    fraction = cap_bytes / torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(fraction, device)


def reset_peaks(device: torch.device) -> None:
    """Peaks become what is in use now. Gives unused memory back, so that none of it counts."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def read_peaks(device: torch.device) -> Peaks | None:
    """None on a CPU."""
    if device.type != "cuda":
        return None
    return Peaks(
        torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    )  # fmt: skip


def allocation_retries(device: torch.device) -> int | None:
    """How often this process freed its caches to get memory so far; None on a CPU."""
    if device.type != "cuda":
        return None
    return int(torch.cuda.memory_stats(device)["num_alloc_retries"])


def driver_facts(device: torch.device) -> dict[str, Any]:
    """What `nvidia-smi` says, and what it did not say with the reason."""
    names = list(_DRIVER_FIELDS.values())
    if device.type != "cuda":
        return dict.fromkeys(names) | {"not_measured": dict.fromkeys(names, NO_CUDA)}
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    command = ["nvidia-smi", f"--query-gpu={','.join(_DRIVER_FIELDS)}"]
    command += ["--format=csv,noheader,nounits", *([f"--id=GPU-{uuid}"] if uuid else [])]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_DRIVER_SECONDS
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return dict.fromkeys(names) | {"not_measured": dict.fromkeys(names, str(error))}
    values = [_value(text.strip()) for text in answer.splitlines()[0].split(",")]
    return dict(zip(names, values, strict=True)) | {"not_measured": {}}


def _value(text: str) -> float | str:
    """A number where it is one: the driver's version has two dots, and some answers are words."""
    try:
        return float(text)
    except ValueError:
        return text
