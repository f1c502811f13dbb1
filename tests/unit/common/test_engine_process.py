"""What the engine and the profiler's probes set up alike."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.common.engine_process import available_cores

# The first free raises glibc's own threshold: later blocks of that size would stay in the heap.
_FREES_A_BLOCK = """
import ctypes, psutil
from services.common.engine_process import return_freed_memory
return_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
size = 16 * 2**20
libc.free(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size))))
blocks = [libc.malloc(ctypes.c_size_t(size)) for _ in range(8)]
for block in blocks:
    ctypes.memset(block, 1, size)
held = psutil.Process().memory_info().rss
for block in blocks[:-1]:
    libc.free(ctypes.c_void_p(block))
print((held - psutil.Process().memory_info().rss) / (7 * size))
"""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("max 100000", None),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("1000000000 100000", None),
        ("nonsense", None),
    ],
)
def test_the_quota_of_the_cgroup_limits_the_cores(
    tmp_path: Path, content: str, expected: int | None
) -> None:
    cpu_max = tmp_path / "cpu.max"
    cpu_max.write_text(content)
    assert available_cores(cpu_max) == (expected or len(os.sched_getaffinity(0)))
    assert available_cores(tmp_path / "missing") == len(os.sched_getaffinity(0))


def test_freed_blocks_go_back_to_the_machine() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", _FREES_A_BLOCK], capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    assert float(answer.stdout) > 0.9
