"""The planner's choice beside everything else that fits."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from bench import choices, report_predictions
from services.planner.evaluation import Candidate
from services.planner.machine import DeviceKind, Machine
from services.planner.options import Place
from services.planner.rates import Rates, single_rates

_CASE = choices.FAST_CASES[0]
_RATES = single_rates(1e11, [(1.0, 1e11)], 1e10)


@pytest.fixture
def machine() -> Machine:
    measured = Machine(
        device_name="cpu", device_kind=DeviceKind.CPU, device_index=0, shared_memory=True,
        gpu_safe_bytes=10**9, host_safe_bytes=10**9, process_overhead_bytes=10**8,
        disk_free_bytes=0, rates=Rates({2: _RATES, 4: _RATES}, 1e10, 1e10, 1e10),
        dtypes=(_CASE.dtype,), attention_kernels=("sdpa_flash",), has_bitsandbytes=False,
    )  # fmt: skip
    return _CASE.machine(measured)


def test_every_way_fits_and_is_listed_once(machine: Machine) -> None:
    everyone = choices.contestants(_CASE, machine)
    assert [one.is_choice for one in everyone].count(True) == 1
    assert everyone[0].is_choice
    for one in everyone:
        assert one.candidate.memory.device.total_bytes <= _CASE.memory_bytes
        assert one.candidate.memory.disk.total_bytes <= _CASE.disk_bytes
    labels = [one.label for one in everyone]
    assert len(labels) == len(set(labels))
    assert any(Place.DISK in one.candidate.chosen.places for one in everyone)


def test_less_memory_leaves_fewer_ways(machine: Machine) -> None:
    everyone = choices.contestants(_CASE, machine)
    least = min(one.candidate.memory.device.total_bytes for one in everyone)
    narrow = replace(_CASE, memory_bytes=least)
    fewer = choices.contestants(narrow, replace(machine, gpu_safe_bytes=least))
    assert 0 < len(fewer) < len(everyone)


def test_nothing_fits(machine: Machine) -> None:
    tight = replace(machine, gpu_safe_bytes=1000)
    with pytest.raises(ValueError, match="nothing fits"):
        choices.contestants(_CASE, tight)


def test_a_slow_choice_is_found_out(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of made-up length: the planner's choice takes a tenth more than one other."""
    chosen = choices.contestants(_CASE, machine)[0].candidate

    def run(_: choices.Runner, one: choices.Contestant) -> None:
        one.seconds.append(1.1 if _is(one.candidate, chosen) else 1.0)

    monkeypatch.setattr(choices.Runner, "run", run)
    case = choices.compare(_CASE, machine, rounds=2)
    assert case["ratio"] == pytest.approx(1.1)
    assert not choices.goals([case])[0]["met"]
    body = report_predictions.choices({"cases": [case], "goals": choices.goals([case])})
    assert "1.100" in body.finding


def test_a_real_step_of_either_executor(machine: Machine, tmp_path: Path) -> None:
    everyone = choices.contestants(_CASE, machine)
    resident = next(one for one in everyone if not one.candidate.chosen.streaming)
    on_disk = next(one for one in everyone if Place.DISK in one.candidate.chosen.places)
    with closing(choices.Runner(_CASE, machine, tmp_path)) as runner:
        for one in (resident, on_disk):
            runner.run(one)
            assert one.median_seconds > 0


def _is(one: Candidate, other: Candidate) -> bool:
    return one.chosen == other.chosen and one.memory.chunk_tokens == other.memory.chunk_tokens
