"""Rates measured in several passes, some time apart, and what the machine had on the whole.

A machine's speed changes while it is measured: it grows warm, and on a shared one others come and
go within seconds. Steps take minutes, so what counts is the mean; and how far the passes differ is
how far steps will.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.message import Message

from elite.profiler.v1 import profiler_pb2

_BY_SHAPE = ("matmul_rates", "attention_rates", "block_attention_rates", "elementwise_rates")


def mean_measurements(
    passes: Sequence[profiler_pb2.DeviceMeasurements],
) -> profiler_pb2.DeviceMeasurements:
    """The first with the rates that the machine had on the whole: harmonic means.

    Rates of a shape that is missing from any pass are left out. With more than one pass the speeds
    of the slowest and of the fastest are those seen among the passes, or within one of them.
    """
    found = profiler_pb2.DeviceMeasurements()
    found.CopyFrom(passes[0])
    for name in _BY_SHAPE:
        found.ClearField(name)
    for name, rates in _shapes_in_all(passes):
        mean = getattr(found, name).add()
        mean.CopyFrom(rates[0])
        _average(mean, rates)
    _average(found, passes)
    found.operation_launch_seconds = statistics.mean(one.operation_launch_seconds for one in passes)
    if len(passes) > 1:
        shares = _speeds(passes)
        found.lowest_speed_share = min(1, *shares) * min(
            one.lowest_speed_share or 1 for one in passes
        )
        found.highest_speed_share = max(1, *shares) * max(
            one.highest_speed_share or 1 for one in passes
        )
    return found


def _speeds(passes: Sequence[profiler_pb2.DeviceMeasurements]) -> list[float]:
    """Of each pass, by what its rates differ from the means: the median over all shapes."""
    shares: list[list[float]] = [[] for _ in passes]
    for _, rates in _shapes_in_all(passes):
        for name in _rate_names(rates[0]):
            values = [getattr(rate, name) for rate in rates]
            if min(values) > 0:
                mean = statistics.harmonic_mean(values)
                for of_pass, value in zip(shares, values, strict=True):
                    of_pass.append(value / mean)
    return [statistics.median(of_pass) if of_pass else 1.0 for of_pass in shares]


def _shapes_in_all(
    passes: Sequence[profiler_pb2.DeviceMeasurements],
) -> Iterator[tuple[str, list[Any]]]:
    """The field, and of each shape that all passes have its rates, in the passes' order."""
    for name in _BY_SHAPE:
        by_shape: dict[Any, list[Any]] = defaultdict(list)
        for one in passes:
            for rate in getattr(one, name):
                by_shape[_shape_of(rate)].append(rate)
        yield from ((name, rates) for rates in by_shape.values() if len(rates) == len(passes))


def _shape_of(rate: Message) -> tuple[tuple[str, Any], ...]:
    """What a rate was measured of."""
    fields = ((field.name, value) for field, value in rate.ListFields())
    return tuple((name, value) for name, value in fields if not _is_rate(name))


def _average(found: Message, measured: Sequence[Message]) -> None:
    """Gives a message the harmonic means of the others' rates."""
    for name in _rate_names(found):
        rates = [getattr(one, name) for one in measured]
        setattr(found, name, statistics.harmonic_mean(rates))


def _rate_names(message: Message) -> list[str]:
    return [field.name for field in message.DESCRIPTOR.fields if _is_rate(field.name)]


def _is_rate(name: str) -> bool:
    return name.endswith("_per_second")
