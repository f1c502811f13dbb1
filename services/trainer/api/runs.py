"""What the trainer's API does, free of gRPC: record, queue, watch, cancel, resume."""

from __future__ import annotations

import asyncio
import logging

from kombu.exceptions import OperationalError

from elite.trainer.v1 import trainer_pb2
from services.common.access import current_client, require_owner
from services.common.errors import ErrorReason, FieldViolation, ServiceError, invalid_fields
from services.common.tracing import current_traceparent
from services.trainer.api.convert import fingerprint
from services.trainer.api.data_checks import check_data
from services.trainer.api.model_checks import check_model_path
from services.trainer.api.plan_checks import check_plan
from services.trainer.jobs.device_classes import device_class_of
from services.trainer.jobs.errors import StaleRecordError
from services.trainer.jobs.fleet import Fleet
from services.trainer.jobs.identifiers import new_run_id
from services.trainer.jobs.queue import RunQueue
from services.trainer.jobs.records import Field, RunRecord
from services.trainer.jobs.states import (
    CANCELLED,
    PAUSED,
    PENDING,
    PLANNED,
    RESUMABLE_STATES,
    RESUMING,
    RUNNING,
    TERMINAL_STATES,
    WAITING_STATES,
    State,
    state_name,
)
from services.trainer.jobs.store import RunStore, Transition
from services.trainer.settings import TrainerSettings

logger = logging.getLogger("elite.trainer.api")

_FORGET_THE_END: dict[str, Field] = {
    "error": b"",
    "finished_at": 0,
    "started_at": 0,
    "cancel_requested": "0",
    "pause_requested": "0",
    "delivery_count": 0,
}


