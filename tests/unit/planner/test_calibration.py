"""What reported runs teach, and what they must not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.planner.calibration import (
    UNCALIBRATED,
    Calibration,
    Key,
    corrections,
    is_used,
)
from services.planner.evaluation import Evaluation
from services.planner.memory import Sizing
from services.planner.models import model_by_id
from tests.support.machines import machine
from tests.unit.planner.test_memory import PLAIN, TIER

KEY = Key("a card", "580.1", "2.13", "sdpa_flash")


def outcome(
    memory: float, seconds: float, *, card: str = "a card", **changes: Any
) -> dict[str, Any]:
    """A run predicted to take 1000 bytes and 10 seconds, as protobuf JSON."""
    plan: dict[str, Any] = {
        "gpuMemory": {"totalBytes": "1000"},
        "stepSeconds": 10.0,
        "execution": {"attentionKernel": "sdpa_flash"},
    }
    return {
        "plan": plan,
        "deviceName": card,
        "driverVersion": "580.1",
        "torchVersion": "2.13",
        "measuredGpuPeakBytes": str(round(1000 * memory)),
        "measuredStepSeconds": 10 * seconds,
    } | changes


def test_the_median_of_the_runs_is_used() -> None:
    learned = corrections([outcome(1.02, 1.2), outcome(1.04, 1.3), outcome(1.03, 1.1)])[KEY]
    assert learned.memory_factor == pytest.approx(1.03)
    assert learned.time_factor == pytest.approx(1.2)
    assert (learned.memory_runs, learned.time_runs) == (3, 3)


def test_another_card_driver_torch_or_kernel_teaches_nothing() -> None:
    known = corrections([outcome(1.1, 1.5), outcome(1.1, 1.5, card="another card")])
    assert set(known) == {KEY, Key("another card", "580.1", "2.13", "sdpa_flash")}
    assert KEY in corrections([outcome(1.0, 1.0)])
    assert KEY not in corrections([outcome(1.0, 1.0, driverVersion="1")])


@given(
    ratios=st.lists(st.floats(0.8, 1.25), min_size=2, max_size=20),
    wild=st.one_of(st.floats(0, 0.2), st.floats(5, 1e9)),
    at=st.integers(0, 20),
)
def test_one_wild_outlier_changes_nothing(ratios: list[float], wild: float, at: int) -> None:
    runs = [outcome(ratio, ratio) for ratio in ratios]
    without = corrections(runs)[KEY]
    runs.insert(at % (len(runs) + 1), outcome(wild, wild))
    assert corrections(runs)[KEY] == without


def test_a_single_implausible_run_is_not_believed() -> None:
    assert corrections([outcome(1.0, 3.0)])[KEY].time_factor == 1.0
    assert corrections([outcome(1.0, 1.3)])[KEY].time_factor == pytest.approx(1.3)


def test_the_newest_fifty_runs_count() -> None:
    learned = corrections([outcome(1.5, 2.0)] * 60 + [outcome(1.1, 1.2)] * 50)[KEY]
    assert learned.memory_factor == pytest.approx(1.1)
    assert learned.time_factor == pytest.approx(1.2)
    assert (learned.memory_runs, learned.time_runs) == (50, 50)


def test_memory_is_never_corrected_below_the_formulas() -> None:
    learned = corrections([outcome(0.9, 1.0)] * 5)[KEY]
    assert learned.memory_factor == 1.0


def test_factors_already_in_a_prediction_are_taken_out() -> None:
    again = outcome(1.0, 1.0)
    again["plan"]["calibration"] = {"memoryFactor": 1.1, "timeFactor": 1.2}
    learned = corrections([again] * 3)[KEY]
    assert learned.memory_factor == pytest.approx(1.1)
    assert learned.time_factor == pytest.approx(1.2)


def test_a_run_out_of_memory_is_kept_and_not_used() -> None:
    failed = outcome(1.5, 0.0, outOfMemory=True)
    assert not is_used(failed, [failed])
    assert corrections([failed]) == {}


def test_of_few_runs_an_implausible_one_is_not_used_yet() -> None:
    far = outcome(2.0, 3.0)
    assert is_used(outcome(1.1, 3.0), [outcome(1.1, 3.0)])  # its memory is
    assert not is_used(far, [far])
    assert corrections([far])[KEY] == UNCALIBRATED
    assert not is_used(far, [outcome(1.0, 1.0), far])
    assert is_used(far, [outcome(1.0, 1.0), far, far])
    assert not is_used(far, [far, *[outcome(1.1, 1.2)] * 50])  # not any more


def test_a_correction_reaches_every_figure() -> None:
    learned = corrections([outcome(1.1, 1.5)] * 3)[KEY]
    model, device = model_by_id("qwen2.5-1.5b"), machine()
    plain = Evaluation(model, device).one(TIER, PLAIN, Sizing())
    corrected = Evaluation(model, device, correction=learned).one(TIER, PLAIN, Sizing())
    grown = corrected.memory.device
    assert grown.total_bytes == pytest.approx(1.1 * plain.memory.device.total_bytes, abs=1)
    assert sum(grown.lines.values()) == grown.total_bytes
    assert corrected.cost.seconds == pytest.approx(1.5 * plain.cost.seconds)
    assert corrected.memory.host == plain.memory.host


def test_corrections_follow_the_store() -> None:
    class Store:
        outcomes: list[dict[str, Any]] = []  # noqa: RUF012

        def read(self) -> list[dict[str, Any]]:
            return self.outcomes

    store = Store()
    calibration = Calibration(store)
    assert calibration.correction(KEY) == UNCALIBRATED
    store.outcomes = [outcome(1.2, 1.0)] * 3
    assert calibration.correction(KEY).memory_factor == pytest.approx(1.2)
