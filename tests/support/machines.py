"""Machines and models for the planner's tests."""

from __future__ import annotations

from elite.planner.v1 import planner_pb2
from elite.profiler.v1 import profiler_pb2
from services.planner.machine import ComputeDtype, DeviceKind, Machine
from services.planner.rates import Rates, single_rates

GIBIBYTE = 2**30
_ATTENTION = ((1024.0, 20e12), (4096.0, 30e12))
RATES = Rates(
    by_element_bytes={
        2: single_rates(50e12, _ATTENTION, 800e9),
        4: single_rates(10e12, _ATTENTION, 800e9),
    },
    memory_bandwidth=800e9, host_to_device=20e9, device_to_host=20e9, disk_read=3e9,
    disk_write=1.5e9,
)  # fmt: skip


def machine(
    gpu_bytes: int = 24 * GIBIBYTE,
    host_bytes: int = 64 * GIBIBYTE,
    *,
    on_cpu: bool = False,
    disk_bytes: int = 0,
    kernels: tuple[str, ...] = ("sdpa_flash",),
    has_bitsandbytes: bool = True,
) -> Machine:
    """A machine whose every rate is known."""
    cpu_dtypes = (ComputeDtype.BFLOAT16, ComputeDtype.FLOAT32)
    return Machine(
        device_name="test device",
        device_kind=DeviceKind.CPU if on_cpu else DeviceKind.CUDA,
        device_index=0,
        shared_memory=on_cpu,
        gpu_safe_bytes=gpu_bytes,
        host_safe_bytes=host_bytes,
        process_overhead_bytes=GIBIBYTE // 2,
        disk_free_bytes=disk_bytes,
        rates=RATES,
        dtypes=cpu_dtypes if on_cpu else (ComputeDtype.BFLOAT16,),
        attention_kernels=kernels,
        has_bitsandbytes=has_bitsandbytes,
    )


def measured_profile() -> profiler_pb2.NodeProfile:
    """A profile of a CPU machine after a stress test."""
    measurements = profiler_pb2.DeviceMeasurements(
        source=profiler_pb2.MEASUREMENT_SOURCE_STRESS_TEST,
        safe_allocatable_bytes=20 * GIBIBYTE,
        matmul_16bit_flops_per_second=100e9,
        matmul_16bit_dtype="bfloat16",
        matmul_32bit_flops_per_second=50e9,
        memory_bandwidth_bytes_per_second=10e9,
        attention_rates=[
            profiler_pb2.AttentionRate(sequence_tokens=1024, flops_per_second=30e9),
            profiler_pb2.AttentionRate(sequence_tokens=4096, flops_per_second=50e9),
        ],
    )
    device = profiler_pb2.Device(
        kind=profiler_pb2.DEVICE_KIND_CPU,
        name="a processor",
        memory_total_bytes=24 * GIBIBYTE,
        memory_free_bytes=22 * GIBIBYTE,
        memory_is_host_memory=True,
        measurements=measurements,
    )
    host = profiler_pb2.Host(
        memory_total_bytes=24 * GIBIBYTE,
        memory_available_bytes=22 * GIBIBYTE,
        process_overhead_bytes=GIBIBYTE // 2,
        scratch_disk=profiler_pb2.Disk(path="/scratch", free_bytes=100 * GIBIBYTE),
    )
    return profiler_pb2.NodeProfile(devices=[device], host=host)


def card_profile(name: str = "NVIDIA GeForce RTX 3090") -> profiler_pb2.NodeProfile:
    """A profile of a machine with one card that nobody has stress-tested."""
    device = profiler_pb2.Device(
        kind=profiler_pb2.DEVICE_KIND_CUDA,
        name=name,
        memory_total_bytes=int(23.69 * GIBIBYTE),
        memory_free_bytes=23 * GIBIBYTE,
        compute_capability=profiler_pb2.ComputeCapability(major=8, minor=6),
    )
    host = profiler_pb2.Host(memory_total_bytes=64 * GIBIBYTE, memory_available_bytes=60 * GIBIBYTE)
    return profiler_pb2.NodeProfile(devices=[device], host=host)


def hypothetical(gpu_id: str = "rtx-3090", host_gibibytes: int = 64) -> planner_pb2.Machine:
    """A card of the table in a host."""
    wanted = planner_pb2.HypotheticalMachine(
        gpu_id=gpu_id, host_memory_bytes=host_gibibytes * GIBIBYTE
    )
    return planner_pb2.Machine(hypothetical=wanted)


def by_id(model_id: str) -> planner_pb2.ModelReference:
    """A model of the catalogue."""
    return planner_pb2.ModelReference(model_id=model_id)
