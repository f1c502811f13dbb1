"""What a device does per second, by kind of work: measured, or from the card table."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from services.planner.arithmetic import Number, maximum, value_of, where

Point = tuple[float, float]
# Of the element-wise test: two tensors read and one written.
_MEASURED_PASSES = 3


@dataclass(frozen=True, slots=True)
class RateCurve:
    """A rate by size: linear in the logarithm of the size between points, constant outside.

    Points are (size, rate), ascending in size, at least one.
    """

    points: tuple[Point, ...]

    @classmethod
    def of(cls, points: Iterable[Point]) -> RateCurve:
        """A curve through points in any order."""
        return cls(tuple(sorted(points)))

    def at(self, size: Number) -> Number:
        """The rate at a size, or at a column of sizes."""
        if len(self.points) == 1:
            return self.points[0][1]
        if isinstance(size, np.ndarray):
            sizes, rates = zip(*self.points, strict=True)
            return np.interp(np.log(size), np.log(sizes), rates)
        return self._at(float(value_of(size)))

    def _at(self, size: float) -> float:
        index = bisect_right(self.points, (size, math.inf))
        if index == 0:
            return self.points[0][1]
        if index == len(self.points):
            return self.points[-1][1]
        (low, low_rate), (high, high_rate) = self.points[index - 1], self.points[index]
        share = math.log(size / low) / math.log(high / low)
        return low_rate + share * (high_rate - low_rate)

    @property
    def best(self) -> float:
        """The highest measured rate."""
        return max(rate for _, rate in self.points)

    @property
    def worst(self) -> float:
        """The lowest measured rate."""
        return min(rate for _, rate in self.points)

    def times(self, share: float) -> RateCurve:
        """The same curve with this share of every rate."""
        return RateCurve(tuple((size, share * rate) for size, rate in self.points))

    def covers(self, size: float) -> bool:
        """True when the size lies between measured ones."""
        return self.points[0][0] <= size <= self.points[-1][0]


@dataclass(frozen=True, slots=True)
class ElementwiseRates:
    """Bytes/s by the bytes of the tensor that is written: into memory that is there, or new."""

    there: RateCurve
    new: RateCurve

    @classmethod
    def single(cls, rate: float) -> ElementwiseRates:
        """One figure for all sizes."""
        curve = RateCurve(((1.0, rate),))
        return cls(curve, curve)

    @property
    def depends_on_size(self) -> bool:
        """Whether there is more than one figure."""
        return len(self.there.points) > 1 or self.has_faults

    @property
    def has_faults(self) -> bool:
        """Whether new memory is slower than memory that is there."""
        return self.there != self.new

    def fault_seconds(self, tensor_bytes: Number, kept_below: int) -> Number:
        """For each byte of a new tensor, what its pages cost beside the work.

        kept_below: bytes of a tensor whose pages the allocator keeps.
        """
        if not self.has_faults:
            return 0.0
        new, there = self.new.at(tensor_bytes), self.there.at(tensor_bytes)
        seconds = maximum(0.0, _MEASURED_PASSES * (1 / new - 1 / there))
        return where(tensor_bytes >= kept_below, seconds, 0.0)


@dataclass(frozen=True, slots=True)
class AttentionRates:
    """FLOP/s of attention by head size, then by tokens.

    forward, backward: causal. block_*: of a chunk of queries over earlier keys, every pair; empty
    where they were not measured.
    """

    forward: Mapping[int, RateCurve]
    backward: Mapping[int, RateCurve]
    block_forward: Mapping[int, RateCurve] = field(default_factory=dict)
    block_backward: Mapping[int, RateCurve] = field(default_factory=dict)

    @property
    def best(self) -> float:
        """The highest causal rate, either way."""
        return max(curve.best for curve in (*self.forward.values(), *self.backward.values()))


@dataclass(frozen=True, slots=True)
class DtypeRates:
    """FLOP/s and bytes/s of one dtype.

    matmul: by the width of the weights (harmonic mean of inputs and outputs). head: a product with
    the vocabulary. thin: products with an adapter's matrices at rank 16.
    operation_overhead_seconds: of every operation, besides; 0 where it hides. elementwise: of a
    product of two tensors, element by element. attention_rates: by kernel, where they were timed by
    kernel; else one entry, without a name.
    """

    matmul: RateCurve
    head: float
    thin: float
    operation_overhead_seconds: float
    attention_rates: Mapping[str, AttentionRates]
    elementwise: ElementwiseRates

    def attention(self, head_size: int, kernel: str = "") -> tuple[RateCurve, RateCurve]:
        """A kernel's forward and backward curves of the nearest measured head size."""
        found = self._of(kernel)
        return _nearest(found.forward, found.backward, head_size)

    def blocks(self, head_size: int, kernel: str = "") -> tuple[RateCurve, RateCurve] | None:
        """The same for blocks."""
        found = self._of(kernel)
        if not found.block_forward:
            return None
        return _nearest(found.block_forward, found.block_backward, head_size)

    @property
    def kernels(self) -> list[str]:
        """Those that were timed by name, the fastest first."""
        timed = {name: found.best for name, found in self.attention_rates.items() if name}
        return sorted(timed, key=lambda name: -timed[name])

    def _of(self, kernel: str) -> AttentionRates:
        """The kernel's; of one that was not timed, the first there are."""
        found = self.attention_rates.get(kernel)
        return found or next(iter(self.attention_rates.values()))


def _nearest(
    forward: Mapping[int, RateCurve], backward: Mapping[int, RateCurve], head_size: int
) -> tuple[RateCurve, RateCurve]:
    nearest = min(forward, key=lambda size: (abs(size - head_size), size))
    return forward[nearest], backward[nearest]


@dataclass(frozen=True, slots=True)
class Rates:
    """All rates of a machine; bytes/s of copies, 0 for a disk that was not measured.

    spread: lowest and highest share of the expected rates that were seen: among cards, or passes of
    a stress test. launch_seconds: what Python takes to ask for one operation. threads: of a
    CPU, which were measured with a KV head for each; 0 where that makes no difference.
    """

    by_element_bytes: Mapping[int, DtypeRates]
    memory_bandwidth: float
    host_to_device: float
    device_to_host: float
    disk_read: float = 0.0
    disk_write: float = 0.0
    spread: tuple[float, float] = (1.0, 1.0)
    launch_seconds: float = 0.0
    threads: int = 0

    def of(self, element_bytes: int) -> DtypeRates | None:
        """Rates of a dtype; None when this machine has none."""
        return self.by_element_bytes.get(element_bytes)


def single_rates(
    matmul: float, attention: Iterable[Point], bandwidth: float, thin: float = 0.0
) -> DtypeRates:
    """Rates where one figure stands for all shapes; thin products run at memory speed.

    A product with a matrix of rank r reads and writes about two bytes for every r operations.
    """
    curve = RateCurve.of(attention)
    return DtypeRates(
        matmul=RateCurve(((1.0, matmul),)),
        head=matmul,
        thin=thin or min(matmul, 16 * bandwidth),
        operation_overhead_seconds=0.0,
        attention_rates={"": AttentionRates({128: curve}, {128: curve})},
        elementwise=ElementwiseRates.single(bandwidth),
    )
