"""From figures of a stress test to rates: what products cost besides, and tensors by size."""

from __future__ import annotations

import numpy as np
import pytest

from elite.profiler.v1 import profiler_pb2
from services.planner.measured_rates import measured_rates
from services.planner.rates import DtypeRates

OVERHEAD, FLOPS = 100e-6, 1e11


@pytest.fixture
def measured() -> profiler_pb2.DeviceMeasurements:
    return profiler_pb2.DeviceMeasurements(
        matmul_32bit_flops_per_second=5e10,
        memory_bandwidth_bytes_per_second=2e10,
        attention_rates=[profiler_pb2.AttentionRate(sequence_tokens=512, flops_per_second=1e10)],
    )


def fp32(measured: profiler_pb2.DeviceMeasurements) -> DtypeRates:
    rates = measured_rates(measured, profiler_pb2.Disk()).of(4)
    assert rates is not None
    return rates


def add_product(
    measured: profiler_pb2.DeviceMeasurements, rows: int, inner: int, outer: int
) -> None:
    """One that runs at `FLOPS` once it has begun."""
    flops = 2.0 * rows * inner * outer
    measured.matmul_rates.add(
        rows=rows, inner=inner, outer=outer, dtype="float32",
        flops_per_second=flops / (OVERHEAD + flops / FLOPS),
    )  # fmt: skip


def test_what_every_product_costs_is_told_from_few_rows_and_many(
    measured: profiler_pb2.DeviceMeasurements,
) -> None:
    for shape in ((2048, 256, 256), (2048, 1024, 32768), (2048, 1024, 16), (256, 1024, 16)):
        add_product(measured, *shape)
    rates = fp32(measured)
    assert rates.operation_overhead_seconds == pytest.approx(OVERHEAD)
    # What is left of each is its operations.
    found = (rates.matmul.at(256), rates.head, rates.thin)
    assert found == pytest.approx((FLOPS, FLOPS, FLOPS))


def test_without_few_rows_there_is_no_overhead(measured: profiler_pb2.DeviceMeasurements) -> None:
    add_product(measured, 2048, 1024, 16)
    assert fp32(measured).operation_overhead_seconds == 0
    assert fp32(measured).thin < FLOPS


def test_noise_makes_no_negative_overhead_and_no_endless_rate(
    measured: profiler_pb2.DeviceMeasurements,
) -> None:
    add_product(measured, 2048, 1024, 16)
    add_product(measured, 256, 1024, 16)
    measured.matmul_rates[1].flops_per_second = 1e15
    assert fp32(measured).operation_overhead_seconds == 0
    measured.matmul_rates[1].flops_per_second = 1e6  # interrupted
    rates = fp32(measured)
    assert 0 < rates.thin <= 2 * FLOPS


def test_blocks_have_rates_of_their_own_where_they_were_measured(
    measured: profiler_pb2.DeviceMeasurements,
) -> None:
    assert fp32(measured).blocks(64) is None
    for head_size, tokens, rate in ((64, 256, 1e10), (64, 1024, 3e10), (128, 256, 9e10)):
        measured.block_attention_rates.add(
            dtype="float32", head_size=head_size, sequence_tokens=tokens,
            forward_flops_per_second=rate, backward_flops_per_second=2 * rate,
        )  # fmt: skip
    curves = fp32(measured).blocks(80)
    assert curves is not None
    assert [curve.at(512) for curve in curves] == pytest.approx([2e10, 4e10])
    assert fp32(measured).attention(64)[0].at(512) == 1e10


def test_element_wise_rates_by_size_and_by_whose_memory(
    measured: profiler_pb2.DeviceMeasurements,
) -> None:
    for size, rate, new in ((2**16, 1e10, False), (2**24, 9e10, False), (2**20, 5e9, True)):
        measured.elementwise_rates.add(
            dtype="float32", tensor_bytes=size, bytes_per_second=rate, new_pages=new
        )
    rates = fp32(measured).elementwise
    assert rates.there.at(2**16) == 1e10
    assert rates.there.at(2**20) == pytest.approx(5e10)  # half-way between the logarithms
    assert rates.there.at(np.array([[2**16, 2**24]])).tolist() == [[1e10, 9e10]]
    # Two tensors read and one written, at 5e9 bytes a second instead of 5e10.
    assert rates.has_faults
    assert rates.fault_seconds(2**20, 2**20) == pytest.approx(3 / 5e9 - 3 / 5e10)
    columns = rates.fault_seconds(np.array([[2**19, 2**20, 2**24]]), 2**20)
    assert columns.tolist() == [pytest.approx([0, 3 / 5e9 - 3 / 5e10, 3 / 5e9 - 3 / 9e10])]


def test_new_memory_never_spares_time(measured: profiler_pb2.DeviceMeasurements) -> None:
    for rate, new in ((1e10, False), (2e10, True)):
        measured.elementwise_rates.add(
            dtype="float32", tensor_bytes=2**20, bytes_per_second=rate, new_pages=new
        )
    assert fp32(measured).elementwise.fault_seconds(2**20, 0) == 0


def test_a_device_whose_allocator_keeps_everything_has_one_curve(
    measured: profiler_pb2.DeviceMeasurements,
) -> None:
    measured.elementwise_rates.add(dtype="float32", tensor_bytes=2**20, bytes_per_second=7e11)
    rates = fp32(measured).elementwise
    assert rates.there.at(2**30) == 7e11
    assert not rates.has_faults


def test_without_any_it_is_the_memory(measured: profiler_pb2.DeviceMeasurements) -> None:
    assert fp32(measured).elementwise.there.at(2**30) == 2e10


def test_a_product_of_nothing_says_nothing(measured: profiler_pb2.DeviceMeasurements) -> None:
    measured.matmul_rates.add(dtype="float32", flops_per_second=1e9)
    assert fp32(measured).matmul.at(256) == 5e10


def test_a_direction_without_a_rate_takes_the_other_with_it(
    measured: profiler_pb2.DeviceMeasurements,
) -> None:
    for tokens, forward, backward in ((256, 0.0, 2e10), (512, 3e10, 4e10), (1024, 5e10, 0.0)):
        for rates in (measured.attention_rates, measured.block_attention_rates):
            rates.add(
                dtype="float32", head_size=64, sequence_tokens=tokens, flops_per_second=1e10,
                forward_flops_per_second=forward, backward_flops_per_second=backward,
            )  # fmt: skip
    rates = fp32(measured)
    for curves in (rates.attention(64), rates.blocks(64)):
        assert curves is not None
        assert [curve.points for curve in curves] == [((512, 3e10),), ((512, 4e10),)]


@pytest.mark.parametrize(
    ("shares", "spread"),
    [
        ((0.0, 0.0), (1.0, 1.0)),  # one pass
        ((0.8, 1.3), (0.8, 1.3)),
        ((1e-9, 1e-9), (0.05, 1.0)),  # no machine's
    ],
)
def test_bounds_are_those_of_the_passes(
    measured: profiler_pb2.DeviceMeasurements,
    shares: tuple[float, float],
    spread: tuple[float, float],
) -> None:
    measured.lowest_speed_share, measured.highest_speed_share = shares
    assert measured_rates(measured, profiler_pb2.Disk()).spread == spread
