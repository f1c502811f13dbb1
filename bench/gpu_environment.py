"""Section `environment`: card, driver, libraries, and what a CUDA context takes."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch

from bench import gpu_device
from bench.gpu_settings import NO_CUDA, Settings
from bench.machine import describe_machine
from services.common.host_memory import read_memory
from services.planner.gpus import card_named

_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "triton")
_CARD_FIELDS = (
    "card", "compute_capability", "multiprocessors", "total_memory_bytes", "context_bytes",
    "data_sheet_flops_per_second",
)  # fmt: skip


def measure(settings: Settings, number: int) -> dict[str, Any]:
    """Both parts of the document that say what it was measured on."""
    del settings, number
    device = gpu_device.open_device()
    card, driver = _card(device), gpu_device.driver_facts(device)
    missing = {name: NO_CUDA for name in _CARD_FIELDS if device.type != "cuda"}
    environment = {
        **card,
        **driver,
        "not_measured": missing | driver["not_measured"],
        "cuda": torch.version.cuda,
        "host_memory_bytes": read_memory().total_bytes,
        "host_memory_available_bytes": read_memory().available_bytes,
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }
    machine = describe_machine()
    return {"machine": machine | {"gpu": card["card"]}, "environment": environment}


def _card(device: torch.device) -> dict[str, Any]:
    """data_sheet_flops_per_second: dense 16-bit rate of the card table, null where it has none."""
    if device.type != "cuda":
        return dict.fromkeys(_CARD_FIELDS)
    found, properties = gpu_device.describe(device), torch.cuda.get_device_properties(device)
    listed = card_named(found.name, found.memory_bytes)
    return {
        "card": found.name,
        "compute_capability": ".".join(map(str, found.capability)),
        "multiprocessors": properties.multi_processor_count,
        "total_memory_bytes": found.memory_bytes,
        "context_bytes": found.context_bytes,
        "data_sheet_flops_per_second": listed.sixteen_bit_flops_per_second if listed else None,
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
