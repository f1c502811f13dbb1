"""A `NodeProfile` for people."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from elite.profiler.v1 import profiler_pb2
from elite_cli.quantities import format_bytes, format_duration, format_rate
from elite_cli.render.names import disk_kind_name
from elite_cli.render.tables import facts_table, new_table


def render_profile(console: Console, profile: profiler_pb2.NodeProfile) -> None:
    """Prints each device with its measured rates, the host and the software."""
    console.print(f"[bold]{escape(profile.node_name)}[/bold]\n")
    for device in profile.devices:
        _render_device(console, device)
    _render_host(console, profile.host)
    _render_software(console, profile.software)


def _render_device(console: Console, device: profiler_pb2.Device) -> None:
    kind = "GPU" if device.kind == profiler_pb2.DEVICE_KIND_CUDA else "CPU as device"
    console.print(f"[bold]{kind} {device.index}: {escape(device.name)}[/bold]")
    table = facts_table()
    pool = " (host memory)" if device.memory_is_host_memory else ""
    table.add_row(
        "  memory",
        f"{format_bytes(device.memory_free_bytes)} free of "
        f"{format_bytes(device.memory_total_bytes)}{pool}",
    )
    for name, value in _gpu_facts(device):
        table.add_row(f"  {name}", escape(value))
    if device.HasField("measurements"):
        for name, value in _measured_facts(device):
            table.add_row(f"  {name}", value)
    else:
        table.add_row("  measured", "not yet: run `elite profile --stress`")
    if device.unavailable_fields:
        table.add_row("  not told by driver", escape(", ".join(device.unavailable_fields)))
    console.print(table)
    console.print()


def _gpu_facts(device: profiler_pb2.Device) -> list[tuple[str, str]]:
    facts = []
    if device.HasField("compute_capability"):
        capability = device.compute_capability
        processors = f", {device.multiprocessor_count} SMs" if device.multiprocessor_count else ""
        facts.append(("compute capability", f"{capability.major}.{capability.minor}{processors}"))
    if device.HasField("pcie"):
        pcie = device.pcie
        facts.append(
            ("PCIe", f"generation {pcie.generation_current} x{pcie.width_current} now, "
             f"{pcie.generation_max} x{pcie.width_max} at most")
        )  # fmt: skip
    if device.power_limit_watts:
        facts.append(("power limit", f"{device.power_limit_watts:.0f} W"))
    if device.HasField("clocks"):
        clocks = device.clocks
        facts.append(
            ("clocks", f"SM {clocks.multiprocessor_megahertz} of "
             f"{clocks.multiprocessor_max_megahertz} MHz, memory {clocks.memory_megahertz} of "
             f"{clocks.memory_max_megahertz} MHz")
        )  # fmt: skip
    if device.HasField("ecc_enabled"):
        facts.append(("ECC", "on" if device.ecc_enabled else "off"))
    if device.multi_instance_gpu.enabled:
        facts.append(("MIG", f"on {device.multi_instance_gpu.parent_uuid}".strip()))
    if device.driver_version:
        facts.append(("driver", device.driver_version))
    return facts


def _measured_facts(device: profiler_pb2.Device) -> list[tuple[str, str]]:
    measured = device.measurements
    dtype = measured.matmul_16bit_dtype or "16-bit"
    facts = [
        ("safe to allocate", format_bytes(measured.safe_allocatable_bytes)),
        (f"matmul, {dtype}", format_rate(measured.matmul_16bit_flops_per_second, "FLOP/s")),
        ("matmul, float32", format_rate(measured.matmul_32bit_flops_per_second, "FLOP/s")),
        *_attention_facts(measured),
        ("memory bandwidth", format_rate(measured.memory_bandwidth_bytes_per_second, "B/s")),
    ]
    if not device.memory_is_host_memory:
        facts += _transfer_facts(measured)
    if measured.operation_launch_seconds:
        launch = f"{measured.operation_launch_seconds * 1e6:.1f} microseconds to ask for"
        facts.append(("an operation", launch))
    if measured.runtime_overhead_bytes:
        facts.append(("runtime overhead", format_bytes(measured.runtime_overhead_bytes)))
    if measured.core_wait_share:
        waited = f"{measured.core_wait_share:.0%} of the test, for cores that others had"
        facts.append(("waited", waited))
    if measured.lowest_speed_share:
        slowest, fastest = measured.lowest_speed_share, measured.highest_speed_share
        facts.append(("speed", f"{slowest:.0%} to {fastest:.0%} of its mean, pass by pass"))
    if measured.HasField("measured_at"):
        facts.append(("measured", _age(measured.measured_at.ToSeconds())))
    return [(name, value) for name, value in facts if value]


def _attention_facts(measured: profiler_pb2.DeviceMeasurements) -> list[tuple[str, str]]:
    """A line for every kernel, dtype and head size, forward and backward together."""
    kinds: dict[tuple[str, str, int], list[profiler_pb2.AttentionRate]] = {}
    for rate in measured.attention_rates:
        kinds.setdefault((rate.kernel, rate.dtype, rate.head_size), []).append(rate)
    facts = []
    for (kernel, dtype, head_size), rates in kinds.items():
        parts = (kernel.removeprefix("sdpa_"), dtype, f"head {head_size}" if head_size else "")
        kind = ", ".join(part for part in parts if part)
        name = f"attention, {kind}" if kind else "attention"
        shown = [
            f"{format_rate(rate.flops_per_second, 'FLOP/s')} at {rate.sequence_tokens:,}"
            for rate in rates
        ]
        facts.append((name, f"{', '.join(shown)} tokens"))
    return facts


def _transfer_facts(measured: profiler_pb2.DeviceMeasurements) -> list[tuple[str, str]]:
    to_device = (
        measured.host_to_device_pinned_bytes_per_second,
        measured.host_to_device_pageable_bytes_per_second,
    )
    to_host = (
        measured.device_to_host_pinned_bytes_per_second,
        measured.device_to_host_pageable_bytes_per_second,
    )
    return [("host to device", _pair(*to_device)), ("device to host", _pair(*to_host))]


def _pair(pinned: float, pageable: float) -> str:
    if not pinned and not pageable:
        return ""
    return f"{format_rate(pinned, 'B/s')} pinned, {format_rate(pageable, 'B/s')} pageable"


def _age(seconds_since_epoch: int) -> str:
    import time

    age = time.time() - seconds_since_epoch
    return f"{format_duration(age)} ago" if age >= 1 else "just now"


def _render_host(console: Console, host: profiler_pb2.Host) -> None:
    console.print("[bold]Host[/bold]")
    table = facts_table()
    cores = f"{host.physical_core_count} cores, {host.logical_core_count} threads"
    table.add_row("  CPU", escape(f"{host.cpu_name}, {cores}"))
    table.add_row(
        "  memory",
        f"{format_bytes(host.memory_available_bytes)} available of "
        f"{format_bytes(host.memory_total_bytes)}",
    )
    if host.process_overhead_bytes:
        overhead = format_bytes(host.process_overhead_bytes)
        table.add_row("  engine process", f"{overhead} before the first tensor")
    disk = host.scratch_disk
    if disk.path:
        free = f"{format_bytes(disk.free_bytes)} free of {format_bytes(disk.total_bytes)}"
        table.add_row("  scratch disk", escape(f"{disk.path}: {free}, {disk_kind_name(disk.kind)}"))
    if disk.read_bytes_per_second:
        read = format_rate(disk.read_bytes_per_second, "B/s")
        write = format_rate(disk.write_bytes_per_second, "B/s")
        table.add_row("  disk speed", f"{read} read, {write} write")
    console.print(table)
    console.print()


def _render_software(console: Console, software: profiler_pb2.Software) -> None:
    console.print("[bold]Software[/bold]")
    table = facts_table()
    table.add_row("  Python", software.python_version)
    for package in software.packages:
        cuda = software.torch_cuda_version
        built_for = f" (CUDA {cuda})" if package.name == "torch" and cuda else ""
        table.add_row(f"  {package.name}", f"{package.version}{built_for}")
    console.print(table)
    if software.attention_kernels:
        console.print()
        _render_kernels(console, software)


def _render_kernels(console: Console, software: profiler_pb2.Software) -> None:
    table = new_table()
    table.add_column("attention kernel", no_wrap=True)
    table.add_column("works", no_wrap=True)
    table.add_column("detail", overflow="fold")
    for kernel in software.attention_kernels:
        works = "yes" if kernel.status == profiler_pb2.KERNEL_STATUS_WORKS else "no"
        reason = kernel.detail.partition(". ")[0]
        table.add_row(kernel.name, works, escape(reason))
    console.print(table)
