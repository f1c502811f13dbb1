"""The largest memory one process can safely have: grow until refused, back off, release all."""

from __future__ import annotations

import mmap
import resource
import time
from contextlib import suppress
from dataclasses import dataclass

import torch

from services.common.host_memory import read_memory

_LARGEST_CHUNK_BYTES = 256 * 2**20
_SMALLEST_CHUNK_BYTES = 2 * 2**20
_PAGE_BYTES = 4096
# Left alone on a CPU, where the limit of this process is the limit of the machine: a twentieth of
# it, for the kernel and everybody else.
_CPU_RESERVE_FRACTION = 0.05


# Writing every page of a large host takes minutes where a hypervisor backs memory on first touch:
# 0.3 GB/s, against 4 GB/s later. A test writes for this long and takes the kernel's word for the
# rest, which by then it can compare with what it wrote.
_CPU_SECONDS = {False: 20.0, True: 2.0}


@dataclass(frozen=True, slots=True)
class SafeMemory:
    """What one process can have, and how much of it was really written."""

    bytes: int
    written_bytes: int


def safe_memory(device: torch.device, fraction: float, quick: bool) -> SafeMemory:
    """Allocates and writes until refused, less one chunk of back-off.

    `fraction` is the share of the free memory to reach for. On a CPU writing stops when its time
    is up; what the kernel then still calls available, less the reserve, counts too.
    """
    if device.type == "cuda":
        reached = _grow_on_cuda(device, fraction)
        return SafeMemory(reached, reached)
    return _grow_on_cpu(int(_cpu_left_bytes() * fraction), _CPU_SECONDS[quick])


def _grow_on_cuda(device: torch.device, fraction: float) -> int:
    torch.cuda.empty_cache()
    goal = int(torch.cuda.mem_get_info(device)[0] * fraction)
    chunk = _chunk_bytes(goal)
    held: list[torch.Tensor] = []
    try:
        while (len(held) + 1) * chunk <= goal:
            held.append(torch.zeros(chunk, dtype=torch.uint8, device=device))
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        pass
    reached = len(held) * chunk
    held.clear()
    torch.cuda.empty_cache()
    return max(0, reached - chunk)


def _chunk_bytes(goal: int) -> int:
    """A sixteenth of the goal, in whole huge pages: what is not reached is at most that."""
    chunk = min(_LARGEST_CHUNK_BYTES, goal // 16)
    return max(_SMALLEST_CHUNK_BYTES, chunk // _SMALLEST_CHUNK_BYTES * _SMALLEST_CHUNK_BYTES)


def _cpu_left_bytes() -> int:
    """What is available now, less the reserve."""
    memory = read_memory()
    return max(0, memory.available_bytes - int(memory.total_bytes * _CPU_RESERVE_FRACTION))


def _grow_on_cpu(goal: int, seconds: float) -> SafeMemory:
    """Under a data limit of its own, so that refusal is an error here and not the kernel's
    out-of-memory killer somewhere else. It also stops when others have taken what was left."""
    chunk = _chunk_bytes(goal)
    deadline = time.monotonic() + seconds
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + goal, before[1]))
    held: list[mmap.mmap] = []
    beyond = 0
    try:
        with suppress(OSError, MemoryError):
            while (len(held) + 1) * chunk <= goal and (left := _cpu_left_bytes()) > chunk:
                if time.monotonic() > deadline:
                    beyond = min(left, goal - len(held) * chunk)
                    break
                held.append(_written_chunk(chunk))
        written = len(held) * chunk
    finally:
        for mapping in held:
            mapping.close()
        resource.setrlimit(resource.RLIMIT_DATA, before)
    return SafeMemory(max(0, written + beyond - chunk), written)


def _written_chunk(size: int) -> mmap.mmap:
    """Private memory with every page written. Raises `OSError` or `MemoryError` when refused."""
    chunk = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # kernels without huge pages
        chunk.madvise(mmap.MADV_HUGEPAGE)  # 500 times fewer page faults
    chunk[::_PAGE_BYTES] = b"\1" * (size // _PAGE_BYTES)
    return chunk


def _data_bytes() -> int:
    """What counts against RLIMIT_DATA now (VmData of /proc/self/status, in KiB there)."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0
