"""The card table and the catalogue of optimisations."""

from __future__ import annotations

import pytest

from services.planner.catalogue import optimizations
from services.planner.gpus import card_named, gpu_cards
from services.planner.machine import card_rates

GIBIBYTE = 2**30

CARDS = {
    # id: capability, visible GiB, GB/s, bf16, fp16, PCIe generation x width
    "rtx-2060-super": ((7, 5), 7.60, 448, 0, 28.7, (3, 16)),
    "rtx-3060-12gb": ((8, 6), 11.63, 360, 25.5, 25.5, (4, 16)),
    "rtx-3090": ((8, 6), 23.69, 936, 71, 71, (4, 16)),
    "rtx-4060-ti-16gb": ((8, 9), 15.60, 288, 44, 44, (4, 8)),
    "rtx-4090": ((8, 9), 23.64, 1008, 165, 165, (4, 16)),
    "rtx-5090": ((12, 0), 31.36, 1792, 209, 209, (5, 16)),
    "t4": ((7, 5), 14.75, 320, 0, 65, (3, 16)),
    "v100-16gb": ((7, 0), 15.77, 900, 0, 125, (3, 16)),
    "v100-32gb": ((7, 0), 31.74, 900, 0, 125, (3, 16)),
    "a10g": ((8, 6), 22.0, 600, 70, 70, (4, 16)),
    "l4": ((8, 9), 22.03, 300, 121, 121, (4, 16)),
    "l40s": ((8, 9), 44.39, 864, 362, 362, (4, 16)),
    "a100-40gb": ((8, 0), 39.50, 1555, 312, 312, (4, 16)),
    "a100-80gb": ((8, 0), 79.15, 2039, 312, 312, (4, 16)),
    "h100-sxm": ((9, 0), 79.2, 3350, 989, 989, (5, 16)),
    "h100-pcie": ((9, 0), 79.2, 2000, 756, 756, (5, 16)),
    "h200": ((9, 0), 139.80, 4800, 989, 989, (5, 16)),
    "b200": ((10, 0), 178.35, 8000, 2250, 2250, (5, 16)),
}


def test_the_card_table_is_exact() -> None:
    found = {
        card.gpu_id: (
            card.compute_capability,
            round(card.visible_bytes / GIBIBYTE, 2),
            card.memory_bandwidth / 1e9,
            card.bfloat16_flops_per_second / 1e12,
            card.float16_flops_per_second / 1e12,
            (card.pcie_generation, card.pcie_width),
        )
        for card in gpu_cards().values()
    }
    assert found == CARDS
    assert all(len(card.advice) > 40 for card in gpu_cards().values())


def test_achieved_rates_are_used_where_known() -> None:
    cards = gpu_cards()
    assert cards["a100-80gb"].achieved_fraction == pytest.approx(271 / 312)
    assert cards["h100-sxm"].achieved_fraction == pytest.approx(794 / 989)
    lowest = cards["b200"].achieved_fraction
    assert lowest == pytest.approx(1745 / 2250)
    assert cards["rtx-3090"].achieved_fraction == lowest
    assert not cards["rtx-3090"].achieved_fraction_known


def test_eight_lanes_carry_half() -> None:
    cards = gpu_cards()
    assert cards["rtx-4090"].host_to_device_pinned == 25e9
    assert cards["rtx-4060-ti-16gb"].host_to_device_pinned == 12.5e9


@pytest.mark.parametrize(
    ("name", "gibibytes", "gpu_id"),
    [
        ("NVIDIA GeForce RTX 2060 SUPER", 7.6, "rtx-2060-super"),
        ("NVIDIA GeForce RTX 3090", 23.7, "rtx-3090"),
        ("NVIDIA H100 80GB HBM3", 79.6, "h100-sxm"),
        ("NVIDIA H100 PCIe", 79.6, "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", 39.5, "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", 79.2, "a100-80gb"),
        ("Tesla V100-SXM2-16GB", 15.8, "v100-16gb"),
        ("NVIDIA L4", 22.2, "l4"),
        ("NVIDIA L40S", 44.4, "l40s"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9.8, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.9, None),
        ("NVIDIA GeForce GTX 1080", 7.9, None),
    ],
)
def test_cards_are_known_by_name_and_memory(
    name: str, gibibytes: float, gpu_id: str | None
) -> None:
    card = card_named(name, int(gibibytes * GIBIBYTE))
    assert (card.gpu_id if card else None) == gpu_id


NAMED = """flash attention; 8-bit AdamW; ZeRO-2; gradient checkpointing; 16-bit compute; QLoRA 4-bit
base; batch-size search; learning-rate scaling; gradient-accumulation scaling; attention precision
factor; quantisation-aware memory accounting; one-cycle schedule; LoRA+; validation split;
exponential moving average; checkpoint pruning; loss-spike detection; curriculum; torch.compile;
early stopping; LR range test; SWA; Lookahead; gradient noise; gradient centralisation; label
smoothing; sliding-window KV; memory-mapped dataset; polynomial decay; kernel warm-up; memory-pool
pre-allocation; defragmentation; cuDNN autotuning; adaptive gradient clipping; ZeRO-3;
grouped-query attention; sqrt(n) checkpointing; 4-bit activations; PowerSGD; paged attention; fused
kernels; ring attention; sequence packing; dynamic context curriculum"""


def test_every_named_optimisation_has_a_row() -> None:
    names = {row.name.lower() for row in optimizations().values()}
    wanted = {name.strip().lower() for name in NAMED.replace("\n", " ").split(";")}
    assert wanted <= names
    assert len(wanted) == 44


def test_rows_say_why_they_are_not_applied() -> None:
    for name, row in optimizations().items():
        assert row.status in ("applied", "offered", "declined"), name
        assert row.reason or row.status == "applied", name
        assert row.description, name


@pytest.mark.parametrize(
    ("older", "newer"),
    [("rtx-3090", "rtx-4090"), ("rtx-4090", "rtx-5090"), ("t4", "l4"), ("a100-80gb", "h100-sxm"),
     ("h200", "b200")],
)  # fmt: skip
def test_a_newer_card_of_a_class_is_faster(older: str, newer: str) -> None:
    old, new = (card_rates(gpu_cards()[name]).of(2) for name in (older, newer))
    assert old is not None
    assert new is not None
    assert new.matmul.best > old.matmul.best
    assert new.attention(128)[0].best > old.attention(128)[0].best
