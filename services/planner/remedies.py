"""What would make a tier fit, in words."""

from __future__ import annotations

from services.planner.gpus import GpuCard, gpu_cards
from services.planner.ladder import Tier
from services.planner.machine import Machine
from services.planner.models import ModelShape

ALLOW_LOSSY = ", or leave exact_only out, which allows NF4 weights"


def remedy_for_bytes(missing_bytes: float, what: str) -> str:
    """How much more of what binds."""
    return f"{missing_bytes / 1e9:.1f} GB more {what}"


def remedy_for_gpu(missing_bytes: float, safe_bytes: float) -> str:
    """How much more GPU memory, and the smallest card that has `safe_bytes` for tensors."""
    card = smallest_card(safe_bytes)
    place = f"a card like {card.gpu_id}" if card else "more than any card in the table has"
    return f"{remedy_for_bytes(missing_bytes, 'GPU memory')}: {place}"


def remedy_for_time(step_seconds: float) -> str:
    """What the caller may change about a step that takes too long."""
    return f"allow {step_seconds:.3g} seconds a step, or choose a faster device"


def smallest_card(safe_bytes: float) -> GpuCard | None:
    """The card with the least memory that has so many bytes beside its context."""
    fitting = [
        card
        for card in gpu_cards().values()
        if card.visible_bytes - card.runtime_overhead_bytes >= safe_bytes
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