class Runs:
    """The runs of one store. Methods raise `ServiceError`, and redis-py's errors as they are."""

    def __init__(
        self, settings: TrainerSettings, store: RunStore, queue: RunQueue, fleet: Fleet
    ) -> None:
        self._settings = settings
        self._store = store
        self._queue = queue
        self._fleet = fleet

    async def create(self, request: trainer_pb2.CreateRunRequest) -> trainer_pb2.Run:
        """Checks, records and queues a run; the same request_id gives the same run.

        Raises `ServiceError`: INVALID_REQUEST for what can be known to be wrong now, CONFLICT for
        a request_id that was used for something else. Then nothing has been recorded.
        """
        asked = fingerprint(request.spec)
        if request.request_id:
            earlier = await self._store.find_request(request.request_id)
            if earlier is not None:
                return await self._repeated(earlier, asked)
        await asyncio.to_thread(self._check, request.spec)
        run_id = await self._record(request, asked)
        record = await self._store.get(run_id)
        if record.fingerprint != asked:
            raise _conflict(record)
        if record.run.state == PENDING:
            record = await self.enqueue(record.run_id)
        return await self._explained(record)

    async def get(self, run_id: str) -> trainer_pb2.Run:
        """Reads one run."""
        return await self._explained(await self._store.get(run_id))

    async def page(self, before: str, states: list[State], size: int) -> list[trainer_pb2.Run]:
        """Runs older than the id `before`, newest first."""
        runs = [record.run for record in await self._store.page(before, states, size)]
        await self._fleet.explain_waiting(runs)
        return runs

    async def cancel(self, run_id: str) -> trainer_pb2.Run:
        """Ends a run that no worker has, asks the worker of a running one, leaves an ended one."""

        def decide(record: RunRecord) -> Transition | None:
            """Cancelled at once where no worker has it."""
            _require_owner(record.run)
            if record.run.state not in WAITING_STATES | {PAUSED}:
                return None
            return Transition(CANCELLED, "cancelled while no worker had it")

        while True:
            record = await self._store.change(run_id, decide)
            if record.run.state != RUNNING or record.run.cancel_requested:
                return record.run
            detail = "cancel requested: the worker is ending it"
            try:
                await self._store.request(record, "cancel_requested", detail)
            except StaleRecordError:
                continue

    async def pause(self, run_id: str) -> trainer_pb2.Run:
        """Pauses a waiting run at once, asks the worker of a running one, leaves a paused one.

        Raises PRECONDITION_FAILED for a run that has ended.
        """

        def decide(record: RunRecord) -> Transition | None:
            """Paused at once where no worker has it."""
            _require_owner(record.run)
            if record.run.state in TERMINAL_STATES:
                raise _wrong_state(record.run, "one that has not ended can be paused")
            if record.run.state not in WAITING_STATES:
                return None
            return Transition(PAUSED, "paused before a worker took it")

        while True:
            record = await self._store.change(run_id, decide)
            if record.run.state != RUNNING or record.run.pause_requested:
                return record.run
            detail = "pause requested: the worker is saving it"
            try:
                await self._store.request(record, "pause_requested", detail)
            except StaleRecordError:
                continue

    async def resume(self, run_id: str) -> trainer_pb2.Run:
        """Queues a paused, failed or cancelled run again. Raises PRECONDITION_FAILED for others."""

        def decide(record: RunRecord) -> Transition:
            """Queued again, with its end forgotten."""
            _require_owner(record.run)
            if record.run.state not in RESUMABLE_STATES:
                problem = "only a paused, failed or cancelled one can be resumed"
                raise _wrong_state(record.run, problem)
            return Transition(RESUMING, "", changes=_FORGET_THE_END, unsent=True)

        await self._store.change(run_id, decide)
        return await self._explained(await self.enqueue(run_id))

    async def enqueue(self, run_id: str) -> RunRecord:
        """Sends the run's queue message; a PENDING run is PLANNED then.

        When the queue does not answer the run stays as it is and the sweep tries again: a run is
        recorded before it is queued, so it cannot be lost, and a second message does no harm.
        """
        record = await self._store.get(run_id)
        try:
            await self._queue.send(run_id, record.run.device_class)
        except OperationalError as error:
            logger.warning("cannot queue run", extra={"run_id": run_id, "error": str(error)})
            return record
        await self._store.mark_sent(run_id)
        return await self._store.change(
            run_id, lambda record: Transition(PLANNED, "") if record.run.state == PENDING else None
        )

    def _check(self, spec: trainer_pb2.RunSpec) -> None:
        check_plan(spec)
        if spec.model_path:
            check_model_path(spec.model_path, spec.plan.model, self._settings.model_roots)
        check_data(spec, self._settings.data_roots)

    async def _record(self, request: trainer_pb2.CreateRunRequest, asked: str) -> str:
        run = trainer_pb2.Run(request_id=request.request_id, state=PENDING, spec=request.spec)
        run.device_class = device_class_of(request.spec.plan)
        run.submitted_by = current_client.get().name
        run.traceparent = current_traceparent()
        run.progress.total_steps = request.spec.training.steps
        run.progress.predicted_peak_bytes = request.spec.plan.gpu_memory.total_bytes
        while True:
            run.run_id = new_run_id()
            run_id = await self._store.create(run, asked)
            if run_id is not None:
                return run_id

    async def _repeated(self, earlier: RunRecord, asked: str) -> trainer_pb2.Run:
        if earlier.fingerprint != asked:
            raise _conflict(earlier)
        return await self._explained(earlier)

    async def _explained(self, record: RunRecord) -> trainer_pb2.Run:
        await self._fleet.explain_waiting([record.run])
        return record.run


def _require_owner(run: trainer_pb2.Run) -> None:
    require_owner(run.submitted_by, f"run {run.run_id}")


def _conflict(earlier: RunRecord) -> ServiceError:
    problem = f"was already used for run {earlier.run_id}, which is a different one"
    violation = FieldViolation("request_id", problem, "use a new request_id for a new run")
    return invalid_fields([violation], reason=ErrorReason.CONFLICT)


def _wrong_state(run: trainer_pb2.Run, rule: str) -> ServiceError:
    state = state_name(run.state)
    return ServiceError(
        ErrorReason.PRECONDITION_FAILED,
        f"run_id: run {run.run_id} is {state}; {rule}",
        metadata={"run_id": run.run_id, "state": state},
    )
