"""From the stress test's figures to rates by dtype and shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from elite.profiler.v1 import profiler_pb2
from services.planner.rates import (
    AttentionRates,
    DtypeRates,
    ElementwiseRates,
    Point,
    RateCurve,
    Rates,
    single_rates,
)

_ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
# A product is thin when one of its sides is at most this: an adapter's rank.
_THIN = 64
# And one with a vocabulary when its outputs are this many times its inputs.
_VOCABULARY = 16
# No rate is more than twice what was measured, whatever noise makes of the overhead.
_LEAST_SHARE = 0.5
# No machine's speed changes by more from one pass of a test to the next and still says anything.
_LEAST_SPEED_SHARE = 0.05


def measured_rates(measured: profiler_pb2.DeviceMeasurements, disk: profiler_pb2.Disk) -> Rates:
    """Rates by shape where the test has them, else one figure for all shapes."""
    by_element = {}
    for element, matmul in (
        (2, measured.matmul_16bit_flops_per_second),
        (4, measured.matmul_32bit_flops_per_second),
    ):
        # A 16-bit test on a CPU that only has float16 says nothing about bfloat16.
        if matmul > 0:
            by_element[element] = _of_dtype(measured, element, matmul)
    return Rates(
        by_element_bytes=by_element,
        memory_bandwidth=measured.memory_bandwidth_bytes_per_second,
        host_to_device=measured.host_to_device_pinned_bytes_per_second,
        device_to_host=measured.device_to_host_pinned_bytes_per_second,
        disk_read=disk.read_bytes_per_second,
        disk_write=disk.write_bytes_per_second,
        spread=_spread(measured),
        launch_seconds=measured.operation_launch_seconds,
    )


def _spread(measured: profiler_pb2.DeviceMeasurements) -> tuple[float, float]:
    """Of the slowest and the fastest pass; (1, 1) where there was one."""
    lowest = max(measured.lowest_speed_share or 1.0, _LEAST_SPEED_SHARE)
    return lowest, max(measured.highest_speed_share, 1.0)


def _of_dtype(measured: profiler_pb2.DeviceMeasurements, element: int, matmul: float) -> DtypeRates:
    bandwidth = measured.memory_bandwidth_bytes_per_second
    wide, heads, thin, overhead = _products(measured, element)
    plain = single_rates(matmul, [(1.0, matmul)], bandwidth)
    return DtypeRates(
        matmul=RateCurve.of(wide) if wide else plain.matmul,
        head=_harmonic_mean(heads) if heads else plain.head,
        thin=_harmonic_mean(thin) if thin else plain.thin,
        operation_overhead_seconds=overhead,
        attention_rates=_attention_rates(measured, element),
        elementwise=_elementwise(measured, element) or plain.elementwise,
    )


def _attention_rates(
    measured: profiler_pb2.DeviceMeasurements, element: int
) -> Mapping[str, AttentionRates]:
    """By kernel that was timed in this dtype; one without a name where none was.

    Where both directions were timed as one, that figure stands for both: fp32 on CPUs is as fast as
    16 bits, inside it is fp32.
    """
    causal, blocks = measured.attention_rates, measured.block_attention_rates
    found: dict[str, AttentionRates] = {}
    for kernel in dict.fromkeys(rate.kernel for rate in (*causal, *blocks)):
        of_kernel = [[r for r in rates if r.kernel == kernel] for rates in (causal, blocks)]
        whole, in_blocks = (_attention(rates, element) for rates in of_kernel)
        if whole[0] or in_blocks[0]:
            found[kernel] = AttentionRates(*(whole if whole[0] else _as_one(causal)), *in_blocks)
    return found or {"": AttentionRates(*_as_one(causal))}


def _as_one(
    rates: Iterable[profiler_pb2.AttentionRate],
) -> tuple[dict[int, RateCurve], dict[int, RateCurve]]:
    points = {float(rate.sequence_tokens): rate.flops_per_second for rate in rates}
    curve = {128: RateCurve.of(points.items())}
    return curve, curve


def _attention(
    rates: Iterable[profiler_pb2.AttentionRate], element: int
) -> tuple[dict[int, RateCurve], dict[int, RateCurve]]:
    """Forward and backward by head size, where the test timed them apart."""
    forward: dict[int, dict[float, float]] = defaultdict(dict)
    backward: dict[int, dict[float, float]] = defaultdict(dict)
    for rate in rates:
        if _ELEMENT_BYTES.get(rate.dtype) == element and _both_ways(rate):
            tokens, head_size = float(max(rate.sequence_tokens, 1)), rate.head_size
            forward[head_size][tokens] = rate.forward_flops_per_second
            backward[head_size][tokens] = rate.backward_flops_per_second
    return _curves(forward), _curves(backward)


def is_half_timed(rate: profiler_pb2.AttentionRate) -> bool:
    """True where only one of the two directions has a rate: nothing is known of the other."""
    return (rate.forward_flops_per_second > 0) != (rate.backward_flops_per_second > 0)


def _both_ways(rate: profiler_pb2.AttentionRate) -> bool:
    return rate.forward_flops_per_second > 0 and rate.backward_flops_per_second > 0


def _elementwise(
    measured: profiler_pb2.DeviceMeasurements, element: int
) -> ElementwiseRates | None:
    """A GPU's allocator keeps what it has: there is nothing new."""
    points: dict[bool, dict[float, float]] = {False: {}, True: {}}
    for rate in measured.elementwise_rates:
        if _ELEMENT_BYTES.get(rate.dtype) == element and rate.bytes_per_second > 0:
            size = float(max(rate.tensor_bytes, 1))
            points[rate.new_pages][size] = rate.bytes_per_second
    there, new = points[False] or points[True], points[True] or points[False]
    if not there:
        return None
    return ElementwiseRates(RateCurve.of(there.items()), RateCurve.of(new.items()))


