"""The storage tracker counts what is alive, once, until it dies."""

from __future__ import annotations

import torch

from services.trainer.engine.memory_tracking import (
    StorageTracker,
    host_peak_bytes,
    start_host_peak,
)

MIB = 1024 * 1024


def block(mebibytes: int) -> torch.Tensor:
    return torch.empty(mebibytes * MIB, dtype=torch.uint8)


def test_peak_and_current_follow_allocations() -> None:
    with StorageTracker() as tracker:
        first = block(3)
        second = block(2)
        del first
        third = block(1)
        assert (tracker.current_bytes, tracker.peak_bytes) == (3 * MIB, 5 * MIB)
        tracker.reset_peak()
        assert tracker.peak_bytes == 3 * MIB
        del second, third
    assert tracker.current_bytes == 0


def test_views_and_in_place_operations_are_free() -> None:
    with StorageTracker() as tracker:
        whole = block(2)
        parts = [whole[:MIB], whole.view(2, MIB), whole.add_(1)]
        assert tracker.peak_bytes == 2 * MIB
        del whole
        assert tracker.current_bytes == 2 * MIB
        del parts
        assert tracker.current_bytes == 0


def test_backward_is_seen() -> None:
    weight = torch.zeros(MIB, requires_grad=True)
    with StorageTracker() as tracker:
        weight.exp().sum().backward()  # keeps the exponentials
        assert tracker.current_bytes == 4 * MIB  # the gradient
        assert tracker.peak_bytes >= 8 * MIB


def test_what_was_made_in_one_entry_is_still_counted_in_the_next() -> None:
    tracker = StorageTracker()
    with tracker:
        kept = block(1)
    with tracker:
        other = block(1)
        assert tracker.current_bytes == 2 * MIB
    del kept, other
    assert tracker.current_bytes == 0


def test_the_process_has_a_peak_and_it_can_start_anew() -> None:
    large = torch.ones(256 * MIB, dtype=torch.uint8)
    before = host_peak_bytes()
    assert before > large.nbytes
    del large
    start_host_peak()
    assert 10 * MIB < host_peak_bytes() < before - 200 * MIB
