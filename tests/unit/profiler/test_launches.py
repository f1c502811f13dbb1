"""What Python takes to ask for an operation, timed on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from services.profiler.probes import compute, launches

CPU = torch.device("cpu")


def test_seconds_are_those_of_one_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Callable[[], object]] = []

    def two_seconds(_: torch.device, step: Callable[[], object], __: int) -> float:
        steps.append(step)
        return 2.0

    monkeypatch.setattr(launches, "seconds_of", two_seconds)
    with launches.OperationCounter() as counter:
        found = launches.operation_launch_seconds(CPU)
    # Making the model asks for some more.
    assert 2.0 / counter.operations < found < 2.0 / 100
    with launches.OperationCounter() as counter:
        steps[0]()
    assert found == 2.0 / counter.operations


def test_an_operation_takes_a_time() -> None:
    assert 1e-7 < launches.operation_launch_seconds(CPU) < 1e-2


def test_loading_kernels_leaves_nothing_behind() -> None:
    assert compute.load_kernels(CPU) is None
