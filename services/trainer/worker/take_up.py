"""Decides which run a queue message makes this worker take up, and takes the run's lease.

There is a message for every run that waits, and any of them stands for the run whose turn it is: so
a run of a higher priority overtakes, and messages of runs that were cancelled do no harm.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs.errors import (
    LeasedError,
    RunNotFoundError,
    StaleRecordError,
    UnreadableRecordError,
)
from services.trainer.jobs.records import Field, RunRecord
from services.trainer.jobs.states import (
    CANCELLED,
    FAILED,
    PAUSED,
    PENDING,
    PLANNED,
    RESUMING,
    RUNNING,
    WAITING_STATES,
    state_name,
)
from services.trainer.jobs.store import RunStore, Transition, now_milliseconds
from services.trainer.worker.identity import is_dead_sibling, lease_owner, worker_name
from services.trainer.worker.outcome import log_tail
from services.trainer.worker.run_directory import RunDirectory
from services.trainer.worker.settings import TrainerWorkerSettings

logger = logging.getLogger("elite.trainer.worker")


class _NotForUsError(Exception):
    """There is nothing to do for this message; the text says why."""


async def take_up(
    store: RunStore, run_id: str, settings: TrainerWorkerSettings
) -> RunRecord | None:
    """Makes a run RUNNING under a lease of this process; None when there is nothing to do.

    That is the message's own run if its worker has died, else the one whose turn it is. Nothing is
    to do when no run waits, or when it was taken up too often, which makes it FAILED here.
    """
    left_alone: set[str] = set()
    while (wanted := await _whose_turn(store, run_id, settings, left_alone)) not in left_alone:
        try:
            return await _walk_to_running(store, wanted, settings)
        except StaleRecordError:
            continue
        except (RunNotFoundError, LeasedError, UnreadableRecordError, _NotForUsError) as error:
            logger.info("leaving run alone", extra={"run_id": wanted, "reason": str(error)})
            left_alone.add(wanted)
    return None


async def _whose_turn(
    store: RunStore, run_id: str, settings: TrainerWorkerSettings, left_alone: Collection[str]
) -> str:
    try:
        record = await store.get(run_id)
    except (RunNotFoundError, UnreadableRecordError):
        pass
    else:
        holder = await store.lease_owner(run_id)
        is_lost = not holder or holder == lease_owner() or is_dead_sibling(holder)
        if record.run.state == RUNNING and is_lost and run_id not in left_alone:
            return run_id
    return await store.next_ready(settings.device_classes, left_alone) or run_id


async def _walk_to_running(
    store: RunStore, run_id: str, settings: TrainerWorkerSettings
) -> RunRecord:
    while True:
        record = await store.get(run_id)
        if record.run.state not in WAITING_STATES | {RUNNING}:
            raise _NotForUsError(f"it is {state_name(record.run.state)}")
        await _free_lease(store, run_id)
        step = _next_step(record, settings)
        await store.transition(record, step)
        if step.target == RUNNING:
            return await store.get(run_id)


async def _free_lease(store: RunStore, run_id: str) -> None:
    """Ends the lease of a dead process of this worker. Raises `LeasedError` if others hold it."""
    holder = await store.lease_owner(run_id)
    # Its own: this process has come back from an attempt that ended in an unexpected error.
    if holder == lease_owner() or is_dead_sibling(holder):
        await store.release(run_id, holder)
    elif holder:
        raise LeasedError


def _next_step(record: RunRecord, settings: TrainerWorkerSettings) -> Transition:
    """One step towards RUNNING, or to an end."""
    run = record.run
    too_often = record.delivery_count >= settings.maximum_deliveries
    if run.state == PENDING:
        # The API has sent the message and not yet noted it.
        return Transition(PLANNED, "", lease="free")
    if run.state == RUNNING:
        lost = f"worker {run.worker_name} was lost"
        if run.cancel_requested:
            return Transition(CANCELLED, f"cancelled; {lost}", lease="free")
        if run.pause_requested:
            return Transition(PAUSED, f"paused; {lost}", {"pause_requested": "0"}, lease="free")
        if too_often:
            return _give_up(record, settings, lost)
        return Transition(RESUMING, lost, lease="free")
    if too_often:
        return _give_up(record, settings, run.status_detail)
    return _start(record, settings)


def _start(record: RunRecord, settings: TrainerWorkerSettings) -> Transition:
    owner, name = lease_owner(), worker_name()
    directory = RunDirectory(settings.trainer.runs_directory, record.run_id)
    changes: dict[str, Field] = {
        "owner": owner,
        "worker_name": name,
        "attempt_count": directory.next_attempt(record.run),
        "delivery_count": record.delivery_count + 1,
        "event_sequence": 0,
    }
    if not record.run.HasField("started_at"):
        changes["started_at"] = now_milliseconds()
    return Transition(
        RUNNING,
        f"on worker {name}",
        changes,
        lease="free",
        owner=owner,
        lease_seconds=settings.trainer.lease_seconds,
    )


def _give_up(record: RunRecord, settings: TrainerWorkerSettings, last: str) -> Transition:
    directory = RunDirectory(settings.trainer.runs_directory, record.run_id)
    times = f"taken up {record.delivery_count} times"
    message = f"{times} without saving anything new or coming to an end; last: {last}"
    error = trainer_pb2.RunError(
        cause=record.run.error.cause or trainer_pb2.FAILURE_CAUSE_KILLED,
        message=message,
        stderr_tail=log_tail(directory.log_path, 0),
    )
    logger.error("giving up run", extra={"run_id": record.run_id, "reason": message})
    return Transition(FAILED, message, {"error": error.SerializeToString()}, lease="free")
