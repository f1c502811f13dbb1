"""GPUs as NVML reports them. https://docs.nvidia.com/deploy/nvml-api/

`nvml` is the `pynvml` module of nvidia-ml-py, or a recording of one. No torch here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from elite.profiler.v1 import profiler_pb2
from services.common.errors import ErrorReason, ServiceError
from services.common.host_memory import read_memory

logger = logging.getLogger("elite.profiler")

Answer = TypeVar("Answer")

# It exists where a GPU was given to this machine or container.
CONTROL_DEVICE = Path("/dev/nvidiactl")

# After one of these nothing the device says can be relied on. Other errors refuse one question.
_BROKEN = (
    "UNINITIALIZED", "DRIVER_NOT_LOADED", "IRQ_ISSUE", "GPU_IS_LOST", "RESET_REQUIRED",
    "OPERATING_SYSTEM", "LIB_RM_VERSION_MISMATCH",
)  # fmt: skip

# CUDA cores of one multiprocessor by compute capability (CUDA C Programming Guide, table
# "Arithmetic Instructions": 32-bit floating-point additions per clock). NVML counts cores only.
_CORES_PER_MULTIPROCESSOR = {
    (5, 0): 128, (5, 2): 128, (6, 0): 64, (6, 1): 128, (7, 0): 64, (7, 2): 64, (7, 5): 64,
    (8, 0): 64, (8, 6): 128, (8, 7): 128, (8, 9): 128, (9, 0): 128, (10, 0): 128,
    (10, 3): 128, (11, 0): 128, (12, 0): 128, (12, 1): 128,
}  # fmt: skip


def read_gpus(nvml: Any) -> list[profiler_pb2.Device]:
    """All GPUs, a partitioned one as its instances. Empty when there is no driver.

    A field the driver refuses is left out and named in `unavailable_fields`. Raises `ServiceError`:
    DEVICE_ERROR when there is a driver that cannot answer what a plan needs (name, uuid, memory)
    or a GPU is lost at any question; PRECONDITION_FAILED when all GPUs are in MIG mode without an
    instance. To call the machine a CPU-only one then would be a lie.
    """
    if not _initialised(nvml):
        return []
    try:
        devices = _read_all(nvml)
    except nvml.NVMLError as error:
        raise _device_error("a GPU does not answer", error) from error
    finally:
        with suppress(nvml.NVMLError):  # it may be the very thing that is broken
            nvml.nvmlShutdown()
    for index, device in enumerate(devices):
        device.index = index
    return devices


def _initialised(nvml: Any) -> bool:
    """False where there is no driver. Raises `ServiceError` when it is there and does not start."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        absent = (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded)
        if isinstance(error, absent) and not CONTROL_DEVICE.exists():
            return False
        raise _device_error("the driver cannot be initialised", error) from error
    return True


def _read_all(nvml: Any) -> list[profiler_pb2.Device]:
    driver = str(nvml.nvmlSystemGetDriverVersion())
    devices: list[profiler_pb2.Device] = []
    unusable: list[str] = []
    for position in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(position)
        if not _is_partitioned(nvml, handle):
            devices.append(_read_gpu(nvml, handle, driver))
        elif instances := _instances(nvml, handle, driver):
            devices += instances
        else:
            unusable.append(str(nvml.nvmlDeviceGetUUID(handle)))
    if unusable:
        _report_without_instances(unusable, others=bool(devices))
    return devices


def _report_without_instances(uuids: list[str], *, others: bool) -> None:
    """CUDA runs only on instances: such a GPU is left out, or is an error if it is all there is."""
    message = f"{', '.join(uuids)} in MIG mode without an instance: nothing can run there"
    if others:
        logger.warning(message)
        return
    fix = "create instances (nvidia-smi mig -cgi ... -C) or switch MIG off (nvidia-smi -mig 0)"
    raise ServiceError(ErrorReason.PRECONDITION_FAILED, f"{message}; {fix}")


def _device_error(problem: str, error: Exception) -> ServiceError:
    fix = "check `nvidia-smi` and the kernel log, then reset the GPU or restart the machine"
    return ServiceError(ErrorReason.DEVICE_ERROR, f"NVIDIA driver: {problem} ({error}): {fix}")


class _Reader:
    """Asks NVML for one field after another and remembers what it refused."""

    def __init__(self, nvml: Any, device: profiler_pb2.Device) -> None:
        self._nvml = nvml
        self._device = device
        self._broken = {getattr(nvml, f"NVML_ERROR_{name}") for name in _BROKEN}

    def ask(self, field: str, question: Callable[..., Answer], *subject: Any) -> Answer | None:
        """The driver's answer about `subject`, or None when it refuses this field.

        Raises the driver's error when it means that the GPU or the driver is broken.
        """
        try:
            return question(*subject)
        except self._nvml.NVMLError as error:
            if error.value in self._broken:
                raise
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
    device = profiler_pb2.Device(
        kind=profiler_pb2.DEVICE_KIND_CUDA,
        name=str(nvml.nvmlDeviceGetName(handle)),
        uuid=str(nvml.nvmlDeviceGetUUID(handle)),
        driver_version=driver,
    )
    _read_memory(nvml, handle, device)
    return device


def _read_memory(nvml: Any, handle: Any, device: profiler_pb2.Device) -> None:
    """GPUs without memory of their own (GB10, Jetson) answer "Not Supported": they use the host's.

    Drivers before 510 know only the first version of the answer, which counts the reserve as used.
    """
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        device.memory_reserved_bytes = memory.reserved
    except nvml.NVMLError_NotSupported:
        host = read_memory()
        device.memory_is_host_memory = True
        device.memory_total_bytes = host.total_bytes
        device.memory_free_bytes = host.available_bytes
        return
    except (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_ArgumentVersionMismatch) as error:
        device.unavailable_fields.append(f"memory_reserved_bytes: {error}")
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    device.memory_total_bytes = memory.total
    device.memory_free_bytes = memory.free


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


def _is_partitioned(nvml: Any, handle: Any) -> bool:
    mode = _Reader(nvml, profiler_pb2.Device()).ask("", nvml.nvmlDeviceGetMigMode, handle)
    return mode is not None and mode[0] == nvml.NVML_DEVICE_MIG_ENABLE


def _instances(nvml: Any, handle: Any, driver: str) -> list[profiler_pb2.Device]:
    """The instances of a partitioned GPU."""
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
