"""From a `NodeProfile` to a `Machine`: which device, what was measured, what the card table fills.

A device that was not measured is planned for by the card table, when the table knows it by name;
otherwise the request is refused, naming every measurement that is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from google.protobuf.message import Message

from elite.profiler.v1 import profiler_pb2
from services.common.errors import (
    ErrorReason,
    FieldViolation,
    ServiceError,
    invalid_field,
    invalid_fields,
)
from services.planner.attention_kernels import FLASH, card_kernels, in_order
from services.planner.gpus import GpuCard, card_named
from services.planner.machine import (
    ComputeDtype,
    DeviceKind,
    Machine,
    card_dtypes,
    card_notes,
    card_rates,
    process_overhead_bytes,
    process_overhead_note,
    run_overhead_bytes,
)
from services.planner.measured_rates import is_half_timed, measured_rates
from services.planner.rates import Rates

_STRESS_TEST = "run `elite profile --stress`"
# Of its time, what a stress test may wait for cores before its rates are called those of a busy
# machine: below this, repeated tests differ more than that.
_BUSY_SHARE = 0.1
# And how far passes of a test may differ before plans say that the machine is not always as fast.
_STEADY_SHARE = 0.1
# Operations or bytes a second. With less, a step would take longer than any time that is a number.
_LOWEST_RATE = 1.0
# What any plan needs is far less. Network file systems without an end name as much as int64 holds.
_MOST_DISK_BYTES = 2**50
_MEASURED_ON_ALL = (
    "safe_allocatable_bytes",
    "matmul_16bit_flops_per_second",
    "matmul_32bit_flops_per_second",
    "memory_bandwidth_bytes_per_second",
)
_MEASURED_ON_CUDA = (
    "host_to_device_pinned_bytes_per_second",
    "device_to_host_pinned_bytes_per_second",
)


@dataclass(frozen=True, slots=True)
class _Measured:
    """What is known of a device: safe bytes for tensors, rates, and what to tell the caller."""

    safe_bytes: int
    rates: Rates
    notes: tuple[str, ...]


def machine_from_profile(
    profile: profiler_pb2.NodeProfile, device_index: int | None = None
) -> Machine:
    """The machine to plan for: the device asked for, or the one with the largest budget.

    Raises `ServiceError` naming the index, or the measurements that are missing.
    """
    if device_index is not None:
        if device_index >= len(profile.devices):
            problem = f"is {device_index}; the profile has {len(profile.devices)} devices"
            fix = "an index from machine.profile.devices"
            raise invalid_field("constraints.device_index", problem, fix)
        return _machine(profile, device_index)
    machines: list[Machine] = []
    refusals: list[ServiceError] = []
    for index in range(len(profile.devices)):
        try:
            machines.append(_machine(profile, index))
        except ServiceError as refusal:
            refusals.append(refusal)
    if not machines:
        raise refusals[0]
    return max(machines, key=lambda machine: machine.gpu_safe_bytes)


def _machine(profile: profiler_pb2.NodeProfile, index: int) -> Machine:
    device, host, software = profile.devices[index], profile.host, profile.software
    on_cuda = device.kind == profiler_pb2.DEVICE_KIND_CUDA
    kind = DeviceKind.CUDA if on_cuda else DeviceKind.CPU
    capability = (device.compute_capability.major, device.compute_capability.minor)
    measured = _measured(device, host.scratch_disk, index)
    notes = list(measured.notes)
    if host.process_overhead_bytes:
        overhead = host.process_overhead_bytes + run_overhead_bytes()
    else:
        overhead = process_overhead_bytes(kind)
        notes.append(process_overhead_note(overhead))
    rates = replace(measured.rates, threads=0 if on_cuda else host.logical_core_count)
    kernels = _working_kernels(software, kind, capability, rates, notes)
    return Machine(
        device_name=device.name,
        device_kind=kind,
        device_index=index,
        shared_memory=device.memory_is_host_memory,
        gpu_safe_bytes=measured.safe_bytes,
        host_safe_bytes=host.memory_available_bytes or host.memory_total_bytes,
        process_overhead_bytes=overhead,
        disk_free_bytes=min(host.scratch_disk.free_bytes, _MOST_DISK_BYTES),
        rates=rates,
        dtypes=_dtypes(device, kind, capability),
        attention_kernels=kernels,
        has_bitsandbytes=_has_bitsandbytes(software),
        power_watts=device.power_limit_watts,
        driver_version=device.driver_version,
        torch_version=_version(software, "torch"),
        notes=tuple(notes),
    )


def _measured(device: profiler_pb2.Device, disk: profiler_pb2.Disk, index: int) -> _Measured:
    _check_rates(disk, "machine.profile.host.scratch_disk")
    if device.HasField("measurements"):
        _check_complete(device, index)
        _check_rates(device.measurements, f"machine.profile.devices[{index}].measurements")
        return _from_measurements(device, disk)
    card = None
    if device.kind == profiler_pb2.DEVICE_KIND_CUDA:
        card = card_named(device.name, device.memory_total_bytes)
    if card is None:
        raise _missing(index, _needed(device))
    return _from_card(device, card, disk)


def _needed(device: profiler_pb2.Device) -> list[str]:
    on_cuda = device.kind == profiler_pb2.DEVICE_KIND_CUDA
    needed = [*_MEASURED_ON_ALL, "attention_rates"]
    return needed + list(_MEASURED_ON_CUDA) if on_cuda else needed


def _check_complete(device: profiler_pb2.Device, index: int) -> None:
    measurements = device.measurements
    missing = [name for name in _needed(device) if not getattr(measurements, name)]
    rates = measurements.attention_rates
    timed = all(rate.flops_per_second and rate.sequence_tokens for rate in rates)
    if rates and (not timed or all(is_half_timed(rate) for rate in rates)):
        missing.append("attention_rates")
    if missing:
        raise _missing(index, missing)


def _check_rates(message: Message, where: str) -> None:
    low = list(_low_rates(message, where))
    if low:
        raise invalid_fields(low)


def _low_rates(message: Message, where: str) -> Iterator[FieldViolation]:
    """Those that are no rates of a machine; 0 stands for one that was not measured."""
    for field, value in message.ListFields():
        path = f"{where}.{field.name}"
        if field.is_repeated and field.message_type is not None:
            for index, element in enumerate(value):
                yield from _low_rates(element, f"{path}[{index}]")
        elif field.name.endswith("_per_second") and 0 < value < _LOWEST_RATE:
            yield FieldViolation(path, f"is {value:g}", "give 0, or a rate of at least 1 a second")


def _missing(index: int, names: list[str]) -> ServiceError:
    where = f"machine.profile.devices[{index}].measurements"
    return invalid_fields(
        [FieldViolation(f"{where}.{name}", "was not measured", _STRESS_TEST) for name in names],
        reason=ErrorReason.MISSING_MEASUREMENT,
    )


def _from_measurements(device: profiler_pb2.Device, disk: profiler_pb2.Disk) -> _Measured:
    """Safe bytes are what was measured, or what is free now when that is less."""
    measurements = device.measurements
    free = device.memory_free_bytes - measurements.runtime_overhead_bytes
    safe = measurements.safe_allocatable_bytes
    rates = measured_rates(measurements, disk)
    notes = _contention_notes(measurements.core_wait_share) + _steadiness_notes(rates.spread)
    return _Measured(min(safe, free) if free > 0 else safe, rates, notes)


def _contention_notes(core_wait_share: float) -> tuple[str, ...]:
    if core_wait_share < _BUSY_SHARE:
        return ()
    return (
        f"the stress test waited {core_wait_share:.0%} of its time for cores that other programs "
        f"had: steps may be planned too long; when they are done, {_STRESS_TEST} again",
    )


def _steadiness_notes(spread: tuple[float, float]) -> tuple[str, ...]:
    slowest, fastest = spread
    if fastest - slowest < _STEADY_SHARE:
        return ()
    return (
        f"within the stress test this machine ran between {slowest:.0%} and {fastest:.0%} of its "
        "mean speed: others share it, or it grows warm; times of steps will differ as much",
    )


def _from_card(device: profiler_pb2.Device, card: GpuCard, disk: profiler_pb2.Disk) -> _Measured:
    memory = min(card.visible_bytes, device.memory_free_bytes or card.visible_bytes)
    safe = max(0, memory - card.runtime_overhead_bytes)
    measured = (disk.read_bytes_per_second, disk.write_bytes_per_second)
    return _Measured(safe, card_rates(card, measured), card_notes(card))


def _dtypes(
    device: profiler_pb2.Device, kind: DeviceKind, capability: tuple[int, int]
) -> tuple[ComputeDtype, ...]:
    """16-bit dtype first. float16 is for CUDA devices; a CPU computes in bfloat16 or float32."""
    if kind is DeviceKind.CPU:
        if device.measurements.matmul_16bit_dtype == ComputeDtype.FLOAT16.value:
            return (ComputeDtype.FLOAT32,)
        return (ComputeDtype.BFLOAT16, ComputeDtype.FLOAT32)
    return card_dtypes(capability)


def _working_kernels(
    software: profiler_pb2.Software,
    kind: DeviceKind,
    capability: tuple[int, int],
    rates: Rates,
    notes: list[str],
) -> tuple[str, ...]:
    """The fastest first: as they were timed, else as is usual for such a card."""
    usual = (FLASH,) if kind is DeviceKind.CPU else card_kernels(capability)
    if software.attention_kernels:
        working = [
            kernel.name
            for kernel in software.attention_kernels
            if kernel.status == profiler_pb2.KERNEL_STATUS_WORKS
        ]
        of_dtype = rates.of(2) or rates.of(4)
        return in_order(working, (of_dtype.kernels if of_dtype else []) or usual)
    assumed = usual
    notes.append(
        f"attention kernels have not been probed on this machine: {assumed[0]} is assumed to work"
    )
    return assumed


def _has_bitsandbytes(software: profiler_pb2.Software) -> bool:
    """A profile without any package says nothing about packages."""
    names = {package.name for package in software.packages}
    return not names or "bitsandbytes" in names


def _version(software: profiler_pb2.Software, name: str) -> str:
    return next((package.version for package in software.packages if package.name == name), "")
