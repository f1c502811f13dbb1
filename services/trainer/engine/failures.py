"""What can end a run, and how the engine names it."""

from __future__ import annotations

import errno

from elite.trainer.v1 import trainer_pb2
from services.common.errors import ServiceError
from services.trainer.jobs.corpus import CorpusError
from services.trainer.jobs.fence import SupersededError

BAD_DATA = trainer_pb2.FAILURE_CAUSE_BAD_DATA
BAD_MODEL = trainer_pb2.FAILURE_CAUSE_BAD_MODEL
DISK_CORRUPT = trainer_pb2.FAILURE_CAUSE_DISK_CORRUPT
DISK_FULL = trainer_pb2.FAILURE_CAUSE_DISK_FULL
HOST_OUT_OF_MEMORY = trainer_pb2.FAILURE_CAUSE_HOST_OUT_OF_MEMORY
DIVERGED = trainer_pb2.FAILURE_CAUSE_DIVERGED
INTERNAL = trainer_pb2.FAILURE_CAUSE_INTERNAL

# Exit statuses. The last is sysexits.h's TEMPFAIL: "run me again, I shall go on".
EXIT_SUCCESS = 0
EXIT_FAILURE = 1
EXIT_STOPPED = 75

# Rust and C++ raise types of their own; only the text tells.
_DISK_FULL_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: a limit on files' size
_DISK_FULL_TEXTS = (
    "No space left on device", *(f"(os error {number})" for number in _DISK_FULL_NUMBERS)
)  # fmt: skip
_HOST_MEMORY_TEXTS = ("DefaultCPUAllocator: can't allocate memory", "Cannot allocate memory")


class EngineError(Exception):
    """A failure with a known cause. The message says what happened and what to do."""

    def __init__(self, cause: trainer_pb2.FailureCause, problem: str, fix: str = "") -> None:
        super().__init__(f"{problem}: {fix}" if fix else problem)
        self.cause = cause


class StopRequested(BaseException):
    """SIGTERM or SIGINT arrived, and nothing has to be finished first."""


def describe(error: BaseException) -> trainer_pb2.EngineFailed:
    """The event that tells of `error`: its cause, and a message for people."""
    if isinstance(error, EngineError):
        return trainer_pb2.EngineFailed(cause=error.cause, message=str(error))
    if isinstance(error, CorpusError):
        return trainer_pb2.EngineFailed(cause=BAD_DATA, message=f"data.path: {error}")
    if isinstance(error, SupersededError):
        cause = trainer_pb2.FAILURE_CAUSE_SUPERSEDED
        return trainer_pb2.EngineFailed(cause=cause, message=str(error))
    if isinstance(error, ServiceError):
        return trainer_pb2.EngineFailed(cause=INTERNAL, message=error.message)
    message = f"{type(error).__name__}: {error}"
    return trainer_pb2.EngineFailed(cause=_cause_of(error), message=message)


def _cause_of(error: BaseException) -> trainer_pb2.FailureCause:
    text = str(error)
    # torch.OutOfMemoryError, recognised by name: this module must load without torch.
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return trainer_pb2.FAILURE_CAUSE_DEVICE_OUT_OF_MEMORY
    if isinstance(error, MemoryError) or any(part in text for part in _HOST_MEMORY_TEXTS):
        return HOST_OUT_OF_MEMORY
    is_disk_errno = isinstance(error, OSError) and error.errno in _DISK_FULL_NUMBERS
    if is_disk_errno or any(part in text for part in _DISK_FULL_TEXTS):
        return DISK_FULL
    return INTERNAL
