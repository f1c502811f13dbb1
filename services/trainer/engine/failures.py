"""What can go wrong in a run, and the cause its user is told."""

from __future__ import annotations

import errno

import torch

from elite.trainer.v1 import trainer_pb2


class RunFailure(Exception):
    """A failure with a cause from `FailureCause` and a message that names the fix."""

    def __init__(self, cause: trainer_pb2.FailureCause, message: str) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message


def bad_data(message: str) -> RunFailure:
    """The corpus cannot serve this run."""
    return RunFailure(trainer_pb2.FAILURE_CAUSE_BAD_DATA, message)


def bad_model(message: str) -> RunFailure:
    """The model cannot serve this run."""
    return RunFailure(trainer_pb2.FAILURE_CAUSE_BAD_MODEL, message)


def classify(error: BaseException) -> RunFailure:
    """The failure an exception stands for; one that is not known is a bug of ours."""
    if isinstance(error, RunFailure):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return RunFailure(trainer_pb2.FAILURE_CAUSE_DEVICE_OUT_OF_MEMORY, str(error))
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        message = "the host ran out of memory; choose a lower tier or free memory"
        return RunFailure(trainer_pb2.FAILURE_CAUSE_HOST_OUT_OF_MEMORY, message)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = f"the disk is full ({error.filename or 'run directory'}); free space and resume"
        return RunFailure(trainer_pb2.FAILURE_CAUSE_DISK_FULL, message)
    message = f"{type(error).__name__}: {error}"
    return RunFailure(trainer_pb2.FAILURE_CAUSE_INTERNAL, message)
