"""How fast bytes move: between host and device, and to and from the scratch disk."""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch

from services.profiler.probes.compute import seconds_of

_TRANSFER_BYTES = 256 * 2**20
_BLOCK_BYTES = 4 * 2**20


def transfer_bytes_per_second(
    device: torch.device, *, to_device: bool, pinned: bool, repeats: int
) -> float:
    """Copying a large buffer one way. On a CPU both ends are host memory: a plain copy."""
    pin = pinned and device.type == "cuda"
    on_host = torch.empty(_TRANSFER_BYTES, dtype=torch.uint8, pin_memory=pin).fill_(1)
    on_device = torch.empty(_TRANSFER_BYTES, dtype=torch.uint8, device=device).fill_(1)
    source, target = (on_host, on_device) if to_device else (on_device, on_host)
    seconds = seconds_of(device, lambda: target.copy_(source, non_blocking=pin), repeats)
    return _TRANSFER_BYTES / seconds


def disk_bytes_per_second(scratch: Path, size_bytes: int) -> tuple[float, float]:
    """Sequential write (with fsync) and read (past or after the page cache) rates.

    The file has no name, so nothing is left behind however the process ends. Raises `OSError`.
    """
    block = os.urandom(_BLOCK_BYTES)
    blocks = size_bytes // _BLOCK_BYTES
    with tempfile.TemporaryFile(dir=scratch, buffering=0) as file:
        started = time.perf_counter()
        for _ in range(blocks):
            file.write(block)
        os.fsync(file.fileno())
        write_seconds = time.perf_counter() - started
        read_seconds = _read_seconds(file.fileno())
    moved = blocks * _BLOCK_BYTES
    return moved / write_seconds, moved / read_seconds


def _read_seconds(file: int) -> float:
    """Reads the whole file with O_DIRECT, or where that is refused with its cache dropped."""
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    with suppress(OSError):
        fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_DIRECT)
    aligned = mmap.mmap(-1, _BLOCK_BYTES)  # O_DIRECT wants whole pages
    started = time.perf_counter()
    position = 0
    while count := os.preadv(file, [aligned], position):
        position += count
    return time.perf_counter() - started
