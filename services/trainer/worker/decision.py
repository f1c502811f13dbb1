"""What becomes of a run: before its engine starts, and after it has ended."""

from __future__ import annotations

import asyncio
import errno
import logging
from dataclasses import replace

import grpc

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs.records import Field
from services.trainer.jobs.states import (
    CANCELLED,
    FAILED,
    PAUSED,
    RESUMING,
    SUCCEEDED,
    TERMINAL_STATES,
    State,
)
from services.trainer.jobs.store import Transition
from services.trainer.worker.event_relay import EventRelay
from services.trainer.worker.outcome import EXIT_DRAINED, EngineEnd, StopReason, failure_of
from services.trainer.worker.outcome_report import report_outcome
from services.trainer.worker.path_checks import path_error
from services.trainer.worker.progress import ProgressTracker
from services.trainer.worker.replanning import OUT_OF_MEMORY, NewPlan, NoPlanError, Replanner
from services.trainer.worker.settings import TrainerWorkerSettings
from services.trainer.worker.watchdog import Watchdog

logger = logging.getLogger("elite.trainer.worker")


class Decision:
    """The next step of one run after one attempt. Owner: of the run's lease."""

    def __init__(
        self,
        run: trainer_pb2.Run,
        owner: str,
        settings: TrainerWorkerSettings,
        tracker: ProgressTracker,
        relay: EventRelay,
        watchdog: Watchdog,
    ) -> None:
        self._run, self._owner, self._settings = run, owner, settings
        self._tracker, self._relay, self._watchdog = tracker, relay, watchdog
        self._replanner = Replanner(settings.planner_address, settings.profiler_address)
        self._is_reported = False

    async def before(self) -> Transition | None:
        """What there is to do instead of starting the engine; None when it may start.

        It may not when the run is over its time, when this machine has not the memory or the disk
        that the plan takes (then there is another plan, or the run fails), or when the run names
        folders that it may not read.
        """
        if self._watchdog.is_over:
            return self._failed(self._deadline_error())
        step = await self._fitted_to_this_machine()
        if step is not None:
            return step
        # Last: what is between this look and the engine's is as short as can be.
        error = await asyncio.to_thread(path_error, self._run.spec, self._settings.trainer)
        return self._failed(error) if error else None

    async def _fitted_to_this_machine(self) -> Transition | None:
        """Another plan, or failure, where the present one takes more than there is."""
        try:
            new = await self._replanner.for_this_machine(self._run)
        except NoPlanError as error:
            return self._failed(trainer_pb2.RunError(cause=error.cause, message=str(error)))
        except grpc.RpcError as error:
            # The engine looks at the memory too, if only once it loads the model.
            extra = {"run_id": self._run.run_id, "error": str(error)}
            logger.warning("plan not compared with this machine", extra=extra)
            return None
        if new is None:
            return None
        if self._may_replan():
            return self._replanned(new)
        lack = new.event.replanned
        message = self._without_replans(lack.detail)
        return self._failed(trainer_pb2.RunError(cause=lack.cause, message=message))

    async def after(self, end: EngineEnd, reason: StopReason) -> Transition:
        """The step that follows from how the engine ended, and from why it was asked to."""
        error = failure_of(end)
        if error is None:
            changes: dict[str, Field] = {"adapter_path": end.adapter_path}
            return self._step(SUCCEEDED, f"adapter saved in {end.adapter_path}", changes)
        if reason == StopReason.CANCEL:
            return self._step(CANCELLED, "cancelled", {})
        if reason == StopReason.DEADLINE:
            return self._failed(self._deadline_error())
        if reason == StopReason.STALL:
            return self._try_again(self._stall_error(end))
        if self._has_stopped(end, error, reason):
            return self._stopped(reason)
        if error.cause in OUT_OF_MEMORY and self._replanner.can(self._run):
            return await self._more_frugal(error)
        if error.cause == trainer_pb2.FAILURE_CAUSE_KILLED:
            return self._try_again(error)
        return self._failed(error)

    @staticmethod
    def _has_stopped(end: EngineEnd, error: trainer_pb2.RunError, reason: StopReason) -> bool:
        if end.failure is None and end.exit_status == EXIT_DRAINED:
            return True
        if reason == StopReason.NONE:
            return False
        # A signal that arrives amid an import can make the import fail, with any error that
        # transformers makes of it. A bug of the run's own comes again when the run goes on.
        is_confused = error.cause == trainer_pb2.FAILURE_CAUSE_INTERNAL
        return is_confused or (end.failure is None and end.exit_status < 0)

    @staticmethod
    def as_wished(run: trainer_pb2.Run, step: Transition) -> Transition:
        """The step, or what was asked for by the moment it is taken; run: as recorded then.

        A wish may come while the engine stops for another reason. An end stands; of the rest,
        cancel goes before pause, and pause before going on.
        """
        if step.target in TERMINAL_STATES:
            return step
        if run.cancel_requested:
            return replace(step, target=CANCELLED, detail="cancelled")
        if run.pause_requested:
            changes = {**step.changes, "pause_requested": "0"}
            return replace(step, target=PAUSED, detail="paused", changes=changes)
        return step

    def broken(self, error: Exception) -> Transition:
        """The run fails: its folder could not be written, the engine not started, or a bug."""
        cause = trainer_pb2.FAILURE_CAUSE_INTERNAL
        message = f"the worker failed ({error!r}); its log has the details"
        if isinstance(error, OSError):
            message = f"the engine could not be started: {error}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                cause = trainer_pb2.FAILURE_CAUSE_DISK_FULL
        return self._failed(trainer_pb2.RunError(cause=cause, message=message))

    def _stopped(self, reason: StopReason) -> Transition:
        """After an engine that saved what it had. An orderly stop does not count as a delivery."""
        name = self._run.worker_name
        if reason == StopReason.PAUSE:
            return self._step(PAUSED, "paused", {"pause_requested": "0", "delivery_count": 0})
        if reason == StopReason.DRAIN:
            return self._step(RESUMING, f"worker {name} shut down", {"delivery_count": 0})
        detail = f"the engine was asked to stop on {name}, not by its worker"
        return self._step(RESUMING, detail, {})

    def _try_again(self, error: trainer_pb2.RunError) -> Transition:
        """From the last checkpoint, as long as `maximum_deliveries` lets it; the error is kept."""
        return self._step(RESUMING, error.message, {"error": error.SerializeToString()})

    async def _more_frugal(self, error: trainer_pb2.RunError) -> Transition:
        """A smaller plan for a run that ran out of memory; failure when there is none."""
        if not self._may_replan():
            error.message = self._without_replans(error.message)
            return self._failed(error)
        # What the planner learns from it goes into the new plan.
        await self.report()
        try:
            return self._replanned(await self._replanner.more_frugal(self._run, error.cause))
        except (NoPlanError, grpc.RpcError) as problem:
            error.message = f"{error.message}; {problem}"
            return self._failed(error)

    async def report(self) -> None:
        """Tells the planner what this attempt really took, once however often it is called."""
        if not self._is_reported:
            self._is_reported = True
            await report_outcome(self._settings.planner_address, self._run, self._tracker)

    def _without_replans(self, problem: str) -> str:
        return f"{problem}; planned again {self._run.replan_count} times already"

    def _may_replan(self) -> bool:
        return self._run.replan_count < self._settings.maximum_replans

    def _replanned(self, new: NewPlan) -> Transition:
        """The run goes on under the new plan, which does not count as a delivery."""
        new.event.run_id = self._run.run_id
        self._tracker.observe(new.event)
        self._relay.add(new.event, self._tracker.progress)
        spec = trainer_pb2.RunSpec()
        spec.CopyFrom(self._run.spec)
        spec.plan.CopyFrom(new.plan)
        changes: dict[str, Field] = {
            "spec": spec.SerializeToString(),
            "replan_count": self._run.replan_count + 1,
            "delivery_count": 0,
        }
        return self._step(RESUMING, f"planned again: {new.event.replanned.detail}", changes)

    def _deadline_error(self) -> trainer_pb2.RunError:
        limit = self._run.spec.max_run_seconds
        return trainer_pb2.RunError(
            cause=trainer_pb2.FAILURE_CAUSE_DEADLINE_EXCEEDED,
            message=f"spec.max_run_seconds ({limit:,}) have passed; ResumeRun gives it as many "
            "again, from its last checkpoint",
        )

    def _stall_error(self, end: EngineEnd) -> trainer_pb2.RunError:
        silence = self._watchdog.longest_silence_seconds
        return trainer_pb2.RunError(
            cause=trainer_pb2.FAILURE_CAUSE_STALLED,
            message=f"the engine said nothing for {silence:,.0f} seconds; its log has the stacks",
            stderr_tail=end.log_tail,
        )

    def _failed(self, error: trainer_pb2.RunError) -> Transition:
        return self._step(FAILED, error.message, {"error": error.SerializeToString()})

    def _step(self, target: State, detail: str, changes: dict[str, Field]) -> Transition:
        return Transition(target, detail, changes, lease="mine", owner=self._owner)
