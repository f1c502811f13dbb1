"""Rates by shape: matrix products, attention and element-wise products.

One figure for all products is off by half for narrow weights, and by far more for an adapter's:
these rates are what step times are predicted from. Products are made as a linear module makes
them: inputs times transposed weights, and gradients of outputs times weights, which some CPUs do
many times slower in 16 bits.

Shapes: M rows, K inner and N outer width of a product, R rank; B batch 1, S tokens, H heads,
D head dim of attention.
"""

from __future__ import annotations

import itertools
import math
import mmap
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch.nn.attention import sdpa_kernel

from elite.profiler.v1 import profiler_pb2
from services.common.engine_process import KEY_CHUNKS, LARGE_BLOCK_BYTES
from services.profiler.probes.compute import (
    FUSED_KERNELS,
    kernel_refusal,
    sixteen_bit_dtype,
    synchronise,
)

# Square weights, from those of the smallest models to those of the largest.
_WIDTHS = {"cpu": (256, 576, 1024, 2048, 4096), "cuda": (1024, 2048, 4096, 8192)}
# (K, N) of a head over a vocabulary.
_HEAD = {"cpu": (1024, 32768), "cuda": (4096, 32768)}
# (K or N, R) of an adapter.
_ADAPTER = {"cpu": (1024, 16), "cuda": (4096, 16)}
_ROWS = {"cpu": 2048, "cuda": 8192}
_QUICK_ROWS = {"cpu": 512, "cuda": 8192}
# On a CPU a thin product of so few rows is mostly what every product costs: threads that are woken.
# On a GPU products wait for each other in a queue, and that cost hides.
_FEW_ROWS = {"cpu": 256}
# Products that would take longer, at the rate of the one before, are left out.
_LONGEST_PRODUCT_SECONDS = {False: 8.0, True: 1.0}
_HEAD_DIMS = (64, 128)
_TOKENS = {"cpu": (512, 2048, 8192), "cuda": (4096, 16384, 65536)}
# Of chunks: kernels cut short ones into other tiles than long ones.
_CHUNKS = {"cpu": (256, 512, 1024, 2048), "cuda": (1024, 4096, 16384)}
_CUDA_HEADS_WIDTH = 2048
# Keys repeated to every query head: slower than any other fused kernel where there is one.
_REPEATS_KEYS = "sdpa_efficient"
# Bytes of a tensor, from what a short chunk of a small model makes to what no cache holds.
_TENSOR_BYTES = {
    "cpu": (2**14, 2**16, 2**18, 2**20, 2**22, 2**24),
    "cuda": (2**16, 2**19, 2**22, 2**25, 2**29),
}
_NEW_TENSOR_BYTES = {"cpu": (LARGE_BLOCK_BYTES, 2**22, 2**24, 2**27), "cuda": ()}
# In a step Python takes about as long from one operation to the next. Whether a CPU's threads fall
# asleep meanwhile is up to how they wait; waking them is a part of what an operation costs.
_PAUSE_SECONDS = {"cpu": 1e-4, "cuda": 0.0}
# Products of small tensors are timed so many at a time: on a GPU they wait for no one in a queue.
# On a CPU each is of other tensors, which have left its caches, as most of a step's have: from the
# caches it would be up to four times as fast.
_BYTES_AT_ONCE = {"cpu": 2**25, "cuda": 2**24}
_MOST_AT_ONCE = 64
_OF_OTHER_TENSORS = {"cpu": True, "cuda": False}


@dataclass(frozen=True, slots=True)
class Effort:
    """How long one shape is measured: until both the repeats and the seconds are reached.

    At `most_seconds` it ends, with one repeat if need be.
    """

    repeats: int
    seconds: float
    most_seconds: float

    def is_reached(self, samples: Sequence[float]) -> bool:
        """Whether these seconds are enough of them."""
        spent = sum(samples)
        enough = len(samples) >= self.repeats and spent >= self.seconds
        return enough or spent >= self.most_seconds


# In so many turns or more, when several shapes are compared.
_TURNS = 5
# In each pass over all shapes.
EFFORT = {False: Effort(1, 0.1, 0.4), True: Effort(1, 0.03, 0.1)}
# Values that are drawn once for all operands: drawing them takes longer than multiplying them.
_DRAWN_VALUES = 2**20


