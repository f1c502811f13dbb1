"""NVML's answers for known cards, replayed at the boundary of the `pynvml` module.

A recording maps each call to its answer, or to the NVML error it gives. The figures are those that
published `nvidia-smi -q` listings show for these cards; the uuids are made up. Handles are the
recordings themselves. Constants and exceptions are pynvml's own, so the code under test cannot
tell.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml

MIB = 2**20


def refused(code: int) -> pynvml.NVMLError:
    """The error NVML answers with; pynvml gives each code a class of its own."""
    return pynvml.NVMLError(code)


NOT_SUPPORTED = refused(pynvml.NVML_ERROR_NOT_SUPPORTED)
IS_LOST = refused(pynvml.NVML_ERROR_GPU_IS_LOST)
NO_DRIVER = refused(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
NO_LIBRARY = refused(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
MISMATCH = refused(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
NOT_FOUND = refused(pynvml.NVML_ERROR_NOT_FOUND)
NO_FUNCTION = refused(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
UNKNOWN = refused(pynvml.NVML_ERROR_UNKNOWN)

Recording = dict[str, Any]


def gpu(
    name: str, uuid: str, total_mib: int, reserved_mib: int, used_mib: int, **answers: Any
) -> Recording:
    """What one GPU answers."""
    memory = SimpleNamespace(
        total=total_mib * MIB,
        reserved=reserved_mib * MIB,
        used=used_mib * MIB,
        free=(total_mib - reserved_mib - used_mib) * MIB,
    )
    return {
        "nvmlDeviceGetName": name,
        "nvmlDeviceGetUUID": uuid,
        "nvmlDeviceGetMemoryInfo": memory,
        **answers,
    }


RTX_2060_SUPER = gpu(
    "NVIDIA GeForce RTX 2060 SUPER", "GPU-2b1f", 8192, 225, 411,
    nvmlDeviceGetCudaComputeCapability=(7, 5),
    nvmlDeviceGetNumGpuCores=2176,
    nvmlDeviceGetCurrPcieLinkGeneration=1, nvmlDeviceGetMaxPcieLinkGeneration=3,
    nvmlDeviceGetCurrPcieLinkWidth=16, nvmlDeviceGetMaxPcieLinkWidth=16,
    nvmlDeviceGetEnforcedPowerLimit=175_000,
    nvmlDeviceGetEccMode=NOT_SUPPORTED, nvmlDeviceGetMigMode=NOT_SUPPORTED,
    nvmlDeviceGetClockInfo={"sm": 300, "mem": 405},
    nvmlDeviceGetMaxClockInfo={"sm": 2100, "mem": 7001},
)  # fmt: skip

RTX_3090 = gpu(
    "NVIDIA GeForce RTX 3090", "GPU-90aa", 24576, 316, 12,
    nvmlDeviceGetCudaComputeCapability=(8, 6),
    nvmlDeviceGetNumGpuCores=10496,
    nvmlDeviceGetCurrPcieLinkGeneration=4, nvmlDeviceGetMaxPcieLinkGeneration=4,
    nvmlDeviceGetCurrPcieLinkWidth=8, nvmlDeviceGetMaxPcieLinkWidth=16,
    nvmlDeviceGetEnforcedPowerLimit=350_000,
    nvmlDeviceGetEccMode=NOT_SUPPORTED, nvmlDeviceGetMigMode=NOT_SUPPORTED,
    nvmlDeviceGetClockInfo={"sm": 1395, "mem": 9501},
    nvmlDeviceGetMaxClockInfo={"sm": 2100, "mem": 9751},
)  # fmt: skip

_H100 = {
    "nvmlDeviceGetCudaComputeCapability": (9, 0),
    "nvmlDeviceGetNumGpuCores": 16896,
    "nvmlDeviceGetCurrPcieLinkGeneration": 5, "nvmlDeviceGetMaxPcieLinkGeneration": 5,
    "nvmlDeviceGetCurrPcieLinkWidth": 16, "nvmlDeviceGetMaxPcieLinkWidth": 16,
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
    "nvmlDeviceGetEccMode": (1, 1), "nvmlDeviceGetMigMode": (1, 1),
    "nvmlDeviceGetClockInfo": {"sm": 1980, "mem": 2619},
    "nvmlDeviceGetMaxClockInfo": {"sm": 1980, "mem": 2619},
}  # fmt: skip


def _instance(uuid: str, total_mib: int, gpu_instance: int, multiprocessors: int) -> Recording:
    return gpu(
        "NVIDIA H100 80GB HBM3 MIG", uuid, total_mib, 0, 15,
        nvmlDeviceGetGpuInstanceId=gpu_instance, nvmlDeviceGetComputeInstanceId=0,
        nvmlDeviceGetAttributes=SimpleNamespace(multiprocessorCount=multiprocessors),
    )  # fmt: skip


H100_WITH_MIG = gpu(
    "NVIDIA H100 80GB HBM3", "GPU-h100", 81559, 551, 87, **_H100,
    nvmlDeviceGetMaxMigDeviceCount=7,
    instances={
        0: _instance("MIG-3g40gb", 40448, 1, 60),
        2: _instance("MIG-1g10gb", 9856, 7, 16),
    },
)  # fmt: skip

# In MIG mode, and nobody has made an instance yet.
H100_WITHOUT_INSTANCES = {**H100_WITH_MIG, "instances": {}}

# Cards that fell off the bus while they were being asked: at the first question, in the middle,
# and at the very question whether they are partitioned.
LOST = {**RTX_3090, "nvmlDeviceGetMemoryInfo": IS_LOST}
LOST_MIDWAY = {**RTX_3090, "nvmlDeviceGetClockInfo": IS_LOST}
LOST_AT_ONCE = {**RTX_3090, "nvmlDeviceGetMigMode": IS_LOST}
# One that refuses some answers, while the rest can still be read.
RELUCTANT = {
    **RTX_3090,
    "nvmlDeviceGetClockInfo": UNKNOWN,
    "nvmlDeviceGetEnforcedPowerLimit": NOT_SUPPORTED,
}
# A driver before 510, without the second version of the memory answer.
OLD_DRIVER = {**RTX_3090, "nvmlDeviceGetMemoryInfo_v2": NO_FUNCTION}
# A GPU that shares the host's memory.
GB10 = {
    **RTX_3090,
    "nvmlDeviceGetName": "NVIDIA GB10",
    "nvmlDeviceGetMemoryInfo": NOT_SUPPORTED,
    "nvmlDeviceGetCudaComputeCapability": (12, 1),
    "nvmlDeviceGetNumGpuCores": 6144,
}


class RecordedNvml:
    """Stands in for the module `pynvml`."""

    def __init__(self, *gpus: Recording, init: pynvml.NVMLError | None = None) -> None:
        self.gpus = gpus
        self._init = init
        self.open_count = 0

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvmlDeviceGet"):
            return getattr(pynvml, name)
        return lambda handle, *_, **__: _answer(handle, name)

    def nvmlInit(self) -> None:  # noqa: N802
        if self._init is not None:
            raise self._init
        self.open_count += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open_count -= 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "570.86.15"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Recording:  # noqa: N802
        return self.gpus[index]

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Recording, index: int) -> Recording:  # noqa: N802
        if index not in handle["instances"]:
            raise NOT_FOUND
        return handle["instances"][index]

    def nvmlDeviceGetMemoryInfo(self, handle: Recording, version: int | None = None) -> Any:  # noqa: N802
        if version is not None and "nvmlDeviceGetMemoryInfo_v2" in handle:
            return _answer(handle, "nvmlDeviceGetMemoryInfo_v2")
        return _answer(handle, "nvmlDeviceGetMemoryInfo")

    def nvmlDeviceGetClockInfo(self, handle: Recording, kind: int) -> int:  # noqa: N802
        return _clock(_answer(handle, "nvmlDeviceGetClockInfo"), kind)

    def nvmlDeviceGetMaxClockInfo(self, handle: Recording, kind: int) -> int:  # noqa: N802
        return _clock(_answer(handle, "nvmlDeviceGetMaxClockInfo"), kind)


def _clock(clocks: dict[str, int], kind: int) -> int:
    return clocks["sm" if kind == pynvml.NVML_CLOCK_SM else "mem"]


def _answer(handle: Recording, name: str) -> Any:
    answer = handle[name]
    if isinstance(answer, pynvml.NVMLError):
        raise answer
    return answer
