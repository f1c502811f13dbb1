"""What would make a tier fit, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from services.planner.attention_kernels import FUSED_KERNELS, card_kernels
from services.planner.gpus import GpuCard, gpu_cards
from services.planner.ladder import Tier
from services.planner.machine import Machine, card_rates
from services.planner.models import ModelShape
from services.planner.rates import Rates


class Resource(Enum):
    """What can keep a tier from fitting."""

    GPU_MEMORY = "GPU memory"
    HOST_MEMORY = "host memory"
    DISK = "disk"
    TIME = "time"
    SOFTWARE = "software"


@dataclass(frozen=True, slots=True)
class Remedy:
    """One change that, alone, makes a tier fit."""

    text: str
    resource: Resource
    bytes: int = 0
    seconds: float = 0.0
    gpu_id: str = ""
    optimization_id: str = ""


def remedy_for_bytes(missing_bytes: float, resource: Resource) -> Remedy:
    """How much more of what binds."""
    # Shares of the whole are whole bytes, rounded down: one more covers that.
    missing = math.ceil(missing_bytes) + 1
    return Remedy(f"{_gibibytes(missing)} more {resource.value}", resource, missing)


def remedy_for_gpu(missing_bytes: float, card: GpuCard | None) -> Remedy:
    """How much more GPU memory, and a card that has it."""
    more = remedy_for_bytes(missing_bytes, Resource.GPU_MEMORY)
    if card is None:
        text, gpu_id = f"{more.text}: more than any card in the table has", ""
    else:
        text, gpu_id = f"{more.text}: a card like {card.gpu_id}", card.gpu_id
    return Remedy(text, Resource.GPU_MEMORY, more.bytes, gpu_id=gpu_id)


def remedy_for_limit(missing_bytes: float) -> Remedy:
    """How much more GPU memory to allow of what the device has."""
    more = remedy_for_bytes(missing_bytes, Resource.GPU_MEMORY)
    return replace(more, text=f"{more.text}, which the device has: raise the limit")


def remedy_for_time(window_seconds: float) -> Remedy:
    """What the caller may change about a step that takes too long."""
    text = f"allow {_duration(window_seconds)} a step, or choose a faster device"
    return Remedy(text, Resource.TIME, seconds=window_seconds)


def remedy_for_permission(optimization_id: str) -> Remedy:
    """What the caller may allow; no id stands for what sets do unless they are forbidden to."""
    if optimization_id:
        text = f"allow {optimization_id}, which is lossy"
    else:
        text = "leave exact_only out, or forbid less: it takes NF4 weights or 8-bit AdamW"
    return Remedy(text, Resource.SOFTWARE, optimization_id=optimization_id)


def smallest_card(safe_bytes: float, machine: Machine, is_timed: bool = False) -> GpuCard | None:
    """The card with the least memory that has so many bytes beside its context.

    It takes no more of them than the machine's own: it computes in 16 bit with a kernel that is no
    worse. is_timed: it is no slower either.
    """
    fitting = [
        card
        for card in gpu_cards().values()
        if card.visible_bytes - card.runtime_overhead_bytes >= safe_bytes
        and _has_kernel_of(card, machine)
        and (not is_timed or _is_as_fast(card, machine))
    ]
    return min(fitting, key=lambda card: card.visible_bytes, default=None)


def _has_kernel_of(card: GpuCard, machine: Machine) -> bool:
    of_both = machine.attention_kernels, card_kernels(card.compute_capability)
    ours, theirs = (any(FUSED_KERNELS[name].shares_keys for name in names) for names in of_both)
    return theirs or not ours


def _is_as_fast(card: GpuCard, machine: Machine) -> bool:
    """Whether every rate of the card's is at least the machine's best."""
    rates = zip(_rates(card_rates(card)), _rates(machine.rates), strict=True)
    return all(theirs >= ours for theirs, ours in rates)


def _rates(rates: Rates) -> list[float]:
    of_dtype = rates.of(2) or rates.of(4)
    found = [rates.memory_bandwidth, rates.host_to_device, rates.device_to_host]
    if of_dtype is not None:
        attention = max(rates.best for rates in of_dtype.attention_rates.values())
        found += [of_dtype.matmul.best, attention]
    return found


def remedy_for_kernel(machine: Machine) -> Remedy:
    """What to do when no set is legal."""
    text = (
        f"{machine.device_name} has no working fused attention kernel: install the torch this "
        f"project pins, run `elite profile --stress`, and plan again"
    )
    return Remedy(text, Resource.SOFTWARE)


def remedy_for_dropout(model: ModelShape, tier: Tier) -> Remedy:
    """What to do about dropout where only the streaming executor will do."""
    text = (
        f"layers of {model.display_name} attend to the last {model.sliding_window} tokens only; "
        f"the streaming executor does that for {tier.tokens} tokens, but has no dropout: leave "
        f"adapters.dropout out"
    )
    return Remedy(text, Resource.SOFTWARE)


def remedy_for_window(model: ModelShape, tier: Tier) -> Remedy:
    """What to do about layers that attend to fewer tokens than the tier has."""
    text = (
        f"{model.windowed_layer_count} of {model.layer_count} layers of {model.display_name} "
        f"attend to the last {model.sliding_window} tokens only, which the resident executor does "
        f"not do: add streaming-executor, or choose a tier of at most {model.sliding_window} "
        f"tokens (this one has {tier.tokens})"
    )
    return Remedy(text, Resource.SOFTWARE)


def _gibibytes(count: int) -> str:
    """Rounded up, so that what it names is enough."""
    return f"{math.ceil(10 * count / 2**30) / 10:.1f} GiB"


def _duration(seconds: float) -> str:
    """Rounded up, so that what it names is enough."""
    for unit, length in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{math.ceil(10 * seconds / length) / 10:g} {unit}"
    return f"{math.ceil(100 * seconds) / 100:g} seconds"
