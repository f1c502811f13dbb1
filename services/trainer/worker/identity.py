"""Who holds a lease: this worker's main process, and within it one pool child.

Celery replaces a pool child that dies. The new one may take over the dead one's lease at once,
because both come from the same main process; anybody else has to wait until it expires.
"""

from __future__ import annotations

import os
import socket
import uuid

# Made when the main process imports this, inherited by every pool child it forks.
_WORKER_INSTANCE = uuid.uuid4().hex


def worker_name() -> str:
    """Name for people: Celery's node name, once `set_worker_name` was called."""
    return _names["worker"]


def set_worker_name(name: str) -> None:
    """Takes Celery's node name, in the main process before it forks."""
    _names["worker"] = name


def lease_owner() -> str:
    """Names the calling process in leases."""
    return f"{_WORKER_INSTANCE}:{os.getpid()}"


def is_dead_sibling(owner: str) -> bool:
    """Whether `owner` was a pool child of this worker that no longer exists."""
    instance, _, process_id = owner.partition(":")
    if instance != _WORKER_INSTANCE or not process_id.isdigit():
        return False
    try:
        os.kill(int(process_id), 0)
    except ProcessLookupError:
        return True
    return False


_names = {"worker": f"worker@{socket.gethostname()}"}
