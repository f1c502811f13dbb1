"""The largest memory one process can safely have: grow until refused, back off, release all."""

from __future__ import annotations

import mmap
import resource
from dataclasses import dataclass

import torch

from services.profiler.probes.cgroup import read_memory

_LARGEST_CHUNK_BYTES = 256 * 2**20
_SMALLEST_CHUNK_BYTES = 2 * 2**20
_PAGE_BYTES = 4096
# Left alone on a CPU, where the limit of this process is the limit of the machine: a twentieth of
# it, for the kernel and everybody else.
_CPU_RESERVE_FRACTION = 0.05


# Writing every page of a large host takes a minute or more where a hypervisor backs memory on
# first touch. A quick test writes this much and takes the kernel's word for the rest.
_QUICK_CPU_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class SafeMemory:
    """What one process can have, and how much of it was really written."""

    bytes: int
    written_bytes: int


def safe_memory(device: torch.device, fraction: float, quick: bool) -> SafeMemory:
    """Allocates and writes until refused, less one chunk of back-off.

    `fraction` is the share of the free memory to reach for. On a CPU a quick test stops after
    1 GiB and counts the rest as the kernel does.
    """
    if device.type == "cuda":
        reached = _grow_on_cuda(device, fraction)
        return SafeMemory(reached, reached)
    goal = int(_cpu_goal_bytes() * fraction)
    written = _grow_on_cpu(min(goal, _QUICK_CPU_BYTES) if quick else goal)
    back_off = _chunk_bytes(goal)
    is_cut_short = quick and goal > _QUICK_CPU_BYTES and written >= _QUICK_CPU_BYTES - back_off
    return SafeMemory(goal - back_off if is_cut_short else written, written)


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


def _cpu_goal_bytes() -> int:
    """What is available, less the reserve."""
    memory = read_memory()
    return max(0, memory.available_bytes - int(memory.total_bytes * _CPU_RESERVE_FRACTION))


def _grow_on_cpu(goal: int) -> int:
    """Under a data limit of its own, so that refusal is an error here and not the kernel's
    out-of-memory killer somewhere else."""
    chunk = _chunk_bytes(goal)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + goal, before[1]))
    held: list[mmap.mmap] = []
    try:
        while True:
            held.append(mmap.mmap(-1, chunk, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            held[-1].madvise(mmap.MADV_HUGEPAGE)  # 500 times fewer page faults
            held[-1][::_PAGE_BYTES] = b"\1" * (chunk // _PAGE_BYTES)
    except (OSError, MemoryError):
        reached = len(held) * chunk
    finally:
        for mapping in held:
            mapping.close()
        resource.setrlimit(resource.RLIMIT_DATA, before)
    return max(0, reached - chunk)


def _data_bytes() -> int:
    """What counts against RLIMIT_DATA now (VmData of /proc/self/status, in KiB there)."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0
