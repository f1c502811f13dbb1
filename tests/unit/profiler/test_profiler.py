"""The profiler around its probes: the driver's handle, and what refuses a stress test."""

from __future__ import annotations

from pathlib import Path

import pytest

from elite.profiler.v1 import profiler_pb2
from services.common.errors import ErrorReason, ServiceError
from services.profiler.profiler import Profiler
from services.profiler.settings import ProfilerSettings
from tests.support import recorded_nvml as recorded


def profiler(tmp_path: Path, nvml: recorded.RecordedNvml) -> Profiler:
    return Profiler(ProfilerSettings(state_directory=tmp_path), nvml)


async def stress(subject: Profiler) -> None:
    async for _ in subject.stress_test(memory_fraction=0.01, quick=True):
        pass


async def test_driver_stays_open_between_snapshots_and_is_let_go(tmp_path: Path) -> None:
    nvml = recorded.RecordedNvml(recorded.RTX_3090)
    subject = profiler(tmp_path, nvml)
    assert subject.snapshot().devices[0].uuid == "GPU-90aa"
    subject.snapshot()
    assert nvml.open_count == 1
    await subject.close()
    assert nvml.open_count == 0


def test_driver_that_failed_is_opened_afresh(tmp_path: Path) -> None:
    nvml = recorded.RecordedNvml(recorded.RTX_3090)
    subject = profiler(tmp_path, nvml)
    subject.snapshot()
    nvml.gpus = (recorded.LOST,)
    with pytest.raises(ServiceError, match="GPU is lost"):
        subject.snapshot()
    assert nvml.open_count == 0
    nvml.gpus = (recorded.RTX_3090,)
    assert subject.snapshot().devices[0].kind == profiler_pb2.DEVICE_KIND_CUDA


@pytest.mark.parametrize(
    ("cuda", "torch", "message"),
    [("", "2.13.0+cpu", r"2\.13\.0\+cpu cannot use the GPU"), ("13.0", "", "not installed")],
)
async def test_torch_that_cannot_use_the_gpu_is_named(
    cuda: str, torch: str, message: str, tmp_path: Path
) -> None:
    subject = profiler(tmp_path, recorded.RecordedNvml(recorded.RTX_3090))
    subject._software.torch_cuda_version = cuda
    subject._torch_version = torch
    with pytest.raises(ServiceError, match=message) as raised:
        await stress(subject)
    assert raised.value.reason is ErrorReason.PRECONDITION_FAILED
    with pytest.raises(ServiceError, match=message):  # and not BUSY
        await stress(subject)


def test_results_that_cannot_be_kept_name_the_setting(
    tmp_path: Path,
) -> None:
    subject = profiler(tmp_path, recorded.RecordedNvml(recorded.RTX_3090))
    device = subject.snapshot().devices[0]
    (tmp_path / "measurements").write_text("a file where the directory should be")
    measured = profiler_pb2.NodeProfile(devices=[profiler_pb2.Device()])
    with pytest.raises(ServiceError, match="ELITE_PROFILER_STATE_DIRECTORY"):
        subject._remember(device, measured, kernels_only=False)
