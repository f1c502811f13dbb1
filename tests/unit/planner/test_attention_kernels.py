"""Which attention kernel a machine and model get."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from elite.profiler.v1 import profiler_pb2
from services.planner.attention_kernels import (
    CUDNN,
    EFFICIENT,
    FLASH,
    FUSED_KERNELS,
    best_kernel,
    card_kernels,
    in_order,
    kernels_for,
    key_chunks,
)
from services.planner.measured_rates import measured_rates
from services.planner.profiles import machine_from_profile
from services.trainer.engine.streaming.kernels import KERNELS, Heads
from tests.support.machines import measured_profile


@pytest.mark.parametrize(
    ("capability", "first"),
    [((7, 5), EFFICIENT), ((8, 0), FLASH), ((8, 9), FLASH), ((9, 0), CUDNN), ((10, 0), CUDNN),
     ((12, 0), FLASH)],
)  # fmt: skip
def test_by_generation_where_nothing_was_measured(capability: tuple[int, int], first: str) -> None:
    assert card_kernels(capability)[0] == first
    assert best_kernel(card_kernels(capability), 128) == first


def test_a_kernel_that_cannot_do_the_heads_is_passed_over() -> None:
    assert best_kernel((CUDNN, FLASH), 256) == FLASH
    assert kernels_for((CUDNN, "sdpa_math", FLASH), 64) == [CUDNN, FLASH]
    assert best_kernel(("sdpa_math",), 64) is None
    assert in_order((EFFICIENT, "flash_attn", FLASH, CUDNN), (CUDNN,)) == (CUDNN, FLASH, EFFICIENT)


def test_limits_are_those_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    cuda = torch.device("cuda")
    for kernel in KERNELS[:3]:
        fused = FUSED_KERNELS[kernel.name]
        assert kernel.repeats_heads == (not fused.shares_keys)
        for size in (64, 128, 256):
            refusal = kernel.refusal(Heads(cuda, torch.bfloat16, 8, 2, size))
            assert (not refusal) == (size <= fused.largest_head_size), kernel.name


def test_keys_that_are_repeated_and_cpus_take_short_blocks() -> None:
    assert key_chunks(CUDNN, on_cuda=True) > 1
    assert key_chunks(EFFICIENT, on_cuda=True) == key_chunks(FLASH, on_cuda=False) == 1


def test_the_fastest_measured_kernel_comes_first_with_its_own_rates() -> None:
    profile = measured_profile()
    device = profile.devices[0]
    device.kind, device.compute_capability.major = profiler_pb2.DEVICE_KIND_CUDA, 8
    measured = device.measurements
    measured.host_to_device_pinned_bytes_per_second = 1e9
    measured.device_to_host_pinned_bytes_per_second = 1e9
    del measured.attention_rates[:]
    for name, rate in ((FLASH, 3e14), (CUDNN, 5e14)):
        profile.software.attention_kernels.add(name=name, status=profiler_pb2.KERNEL_STATUS_WORKS)
        measured.attention_rates.add(
            kernel=name, dtype="bfloat16", head_size=128, sequence_tokens=4096,
            flops_per_second=rate, forward_flops_per_second=rate, backward_flops_per_second=rate,
        )  # fmt: skip
    machine = machine_from_profile(profile)
    assert machine.attention_kernels == (CUDNN, FLASH)
    rates = measured_rates(measured, profiler_pb2.Disk()).of(2)
    assert rates is not None
    for name, rate in ((FLASH, 3e14), (CUDNN, 5e14), ("one that was not timed", 3e14)):
        assert rates.attention(128, name)[0].at(4096) == rate
    # Without names the order is the card's.
    for one in measured.attention_rates:
        one.kernel = ""
    assert machine_from_profile(profile).attention_kernels == (FLASH, CUDNN)
    assert replace(machine, has_workspaces=False).runs_gpu_kernels is False
