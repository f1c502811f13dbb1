"""The one task: run a run."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import cache

import redis
from celery.exceptions import Reject

from services.trainer.worker.metrics import WorkerMetrics
from services.trainer.worker.settings import TrainerWorkerSettings
from services.trainer.worker.supervisor import Verdict, supervise

logger = logging.getLogger("elite.trainer.worker")

_OUTAGE_PAUSE_SECONDS = 1.0


@cache
def worker_metrics() -> WorkerMetrics:
    """The metrics of this process."""
    return WorkerMetrics()


def run_training(run_id: str, settings: TrainerWorkerSettings) -> None:
    """Brings the run forward as far as this worker can.

    Raises celery's `Reject` to put the message back: when the worker shuts down before the run is
    done, and when Redis is away.
    """
    try:
        verdict = asyncio.run(supervise(run_id, settings, worker_metrics()))
    except redis.RedisError as error:
        logger.warning("run waits for redis", extra={"run_id": run_id, "error": str(error)})
        time.sleep(_OUTAGE_PAUSE_SECONDS)
        raise Reject(f"redis is away: {error}", requeue=True) from error
    if verdict is Verdict.REQUEUE:
        raise Reject("handed back unfinished", requeue=True)
