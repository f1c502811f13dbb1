"""The profiler's gauges, read from the machine when they are scraped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from elite.profiler.v1 import profiler_pb2
from services.common.errors import ServiceError

logger = logging.getLogger("elite.profiler")

_FACTS = {
    "memory_total_bytes": ("device_memory_bytes", "Device memory."),
    "memory_free_bytes": ("device_memory_free_bytes", "Device memory that is free."),
    "power_limit_watts": ("device_power_limit_watts", "Enforced power limit."),
}
_MEASURED = {
    "safe_allocatable_bytes": "Most memory one process could allocate and write.",
    "matmul_16bit_flops_per_second": "Achieved 16-bit matrix product rate.",
    "matmul_32bit_flops_per_second": "Achieved 32-bit matrix product rate.",
    "memory_bandwidth_bytes_per_second": "Achieved device memory bandwidth.",
    "host_to_device_pinned_bytes_per_second": "Achieved rate from pinned host memory.",
    "device_to_host_pinned_bytes_per_second": "Achieved rate to pinned host memory.",
}


class ProfileCollector(Collector):
    """Gauges of the newest snapshot."""

    def __init__(self, snapshot: Callable[[], profiler_pb2.NodeProfile]) -> None:
        self._snapshot = snapshot

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing up front: registering must not read the machine."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One snapshot as gauges; nothing when the machine cannot be read."""
        try:
            profile = self._snapshot()
        except (ServiceError, OSError) as error:
            logger.warning("no snapshot for metrics", extra={"error": str(error)})
            return
        host = profile.host
        yield _gauge("host_memory_bytes", "Host memory under its caps.", host.memory_total_bytes)
        available = host.memory_available_bytes
        yield _gauge("host_memory_available_bytes", "Host memory left.", available)
        free = host.scratch_disk.free_bytes
        yield _gauge("scratch_disk_free_bytes", "Free bytes on the scratch disk.", free)
        yield from _device_gauges(profile)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"elite_profiler_{name}", text, value=value)


def _device_gauges(profile: profiler_pb2.NodeProfile) -> Iterator[GaugeMetricFamily]:
    for field, (name, text) in _FACTS.items():
        values = [getattr(device, field) for device in profile.devices]
        yield _by_device(profile, name, text, values)
    for field, text in _MEASURED.items():
        values = [getattr(device.measurements, field) for device in profile.devices]
        yield _by_device(profile, f"device_{field}", text, values)


def _by_device(
    profile: profiler_pb2.NodeProfile, name: str, text: str, values: list[float]
) -> GaugeMetricFamily:
    """One gauge with a sample per device; 0 stands for not known and is left out."""
    family = GaugeMetricFamily(f"elite_profiler_{name}", text, labels=["index", "uuid", "name"])
    for device, value in zip(profile.devices, values, strict=True):
        if value:
            family.add_metric([str(device.index), device.uuid, device.name], value)
    return family
