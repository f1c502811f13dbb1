"""The Celery application that API and workers share: a queue for each device class, and one task,
whose argument is a run id. The record in Redis is the truth; a message only says "there is
something to do, perhaps for this run"."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from celery import Celery
from kombu import Queue

from services.trainer.jobs.keys import queue_name
from services.trainer.settings import TrainerSettings

TASK_NAME = "elite.trainer.run"

# Longer than any run, so that the broker never hands out a run that is being worked on. A message
# whose worker has died is not waited for: the API's sweep sends a new one (api/sweep.py).
VISIBILITY_TIMEOUT_SECONDS = 365 * 24 * 3600

# Why each of these is set: docs/adr/0008-runs.md.
_CONFIGURATION = {
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "task_ignore_result": True,
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "task_create_missing_queues": True,
    "worker_prefetch_multiplier": 1,
    "worker_concurrency": 1,
    "worker_pool": "prefork",
    # True would end the running task whenever Redis restarts.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_enable_prefetch_count_reduction": False,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "worker_hijack_root_logger": False,
    "worker_send_task_events": False,
    "enable_utc": True,
}


def make_celery(settings: TrainerSettings, device_classes: Sequence[str] = ()) -> Celery:
    """A worker's application, for these device classes. It waits for Redis however long."""
    celery = Celery("elite.trainer", broker=_broker_url(settings.redis_url))
    celery.conf.update(_CONFIGURATION)
    celery.conf.task_queues = [Queue(queue_name(name)) for name in device_classes]
    celery.conf.broker_transport_options = {"visibility_timeout": VISIBILITY_TIMEOUT_SECONDS}
    return celery


class RunQueue:
    """Sends queue messages for the API: one try, with short timeouts."""

    def __init__(self, settings: TrainerSettings) -> None:
        self._celery = make_celery(settings)
        self._celery.conf.broker_transport_options = {
            "visibility_timeout": VISIBILITY_TIMEOUT_SECONDS,
            "socket_timeout": settings.redis_timeout_seconds,
            "socket_connect_timeout": settings.redis_connect_timeout_seconds,
            "max_retries": 0,
        }

    async def send(self, run_id: str, device_class: str) -> None:
        """Queues a run. Raises `kombu.exceptions.OperationalError` when Redis is away."""
        queue = queue_name(device_class)
        await asyncio.to_thread(
            self._celery.send_task, TASK_NAME, args=[run_id], queue=queue, retry=False
        )

    def close(self) -> None:
        """Closes the connections."""
        self._celery.close()


def _broker_url(redis_url: str) -> str:
    """Celery's spelling of a Unix socket differs from redis-py's."""
    if redis_url.startswith("unix://"):
        return "redis+socket://" + redis_url.removeprefix("unix://")
    return redis_url
