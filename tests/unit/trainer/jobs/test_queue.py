"""The Celery configuration the design rests on."""

from __future__ import annotations

import pytest

from services.trainer.jobs.queue import make_celery
from services.trainer.settings import TrainerSettings


def test_messages_are_kept_until_the_run_is_done_and_never_unpickled() -> None:
    configuration = make_celery(TrainerSettings(), ["cpu", "nvidia-l4"]).conf
    assert configuration.task_acks_late
    assert configuration.task_reject_on_worker_lost
    assert configuration.worker_prefetch_multiplier == 1
    assert configuration.accept_content == ["json"]
    assert configuration.task_serializer == "json"
    assert configuration.task_ignore_result
    assert not configuration.worker_cancel_long_running_tasks_on_connection_loss
    assert configuration.broker_connection_retry_on_startup
    assert configuration.broker_connection_max_retries is None
    consumed = [queue.name for queue in configuration.task_queues]
    assert consumed == ["elite.trainer.runs.cpu", "elite.trainer.runs.nvidia-l4"]
    assert configuration.broker_transport_options["visibility_timeout"] > 30 * 24 * 3600


@pytest.mark.parametrize(
    ("redis_url", "broker_url"),
    [
        ("redis://localhost:6379/1", "redis://localhost:6379/1"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock"),
    ],
)
def test_broker_is_the_same_redis(redis_url: str, broker_url: str) -> None:
    assert make_celery(TrainerSettings(redis_url=redis_url)).conf.broker_url == broker_url
