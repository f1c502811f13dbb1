"""How a process that computes is set up: the profiler measures under the settings the engine has.

A page of memory that was given back costs microseconds when it is touched again, and threads that
spin take cores from others: rates measured under other settings are rates of something else.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

# Set before the libraries load; what the user has set stands.
LIBRARY_ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        # Threads that spin while they wait make a step many times slower when anything else runs;
        # those that never do wake late for every operation. GNU's spin for a tenth of a
        # millisecond or two, longer than Python takes from one operation to the next
        # (bench/waiting.py); others sleep at once.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "10000",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        # Nothing here is compiled, and two functions of bitsandbytes that ask for it load torch's
        # compiler: a fifth of an engine's start, and 50 MB.
        "TORCHDYNAMO_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
)

# From malloc.h: blocks of this size and more get a mapping of their own; free memory of more than
# this at the heap's end is given back.
_M_MMAP_THRESHOLD = -3
_M_TRIM_THRESHOLD = -1
LARGE_BLOCK_BYTES = 1024 * 1024
# Chunks are alike: what one leaves fits the next, and is worth keeping (bench.speed).
CHUNK_BLOCK_BYTES = 32 * LARGE_BLOCK_BYTES
# Pinned memory is rounded up to a power of two for every allocation: large slabs, full of pages,
# are close to one. What is left goes into smaller ones.
LARGE_SLAB_BYTES = 1024 * LARGE_BLOCK_BYTES
SLAB_BYTES = LARGE_SLAB_BYTES // 4
# Chunks of keys in one call of attention's backward, by torch's device type. A GPU's kernel makes
# room for the queries' gradients and rounds them in every call, a CPU's does not.
KEY_CHUNKS = {"cpu": 1, "cuda": 4}


def return_freed_memory(large_block_bytes: int = LARGE_BLOCK_BYTES) -> None:
    """Makes glibc give large freed blocks back at once instead of keeping them for later.

    Without it the resident set of a CPU run grows by half beyond its tensors, and then no memory
    plan for the host can be right. Other C libraries have no such switch and need none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, large_block_bytes)
        mallopt(_M_TRIM_THRESHOLD, 2 * large_block_bytes)


def available_cores(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores of the affinity mask, no more than the cgroup's quota (cgroup v2 `cpu.max`)."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = cpu_max.read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        return cores
