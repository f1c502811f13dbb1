"""Means over passes of the stress test, and how steady the machine was."""

from __future__ import annotations

import pytest

from elite.profiler.v1 import profiler_pb2
from services.profiler.probes.passes import mean_measurements


def measured(*rates: float) -> profiler_pb2.DeviceMeasurements:
    """A pass with products of as many shapes."""
    found = profiler_pb2.DeviceMeasurements()
    for rows, rate in enumerate(rates):
        found.matmul_rates.add(rows=rows, inner=4, outer=4, flops_per_second=rate)
    return found


def test_a_mean_is_of_what_all_passes_have() -> None:
    passes = [measured(2, 1), measured(6)]
    for one, rate in zip(passes, (2, 6), strict=True):
        one.memory_bandwidth_bytes_per_second = rate
        one.operation_launch_seconds = 1 / rate
        one.matmul_16bit_dtype = "bfloat16"
    mean = mean_measurements(passes)
    assert mean.memory_bandwidth_bytes_per_second == 3
    assert mean.operation_launch_seconds == pytest.approx(1 / 3)
    assert mean.matmul_16bit_dtype == "bfloat16"
    assert [(rate.rows, rate.flops_per_second) for rate in mean.matmul_rates] == [(0, 3)]
    assert len(passes[0].matmul_rates) == 2


def test_every_direction_of_attention_has_a_mean_of_its_own() -> None:
    passes = [profiler_pb2.DeviceMeasurements() for _ in range(2)]
    for one, forward, backward in zip(passes, (2, 6), (10, 30), strict=True):
        one.attention_rates.add(
            sequence_tokens=512, kernel="sdpa_flash", flops_per_second=forward,
            forward_flops_per_second=forward, backward_flops_per_second=backward,
        )  # fmt: skip
    (mean,) = mean_measurements(passes).attention_rates
    assert (mean.sequence_tokens, mean.kernel) == (512, "sdpa_flash")
    assert (mean.forward_flops_per_second, mean.backward_flops_per_second) == (3, 15)


def test_a_pass_is_as_fast_as_most_of_its_shapes() -> None:
    """One shape that was interrupted does not make a slow pass."""
    steady, interrupted = measured(4, 4, 4), measured(4, 4, 1)
    mean = mean_measurements([steady, interrupted])
    assert (mean.lowest_speed_share, mean.highest_speed_share) == (1, 1)
    slow = mean_measurements([steady, measured(2, 2, 2)])
    assert slow.lowest_speed_share == pytest.approx(0.75)
    assert slow.highest_speed_share == pytest.approx(1.5)


def test_shares_are_on_either_side_of_the_mean() -> None:
    """Though of each of these passes most shapes are faster than their means."""
    passes = [measured(9, 9, 1), measured(9, 1, 9), measured(1, 9, 9)]
    mean = mean_measurements(passes)
    assert mean.lowest_speed_share == 1
    assert mean.highest_speed_share > 1


def test_one_pass_says_nothing_of_the_spread_and_means_of_means_keep_theirs() -> None:
    mean = mean_measurements([measured(4)])
    assert (mean.lowest_speed_share, mean.highest_speed_share) == (0, 0)
    both = mean_measurements([measured(4), measured(4)])
    both.lowest_speed_share, both.highest_speed_share = 0.8, 1.2
    again = mean_measurements([both, both])
    assert again.lowest_speed_share == pytest.approx(0.8)
    assert again.highest_speed_share == pytest.approx(1.2)


def test_what_no_pass_has_is_no_rate() -> None:
    mean = mean_measurements([profiler_pb2.DeviceMeasurements() for _ in range(2)])
    assert mean.memory_bandwidth_bytes_per_second == 0
    assert not mean.matmul_rates
    assert mean.lowest_speed_share == 1
