"""Gauges of the fleet, read from Redis when Prometheus asks."""

from __future__ import annotations

import logging
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import redis
from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.trainer.jobs import keys
from services.trainer.jobs.connection import blocking_client
from services.trainer.jobs.fleet import FleetReporter
from services.trainer.jobs.states import RUNNING, state_name
from services.trainer.settings import TrainerSettings

logger = logging.getLogger("elite.trainer.metrics")

lease_expirations = Counter(
    "elite_trainer_lease_expirations", "Runs this API freed because their worker was gone."
)

_BY_CLASS = ["device_class"]


@dataclass(frozen=True, slots=True)
class _RunningRun:
    device_class: str
    worker_name: str
    has_lease: bool


class FleetCollector(Collector):
    """What `_families` lists. While Redis is away only `elite_trainer_store_up` has a value: 0."""

    def __init__(self, settings: TrainerSettings) -> None:
        self._client: Any = blocking_client(settings)
        self._presence_milliseconds = int(settings.worker_presence_seconds * 1000)
        self._fleet = FleetReporter(self._client, settings)

    def describe(self) -> list[Metric]:
        """The metrics without values, so that registering needs no Redis."""
        return list(_families().values())

    def collect(self) -> Iterator[Metric]:
        """One look at Redis."""
        families = _families()
        try:
            self._fill(families)
        except redis.RedisError as error:
            logger.warning("no fleet metrics", extra={"error": str(error)})
            families = _families()
            families["store_up"].add_metric([], 0)
        yield from families.values()

    def _fill(self, families: Mapping[str, GaugeMetricFamily]) -> None:
        counts, running = self._fleet.counts(), self._running()
        families["store_up"].add_metric([], 1)
        families["queue_depth"].add_metric([], counts.queue_depth)
        families["workers"].add_metric([], counts.connected_workers)
        for state, count in counts.runs_by_state.items():
            families["runs"].add_metric([state_name(state)], count)
        without_lease = sum(not run.has_lease for run in running)
        families["without_lease"].add_metric([], without_lease)
        for name, values in self._by_class(running).items():
            for device_class, value in values.items():
                families[name].add_metric([device_class], value)

    def _running(self) -> list[_RunningRun]:
        run_ids = [found.decode() for found in self._client.zrange(keys.state_key(RUNNING), 0, -1)]
        pipeline = self._client.pipeline(transaction=False)
        for run_id in run_ids:
            pipeline.hmget(keys.run_key(run_id), "device_class", "worker_name")
            pipeline.exists(keys.lease_key(run_id))
        answers = iter(pipeline.execute())
        return [
            _RunningRun(_text(device_class), _text(worker_name), bool(leased))
            for (device_class, worker_name), leased in zip(answers, answers, strict=True)
        ]

    def _by_class(self, running: Iterable[_RunningRun]) -> dict[str, dict[str, int]]:
        """A worker that takes several classes counts in each; one with a run is idle in none."""
        names = sorted(name.decode() for name in self._client.smembers(keys.DEVICE_CLASSES))
        busy = {run.worker_name for run in running}
        of_class = Tally(run.device_class for run in running)
        workers = {name: self._workers(name) for name in names}
        return {
            "waiting": {name: self._client.zcard(keys.ready_key(name)) for name in names},
            "running": {name: of_class[name] for name in names},
            "class_workers": {name: len(found) for name, found in workers.items()},
            "idle_workers": {name: len(found - busy) for name, found in workers.items()},
        }

    def _workers(self, device_class: str) -> set[str]:
        """Names of those heard of within the presence time, by the clock of Redis."""
        seconds, microseconds = self._client.time()
        since = seconds * 1000 + microseconds // 1000 - self._presence_milliseconds
        found = self._client.zrangebyscore(keys.workers_key(device_class), since, "+inf")
        return {name.decode() for name in found}


def _text(value: bytes | None) -> str:
    return (value or b"").decode()


def _families() -> dict[str, GaugeMetricFamily]:
    return {
        "runs": _gauge("runs", "Runs on record by state.", ["state"]),
        "queue_depth": _gauge("queue_depth", "Queue messages that no worker has taken."),
        "workers": _gauge("workers_connected", "Workers heard of within the presence time."),
        "store_up": _gauge("store_up", "1 if Redis answered this scrape, else 0."),
        "without_lease": _gauge("runs_without_lease", "Running runs that no worker holds."),
        "waiting": _gauge("waiting_runs", "Runs that wait for a worker.", _BY_CLASS),
        "running": _gauge("running_runs", "Runs that a worker has.", _BY_CLASS),
        "class_workers": _gauge("workers", "Workers of the class that are there.", _BY_CLASS),
        "idle_workers": _gauge("idle_workers", "Those of them that have no run.", _BY_CLASS),
    }


def _gauge(name: str, text: str, labels: list[str] | None = None) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"elite_trainer_{name}", text, labels=labels)
