"""The allocation probe stops in time, says the truth, and gives everything back."""

from __future__ import annotations

import resource

import psutil
import pytest
import torch

from services.profiler.probes import memory

MIB = 2**20
CPU = torch.device("cpu")


def leave(monkeypatch: pytest.MonkeyPatch, *left_bytes: int) -> None:
    """What the machine has left at each look; the last one stays."""
    looks = list(left_bytes)
    monkeypatch.setattr(
        memory, "_cpu_left_bytes", lambda: looks.pop(0) if len(looks) > 1 else looks[0]
    )


def test_reaches_the_share_asked_for_less_the_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    leave(monkeypatch, 256 * MIB)
    found = memory.safe_memory(CPU, 0.5, quick=False)
    assert found.written_bytes <= 128 * MIB
    assert 0.8 * 128 * MIB <= found.bytes < 128 * MIB


def test_stops_when_others_take_what_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    leave(monkeypatch, 256 * MIB, 256 * MIB, 128 * MIB, 0)
    found = memory.safe_memory(CPU, 1, quick=False)
    assert found.written_bytes == 2 * 16 * MIB
    assert found.bytes == 16 * MIB


def test_out_of_time_counts_what_the_kernel_still_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CPU_SECONDS", {True: -1.0, False: -1.0})
    leave(monkeypatch, 256 * MIB, 100 * MIB)
    found = memory.safe_memory(CPU, 1, quick=True)
    assert found.written_bytes == 0
    assert found.bytes == (100 - 16) * MIB


def test_refusal_by_the_kernel_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    leave(monkeypatch, 256 * MIB)
    write, calls = memory._written_chunk, iter(range(3))

    def refuse_the_fourth(size: int) -> object:
        if next(calls, None) is None:
            raise MemoryError
        return write(size)

    monkeypatch.setattr(memory, "_written_chunk", refuse_the_fourth)
    found = memory.safe_memory(CPU, 1, quick=False)
    assert (found.written_bytes, found.bytes) == (48 * MIB, 32 * MIB)


def test_own_limit_refuses_more_than_the_goal() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        limit = memory._data_bytes() + 64 * MIB
        resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
        with pytest.raises((OSError, MemoryError)):
            memory._written_chunk(128 * MIB)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def test_everything_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = resource.getrlimit(resource.RLIMIT_DATA)
    before = psutil.Process().memory_info().rss
    leave(monkeypatch, 512 * MIB)
    memory.safe_memory(CPU, 1, quick=False)
    assert psutil.Process().memory_info().rss < before + 128 * MIB
    assert resource.getrlimit(resource.RLIMIT_DATA) == limit
