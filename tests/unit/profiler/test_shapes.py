"""Rates by shape: which shapes, what counts as an operation, and what a noisy machine does."""

from __future__ import annotations

import math
import mmap
import resource
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from services.profiler.probes import compute, shapes

CPU = torch.device("cpu")
_NEW_BYTES = 2**22


@pytest.fixture
def one_second(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Everything takes one second; what ran is collected."""
    results: list[object] = []

    def ran(_: object, runs: Sequence[Callable[[], object]], *__: object) -> list[float]:
        results.extend(run() for run in runs)
        return [1.0] * len(runs)

    monkeypatch.setattr(shapes, "medians_in_turns", ran)
    return results


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "_WIDTHS", {"cpu": (32, 64)})
    monkeypatch.setattr(shapes, "_HEAD", {"cpu": (64, 256)})
    monkeypatch.setattr(shapes, "_ADAPTER", {"cpu": (64, 4)})
    monkeypatch.setattr(shapes, "_ROWS", {"cpu": 48})
    monkeypatch.setattr(shapes, "_LONGEST_PRODUCT_SECONDS", {False: math.inf, True: math.inf})
    monkeypatch.setattr(shapes, "_FEW_ROWS", {"cpu": 12})
    monkeypatch.setattr(shapes, "_TOKENS", {"cpu": (8, 16, 32)})
    monkeypatch.setattr(shapes, "_CHUNKS", {"cpu": (4, 12)})
    monkeypatch.setattr(shapes, "_TENSOR_BYTES", {"cpu": (400, 2**23)})
    monkeypatch.setattr(shapes, "_NEW_TENSOR_BYTES", {"cpu": (800,)})


@pytest.mark.parametrize(
    ("seconds", "runs", "expected"),
    [
        ([5.0, 2.0], 2, 2.0),  # too long to be repeated
        ([1.9, 0.2, 0.4, 0.2], 4, 0.2),  # the first one only warms up
        ([0.1] * 50, 5, 0.1),  # short ones fill the time
        ([0.1, 0.1, 1.9], 3, 1.0),  # out of time before the third repeat
        ([0.1, 0.1, 1.5, 0.1], 4, 0.1),  # one that was interrupted does not count
    ],
)
def test_the_median_of_enough_repeats(
    seconds: list[float], runs: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = iter(seconds)
    taken: list[float] = []

    def next_seconds(*_: object) -> float:
        taken.append(next(waiting))
        return taken[-1]

    monkeypatch.setattr(shapes, "_seconds", next_seconds)
    effort = shapes.Effort(repeats=3, seconds=0.35, most_seconds=2.0)
    assert shapes.median_seconds(CPU, lambda: None, effort) == pytest.approx(expected)
    assert len(taken) == runs


def test_what_disturbs_the_machine_meets_all_that_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0

    def measured(_: object, run: Callable[[], float]) -> float:
        # From the 3rd to the 5th second, everything takes twice as long.
        nonlocal now
        taken = run() * (2 if 3.0 <= now < 5.0 else 1)
        now += taken
        return taken

    monkeypatch.setattr(shapes, "_seconds", measured)
    effort = shapes.Effort(repeats=3, seconds=1.0, most_seconds=9.0)
    runs = [lambda: 0.1, lambda: 0.01, lambda: 0.5, lambda: 0.05]
    found = shapes.medians_in_turns(CPU, runs, effort)
    assert found == pytest.approx([0.1, 0.01, 0.5, 0.05])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_of_square_weights_a_head_and_an_adapter(
    dtype: torch.dtype, one_second: list[torch.Tensor]
) -> None:
    rates = list(shapes.matmul_rates(CPU, dtype, quick=False))
    assert [(rate.rows, rate.inner, rate.outer) for rate in rates] == [
        (48, 32, 32), (48, 64, 64), (48, 64, 256), (48, 64, 4), (48, 4, 64), (4, 48, 64),
        (12, 64, 4),
    ]  # fmt: skip
    for number, (rate, result) in enumerate(zip(rates, one_second, strict=True)):
        # With a linear module's weights, the gradients of its inputs too.
        both = number < 3
        output = result[0] if both else result
        assert output.shape == (rate.rows, rate.outer)
        assert not both or result[1].shape == (rate.rows, rate.inner)
        assert rate.flops_per_second == (1 + both) * 2 * rate.rows * rate.inner * rate.outer
        assert f"torch.{rate.dtype}" == str(dtype) == str(output.dtype)


@pytest.mark.usefixtures("small", "one_second")
def test_products_that_would_take_too_long_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # At the rate of the narrowest one the wider one takes two seconds, the head eight.
    monkeypatch.setattr(shapes, "_LONGEST_PRODUCT_SECONDS", {False: 1.5})
    rates = list(shapes.matmul_rates(CPU, torch.float32, quick=False))
    assert [(rate.rows, rate.inner, rate.outer) for rate in rates] == [
        (48, 32, 32), (48, 64, 4), (48, 4, 64), (4, 48, 64), (12, 64, 4),
    ]  # fmt: skip


@pytest.mark.usefixtures("small", "one_second")
def test_a_quick_test_has_the_same_weights_over_fewer_rows() -> None:
    full = list(shapes.matmul_rates(CPU, torch.float32, quick=False))
    quick = list(shapes.matmul_rates(CPU, torch.float32, quick=True))
    # The rows of an adapter's gradient are an inner width.
    assert {(rate.inner, rate.outer) for rate in quick if rate.rows != 4} == {
        (rate.inner, rate.outer) for rate in full if rate.rows != 4
    }


@pytest.mark.usefixtures("small", "one_second")
def test_attention_by_head_size_length_and_direction() -> None:
    rates = list(shapes.attention_rates(CPU, torch.bfloat16, quick=False))
    assert [(rate.head_size, rate.sequence_tokens) for rate in rates] == [
        (64, 8), (64, 16), (64, 32), (128, 8), (128, 16), (128, 32),
    ]  # fmt: skip
    for rate in rates:
        forward = 2 * rate.sequence_tokens**2 * torch.get_num_threads() * rate.head_size
        assert rate.forward_flops_per_second == forward
        assert rate.backward_flops_per_second == 2.5 * forward
        assert rate.flops_per_second == 3.5 * forward / 2
        assert rate.dtype == "bfloat16"
    quick = shapes.attention_rates(CPU, torch.bfloat16, quick=True)
    assert [rate.sequence_tokens for rate in quick] == [8, 16, 8, 16]


@pytest.mark.usefixtures("small", "one_second")
def test_a_chunk_attends_to_every_key_of_a_block() -> None:
    rates = list(shapes.attention_rates(CPU, torch.float32, quick=False, causal=False))
    lengths = [(rate.head_size, rate.sequence_tokens) for rate in rates]
    assert lengths == [(64, 4), (64, 12), (128, 4), (128, 12)]
    for rate in rates:
        forward = 4 * rate.sequence_tokens**2 * torch.get_num_threads() * rate.head_size
        assert rate.forward_flops_per_second == forward
        assert rate.backward_flops_per_second == 2.5 * forward


@pytest.mark.parametrize("causal", [True, False])
def test_only_causal_attention_has_a_mask(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def noting(*tensors: torch.Tensor, is_causal: bool) -> torch.Tensor:
        asked.append(is_causal)
        return attend(*tensors, is_causal=is_causal)

    # Attends too, to see whether it can.
    monkeypatch.setattr(shapes, "kernel_refusal", lambda name, *_: name.removeprefix("sdpa_flash"))
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
    monkeypatch.setattr(shapes, "_TOKENS", {"cpu": (8, 16)})
    monkeypatch.setattr(shapes, "_CHUNKS", {"cpu": (8, 16)})
    rates = list(shapes.attention_rates(CPU, torch.float32, quick=True, causal=causal))
    # Of whole windows a quick test leaves the longest out.
    assert [rate.sequence_tokens for rate in rates] == ([8, 8] if causal else [8, 16, 8, 16])
    assert set(asked) == {causal}


def test_an_operation_comes_as_late_as_python_is_in_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter(step / 1000 for step in range(1000))
    monkeypatch.setattr(shapes.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(shapes, "_PAUSE_SECONDS", {"cpu": 0.0455})
    began: list[float] = []
    assert shapes._seconds(CPU, lambda: began.append(next(now))) == pytest.approx(0.002)
    assert began[0] > 0.0455


@pytest.mark.usefixtures("small")
def test_lengths_that_do_not_fit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = shapes._AttentionCase.forward

    def out_of_memory_from_16(case: Any) -> torch.Tensor:
        if case._inputs[0].shape[2] >= 16:
            raise torch.OutOfMemoryError
        return forward(case)

    monkeypatch.setattr(shapes._AttentionCase, "forward", out_of_memory_from_16)
    rates = shapes.attention_rates(CPU, torch.float32, quick=False)
    assert [rate.sequence_tokens for rate in rates] == [8, 8]


def test_no_attention_rate_where_no_fused_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "kernel_refusal", lambda *_: "not here")
    assert list(shapes.attention_rates(CPU, torch.float32, quick=True)) == []
    assert "sdpa_math" in compute.KERNELS
    assert "sdpa_math" not in compute.FUSED_KERNELS


@pytest.mark.usefixtures("small", "one_second")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_elementwise_product_reads_two_tensors_and_writes_one(dtype: torch.dtype) -> None:
    rates = list(shapes.elementwise_rates(CPU, dtype, quick=False))
    assert {f"torch.{rate.dtype}" for rate in rates} == {str(dtype)}
    # 64 small ones are timed at once, and of large ones as many as 32 MiB hold.
    assert [(rate.tensor_bytes, rate.new_pages, rate.bytes_per_second) for rate in rates] == [
        (400, False, 3 * 400 * 64),
        (2**23, False, 3 * 2**23 * 4),
        (800, True, 3 * 800 * 64),
    ]


@pytest.mark.usefixtures("small")
def test_a_product_goes_into_memory_that_is_there_unless_new_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results: list[tuple[int, int]] = []
    faults: list[int] = []
    multiply = torch.mul

    def counted(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        results.append((out.nbytes, out.data_ptr()))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        multiply(left, right, out=out)
        if out.nbytes == _NEW_BYTES:
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        return out

    monkeypatch.setattr(shapes, "_NEW_TENSOR_BYTES", {"cpu": (_NEW_BYTES,)})
    monkeypatch.setattr(shapes.torch, "mul", counted)
    rates = list(shapes.elementwise_rates(CPU, torch.float32, quick=True))
    assert [rate.new_pages for rate in rates] == [False, False, True]
    assert {size for size, _ in results} == {400, 2**23, _NEW_BYTES}
    # Each of other tensors, that what one leaves in a CPU's caches is not read by the next.
    assert len({address for size, address in results if size != _NEW_BYTES}) == 64 + 4
    # Every page of every new one, whatever this process has done to its allocator.
    assert min(faults) >= _NEW_BYTES // mmap.PAGESIZE
