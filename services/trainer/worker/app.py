"""The worker's Celery application.

`celery -A services.trainer.worker.app worker -P prefork -c 1`: one worker per set of devices. The
main process talks to the broker; its one pool child runs a run at a time and supervises the
engine, a process of its own. Neither imports torch.
"""

from __future__ import annotations

import logging
import signal
from typing import Any

from celery import signals

from services.common.logging import configure_logging
from services.common.metrics import serve_metrics
from services.common.settings import read_settings
from services.common.tracing import configure_tracing, stop_tracing
from services.trainer.jobs.queue import TASK_NAME, make_celery
from services.trainer.worker.drain import begin_draining
from services.trainer.worker.identity import set_worker_name
from services.trainer.worker.presence import Presence
from services.trainer.worker.settings import TrainerWorkerSettings
from services.trainer.worker.tasks import run_training, worker_metrics
from services.trainer.worker.tidying import Housekeeper

logger = logging.getLogger("elite.trainer.worker")

settings = read_settings(TrainerWorkerSettings, "worker")
app = make_celery(settings.trainer, settings.device_classes)

_threads: list[Presence | Housekeeper] = []


def _run(run_id: str) -> None:
    # SIGTERM to a whole process group or cgroup reaches the pool child as well: it drains too.
    # Set here, because billiard resets signals after worker_process_init.
    earlier = signal.signal(signal.SIGTERM, lambda *_: begin_draining())
    try:
        run_training(run_id, settings)
    finally:
        signal.signal(signal.SIGTERM, earlier)


# The task's argument is the run id; everything else is in the record.
app.task(name=TASK_NAME)(_run)


def _set_up_logging(**_: Any) -> None:
    configure_logging("trainer-worker", settings.log_level, settings.log_format)
    # It reports a message that was put back with a traceback; we log what became of the run.
    logging.getLogger("celery.app.trace").setLevel(logging.ERROR)


def _main_process_ready(sender: Any, **_: Any) -> None:
    for thread in (Presence(settings, str(sender.hostname)), Housekeeper(settings.trainer)):
        _threads.append(thread)
        thread.start()


def _main_process_named(sender: Any, **_: Any) -> None:
    set_worker_name(str(sender))


def _main_process_shutting_down(**_: Any) -> None:
    begin_draining()
    for thread in _threads:
        thread.stop()


def _pool_child_started(**_: Any) -> None:
    configure_tracing("trainer-worker")
    worker_metrics()
    try:
        serve_metrics(settings.metrics_address)
    except OSError as error:
        extra = {"address": settings.metrics_address, "error": str(error)}
        logger.error("no metrics: is -c larger than 1, or the port taken?", extra=extra)


def _pool_child_stops(**_: Any) -> None:
    stop_tracing()


signals.setup_logging.connect(_set_up_logging, weak=False)
signals.celeryd_init.connect(_main_process_named, weak=False)
signals.worker_ready.connect(_main_process_ready, weak=False)
signals.worker_shutting_down.connect(_main_process_shutting_down, weak=False)
signals.worker_process_init.connect(_pool_child_started, weak=False)
signals.worker_process_shutdown.connect(_pool_child_stops, weak=False)
