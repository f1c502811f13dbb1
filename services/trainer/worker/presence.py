"""Heartbeats of a worker's main process: how the API knows that there is somebody to run things."""

from __future__ import annotations

import logging
import threading

import redis

from services.trainer.jobs.connection import blocking_client
from services.trainer.jobs.fleet import FleetReporter
from services.trainer.worker.settings import TrainerWorkerSettings

logger = logging.getLogger("elite.trainer.worker")


class Presence:
    """A thread that notes in Redis, every few seconds, that this worker is there."""

    def __init__(self, settings: TrainerWorkerSettings, worker_name: str) -> None:
        self._fleet = FleetReporter(blocking_client(settings.trainer), settings.trainer)
        self._pause_seconds = settings.heartbeat_seconds
        self._worker_name, self._device_classes = worker_name, settings.device_classes
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        """Starts the heartbeats."""
        self._thread.start()

    def stop(self) -> None:
        """Ends them and says good-bye, without waiting: a signal handler may call this."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._tell(self._fleet.heartbeat)
            self._stopping.wait(self._pause_seconds)
        self._tell(self._fleet.leave)

    def _tell(self, what: object) -> None:
        assert callable(what)
        try:
            what(self._worker_name, self._device_classes)
        except redis.RedisError as error:
            logger.warning("no heartbeat", extra={"error": str(error)})