def _curves(points: dict[int, dict[float, float]]) -> dict[int, RateCurve]:
    return {size: RateCurve.of(by_tokens.items()) for size, by_tokens in points.items()}


def _products(
    measured: profiler_pb2.DeviceMeasurements, element: int
) -> tuple[list[Point], list[float], list[float], float]:
    """Rates by width of the weights, with a vocabulary, thin ones; and what every product costs.

    Rates are of what a product takes beside that.
    """
    rates = [
        rate for rate in measured.matmul_rates
        if _ELEMENT_BYTES.get(rate.dtype) == element and rate.flops_per_second > 0
        and min(rate.rows, rate.inner, rate.outer) > 0
    ]  # fmt: skip
    few, overhead = _overhead(rates)
    wide: dict[float, float] = {}
    heads, thin = [], []
    for rate in rates:
        if rate is few:
            continue
        net = rate.flops_per_second / max(1 - overhead / _seconds(rate), _LEAST_SHARE)
        if min(rate.rows, rate.inner, rate.outer) <= _THIN:
            thin.append(net)
        elif rate.outer >= _VOCABULARY * rate.inner:
            heads.append(net)
        else:
            wide[2.0 * rate.inner * rate.outer / (rate.inner + rate.outer)] = net
    return list(wide.items()), heads, thin, overhead


def _overhead(
    rates: list[profiler_pb2.MatmulRate],
) -> tuple[profiler_pb2.MatmulRate | None, float]:
    """The product that was timed with few rows too, and what it takes without any."""
    alike: dict[tuple[int, int], list[profiler_pb2.MatmulRate]] = defaultdict(list)
    for rate in rates:
        alike[rate.inner, rate.outer].append(rate)
    for same in alike.values():
        few, many = (pick(same, key=lambda rate: rate.rows) for pick in (min, max))
        if few.rows < many.rows:
            slope = (_seconds(many) - _seconds(few)) / (many.rows - few.rows)
            seconds = _seconds(few) - few.rows * slope
            return few, min(max(seconds, 0.0), _seconds(few))
    return None, 0.0


def _seconds(rate: profiler_pb2.MatmulRate) -> float:
    return 2.0 * rate.rows * rate.inner * rate.outer / rate.flops_per_second


def _harmonic_mean(rates: list[float]) -> float:
    return len(rates) / sum(1 / rate for rate in rates)
