"""Fused attention kernels: what each can do, and which one a machine and model get.

A machine's kernels are in the order of their speed: as the stress test timed them, or by
generation of the card.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.common.engine_process import KEY_CHUNKS

FLASH, CUDNN, EFFICIENT = "sdpa_flash", "sdpa_cudnn", "sdpa_efficient"


@dataclass(frozen=True, slots=True)
class FusedKernel:
    """An attention kernel that never holds an S x S matrix.

    shares_keys: query heads share keys and values; else these are repeated to every query head.
    largest_head_size: of the heads it can do.
    """

    shares_keys: bool
    largest_head_size: int


# Limits as in services/trainer/engine/streaming/kernels.py.
FUSED_KERNELS = {
    FLASH: FusedKernel(shares_keys=True, largest_head_size=256),
    CUDNN: FusedKernel(shares_keys=True, largest_head_size=128),
    EFFICIENT: FusedKernel(shares_keys=False, largest_head_size=2**16),
}
# Compute capabilities, by their first number, whose matrix instructions torch's flash kernel leaves
# unused: Hopper and data-centre Blackwell. On an H100 cuDNN's did 1.75 times as much a second
# (bench/results/gpu.json).
_CUDNN_IS_FASTER = (9, 10)


def card_kernels(capability: tuple[int, int]) -> tuple[str, ...]:
    """Kernels of a CUDA device that was not probed, the fastest first."""
    if capability < (8, 0):
        return (EFFICIENT,)
    if capability[0] in _CUDNN_IS_FASTER:
        return (CUDNN, FLASH, EFFICIENT)
    return (FLASH, CUDNN, EFFICIENT)


def key_chunks(kernel: str, *, on_cuda: bool) -> int:
    """Chunks of keys in one block of the streaming executor's backward, keys on the device.

    Keys that are repeated to every query head take memory by the block.
    """
    return KEY_CHUNKS["cuda" if on_cuda and FUSED_KERNELS[kernel].shares_keys else "cpu"]


def in_order(working: Iterable[str], fastest_first: Sequence[str]) -> tuple[str, ...]:
    """The fused kernels among those that work, in an order; ones that it lacks come last."""
    known = [*fastest_first, *FUSED_KERNELS]
    fused = [name for name in working if name in FUSED_KERNELS]
    return tuple(sorted(fused, key=known.index))


def kernels_for(kernels: Iterable[str], head_size: int) -> list[str]:
    """Those that can do heads of a size, in the same order."""
    fused = [(name, FUSED_KERNELS[name]) for name in kernels if name in FUSED_KERNELS]
    return [name for name, kernel in fused if head_size <= kernel.largest_head_size]


def best_kernel(kernels: Iterable[str], head_size: int) -> str | None:
    """The fastest that can do heads of a size; None without one."""
    return next(iter(kernels_for(kernels, head_size)), None)
