"""Memory under control groups, from trees as kernels show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.host_memory import read_memory

GIB = 2**30


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """64 GiB, 50 of them available, in no control group."""
    write(
        tmp_path,
        {
            "proc/meminfo": f"MemTotal: {64 * GIB // 1024} kB\nMemFree: 1 kB\n"
            f"MemAvailable: {50 * GIB // 1024} kB\n",
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            "proc/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
        },
    )
    return tmp_path


def test_without_a_cap_the_machine_counts(machine: Path) -> None:
    memory = read_memory(machine)
    assert (memory.total_bytes, memory.available_bytes) == (64 * GIB, 50 * GIB)


def test_version_2_cap_counts_with_reclaimable_cache(machine: Path) -> None:
    group = "sys/fs/cgroup/job"
    write(
        machine,
        {
            "proc/self/cgroup": "0::/job\n",
            f"{group}/memory.max": str(16 * GIB),
            f"{group}/memory.current": str(10 * GIB),
            f"{group}/memory.stat": f"anon {4 * GIB}\ninactive_file {5 * GIB}\nactive_file 0\n",
        },
    )
    memory = read_memory(machine)
    assert memory.total_bytes == 16 * GIB
    assert memory.available_bytes == 11 * GIB


def test_an_ancestor_may_hold_the_cap(machine: Path) -> None:
    write(
        machine,
        {
            "proc/self/cgroup": "0::/slice/job\n",
            "sys/fs/cgroup/slice/job/memory.max": "max\n",
            "sys/fs/cgroup/slice/job/memory.current": "0\n",
            "sys/fs/cgroup/slice/job/memory.stat": "inactive_file 0\n",
            "sys/fs/cgroup/slice/memory.max": str(8 * GIB),
            "sys/fs/cgroup/slice/memory.current": str(2 * GIB),
            "sys/fs/cgroup/slice/memory.stat": "inactive_file 0\n",
        },
    )
    memory = read_memory(machine)
    assert (memory.total_bytes, memory.available_bytes) == (8 * GIB, 6 * GIB)


def test_version_1_cap(machine: Path) -> None:
    group = "sys/fs/cgroup/memory/job"
    write(
        machine,
        {
            "proc/self/cgroup": "5:memory:/job\n",
            "proc/self/mountinfo": "33 30 0:29 / /sys/fs/cgroup/memory rw"
            " - cgroup cgroup rw,memory\n",
            "proc/mounts": "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n",
            f"{group}/memory.limit_in_bytes": str(4 * GIB),
            f"{group}/memory.usage_in_bytes": str(3 * GIB),
            f"{group}/memory.stat": f"total_inactive_file {GIB}\n",
        },
    )
    memory = read_memory(machine)
    assert (memory.total_bytes, memory.available_bytes) == (4 * GIB, 2 * GIB)


def test_an_exhausted_group_has_nothing_left(machine: Path) -> None:
    write(
        machine,
        {
            "proc/self/cgroup": "0::/job\n",
            "sys/fs/cgroup/job/memory.max": str(GIB),
            "sys/fs/cgroup/job/memory.current": str(2 * GIB),
            "sys/fs/cgroup/job/memory.stat": "inactive_file 0\n",
        },
    )
    assert read_memory(machine).available_bytes == 0


def test_this_machine_has_memory() -> None:
    memory = read_memory()
    assert 0 < memory.available_bytes <= memory.total_bytes
