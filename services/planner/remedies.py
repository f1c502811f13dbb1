"""What would make a tier fit, in words."""

from __future__ import annotations

from services.planner.gpus import GpuCard, gpu_cards
from services.planner.ladder import Tier
from services.planner.machine import DeviceKind, Machine
from services.planner.memory import RunMemory
from services.planner.models import ModelShape

_GIGABYTE = 1e9


def remedy(
    resource: str,
    missing_bytes: int,
    memory: RunMemory,
    machine: Machine,
    exact_only: bool,
    headroom_fraction: float,
) -> str:
    """One sentence: how much more of what binds, and where it can be had."""
    more = f"{missing_bytes / _GIGABYTE:.1f} GB more {resource}"
    if resource == "GPU memory" and machine.device_kind is DeviceKind.CUDA:
        card = smallest_card(memory.device.total_bytes, headroom_fraction)
        more += f": a card like {card.gpu_id}" if card else ": more than any card in the table has"
    elif resource == "GPU memory":
        # On this device the budget is host memory.
        more = f"{missing_bytes / _GIGABYTE:.1f} GB more host memory"
    return f"{more}, or without exact_only, which allows NF4 weights" if exact_only else more


def smallest_card(device_bytes: int, headroom_fraction: float) -> GpuCard | None:
    """The card with the least memory on which so many bytes fit."""
    fitting = [
        card
        for card in gpu_cards().values()
        if (card.visible_bytes - card.runtime_overhead_bytes) * (1 - headroom_fraction)
        >= device_bytes
    ]
    return min(fitting, key=lambda card: card.visible_bytes, default=None)


def remedy_for_kernel(machine: Machine) -> str:
    """What to do when no set is legal."""
    return (
        f"{machine.device_name} has no working fused attention kernel: install the torch this "
        f"project pins, run `elite profile --stress`, and plan again"
    )


def remedy_for_window(model: ModelShape, tier: Tier) -> str:
    """What to do about layers that attend to fewer tokens than the tier has."""
    return (
        f"{model.windowed_layer_count} of {model.layer_count} layers of {model.display_name} "
        f"attend to the last {model.sliding_window} tokens only, and the fused kernels here "
        f"compute full causal attention: choose a model without a sliding window, or a tier of at "
        f"most {model.sliding_window} tokens (this one has {tier.tokens})"
    )
