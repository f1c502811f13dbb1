"""GPUs as NVML reports them. https://docs.nvidia.com/deploy/nvml-api/

`nvml` is the `pynvml` module of nvidia-ml-py, or a recording of one. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from elite.profiler.v1 import profiler_pb2
from services.common.errors import ErrorReason, ServiceError

Answer = TypeVar("Answer")

# CUDA cores of one multiprocessor by compute capability (CUDA C Programming Guide, table
# "Arithmetic Instructions": 32-bit floating-point additions per clock). NVML counts cores only.
_CORES_PER_MULTIPROCESSOR = {
    (6, 0): 64, (6, 1): 128, (7, 0): 64, (7, 5): 64, (8, 0): 64, (8, 6): 128, (8, 7): 128,
    (8, 9): 128, (9, 0): 128, (10, 0): 128, (10, 3): 128, (12, 0): 128, (12, 1): 128,
}  # fmt: skip


def read_gpus(nvml: Any) -> list[profiler_pb2.Device]:
    """All GPUs, a partitioned one as its instances. Empty when there is no driver.

    A field the driver refuses is left out and named in `unavailable_fields`. Raises `ServiceError`
    (DEVICE_ERROR) when there is a driver that cannot answer what a plan needs: name, uuid, memory.
    To call the machine a CPU-only one then would be a lie.
    """
    try:
        nvml.nvmlInit()
    except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded):
        return []
    except nvml.NVMLError as error:
        raise _device_error("the driver cannot be initialised", error) from error
    try:
        driver = str(nvml.nvmlSystemGetDriverVersion())
        devices: list[profiler_pb2.Device] = []
        for position in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(position)
            devices += _instances(nvml, handle, driver) or [_read_gpu(nvml, handle, driver)]
    except nvml.NVMLError as error:
        raise _device_error("a GPU does not answer", error) from error
    finally:
        nvml.nvmlShutdown()
    for index, device in enumerate(devices):
        device.index = index
    return devices


def _device_error(problem: str, error: Exception) -> ServiceError:
    fix = "check `nvidia-smi` and the kernel log, then reset the GPU or restart the machine"
    return ServiceError(ErrorReason.DEVICE_ERROR, f"NVIDIA driver: {problem} ({error}): {fix}")


class _Reader:
    """Asks NVML for one field after another and remembers what it refused."""

    def __init__(self, nvml: Any, device: profiler_pb2.Device) -> None:
        self._nvml = nvml
        self._device = device

    def ask(self, field: str, question: Callable[..., Answer], *subject: Any) -> Answer | None:
        """The driver's answer about `subject`, or None when it refuses this field."""
        try:
            return question(*subject)
        except self._nvml.NVMLError as error:
            self._device.unavailable_fields.append(f"{field}: {error}")
            return None


def _read_gpu(nvml: Any, handle: Any, driver: str) -> profiler_pb2.Device:
    device = _basics(nvml, handle, driver)
    reader = _Reader(nvml, device)
    _read_capability(nvml, handle, device, reader)
    _read_link(nvml, handle, device, reader)
    _read_power_and_clocks(nvml, handle, device, reader)
    mode = reader.ask("multi_instance_gpu", nvml.nvmlDeviceGetMigMode, handle)
    if mode is not None:
        device.multi_instance_gpu.enabled = bool(mode[0])
    return device


def _basics(nvml: Any, handle: Any, driver: str) -> profiler_pb2.Device:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    return profiler_pb2.Device(
        kind=profiler_pb2.DEVICE_KIND_CUDA,
        name=str(nvml.nvmlDeviceGetName(handle)),
        uuid=str(nvml.nvmlDeviceGetUUID(handle)),
        memory_total_bytes=memory.total,
        memory_free_bytes=memory.free,
        memory_reserved_bytes=memory.reserved,
        driver_version=driver,
    )


def _read_capability(nvml: Any, handle: Any, device: profiler_pb2.Device, reader: _Reader) -> None:
    capability = reader.ask("compute_capability", nvml.nvmlDeviceGetCudaComputeCapability, handle)
    if capability is None:
        return
    device.compute_capability.major, device.compute_capability.minor = capability
    cores = reader.ask("multiprocessor_count", nvml.nvmlDeviceGetNumGpuCores, handle)
    per_multiprocessor = _CORES_PER_MULTIPROCESSOR.get(tuple(capability))
    if cores and per_multiprocessor:
        device.multiprocessor_count = cores // per_multiprocessor
    elif cores:
        device.unavailable_fields.append("multiprocessor_count: unknown compute capability")


def _read_link(nvml: Any, handle: Any, device: profiler_pb2.Device, reader: _Reader) -> None:
    questions = {
        "generation_current": nvml.nvmlDeviceGetCurrPcieLinkGeneration,
        "generation_max": nvml.nvmlDeviceGetMaxPcieLinkGeneration,
        "width_current": nvml.nvmlDeviceGetCurrPcieLinkWidth,
        "width_max": nvml.nvmlDeviceGetMaxPcieLinkWidth,
    }
    for field, question in questions.items():
        answer = reader.ask(f"pcie.{field}", question, handle)
        if answer is not None:
            setattr(device.pcie, field, answer)


def _read_power_and_clocks(
    nvml: Any, handle: Any, device: profiler_pb2.Device, reader: _Reader
) -> None:
    milliwatts = reader.ask("power_limit_watts", nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    if milliwatts is not None:
        device.power_limit_watts = milliwatts / 1000
    ecc = reader.ask("ecc_enabled", nvml.nvmlDeviceGetEccMode, handle)
    if ecc is not None:
        device.ecc_enabled = bool(ecc[0])
    kinds = {"multiprocessor": nvml.NVML_CLOCK_SM, "memory": nvml.NVML_CLOCK_MEM}
    questions = {"": nvml.nvmlDeviceGetClockInfo, "max_": nvml.nvmlDeviceGetMaxClockInfo}
    for name, kind in kinds.items():
        for suffix, question in questions.items():
            field = f"{name}_{suffix}megahertz"
            answer = reader.ask(f"clocks.{field}", question, handle, kind)
            if answer is not None:
                setattr(device.clocks, field, answer)


def _instances(nvml: Any, handle: Any, driver: str) -> list[profiler_pb2.Device]:
    """The instances of a partitioned GPU; empty when it is not partitioned."""
    try:
        if not nvml.nvmlDeviceGetMigMode(handle)[0]:
            return []
    except nvml.NVMLError:
        return []
    parent = str(nvml.nvmlDeviceGetUUID(handle))
    found = []
    for position in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, position)
        except (nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
            continue
        found.append(_read_instance(nvml, handle, instance, parent, driver))
    return found


def _read_instance(
    nvml: Any, handle: Any, instance: Any, parent: str, driver: str
) -> profiler_pb2.Device:
    """One instance: its own memory and multiprocessors, its parent's link, power and clocks."""
    device = _basics(nvml, instance, driver)
    reader = _Reader(nvml, device)
    _read_capability(nvml, handle, device, reader)
    _read_link(nvml, handle, device, reader)
    _read_power_and_clocks(nvml, handle, device, reader)
    mig = device.multi_instance_gpu
    mig.enabled, mig.parent_uuid = True, parent
    mig.gpu_instance_id = nvml.nvmlDeviceGetGpuInstanceId(instance)
    mig.compute_instance_id = nvml.nvmlDeviceGetComputeInstanceId(instance)
    attributes = reader.ask("multiprocessor_count", nvml.nvmlDeviceGetAttributes, instance)
    device.multiprocessor_count = attributes.multiprocessorCount if attributes else 0
    return device
