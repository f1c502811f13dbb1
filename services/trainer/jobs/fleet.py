"""Who is there to run what waits: workers, queue, and the number of runs in each state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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
        classes = {run.device_class for run in waiting}
        workers = {name: await self._workers(name) for name in classes}
        running = Counter(await self.device_classes(await self.running_ids()))
        pipeline = self._client.pipeline(transaction=False)
        for run in waiting:
            pipeline.zrank(keys.ready_key(run.device_class), run.run_id)
        for run, rank in zip(waiting, await pipeline.execute(), strict=True):
            if rank is not None:
                name = run.device_class
                run.status_detail = _waiting_detail(rank + running[name], workers[name], run)

    async def device_classes(self, run_ids: Sequence[str]) -> list[str]:
        """The class of each run."""
        pipeline = self._client.pipeline(transaction=False)
        for run_id in run_ids:
            pipeline.hget(keys.run_key(run_id), "device_class")
        return [(name or b"").decode() for name in await pipeline.execute()]

    async def has_messages(self, device_class: str) -> bool:
        """Whether there is any message that no worker of the class has taken."""
        return bool(await self._client.llen(keys.queue_name(device_class)))

    async def _workers(self, device_class: str) -> int:
        key, since = keys.workers_key(device_class), self._presence_milliseconds
        count: int = await self._count_workers(keys=[key], args=[since])
        return count

    async def waiting_since_before(self, key: str, milliseconds: int) -> list[str]:
        """Ids in `key` (WAITING or UNSENT) since before that time, longest first."""
        ids = await self._client.zrange(key, "-inf", f"({milliseconds}", byscore=True)
        return [run_id.decode() for run_id in ids]

    async def touch_waiting(self, run_id: str, milliseconds: int) -> None:
        """Counts the run's waiting from now on, because its message has been sent again."""
        await self._client.zadd(keys.WAITING, {run_id: milliseconds}, xx=True)

    async def forget_waiting(self, run_id: str) -> None:
        """Takes an id off everything that waits, because no record has it."""
        classes = await self._client.smembers(keys.DEVICE_CLASSES)
        ready = (keys.ready_key(name.decode()) for name in classes)
        for key in (keys.WAITING, keys.UNSENT, *ready):
            await self._client.zrem(key, run_id)

    async def note_sweep(self, milliseconds: int) -> None:
        """Notes when the API has looked at all runs. Raises while Redis can only be read."""
        await self._client.set(keys.SWEPT, milliseconds)

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

    def heartbeat(self, worker_name: str, device_classes: Sequence[str]) -> None:
        """Notes that the worker is there, and for which device classes."""
        places = [keys.WORKERS, *map(keys.workers_key, device_classes)]
        self._heartbeat(keys=places, args=[worker_name])
        self._client.sadd(keys.DEVICE_CLASSES, *device_classes)

    def leave(self, worker_name: str, device_classes: Sequence[str]) -> None:
        """Notes that the worker has gone."""
        for key in (keys.WORKERS, *map(keys.workers_key, device_classes)):
            self._client.zrem(key, worker_name)

    def counts(self) -> FleetCounts:
        """Counts runs, messages and workers."""
        pipeline = self._client.pipeline(transaction=False)
        for state in ALL_STATES:
            pipeline.zcard(keys.state_key(state))
        by_state = pipeline.execute()
        for name in self._client.smembers(keys.DEVICE_CLASSES):
            pipeline.llen(keys.queue_name(name.decode()))
        depth = sum(pipeline.execute())
        workers = self._count_workers(keys=[keys.WORKERS], args=[self._presence_milliseconds])
        return FleetCounts(dict(zip(ALL_STATES, by_state, strict=True)), depth, workers)


def _waiting_detail(runs_ahead: int, workers: int, run: trainer_pb2.Run) -> str:
    reason = run.status_detail
    if workers == 0:
        text = f"waiting: no worker for {run.device_class} is connected"
    elif runs_ahead:
        text = f"waiting: {runs_ahead} {_plural('run', runs_ahead)} ahead"
    else:
        text = "waiting: a worker is about to take it"
    return f"{text} ({reason})" if reason else text


def _plural(word: str, count: int) -> str:
    return word if count == 1 else word + "s"
