"""Measurements survive a restart, belong to one device, and never crash a start."""

from __future__ import annotations

from pathlib import Path

import pytest

from elite.profiler.v1 import profiler_pb2
from services.profiler.convert import add_measurements
from services.profiler.store import MeasurementStore

TORCH = "2.13.0"


def device(uuid: str = "GPU-1", driver: str = "570") -> profiler_pb2.Device:
    return profiler_pb2.Device(uuid=uuid, driver_version=driver)


@pytest.fixture
def measured() -> profiler_pb2.NodeProfile:
    profile = profiler_pb2.NodeProfile(devices=[profiler_pb2.Device()])
    measurements = profile.devices[0].measurements
    measurements.safe_allocatable_bytes = 7
    measurements.matmul_rates.add(
        rows=2048, inner=576, outer=576, dtype="bfloat16", flops_per_second=1e11
    )
    measurements.attention_rates.add(
        sequence_tokens=512, dtype="float32", head_size=64, forward_flops_per_second=1e10
    )
    measurements.elementwise_rates.add(dtype="float32", bytes_per_second=5.5e9)
    profile.host.process_overhead_bytes = 5
    profile.host.scratch_disk.path = "/scratch"
    profile.host.scratch_disk.write_bytes_per_second = 3
    profile.software.attention_kernels.add(name="sdpa_flash")
    return profile


def test_what_was_saved_is_loaded_by_another_store(
    tmp_path: Path, measured: profiler_pb2.NodeProfile
) -> None:
    MeasurementStore(tmp_path).save(device(), TORCH, measured)
    assert MeasurementStore(tmp_path).load(device(), TORCH) == measured


@pytest.mark.parametrize(
    ("uuid", "driver", "torch"),
    [("GPU-2", "570", TORCH), ("GPU-1", "580", TORCH), ("GPU-1", "570", "2.14.0")],
)
def test_another_device_driver_or_torch_has_no_measurements(
    tmp_path: Path, measured: profiler_pb2.NodeProfile, uuid: str, driver: str, torch: str
) -> None:
    store = MeasurementStore(tmp_path)
    store.save(device(), TORCH, measured)
    assert store.load(device(uuid, driver), torch) is None


def test_a_corrupt_file_counts_as_absent(
    tmp_path: Path, measured: profiler_pb2.NodeProfile
) -> None:
    store = MeasurementStore(tmp_path)
    store.save(device(), TORCH, measured)
    (file,) = (tmp_path / "measurements").iterdir()
    file.write_text(file.read_text()[:20])
    assert store.load(device(), TORCH) is None


def test_a_later_test_replaces_rates_instead_of_adding_to_them(
    measured: profiler_pb2.NodeProfile,
) -> None:
    profile = profiler_pb2.NodeProfile(devices=[device()])
    add_measurements(profile, 0, measured)
    add_measurements(profile, 0, measured)
    assert profile.devices[0].measurements == measured.devices[0].measurements


def test_disk_rates_belong_to_their_path(measured: profiler_pb2.NodeProfile) -> None:
    for path, expected in (("/scratch", 3), ("/elsewhere", 0)):
        profile = profiler_pb2.NodeProfile(devices=[device()])
        profile.host.scratch_disk.path = path
        add_measurements(profile, 0, measured)
        assert profile.host.scratch_disk.write_bytes_per_second == expected
        assert profile.devices[0].measurements.safe_allocatable_bytes == 7
        assert profile.host.process_overhead_bytes == 5
