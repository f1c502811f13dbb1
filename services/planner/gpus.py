"""The card table: what a graphics card can do when nobody has measured it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from services.planner.tables import table

_GIBIBYTE = 2**30
_GIGABYTE = 10**9
_TERA = 10**12
_FULL_WIDTH = 16
# Drivers differ by what they count as reserved.
_SAME_MEMORY = 0.05


@dataclass(frozen=True, slots=True)
class GpuCard:
    """A card as its maker describes it, and what is known of its real rates.

    Rates are FLOP/s and bytes/s; `bfloat16_flops_per_second` is 0 where the card has none.
    """

    gpu_id: str
    name: str
    name_pattern: re.Pattern[str]
    generation: str
    compute_capability: tuple[int, int]
    visible_bytes: int
    memory_bandwidth: float
    bfloat16_flops_per_second: float
    float16_flops_per_second: float
    achieved_fraction: float
    achieved_fraction_known: bool
    attention_fraction: float
    pcie_generation: int
    pcie_width: int
    host_to_device_pinned: float
    runtime_overhead_bytes: int
    power_limit_watts: float
    # The table's lowest and highest achieved share of the dense rate, over this card's own.
    lowest_share: float
    highest_share: float
    advice: str

    @property
    def sixteen_bit_flops_per_second(self) -> float:
        """Dense rate in the 16-bit type the card is best used with."""
        return self.bfloat16_flops_per_second or self.float16_flops_per_second


@cache
def gpu_cards() -> Mapping[str, GpuCard]:
    """All cards by id, in the order of the table."""
    document = table("gpus")
    fractions = [
        row["achieved_teraflops"] / row["float16_teraflops"]
        for row in document["cards"]
        if "achieved_teraflops" in row
    ]
    cards = [_card(row, document, fractions) for row in document["cards"]]
    return {card.gpu_id: card for card in cards}


def card_named(device_name: str, memory_bytes: int) -> GpuCard | None:
    """The card a driver calls `device_name`, or None when the table has no such card.

    The memory must agree too: laptop models and slices of a partitioned card carry the name of the
    whole card.
    """
    lowered = device_name.lower()
    for card in gpu_cards().values():
        same_memory = abs(memory_bytes / card.visible_bytes - 1) <= _SAME_MEMORY
        if same_memory and card.name_pattern.search(lowered):
            return card
    return None


def _card(row: Mapping[str, Any], document: Mapping[str, Any], seen: list[float]) -> GpuCard:
    float16 = row["float16_teraflops"]
    achieved = row.get("achieved_teraflops")
    share = achieved / float16 if achieved else min(seen)
    generation, width = row["pcie"]["generation"], row["pcie"]["width"]
    pinned = document["pinned_gigabytes_per_second"][generation] * _GIGABYTE
    major, minor = row["compute_capability"]
    return GpuCard(
        gpu_id=row["id"],
        name=row["name"],
        name_pattern=re.compile(row["name_pattern"]),
        generation=row["generation"],
        compute_capability=(major, minor),
        visible_bytes=int(row["visible_gibibytes"] * _GIBIBYTE),
        memory_bandwidth=row["memory_gigabytes_per_second"] * _GIGABYTE,
        bfloat16_flops_per_second=row.get("bfloat16_teraflops", 0) * _TERA,
        float16_flops_per_second=float16 * _TERA,
        achieved_fraction=share,
        achieved_fraction_known=achieved is not None,
        attention_fraction=document["attention_fractions"][row["generation"]],
        pcie_generation=generation,
        pcie_width=width,
        host_to_device_pinned=pinned * width / _FULL_WIDTH,
        runtime_overhead_bytes=int(document["runtime_overhead_gibibytes"] * _GIBIBYTE),
        power_limit_watts=row["power_watts"],
        lowest_share=min(seen) / share,
        highest_share=max(seen) / share,
        advice=row["advice"],
    )
