"""Supervises the engine of one run from start to end.

Before it starts, the plan is compared with what this machine has free now. Then three things go on
at once: the engine's events are read and relayed; the lease is renewed, and whatever should end the
attempt is looked for; the engine's exit is awaited. What the end means for the run: decision.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from enum import Enum
from typing import Any

import redis
from google.protobuf import json_format

from elite.trainer.v1 import trainer_pb2
from services.common.tracing import span
from services.trainer.jobs.cancellation import raise_if_cancelled
from services.trainer.jobs.connection import async_client, is_unavailable
from services.trainer.jobs.errors import LeaseLostError, RunNotFoundError
from services.trainer.jobs.lease import LeaseStatus, RunLease
from services.trainer.jobs.records import RunRecord
from services.trainer.jobs.states import RESUMING, RUNNING, TERMINAL_STATES, state_name
from services.trainer.jobs.store import RunStore, Transition
from services.trainer.worker.decision import Decision
from services.trainer.worker.drain import is_draining
from services.trainer.worker.engine_process import EngineProcess
from services.trainer.worker.event_relay import EventRelay
from services.trainer.worker.identity import lease_owner
from services.trainer.worker.metrics import WorkerMetrics
from services.trainer.worker.outcome import EngineEnd, StopReason, log_tail, memory_kill_count
from services.trainer.worker.progress import ProgressTracker
from services.trainer.worker.run_directory import RunDirectory
from services.trainer.worker.settings import TrainerWorkerSettings
from services.trainer.worker.take_up import take_up
from services.trainer.worker.watchdog import Watchdog

logger = logging.getLogger("elite.trainer.worker")

_RETRY_SECONDS = 0.5
# The engine and its group are dead by then; what they wrote is in the pipe.
_LAST_EVENTS_SECONDS = 5.0


class Verdict(Enum):
    """What becomes of the queue message."""

    DONE = "done"
    REQUEUE = "requeue"


async def supervise(
    run_id: str, settings: TrainerWorkerSettings, metrics: WorkerMetrics
) -> Verdict:
    """Takes the run up, if it is to be taken up, and brings this attempt to its end.

    Raises redis-py's errors when Redis is away at the start, or too long at the end.
    """
    if is_draining():
        return Verdict.REQUEUE
    client = async_client(settings.trainer)
    try:
        store = RunStore(client, settings.trainer.event_stream_length)
        record = await take_up(store, run_id, settings)
        if record is None:
            metrics.delivery_ignored()
            return Verdict.DONE
        run = record.run
        facts = {"run_id": run.run_id, "attempt": run.attempt_count}
        with span("attempt", run.traceparent, kind="CONSUMER", **facts):
            return await Attempt(record, settings, client, store, metrics).run()
    finally:
        await client.aclose()


class Attempt:
    """One engine's life on one run."""

    def __init__(
        self,
        record: RunRecord,
        settings: TrainerWorkerSettings,
        client: Any,
        store: RunStore,
        metrics: WorkerMetrics,
    ) -> None:
        shared = settings.trainer
        self._record = record
        self._run_id = record.run_id
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._owner = lease_owner()
        self._lease = RunLease(
            client, self._run_id, self._owner, shared.lease_seconds, shared.event_stream_length
        )
        self._relay = EventRelay(self._lease, settings.buffered_events)
        self._tracker = ProgressTracker(record.run, metrics)
        self._directory = RunDirectory(shared.runs_directory, self._run_id)
        self._watchdog = Watchdog(record.run, settings.stall_seconds)
        self._decision = Decision(
            record.run, self._owner, settings, self._tracker, self._relay, self._watchdog
        )
        self._engine: EngineProcess | None = None
        self._stop_reason = StopReason.NONE
        self._kill_at = float("inf")

    async def run(self) -> Verdict:
        """Runs the engine and records how it ended."""
        logger.info("run taken up", extra={"run_id": self._run_id})
        self._metrics.run_started(self._record.run)
        ended: Transition | None = None
        helpers = [asyncio.create_task(self._relay.run()), asyncio.create_task(self._keep())]
        try:
            ended = await self._run_to_end()
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            is_end = ended is not None and ended.target in TERMINAL_STATES
            self._metrics.run_left(ended.target if ended is not None and is_end else None)
        if ended is None:
            return Verdict.DONE
        if ended.target in TERMINAL_STATES:
            await self._decision.report()
        return Verdict.REQUEUE if ended.target == RESUMING else Verdict.DONE

    async def _run_to_end(self) -> Transition | None:
        """Returns the step taken; None when the run was lost to another worker."""
        try:
            step = await self._decision.before()
            if step is None:
                end = await self._run_engine()
                step = await self._decision.after(end, self._stop_reason)
        except Exception as error:
            logger.exception("supervision failed", extra={"run_id": self._run_id})
            step = self._decision.broken(error)
        if self._stop_reason == StopReason.LEASE_LOST:
            return None
        return await self._record_end(step)

    async def _run_engine(self) -> EngineEnd:
        log_offset = await asyncio.to_thread(self._directory.prepare, self._record.run)
        memory_kills = memory_kill_count()
        command = [*self._settings.engine_command, *self._directory.engine_arguments()]
        engine = EngineProcess.start(command, self._directory.log_path)
        self._engine = engine
        pump = asyncio.create_task(self._pump(engine))
        exited = asyncio.create_task(engine.exited())
        try:
            await asyncio.wait({exited, pump}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                # A pump that breaks ends the attempt: nobody would read what the engine writes.
                pump.result()
            await exited
            engine.kill()
            await asyncio.wait({pump}, timeout=_LAST_EVENTS_SECONDS)
        finally:
            self._engine = None
            pump.cancel()
            exit_status = await engine.close()
        return EngineEnd(
            exit_status=exit_status,
            failure=self._tracker.failure,
            adapter_path=self._tracker.adapter_path,
            memory_kills=memory_kill_count() - memory_kills,
            log_tail=log_tail(self._directory.log_path, log_offset),
        )

    async def _pump(self, engine: EngineProcess) -> None:
        """Reads events, updates progress and metrics, and hands them to the relay."""
        async for line in engine.lines():
            event = trainer_pb2.RunEvent()
            try:
                json_format.Parse(line, event, ignore_unknown_fields=True)
            except (json_format.ParseError, UnicodeDecodeError):
                logger.warning("no event", extra={"run_id": self._run_id, "line": repr(line[:200])})
                continue
            event.run_id = self._run_id
            if not event.HasField("time"):
                event.time.GetCurrentTime()
            self._watchdog.heard()
            self._tracker.observe(event)
            self._relay.add(event, self._tracker.progress)

    async def _keep(self) -> None:
        """Renews the lease and passes on wishes to stop, until cancelled."""
        while True:
            raise_if_cancelled()
            if is_draining():
                self._ask_to_stop(StopReason.DRAIN, self._settings.drain_grace_seconds)
            try:
                status = await self._lease.renew()
                if status == LeaseStatus.GONE:
                    status = await self._record_again()
            except redis.RedisError as error:
                logger.warning("lease not renewed", extra={"error": str(error)})
            else:
                self._act_on(status)
            self._watch()
            if time.monotonic() > self._kill_at and self._engine is not None:
                logger.warning("engine did not stop in time", extra={"run_id": self._run_id})
                self._engine.kill()
                self._kill_at = float("inf")
            await asyncio.sleep(self._settings.poll_seconds)

    async def _record_again(self) -> LeaseStatus:
        """Records the run that Redis has lost, if nobody has had its folder since."""
        if not await asyncio.to_thread(self._directory.is_of, self._record.run):
            return LeaseStatus.LOST
        logger.warning("redis has lost the run; recording it again", extra={"run_id": self._run_id})
        lease_seconds = self._settings.trainer.lease_seconds
        await self._store.restore(self._record, self._tracker.progress, lease_seconds)
        return LeaseStatus.HELD

    def _watch(self) -> None:
        """Ends an engine that is over its time, or hangs; that one says where first."""
        if self._watchdog.is_over:
            self._ask_to_stop(StopReason.DEADLINE, self._settings.drain_grace_seconds)
        elif self._watchdog.hangs and self._engine is not None:
            if self._stop_reason.value < StopReason.STALL.value:
                self._engine.dump_stacks()
            self._ask_to_stop(StopReason.STALL, self._settings.cancel_grace_seconds)

    def _act_on(self, status: LeaseStatus) -> None:
        if status == LeaseStatus.CANCEL_REQUESTED:
            self._ask_to_stop(StopReason.CANCEL, self._settings.cancel_grace_seconds)
        elif status == LeaseStatus.PAUSE_REQUESTED:
            self._ask_to_stop(StopReason.PAUSE, self._settings.drain_grace_seconds)
        elif status == LeaseStatus.LOST:
            self._ask_to_stop(StopReason.LEASE_LOST, 0)

    def _ask_to_stop(self, reason: StopReason, grace_seconds: float) -> None:
        """Asks once per reason; a weightier reason may shorten the grace."""
        if self._engine is None or reason.value <= self._stop_reason.value:
            return
        logger.info("stopping engine", extra={"run_id": self._run_id, "reason": reason.name})
        self._metrics.engine_stopped(reason)
        self._stop_reason = reason
        self._kill_at = min(self._kill_at, time.monotonic() + grace_seconds)
        self._engine.ask_to_stop()

    async def _record_end(self, step: Transition) -> Transition | None:
        """Stores the last events and the new state; waits out an outage of Redis.

        Returns the step taken, which somebody's wish may have changed; None when the run is
        another's by now. Raises redis-py's error when the outage lasts.
        """
        taken = step

        def decide(record: RunRecord) -> Transition | None:
            """The step as it is wished by now; None when the run is gone."""
            nonlocal taken
            taken = self._decision.as_wished(record.run, step)
            return self._unless_gone(record, taken)

        give_up_at = time.monotonic() + self._settings.store_outage_seconds
        while True:
            try:
                await self._store_end(decide)
            except LeaseLostError:
                logger.warning("run was lost to another worker", extra={"run_id": self._run_id})
                return None
            except redis.RedisError as error:
                if not is_unavailable(error) or time.monotonic() > give_up_at:
                    raise
                logger.warning("run's end waits for redis", extra={"error": str(error)})
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                state = state_name(taken.target)
                logger.info("run left", extra={"run_id": self._run_id, "state": state})
                return taken

    async def _store_end(self, decide: Callable[[RunRecord], Transition | None]) -> None:
        """Sends what waits and takes the step; of a run that Redis has lost, when it is back."""
        try:
            await self._relay.flush()
            await self._store.change(self._run_id, decide)
        except RunNotFoundError:
            if await self._record_again() == LeaseStatus.LOST:
                raise LeaseLostError from None
            await self._store_end(decide)

    def _unless_gone(self, record: RunRecord, step: Transition) -> Transition | None:
        """The step; nothing if an earlier try has taken it; `LeaseLostError` if others did."""
        is_ours = record.owner == self._owner
        if is_ours and record.run.state == step.target:
            return None
        if not is_ours or record.run.state != RUNNING:
            raise LeaseLostError
        return step
