"""A machine whose clock jumps and whose disk is full, for every process with this folder in front.

`CHAOS_MACHINE` names a folder. Its file `clock` holds seconds that are added to the wall clock;
while its file `disk-full` exists, nothing can be written through to the disk. Python loads this
module by its name at the start of a process.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

_MACHINE = Path(os.environ.get("CHAOS_MACHINE", "/nowhere"))
_time, _fsync = time.time, os.fsync


def _ahead_seconds() -> float:
    try:
        return float((_MACHINE / "clock").read_text())
    except (OSError, ValueError):
        return 0.0


def _shifted_time() -> float:
    return _time() + _ahead_seconds()


def _shifted_time_ns() -> int:
    return int(_shifted_time() * 1e9)


def _fsync_of_a_full_disk(descriptor: int) -> None:
    # Where a file system finds the place for what was written before.
    if (_MACHINE / "disk-full").exists():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _fsync(descriptor)


if _MACHINE.is_dir():
    time.time, time.time_ns, os.fsync = _shifted_time, _shifted_time_ns, _fsync_of_a_full_disk
