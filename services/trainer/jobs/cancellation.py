"""Cancellation that cannot get lost.

redis-py sends commands through `asyncio.wait_for`, which until Python 3.12 drops a cancellation
that arrives in the moment its inner task ends (https://github.com/python/cpython/issues/86296). A
loop around Redis calls would then never end.
"""

from __future__ import annotations

import asyncio


def raise_if_cancelled() -> None:
    """Raises `CancelledError` if somebody has cancelled this task, noticed or not."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
