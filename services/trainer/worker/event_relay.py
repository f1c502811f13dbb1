"""Carries events from an engine to Redis. While Redis is away they wait here; the engine never
does."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

import redis

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs.cancellation import raise_if_cancelled
from services.trainer.jobs.errors import RunNotFoundError
from services.trainer.jobs.lease import RunLease

logger = logging.getLogger("elite.trainer.worker")

_BATCH = 500
_RETRY_SECONDS = 0.5


class EventRelay:
    """A bounded buffer and the task that empties it. When it is full the oldest steps go."""

    def __init__(self, lease: RunLease, limit: int) -> None:
        self._lease = lease
        self._limit = limit
        self._waiting: deque[trainer_pb2.RunEvent] = deque()
        self._in_flight: list[trainer_pb2.RunEvent] = []
        self._stored = 0
        self._progress = b""
        self._news = asyncio.Event()
        self._sending = asyncio.Lock()
        self.dropped = 0

    def add(self, event: trainer_pb2.RunEvent, progress: trainer_pb2.RunProgress) -> None:
        """Takes an event and the progress it has led to. Never waits."""
        self._waiting.append(event)
        self._progress = progress.SerializeToString()
        if len(self._waiting) > self._limit:
            self._drop_one()
        self._news.set()

    async def run(self) -> None:
        """Sends whatever comes, until cancelled or, by `LeaseLostError`, the run is another's."""
        while True:
            raise_if_cancelled()
            await self._news.wait()
            self._news.clear()
            try:
                await self.flush()
            except (redis.RedisError, RunNotFoundError) as error:
                logger.warning("events wait for redis", extra={"error": str(error)})
                self._news.set()
                await asyncio.sleep(_RETRY_SECONDS)

    async def flush(self) -> None:
        """Sends everything that waits.

        Raises redis-py's errors, `LeaseLostError` and `RunNotFoundError`.
        """
        # One at a time: the batch under way and the numbers of its events belong together.
        async with self._sending:
            while self._in_flight or self._waiting:
                await self._send_batch()

    async def _send_batch(self) -> None:
        if not self._in_flight:
            count = min(_BATCH, len(self._waiting))
            self._in_flight = [self._waiting.popleft() for _ in range(count)]
        batch = [event.SerializeToString() for event in self._in_flight]
        saved = max(map(_saved_position, self._in_flight))
        await self._lease.append(self._stored + 1, batch, self._progress, saved=saved)
        self._stored += len(batch)
        self._in_flight = []

    def _drop_one(self) -> None:
        """Drops the oldest step; only when there are none, the oldest event."""
        for index, event in enumerate(self._waiting):
            if event.WhichOneof("event") == "step_completed":
                del self._waiting[index]
                break
        else:
            self._waiting.popleft()
        self.dropped += 1


def _saved_position(event: trainer_pb2.RunEvent) -> str:
    """How far what the event says is saved goes, in words that sort; "" for other events."""
    if not event.HasField("checkpoint_saved"):
        return ""
    saved = event.checkpoint_saved
    return f"{saved.step:020d} {saved.windows_done:010d} {saved.stages_done:010d}"
