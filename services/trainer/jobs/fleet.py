"""Who is there to run what waits: workers, queue, and the number of runs in each state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs import keys, scripts
from services.trainer.jobs.states import ALL_STATES, RUNNING, WAITING_STATES, State
from services.trainer.settings import TrainerSettings


@dataclass(frozen=True)
class FleetCounts:
    """One look at everything, for metrics."""

    runs_by_state: Mapping[State, int]
    queue_depth: int
    connected_workers: int


class Fleet:
    """Asynchronous: for the API."""

    def __init__(self, client: Any, settings: TrainerSettings) -> None:
        self._client = client
        self._count_workers = client.register_script(scripts.COUNT_WORKERS)
        self._presence_milliseconds = int(settings.worker_presence_seconds * 1000)

    async def explain_waiting(self, runs: list[trainer_pb2.Run]) -> None:
        """Says in `status_detail` of every waiting run what it waits for."""
        waiting = [run for run in runs if run.state in WAITING_STATES]
        if not waiting:
            return
        workers = await self._count_workers(keys=[keys.WORKERS], args=[self._presence_milliseconds])
        pipeline = self._client.pipeline(transaction=False)
        pipeline.zcard(keys.state_key(RUNNING))
        for run in waiting:
            pipeline.zrank(keys.WAITING, run.run_id)
        running, *ranks = await pipeline.execute()
        for run, rank in zip(waiting, ranks, strict=True):
            if rank is not None:
                run.status_detail = _waiting_detail(rank + running, workers, run.status_detail)

    async def queue_length(self) -> int:
        """Messages nobody has taken."""
        length: int = await self._client.llen(keys.QUEUE_NAME)
        return length

    async def waiting_since_before(self, key: str, milliseconds: int) -> list[str]:
        """Ids in `key` (WAITING or UNSENT) since before that time, longest first."""
        ids = await self._client.zrange(key, "-inf", f"({milliseconds}", byscore=True)
        return [run_id.decode() for run_id in ids]

    async def touch_waiting(self, run_id: str, milliseconds: int) -> None:
        """Counts the run's waiting from now on, because its message has been sent again."""
        await self._client.zadd(keys.WAITING, {run_id: milliseconds}, xx=True)

    async def running_ids(self) -> list[str]:
        """Ids of the runs that a worker has taken up."""
        ids = await self._client.zrange(keys.state_key(RUNNING), 0, -1)
        return [run_id.decode() for run_id in ids]


class FleetReporter:
    """Blocking: for the worker's heartbeat and the scrape of the API's metrics."""

    def __init__(self, client: Any, settings: TrainerSettings) -> None:
        self._client = client
        self._heartbeat = client.register_script(scripts.HEARTBEAT)
        self._count_workers = client.register_script(scripts.COUNT_WORKERS)
        self._presence_milliseconds = int(settings.worker_presence_seconds * 1000)

    def heartbeat(self, worker_name: str) -> None:
        """Notes that the worker is there."""
        self._heartbeat(keys=[keys.WORKERS], args=[worker_name])

    def leave(self, worker_name: str) -> None:
        """Notes that the worker has gone."""
        self._client.zrem(keys.WORKERS, worker_name)

    def counts(self) -> FleetCounts:
        """Counts runs, messages and workers."""
        pipeline = self._client.pipeline(transaction=False)
        for state in ALL_STATES:
            pipeline.zcard(keys.state_key(state))
        pipeline.llen(keys.QUEUE_NAME)
        *by_state, depth = pipeline.execute()
        workers = self._count_workers(keys=[keys.WORKERS], args=[self._presence_milliseconds])
        return FleetCounts(dict(zip(ALL_STATES, by_state, strict=True)), depth, workers)


def _waiting_detail(runs_ahead: int, workers: int, reason: str) -> str:
    if workers == 0:
        text = "waiting: no worker is connected"
    elif runs_ahead:
        text = f"waiting: {runs_ahead} {_plural('run', runs_ahead)} ahead"
    else:
        text = "waiting: a worker is about to take it"
    return f"{text} ({reason})" if reason else text


def _plural(word: str, count: int) -> str:
    return word if count == 1 else word + "s"
