"""Finds runs that wait for a message that is not coming, or for a worker that has died.

Every API process sweeps. Two of them, or a slow queue, may send a run twice: a worker that gets
a run that another one has, or that has ended, drops the message.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import redis

from services.common.errors import ServiceError
from services.trainer.api.collector import lease_expirations
from services.trainer.api.runs import Runs
from services.trainer.api.settings import TrainerApiSettings
from services.trainer.jobs import keys
from services.trainer.jobs.cancellation import raise_if_cancelled
from services.trainer.jobs.connection import is_unavailable
from services.trainer.jobs.errors import LeasedError, RunNotFoundError
from services.trainer.jobs.fleet import Fleet
from services.trainer.jobs.records import RunRecord
from services.trainer.jobs.retention import Retention
from services.trainer.jobs.states import CANCELLED, PAUSED, RESUMING, RUNNING
from services.trainer.jobs.store import RunStore, Transition, now_milliseconds

logger = logging.getLogger("elite.trainer.sweep")

_PRUNE_INTERVAL_SECONDS = 600.0


class Sweep:
    """The periodic look. `run` never ends; `once` is one look."""

    def __init__(
        self,
        settings: TrainerApiSettings,
        store: RunStore,
        fleet: Fleet,
        runs: Runs,
        retention: Retention,
    ) -> None:
        self._interval_seconds = settings.sweep_interval_seconds
        self._patience_milliseconds = int(settings.requeue_after_seconds * 1000)
        self._store = store
        self._fleet = fleet
        self._runs = runs
        self._retention = retention
        self._prune_at = time.monotonic()
        self._without_lease: set[str] = set()

    async def run(self) -> None:
        """Looks again and again; an outage of Redis is waited out."""
        while True:
            raise_if_cancelled()
            try:
                await self.once()
            except redis.RedisError as error:
                level = logging.DEBUG if is_unavailable(error) else logging.ERROR
                logger.log(level, "sweep failed", extra={"error": str(error)})
            except Exception:  # the sweep outlives whatever it stumbles over
                logger.exception("sweep failed")
            await asyncio.sleep(self._interval_seconds)

    async def once(self) -> None:
        """Queues what is overdue and frees what its worker has left behind."""
        # A look that breaks off leaves nothing for the next one to go by.
        seen_before, self._without_lease = self._without_lease, set()
        for run_id in await self._overdue():
            await self._apart(self._queue_again, run_id)
        await self._free_abandoned(seen_before)
        if time.monotonic() >= self._prune_at:
            self._prune_at = time.monotonic() + _PRUNE_INTERVAL_SECONDS
            if count := await self._retention.prune():
                logger.info("removed runs that ended long ago", extra={"count": count})

    @staticmethod
    async def _apart(act: Callable[[str], Awaitable[None]], run_id: str) -> None:
        """One bad record must not keep all other runs from being queued or freed."""
        try:
            await act(run_id)
        except Exception as error:
            if is_unavailable(error):
                raise
            logger.exception("run cannot be swept", extra={"run_id": run_id})

    async def _queue_again(self, run_id: str) -> None:
        logger.warning("queueing run again", extra={"run_id": run_id})
        try:
            await self._runs.enqueue(run_id)
        except RunNotFoundError:
            logger.warning("forgetting an id without a record", extra={"run_id": run_id})
            await self._fleet.forget_waiting(run_id)
            return
        await self._fleet.touch_waiting(run_id, now_milliseconds())

    async def _overdue(self) -> list[str]:
        """Runs whose message was never sent, or cannot be in the queue: the queue is empty."""
        before = now_milliseconds() - self._patience_milliseconds
        overdue = await self._fleet.waiting_since_before(keys.UNSENT, before)
        waiting = await self._fleet.waiting_since_before(keys.WAITING, before)
        classes = await self._fleet.device_classes(waiting)
        empty = {name for name in set(classes) if not await self._fleet.has_messages(name)}
        overdue += [run for run, name in zip(waiting, classes, strict=True) if name in empty]
        return list(dict.fromkeys(overdue))

    async def _free_abandoned(self, seen_before: set[str]) -> None:
        """Frees running runs seen without a lease twice in a row.

        Once is not enough: when Redis comes back from an outage longer than a lease, its owner
        needs a moment to take the lease again. A look while Redis can only be read does not count:
        nobody can renew a lease then.
        """
        await self._fleet.note_sweep(now_milliseconds())
        running = await self._fleet.running_ids()
        without = {run_id for run_id in running if not await self._store.lease_owner(run_id)}
        for run_id in without & seen_before:
            await self._apart(self._free, run_id)
        self._without_lease = without

    async def _free(self, run_id: str) -> None:
        try:
            record = await self._store.change(run_id, _abandoned_step)
        except (LeasedError, ServiceError) as error:
            logger.info("run is cared for", extra={"run_id": run_id, "reason": str(error)})
            return
        lease_expirations.inc()
        logger.warning("worker of run is gone", extra={"run_id": run_id})
        if record.run.state == RESUMING:
            await self._runs.enqueue(run_id)


def _abandoned_step(record: RunRecord) -> Transition | None:
    if record.run.state != RUNNING:
        return None
    worker = record.run.worker_name
    if record.run.cancel_requested:
        return Transition(CANCELLED, f"cancelled; worker {worker} was lost", lease="free")
    if record.run.pause_requested:
        return Transition(
            PAUSED, f"paused; worker {worker} was lost", {"pause_requested": "0"}, lease="free"
        )
    detail = f"worker {worker} was lost"
    return Transition(RESUMING, detail, lease="free", unsent=True)
