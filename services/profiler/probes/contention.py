"""How long this process waited for cores that others had: rates measured meanwhile are too low."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_OWN_THREADS = Path("/proc/self/task")


def core_wait_share(threads: Path = _OWN_THREADS) -> float:
    """Of the time that this process's threads could have run, the share they waited for a core.

    From the kernel's run queues (schedstat: nanoseconds run, nanoseconds waited), so that a thread
    that sleeps counts as neither. 0 where the kernel does not tell.
    """
    ran = waited = 0
    for thread in threads.glob("*/schedstat"):
        with suppress(OSError, ValueError):  # the thread has ended
            ran_one, waited_one, _ = map(int, thread.read_text(encoding="ascii").split())
            ran, waited = ran + ran_one, waited + waited_one
    return waited / (ran + waited) if waited else 0.0