def dtypes_of(device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """What the device computes in: its 16-bit dtype and float32."""
    return sixteen_bit_dtype(device), torch.float32


def median_seconds(device: torch.device, run: Callable[[], object], effort: Effort) -> float:
    """Median seconds of `run` after one warm-up: on a shared machine some are interrupted."""
    return medians_in_turns(device, [run], effort)[0]


def medians_in_turns(
    device: torch.device, runs: Sequence[Callable[[], object]], effort: Effort
) -> list[float]:
    """Median seconds of each, every one measured a little at a time.

    What disturbs the machine for a second then meets all of them, and they still compare.
    """
    for run in runs:
        _seconds(device, run)  # makes kernels and threads, which later runs find made
    samples: list[list[float]] = [[] for _ in runs]
    while not all(map(effort.is_reached, samples)):
        for run, taken in zip(runs, samples, strict=True):
            turn_ends = sum(taken) + effort.seconds / _TURNS
            while not effort.is_reached(taken):
                taken.append(_seconds(device, run))
                if sum(taken) >= turn_ends:
                    break
    return [statistics.median(taken) for taken in samples]


def _seconds(device: torch.device, run: Callable[[], object]) -> float:
    synchronise(device)
    pause_ends = time.perf_counter() + _PAUSE_SECONDS[device.type]
    while time.perf_counter() < pause_ends:
        pass
    started = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - started


def matmul_rates(
    device: torch.device, dtype: torch.dtype, *, quick: bool
) -> Iterator[profiler_pb2.MatmulRate]:
    """Square weights of growing width, a head, an adapter's products, and one of few rows."""
    rate = math.inf
    for rows, inner, outer in _products(device.type, quick):
        operations = 2 * rows * inner * outer
        if operations / rate > _LONGEST_PRODUCT_SECONDS[quick]:
            continue
        left, right = _operands(rows, inner, outer, device, dtype)
        product: Callable[[], object] = partial(torch.matmul, left, right)
        if min(rows, inner, outer) > _ADAPTER[device.type][1]:
            gradients = _values((rows, outer), device, dtype)
            product = partial(_forward_and_backward, left, right, gradients)
            operations *= 2
        rate = operations / median_seconds(device, product, EFFORT[quick])
        yield profiler_pb2.MatmulRate(
            rows=rows, inner=inner, outer=outer, dtype=_name(dtype), flops_per_second=rate
        )


def _forward_and_backward(
    inputs: torch.Tensor, weights: torch.Tensor, gradients: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both products with a linear module's weights: its outputs, and gradients of its inputs."""
    return torch.matmul(inputs, weights), torch.matmul(gradients, weights.T)


def _products(device_type: str, quick: bool) -> Iterator[tuple[int, int, int]]:
    """(M, K, N); rows of a gradient of an adapter's weights are its rank."""
    rows = (_QUICK_ROWS if quick else _ROWS)[device_type]
    width, rank = _ADAPTER[device_type]
    for side in _WIDTHS[device_type]:
        yield rows, side, side
    yield rows, *_HEAD[device_type]
    yield rows, width, rank
    yield rows, rank, width
    yield rank, rows, width
    if device_type in _FEW_ROWS:
        yield _FEW_ROWS[device_type], width, rank


def _operands(
    rows: int, inner: int, outer: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """(M, K) and (K, N) in the layouts that a linear module and its backward hand over."""
    if rows < inner and rows < outer:  # a gradient of weights: transposed gradients times inputs
        return _values((inner, rows), device, dtype).T, _values((inner, outer), device, dtype)
    return _values((rows, inner), device, dtype), _values((outer, inner), device, dtype).T


def attention_rates(
    device: torch.device, dtype: torch.dtype, *, quick: bool, causal: bool = True
) -> Iterator[profiler_pb2.AttentionRate]:
    """Attention without an S x S matrix, by kernel, head dim and length, each direction by itself.

    causal: over whole windows; otherwise a chunk of queries over a block of earlier keys.
    Nothing where no kernel for it runs in this dtype; lengths that do not fit are left out.
    """
    lengths = (_TOKENS if causal else _CHUNKS)[device.type]
    if quick and causal:  # chunks are short enough
        lengths = lengths[:-1]
    for kernel, head_dim in itertools.product(_kernels(device, dtype), _HEAD_DIMS):
        cases = _attention_cases(_Heads(kernel, device, dtype, head_dim), lengths, causal)
        runs = [run for case in cases for run in (case.forward, case.backward)]
        seconds = medians_in_turns(device, runs, EFFORT[quick])
        for case, forward, backward in zip(cases, seconds[::2], seconds[1::2], strict=True):
            yield case.rate(forward, backward)


def _kernels(device: torch.device, dtype: torch.dtype) -> list[str]:
    """The fused kernels that run; the one that repeats keys if there is no other."""
    works = [name for name in FUSED_KERNELS if not kernel_refusal(name, device, dtype)]
    return [name for name in works if name != _REPEATS_KEYS] or works


@dataclass(frozen=True, slots=True)
class _Heads:
    """What attends, and on what."""

    kernel: str
    device: torch.device
    dtype: torch.dtype
    head_dim: int

    @property
    def count(self) -> int:
        """On a CPU torch's backward gives each thread whole heads: as many of them as threads."""
        on_cpu = self.device.type == "cpu"
        return torch.get_num_threads() if on_cpu else _CUDA_HEADS_WIDTH // self.head_dim

    def tensor(self, tokens: int) -> torch.Tensor:
        """(B, H, S, D), as projections lay it out."""
        shape = (1, tokens, self.count, self.head_dim)
        found = _values(shape, self.device, self.dtype)
        return found.transpose(1, 2).requires_grad_()


class _AttentionCase:
    """Attention over one length, each direction by itself."""

    def __init__(self, heads: _Heads, tokens: int, causal: bool) -> None:
        """Raises `torch.OutOfMemoryError`."""
        keys = tokens * (1 if causal else KEY_CHUNKS[heads.device.type])
        self._heads, self._pairs, self._causal = heads, tokens * keys, causal
        self._inputs = [heads.tensor(length) for length in (tokens, keys, keys)]
        self._output = self.forward()
        self._gradient = torch.randn_like(self._output)
        self.backward()

    def forward(self) -> torch.Tensor:
        """Attention's output, (B, H, S, D)."""
        query, key, value = self._inputs
        with sdpa_kernel(FUSED_KERNELS[self._heads.kernel]):
            return torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=self._causal
            )

    def backward(self) -> None:
        """Gradients of queries, keys and values, from the same output every time."""
        torch.autograd.grad(self._output, self._inputs, self._gradient, retain_graph=True)

    def rate(self, forward_seconds: float, backward_seconds: float) -> profiler_pb2.AttentionRate:
        """Operations as FlashAttention-2 counts them (arXiv 2307.08691, section 4.1).

        4 H D for each pair of query and key forward, half of them under a causal mask, and 2.5
        times that backward.
        """
        heads = self._heads
        operations = (2.0 if self._causal else 4.0) * self._pairs * heads.count * heads.head_dim
        return profiler_pb2.AttentionRate(
            sequence_tokens=self._output.shape[2],
            dtype=_name(heads.dtype),
            head_size=heads.head_dim,
            kernel=heads.kernel,
            flops_per_second=3.5 * operations / (forward_seconds + backward_seconds),
            forward_flops_per_second=operations / forward_seconds,
            backward_flops_per_second=2.5 * operations / backward_seconds,
        )


def _attention_cases(heads: _Heads, lengths: Sequence[int], causal: bool) -> list[_AttentionCase]:
    """Of the lengths that fit, one beside the other."""
    cases: list[_AttentionCase] = []
    for tokens in lengths:
        try:
            cases.append(_AttentionCase(heads, tokens, causal))
        except torch.OutOfMemoryError:
            break
    return cases


def elementwise_rates(
    device: torch.device, dtype: torch.dtype, *, quick: bool
) -> Iterator[profiler_pb2.ElementwiseRate]:
    """Two tensors read and one written, which is what a model's own operations do, by size.

    On a CPU also into pages that the system has to find first, as for all large blocks where
    `return_freed_memory` was asked for.
    """
    cases = [
        (new_pages, size)
        for new_pages, sizes in ((False, _TENSOR_BYTES), (True, _NEW_TENSOR_BYTES))
        for size in sizes[device.type]
    ]
    counts = [max(1, min(_BYTES_AT_ONCE[device.type] // size, _MOST_AT_ONCE)) for _, size in cases]
    runs = []
    for (new_pages, size), count in zip(cases, counts, strict=True):
        operands = [
            _tensors(size, device, dtype, new_pages)
            for _ in range(count if _OF_OTHER_TENSORS[device.type] else 1)
        ]
        runs.append(partial(_multiply, operands, count))
    medians = medians_in_turns(device, runs, EFFORT[quick])
    for (new_pages, size), count, seconds in zip(cases, counts, medians, strict=True):
        yield profiler_pb2.ElementwiseRate(
            dtype=_name(dtype),
            tensor_bytes=size,
            new_pages=new_pages,
            bytes_per_second=3 * size * count / seconds,
        )


_Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def _tensors(size: int, device: torch.device, dtype: torch.dtype, new_pages: bool) -> _Operands:
    """Two factors, and where their product goes if not into new pages; `size` bytes each."""
    left, right = (_values((size // dtype.itemsize,), device, dtype) for _ in "ab")
    return left, right, None if new_pages else torch.empty_like(left)


def _multiply(operands: Sequence[_Operands], count: int) -> None:
    for left, right, result in itertools.islice(itertools.cycle(operands), count):
        torch.mul(left, right, out=_in_new_pages(left) if result is None else result)


def _in_new_pages(like: torch.Tensor) -> torch.Tensor:
    """A tensor of the same size in a mapping of its own, whatever the allocator has left over."""
    own = mmap.mmap(-1, like.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(own, dtype=like.dtype)


def _values(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Of a standard normal distribution, again and again from one drawing."""
    drawn, count = _drawn(device, dtype), math.prod(shape)
    return drawn.repeat(-(-count // drawn.numel()))[:count].clone().view(shape)


@cache
def _drawn(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(_DRAWN_VALUES, device=device, dtype=dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
