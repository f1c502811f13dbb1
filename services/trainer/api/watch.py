"""Follows the events of a run for one caller."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

import redis

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs.cancellation import raise_if_cancelled
from services.trainer.jobs.connection import is_unavailable
from services.trainer.jobs.errors import RunNotFoundError
from services.trainer.jobs.events import EventStream
from services.trainer.jobs.states import TERMINAL_STATES
from services.trainer.jobs.store import RunStore

logger = logging.getLogger("elite.trainer.api")

# One blocking read, which is to end before the connection's timeout does.
_LONGEST_WAIT_SECONDS = 1.0
_RETRY_SECONDS = 0.25


async def watch_run(
    client: Any,
    store: RunStore,
    run_id: str,
    cursor: str,
    outage_seconds: float,
    timeout_seconds: float,
) -> AsyncGenerator[trainer_pb2.RunEvent]:
    """Yields the run's events after `cursor` until the run has ended and all of them are told.

    timeout_seconds: how long the client waits for an answer of Redis. Bears Redis being away, or
    having lost a run that its worker will record again, for `outage_seconds` at a time; then raises
    what redis-py raised, or `RunNotFoundError`.
    """
    stream = EventStream(client, run_id)
    wait_seconds = min(_LONGEST_WAIT_SECONDS, timeout_seconds / 2)
    position = ""
    last_answer = time.monotonic()
    while True:
        raise_if_cancelled()
        try:
            # The state first: once it is terminal, all events have been written.
            ended = await store.state(run_id) in TERMINAL_STATES
            position = position or await stream.usable_cursor(cursor)
            events = await stream.read(position, 0 if ended else wait_seconds)
        except (redis.RedisError, RunNotFoundError) as error:
            passes = (
                bool(position) if isinstance(error, RunNotFoundError) else is_unavailable(error)
            )
            if not passes or time.monotonic() - last_answer > outage_seconds:
                raise
            logger.debug("watching on without redis", extra={"run_id": run_id})
            await asyncio.sleep(_RETRY_SECONDS)
            continue
        last_answer = time.monotonic()
        for event in events:
            yield event
            position = event.cursor
        if ended and not events:
            return
