"""The host: processor, memory under its caps, scratch disk. And the CPU as a device."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import psutil

from elite.profiler.v1 import profiler_pb2
from services.common.engine_process import available_cores
from services.common.host_memory import read_memory

_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "lustre", "9p", "fuse.sshfs"}
_IN_MEMORY = {"tmpfs", "ramfs"}
_VIRTUAL = ("vd", "xvd", "loop", "nbd", "rbd", "zram")


def read_host(scratch: Path) -> profiler_pb2.Host:
    """Processor, memory and the disk `scratch` lies on. Raises `OSError`."""
    memory = read_memory()
    logical = available_cores()
    return profiler_pb2.Host(
        cpu_name=cpu_name(),
        physical_core_count=min(psutil.cpu_count(logical=False) or logical, logical),
        logical_core_count=logical,
        memory_total_bytes=memory.total_bytes,
        memory_available_bytes=memory.available_bytes,
        scratch_disk=read_disk(scratch),
    )


def cpu_name() -> str:
    """The processor's name as the kernel knows it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_device(host: profiler_pb2.Host) -> profiler_pb2.Device:
    """The CPU as the device to train on: its memory is the host's."""
    identity = f"{host.cpu_name}|{host.logical_core_count}|{host.memory_total_bytes}"
    return profiler_pb2.Device(
        kind=profiler_pb2.DEVICE_KIND_CPU,
        name=host.cpu_name,
        uuid=f"CPU-{hashlib.sha256(identity.encode()).hexdigest()[:16]}",
        memory_total_bytes=host.memory_total_bytes,
        memory_free_bytes=host.memory_available_bytes,
        memory_is_host_memory=True,
    )


def read_disk(path: Path) -> profiler_pb2.Disk:
    """Size, free space (for this user) and kind of the disk under `path`. Raises `OSError`."""
    status = os.statvfs(path)
    return profiler_pb2.Disk(
        path=str(path),
        kind=_disk_kind(path),
        total_bytes=status.f_blocks * status.f_frsize,
        free_bytes=status.f_bavail * status.f_frsize,
    )


def _disk_kind(path: Path) -> profiler_pb2.DiskKind:
    filesystem, source = _mount(path)
    if filesystem in _IN_MEMORY:
        return profiler_pb2.DISK_KIND_MEMORY
    if filesystem in _NETWORK:
        return profiler_pb2.DISK_KIND_NETWORK
    device = _block_device(path) or source.rpartition("/")[2]
    if device.startswith("nvme"):
        return profiler_pb2.DISK_KIND_NVME
    if device.startswith(_VIRTUAL):
        return profiler_pb2.DISK_KIND_VIRTUAL
    try:
        rotational = Path("/sys/block", device, "queue/rotational").read_text().strip()
    except OSError:
        return profiler_pb2.DISK_KIND_UNSPECIFIED
    rotates = rotational == "1"
    return profiler_pb2.DISK_KIND_ROTATIONAL if rotates else profiler_pb2.DISK_KIND_SOLID_STATE


def _mount(path: Path) -> tuple[str, str]:
    """File system type and source of the mount `path` lies on."""
    best, found = -1, ("", "")
    resolved = path.resolve()
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, point, filesystem = line.split()[:3]
        point = point.replace("\\040", " ")
        # A later mount on the same point hides the earlier one.
        if resolved.is_relative_to(point) and len(point) >= best:
            best, found = len(point), (filesystem, source)
    return found


def _block_device(path: Path) -> str:
    """Name of the whole block device under `path`, as "sda" for a file on /dev/sda1."""
    number = path.stat().st_dev
    entry = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not entry.exists():
        return ""
    real = entry.resolve()
    # LVM, LUKS and RAID: what counts is the disk they are built on.
    while members := sorted((real / "slaves").glob("*")):
        real = members[0].resolve()
    return real.parent.name if (real / "partition").exists() else real.name
