"""What `python -m bench.time` covers, and how it counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import steps, time
from bench.rates import drift, mean_profile, rates_of
from elite.profiler.v1 import profiler_pb2
from services.planner.machine import ComputeDtype
from services.planner.rates import Rates, single_rates
from tests.support.machines import machine


def row(predicted: float, measured: float, low: float, high: float) -> dict[str, float]:
    error = 100 * (predicted / measured - 1)
    return {
        "error_percent": error, "measured_seconds": measured, "low": low, "high": high,
        "cpu_share": measured,
    }  # fmt: skip


def test_cases_span_lengths_dtypes_families_and_checkpointing() -> None:
    cases = time.CASES
    assert len(cases) >= 12
    assert len(set(cases)) == len(cases)
    lengths = [case.tokens for case in cases]
    assert max(lengths) >= 16 * min(lengths)
    assert {case.dtype for case in cases} == {ComputeDtype.BFLOAT16, ComputeDtype.FLOAT32}
    assert {case.checkpointing for case in cases} == {True, False}
    assert len({case.config["model_type"] for case in cases}) >= 3
    for case in cases:
        assert case.tier.tokens == case.tokens
        assert case.config["num_hidden_layers"] == case.shape.layer_count == case.layers


@pytest.mark.parametrize(("sixteen_bit", "dtypes"), [(2e12, 2), (1e10, 1), (None, 1)])
def test_cases_are_in_float32_where_16_bits_are_emulated(
    sixteen_bit: float | None, dtypes: int
) -> None:
    rates = {4: single_rates(1e11, [(1.0, 1e11)], 1e10)}
    if sixteen_bit:
        rates[2] = single_rates(sixteen_bit, [(1.0, 1e11)], 1e10)
    here = replace(machine(on_cpu=True), rates=Rates(rates, 1e10, 1e10, 1e10))
    cases = time.cases_for(here, time.CASES)
    assert len({case.dtype for case in cases}) == dtypes
    assert len(set(cases)) == len(cases) >= 12


def test_a_case_is_summed_up_by_its_medians() -> None:
    measured = time.Measured(seconds=[1.0, 4.0, 2.0], cpu_shares=[0.5, 1.0, 0.9])
    predicted = time.Prediction(1.0, 3.0, 5.0, {"linear": 3.0}, plan=None)  # type: ignore[arg-type]
    found = time.case_row(time.CASES[0], predicted, measured)
    assert found["measured_seconds"] == 2.0
    assert found["error_percent"] == pytest.approx(50)
    assert found["spread"] == pytest.approx(1.5)
    assert found["cpu_share"] == 0.9


def test_errors_are_averaged_with_and_without_their_sign() -> None:
    found = time.summary([row(1.2, 1.0, 0.9, 1.5), row(0.45, 0.9, 0.4, 0.6)])
    assert found["mean_absolute_error_percent"] == pytest.approx(35)
    assert found["mean_error_percent"] == pytest.approx(-15)
    assert found["worst_absolute_error_percent"] == pytest.approx(50)
    assert found["between_low_and_high"] == 1
    assert found["lowest_cpu_share"] == 0.9


def test_drift_is_told_by_kind() -> None:
    mean = {"matmul a": 1.0, "matmul b": 2.0, "matmul c": 4.0, "elementwise a": 1.0, "gone": 1.0}
    before = {"matmul a": 2.0, "matmul b": 2.0, "elementwise a": 3.0, "new": 1.0}
    after = {"matmul c": 2.0, "elementwise a": 1.0}
    assert drift(mean, [before, after]) == {
        "elementwise": {"lowest": 1.0, "median": 2.0, "highest": 3.0},
        "matmul": {"lowest": 0.5, "median": 1.0, "highest": 2.0},
    }


def test_a_mean_profile_is_the_first_with_mean_rates() -> None:
    profiles = [profiler_pb2.NodeProfile(devices=[profiler_pb2.Device()]) for _ in range(2)]
    for profile, rate in zip(profiles, (2, 6), strict=True):
        profile.node_name = f"node {rate}"
        profile.devices[0].measurements.memory_bandwidth_bytes_per_second = rate
    mean = mean_profile(profiles)
    assert mean.node_name == "node 2"
    assert mean.devices[0].measurements.memory_bandwidth_bytes_per_second == 3
    assert profiles[0].devices[0].measurements.memory_bandwidth_bytes_per_second == 2


def test_every_rate_of_a_profile_has_a_name_of_its_own() -> None:
    profile = profiler_pb2.NodeProfile(devices=[profiler_pb2.Device()])
    measured = profile.devices[0].measurements
    for dtype in ("bfloat16", "float32"):
        for width in (576, 1024):
            measured.matmul_rates.add(
                rows=2048, inner=width, outer=width, dtype=dtype, flops_per_second=width
            )
        measured.attention_rates.add(
            sequence_tokens=512, dtype=dtype, head_size=64,
            forward_flops_per_second=1, backward_flops_per_second=2,
        )  # fmt: skip
        measured.block_attention_rates.add(
            sequence_tokens=512, dtype=dtype, head_size=64,
            forward_flops_per_second=4, backward_flops_per_second=5,
        )  # fmt: skip
        measured.elementwise_rates.add(dtype=dtype, bytes_per_second=3, tensor_bytes=64)
        measured.elementwise_rates.add(
            dtype=dtype, bytes_per_second=2, tensor_bytes=64, new_pages=True
        )
    rates = rates_of(profile)
    assert len(rates) == 2 * (2 + 2 + 2 + 2) + 1
    measured.operation_launch_seconds = 1e-5
    assert rates_of(profile) == {**rates, "operations asked for": pytest.approx(1e5)}
    assert rates["matmul bfloat16 2048x576x576"] == 576
    assert rates["elementwise float32 64 bytes new"] == 2
    assert rates["attention backward float32 head 64 tokens 512"] == 2
    assert rates["block forward float32 head 64 tokens 512"] == 4


@pytest.mark.parametrize(
    ("operator", "shapes", "group"),
    [
        ("aten::mm", [[512, 576], [576, 1536]], "matmul"),
        ("aten::mm", [[512, 576], [576, 16]], "thin_matmul"),
        ("aten::mm", [[16, 512], [512, 576]], "thin_matmul"),
        ("aten::addmm_", [[512, 576], [512, 16], [16, 576], [], []], "thin_matmul"),
        ("aten::addmm", [[49152], [128, 576], [576, 49152]], "head_matmul"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", [], "attention_forward"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", [], "attention_backward"),
        ("aten::mul", [[512, 576], [512, 576]], "everything_else"),
    ],
)
def test_operators_are_grouped_by_what_predicts_them(
    operator: str, shapes: list[list[int]], group: str
) -> None:
    assert steps.group_of(operator, shapes, vocabulary=49152) == group
