"""What the profiler makes of NVML's answers."""

from __future__ import annotations

from pathlib import Path

import pynvml
import pytest

from elite.profiler.v1 import profiler_pb2
from services.common.errors import ErrorReason, ServiceError
from services.profiler.probes import gpu
from services.profiler.probes.gpu import read_gpus
from tests.support import recorded_nvml as recorded


@pytest.fixture(autouse=True)
def no_gpu_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Whatever machine runs the tests; a test that wants the device node makes it."""
    node = tmp_path / "nvidiactl"
    monkeypatch.setattr(gpu, "CONTROL_DEVICE", node)
    return node


def test_turing_card_reports_what_it_has_and_names_what_it_refuses() -> None:
    (device,) = read_gpus(recorded.RecordedNvml(recorded.RTX_2060_SUPER))
    assert device.kind == profiler_pb2.DEVICE_KIND_CUDA
    assert (device.name, device.uuid) == ("NVIDIA GeForce RTX 2060 SUPER", "GPU-2b1f")
    assert device.memory_total_bytes == 8192 * recorded.MIB
    assert device.memory_reserved_bytes == 225 * recorded.MIB
    assert device.memory_free_bytes == (8192 - 225 - 411) * recorded.MIB
    assert (device.compute_capability.major, device.compute_capability.minor) == (7, 5)
    assert device.multiprocessor_count == 34
    assert (device.pcie.generation_current, device.pcie.generation_max) == (1, 3)
    assert device.power_limit_watts == 175
    assert device.clocks.multiprocessor_max_megahertz == 2100
    assert not device.HasField("ecc_enabled")
    assert [entry.partition(":")[0] for entry in device.unavailable_fields] == [
        "ecc_enabled",
        "multi_instance_gpu",
    ]
    assert not device.memory_is_host_memory


def test_two_cards_get_their_own_indices() -> None:
    nvml = recorded.RecordedNvml(recorded.RTX_3090, recorded.RTX_2060_SUPER)
    devices = read_gpus(nvml)
    assert [device.index for device in devices] == [0, 1]
    assert devices[0].multiprocessor_count == 82
    assert (devices[0].pcie.width_current, devices[0].pcie.width_max) == (8, 16)
    assert devices[0].driver_version == "570.86.15"
    assert nvml.open_count == 0, "NVML was left open"


def test_partitioned_gpu_is_reported_as_its_instances() -> None:
    devices = read_gpus(recorded.RecordedNvml(recorded.H100_WITH_MIG))
    assert [device.uuid for device in devices] == ["MIG-3g40gb", "MIG-1g10gb"]
    large, small = devices
    assert large.memory_total_bytes == 40448 * recorded.MIB
    assert (large.multiprocessor_count, small.multiprocessor_count) == (60, 16)
    assert large.multi_instance_gpu.parent_uuid == "GPU-h100"
    assert small.multi_instance_gpu.gpu_instance_id == 7
    assert large.ecc_enabled
    assert (large.compute_capability.major, large.compute_capability.minor) == (9, 0)


@pytest.mark.parametrize("reason", ["NO_DRIVER", "NO_LIBRARY"])
def test_machine_without_a_driver_has_no_gpus(reason: str) -> None:
    assert read_gpus(recorded.RecordedNvml(init=getattr(recorded, reason))) == []


@pytest.mark.parametrize(
    "nvml",
    [
        recorded.RecordedNvml(init=recorded.MISMATCH),
        recorded.RecordedNvml(recorded.LOST),
        recorded.RecordedNvml(recorded.LOST_MIDWAY),
        recorded.RecordedNvml(recorded.LOST_AT_ONCE),
        recorded.RecordedNvml(recorded.RTX_2060_SUPER, recorded.LOST),
    ],
    ids=["version mismatch", "lost", "lost midway", "lost at once", "second one lost"],
)
def test_broken_driver_is_an_error_and_never_a_machine_without_gpus(nvml: object) -> None:
    with pytest.raises(ServiceError) as raised:
        read_gpus(nvml)
    assert raised.value.reason is ErrorReason.DEVICE_ERROR
    assert "nvidia-smi" in raised.value.message


@pytest.mark.parametrize("reason", ["NO_DRIVER", "NO_LIBRARY"])
def test_gpu_given_without_its_driver_is_an_error(reason: str, no_gpu_was_given: Path) -> None:
    no_gpu_was_given.touch()
    with pytest.raises(ServiceError, match="cannot be initialised") as raised:
        read_gpus(recorded.RecordedNvml(init=getattr(recorded, reason)))
    assert raised.value.reason is ErrorReason.DEVICE_ERROR


def test_driver_that_fails_again_while_being_closed_gives_the_first_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def shut_down() -> None:
        raise recorded.IS_LOST

    nvml = recorded.RecordedNvml(recorded.LOST)
    monkeypatch.setattr(nvml, "nvmlShutdown", shut_down, raising=False)
    with pytest.raises(ServiceError, match="GPU is lost"):
        read_gpus(nvml)


def test_partitioned_gpu_without_instances_is_no_device() -> None:
    nvml = recorded.RecordedNvml(recorded.H100_WITHOUT_INSTANCES, recorded.RTX_3090)
    (device,) = read_gpus(nvml)
    assert (device.index, device.uuid) == (0, "GPU-90aa")
    with pytest.raises(ServiceError, match="nvidia-smi mig -cgi") as raised:
        read_gpus(recorded.RecordedNvml(recorded.H100_WITHOUT_INSTANCES))
    assert raised.value.reason is ErrorReason.PRECONDITION_FAILED


def test_old_driver_reports_memory_without_its_reserve() -> None:
    (device,) = read_gpus(recorded.RecordedNvml(recorded.OLD_DRIVER))
    assert device.memory_total_bytes == 24576 * recorded.MIB
    assert device.memory_reserved_bytes == 0
    assert "memory_reserved_bytes: Function Not Found" in device.unavailable_fields


def test_gpu_without_memory_of_its_own_uses_the_hosts() -> None:
    (device,) = read_gpus(recorded.RecordedNvml(recorded.GB10))
    assert device.memory_is_host_memory
    assert 0 < device.memory_free_bytes <= device.memory_total_bytes
    assert device.multiprocessor_count == 48


def test_recordings_answer_only_what_the_library_has() -> None:
    recordings = [value for value in vars(recorded).values() if isinstance(value, dict)]
    asked = {key for recording in recordings for key in recording if key.startswith("nvmlDevice")}
    asked.discard("nvmlDeviceGetMemoryInfo_v2")  # a C function behind nvmlDeviceGetMemoryInfo
    assert asked
    assert [name for name in sorted(asked) if not hasattr(pynvml, name)] == []


def test_errors_in_optional_answers_are_named_and_the_rest_is_kept() -> None:
    (device,) = read_gpus(recorded.RecordedNvml(recorded.RELUCTANT))
    assert device.memory_total_bytes == 24576 * recorded.MIB
    refused = {entry.partition(":")[0] for entry in device.unavailable_fields}
    assert {"power_limit_watts", "clocks.memory_megahertz"} <= refused
    assert device.clocks.multiprocessor_max_megahertz == 2100
