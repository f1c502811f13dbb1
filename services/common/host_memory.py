"""Memory this process may use: the machine's, under the caps of its control groups.

Both versions of cgroups are read, from the process's own group up to the root that is visible,
because any ancestor may hold the cap. A version 1 and a version 2 tree may be mounted together.
https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Memory:
    """Host memory under the tightest cap."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True)
class _Group:
    """One control group's memory files. `cap_bytes` is None where nothing caps it."""

    cap_bytes: int | None
    usage_bytes: int
    reclaimable_bytes: int


def read_memory(root: Path = Path("/")) -> Memory:
    """Total is the smaller of physical memory and every cap; available is what is left of them.

    Left under a cap means: cap less usage, plus file cache the kernel would drop before it
    refuses. `root` is the file system to read, for tests. Raises `OSError` without /proc/meminfo.
    """
    meminfo = _key_values(root / "proc/meminfo")
    total = meminfo["MemTotal"] * 1024
    available = meminfo["MemAvailable"] * 1024
    for group in _groups(root):
        if group.cap_bytes is None:
            continue
        total = min(total, group.cap_bytes)
        left = group.cap_bytes - group.usage_bytes + group.reclaimable_bytes
        available = min(available, max(0, left))
    return Memory(total, min(available, total))


def _groups(root: Path) -> Iterator[_Group]:
    for directory, mount, is_version_2 in _own_directories(root):
        read = _read_version_2 if is_version_2 else _read_version_1
        while True:
            group = read(directory)
            if group is not None:
                yield group
            if directory == mount:
                break
            directory = directory.parent


def _own_directories(root: Path) -> Iterator[tuple[Path, Path, bool]]:
    """(this process's group, where its tree is mounted, whether it is version 2)."""
    paths = _own_paths(root)
    for mount_root, mount_point, file_system, options in _mounts(root):
        if file_system == "cgroup2":
            path = paths.get("")
        elif file_system == "cgroup" and "memory" in options:
            path = paths.get("memory")
        else:
            continue
        if path is not None:
            mount = root / mount_point.lstrip("/")
            relative = _below(path, mount_root)
            yield mount / relative, mount, file_system == "cgroup2"


def _own_paths(root: Path) -> dict[str, str]:
    """Path of this process's group by controller; the key of the version 2 tree is empty."""
    paths: dict[str, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    return paths


def _mounts(root: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """(root within the tree, mount point, file system, super options) of every mount."""
    for line in _lines(root / "proc/self/mountinfo"):
        fields = line.split()
        separator = fields.index("-")
        yield fields[3], fields[4], fields[separator + 1], fields[-1].split(",")


def _below(path: str, mount_root: str) -> str:
    """`path` as seen below a mount that shows only `mount_root` of the tree.

    In a container the process's path is often the host's, while the mount shows just the
    container's own group: then that group is the mount itself. A path with ".." lies outside.
    """
    group = PurePosixPath(path)
    inside = group.is_relative_to(mount_root) and ".." not in group.parts
    return str(group.relative_to(mount_root)) if inside else "."


def _read_version_2(directory: Path) -> _Group | None:
    usage = _number(directory / "memory.current")
    if usage is None:
        return None
    # memory.high does not refuse but throttles to a standstill: as good as a cap.
    caps = [_number(directory / name) for name in ("memory.max", "memory.high")]
    stat = _key_values(directory / "memory.stat")
    reclaimable = stat.get("active_file", 0) + stat.get("inactive_file", 0)
    return _Group(min((cap for cap in caps if cap is not None), default=None), usage, reclaimable)


def _read_version_1(directory: Path) -> _Group | None:
    usage = _number(directory / "memory.usage_in_bytes")
    if usage is None:
        return None
    stat = _key_values(directory / "memory.stat")
    # The second one counts ancestors, also those the mount does not show.
    caps = [_number(directory / "memory.limit_in_bytes"), stat.get("hierarchical_memory_limit")]
    reclaimable = stat.get("total_active_file", 0) + stat.get("total_inactive_file", 0)
    return _Group(min((cap for cap in caps if cap is not None), default=None), usage, reclaimable)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    """The file's number; None when it is absent or says "max"."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _key_values(path: Path) -> dict[str, int]:
    """Parses "key value" and "key: value kB" lines."""
    pairs = (line.replace(":", "").split() for line in _lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) > 1 and pair[1].isdigit()}
