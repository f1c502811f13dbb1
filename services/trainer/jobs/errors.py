"""What can be wrong with a run, as callers of the API see it."""

from __future__ import annotations

from services.common.errors import ErrorReason, FieldViolation, ServiceError
from services.trainer.jobs.states import State, state_name


class RunNotFoundError(ServiceError):
    """No run has this id."""

    def __init__(self, run_id: str) -> None:
        violation = FieldViolation("run_id", f"there is no run {run_id!r}", "see ListRuns")
        super().__init__(
            ErrorReason.NOT_FOUND,
            f"{violation.field}: {violation.description}",
            violations=[violation],
            metadata={"run_id": run_id},
        )


class UnreadableRecordError(ServiceError):
    """A run's record is damaged, or has what only a newer version knows."""

    def __init__(self, run_id: str, error: Exception) -> None:
        super().__init__(
            ErrorReason.PRECONDITION_FAILED,
            f"the record of run {run_id} cannot be read by this version of the trainer ({error}): "
            "use the version that wrote it, or put the record back from a backup",
            metadata={"run_id": run_id},
        )


class IllegalTransitionError(ServiceError):
    """The state machine has no such step."""

    def __init__(self, run_id: str, state: State, target: State) -> None:
        now, then = state_name(state), state_name(target)
        super().__init__(
            ErrorReason.PRECONDITION_FAILED,
            f"run {run_id} is {now} and cannot become {then}",
            metadata={"run_id": run_id, "state": now},
        )


class LeasedError(Exception):
    """Another owner holds the run's lease."""

    def __init__(self) -> None:
        super().__init__("another worker has it")


class LeaseLostError(Exception):
    """The run is no longer this owner's."""


class StaleRecordError(Exception):
    """The record has changed since it was read: read it again and decide again."""
