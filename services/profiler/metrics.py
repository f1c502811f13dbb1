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
    "host_to_device_pageable_bytes_per_second": "Achieved rate from pageable host memory.",
    "device_to_host_pinned_bytes_per_second": "Achieved rate to pinned host memory.",
    "device_to_host_pageable_bytes_per_second": "Achieved rate to pageable host memory.",
    "runtime_overhead_bytes": "What the runtime takes before the first tensor.",
}
_DISK = {
    "total_bytes": "Size of the scratch disk.",
    "free_bytes": "Free bytes on the scratch disk.",
    "read_bytes_per_second": "Achieved sequential read rate of the scratch disk.",
    "write_bytes_per_second": "Achieved sequential write rate of the scratch disk.",
}
_DEVICE_LABELS = ["index", "uuid", "name"]


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
        for field, text in _DISK.items():
            value = getattr(host.scratch_disk, field)
            if value or field == "free_bytes":
                yield _gauge(f"scratch_disk_{field}", text, value)
        yield from _device_gauges(profile)
        yield _attention_gauge(profile)


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
    """One gauge with a sample per device; 0 stands for not known and is left out.

    Only free memory may be 0 and known.
    """
    family = GaugeMetricFamily(f"elite_profiler_{name}", text, labels=_DEVICE_LABELS)
    for device, value in zip(profile.devices, values, strict=True):
        if value or name == "device_memory_free_bytes":
            family.add_metric(_device_labels(device), value)
    return family


def _attention_gauge(profile: profiler_pb2.NodeProfile) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "elite_profiler_device_attention_flops_per_second",
        "Achieved rate of causal attention, forward and backward.",
        labels=[*_DEVICE_LABELS, "sequence_tokens", "head_size", "dtype", "kernel"],
    )
    for device in profile.devices:
        for rate in device.measurements.attention_rates:
            shape = [str(rate.sequence_tokens), str(rate.head_size), rate.dtype, rate.kernel]
            family.add_metric([*_device_labels(device), *shape], rate.flops_per_second)
    return family


def _device_labels(device: profiler_pb2.Device) -> list[str]:
    return [str(device.index), device.uuid, device.name]
