"""Puts a `NodeProfile` together from what the probes read and what was measured earlier."""

from __future__ import annotations

from elite.profiler.v1 import profiler_pb2


def assemble(
    node_name: str,
    devices: list[profiler_pb2.Device],
    host: profiler_pb2.Host,
    software: profiler_pb2.Software,
) -> profiler_pb2.NodeProfile:
    """The snapshot, stamped with the time."""
    profile = profiler_pb2.NodeProfile(
        node_name=node_name, devices=devices, host=host, software=software
    )
    profile.captured_at.GetCurrentTime()
    return profile


def add_measurements(
    profile: profiler_pb2.NodeProfile, index: int, measured: profiler_pb2.NodeProfile
) -> None:
    """Fills the measured fields of device `index`, and of host and software."""
    if measured.devices and measured.devices[0].HasField("measurements"):
        profile.devices[index].measurements.CopyFrom(measured.devices[0].measurements)
    if measured.host.process_overhead_bytes:
        profile.host.process_overhead_bytes = measured.host.process_overhead_bytes
    disk = measured.host.scratch_disk
    if disk.write_bytes_per_second and disk.path in ("", profile.host.scratch_disk.path):
        profile.host.scratch_disk.write_bytes_per_second = disk.write_bytes_per_second
        profile.host.scratch_disk.read_bytes_per_second = disk.read_bytes_per_second
    if measured.software.attention_kernels and not profile.software.attention_kernels:
        profile.software.attention_kernels.extend(measured.software.attention_kernels)


def capacity(profile: profiler_pb2.NodeProfile) -> profiler_pb2.WatchCapacityResponse:
    """What is free now, from a snapshot."""
    response = profiler_pb2.WatchCapacityResponse(
        captured_at=profile.captured_at,
        host_available_bytes=profile.host.memory_available_bytes,
        disk_free_bytes=profile.host.scratch_disk.free_bytes,
    )
    for device in profile.devices:
        response.devices.add(
            index=device.index,
            uuid=device.uuid,
            memory_total_bytes=device.memory_total_bytes,
            memory_free_bytes=device.memory_free_bytes,
        )
    return response
