"""What crosses the bus and the disk's cable: bytes, added up where copies are started."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes moved since the beginning. disk: page files."""

    host_to_device_bytes: int = 0
    device_to_host_bytes: int = 0
    disk_read_bytes: int = 0
    disk_written_bytes: int = 0

    def __add__(self, other: Moved) -> Moved:
        return Moved(
            self.host_to_device_bytes + other.host_to_device_bytes,
            self.device_to_host_bytes + other.device_to_host_bytes,
            self.disk_read_bytes + other.disk_read_bytes,
            self.disk_written_bytes + other.disk_written_bytes,
        )

    def __sub__(self, earlier: Moved) -> Moved:
        return Moved(
            self.host_to_device_bytes - earlier.host_to_device_bytes,
            self.device_to_host_bytes - earlier.device_to_host_bytes,
            self.disk_read_bytes - earlier.disk_read_bytes,
            self.disk_written_bytes - earlier.disk_written_bytes,
        )


class Mover(Protocol):
    """Moves bytes and counts them. Each of its counts has one thread that adds to it."""

    @property
    def moved(self) -> Moved:
        """So far."""
        ...


def total_moved(movers: Iterable[Mover]) -> Moved:
    """The sum."""
    return sum((mover.moved for mover in movers), Moved())
