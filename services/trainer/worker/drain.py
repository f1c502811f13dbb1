"""Whether this worker is shutting down, known to the main process and to its pool child.

One shared byte, made before the pool forks. It has no lock, so a process that is killed, or a
signal handler that comes at a bad moment, cannot leave it locked.
"""

from __future__ import annotations

import multiprocessing

_flag = multiprocessing.RawValue("b", 0)


def begin_draining() -> None:
    """From now on runs are to be checkpointed and handed back."""
    _flag.value = 1


def is_draining() -> bool:
    """Whether the worker shuts down."""
    return bool(_flag.value)
