"""Gauges of the fleet, read from Redis when Prometheus asks."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import redis
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.trainer.jobs.connection import blocking_client
from services.trainer.jobs.fleet import FleetReporter
from services.trainer.jobs.states import state_name
from services.trainer.settings import TrainerSettings

logger = logging.getLogger("elite.trainer.metrics")


class FleetCollector(Collector):
    """`elite_trainer_runs{state}`, `elite_trainer_queue_depth`, `elite_trainer_workers_connected`
    and `elite_trainer_store_up`. While Redis is away only the last one has a value: 0."""

    def __init__(self, settings: TrainerSettings) -> None:
        self._fleet = FleetReporter(blocking_client(settings), settings)

    def describe(self) -> list[Metric]:
        """The metrics without values, so that registering needs no Redis."""
        return list(_families().values())

    def collect(self) -> Iterator[Metric]:
        """One look at Redis."""
        families = _families()
        try:
            counts = self._fleet.counts()
        except redis.RedisError as error:
            logger.warning("no fleet metrics", extra={"error": str(error)})
            families["store_up"].add_metric([], 0)
        else:
            families["store_up"].add_metric([], 1)
            families["queue_depth"].add_metric([], counts.queue_depth)
            families["workers"].add_metric([], counts.connected_workers)
            for state, count in counts.runs_by_state.items():
                families["runs"].add_metric([state_name(state)], count)
        yield from families.values()


def _families() -> dict[str, GaugeMetricFamily]:
    return {
        "runs": GaugeMetricFamily(
            "elite_trainer_runs", "Runs on record by state.", labels=["state"]
        ),
        "queue_depth": GaugeMetricFamily(
            "elite_trainer_queue_depth", "Queue messages that no worker has taken."
        ),
        "workers": GaugeMetricFamily(
            "elite_trainer_workers_connected", "Workers heard of within the presence time."
        ),
        "store_up": GaugeMetricFamily(
            "elite_trainer_store_up", "1 if Redis answered this scrape, else 0."
        ),
    }
