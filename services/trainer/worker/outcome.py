"""What the end of an engine means for its run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from elite.trainer.v1 import trainer_pb2

# sysexits.h: "temporary failure, try again"; the engine checkpointed and stopped on SIGTERM.
EXIT_DRAINED = 75

# The program broke; nobody ended it.
_CRASHES = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS}
)
_TAIL_BYTES = 16_384
_TAIL_LINES = 40


class StopReason(Enum):
    """Why the supervisor asked the engine to stop; later members outweigh earlier ones."""

    NONE = 0
    DRAIN = 1
    PAUSE = 2
    DEADLINE = 3
    STALL = 4
    CANCEL = 5
    LEASE_LOST = 6


@dataclass(frozen=True)
class EngineEnd:
    """How an engine ended."""

    exit_status: int  # negative: the signal
    failure: trainer_pb2.EngineFailed | None
    adapter_path: str
    memory_kills: int  # how often the kernel ended a process of this cgroup for its memory
    log_tail: str


def failure_of(end: EngineEnd) -> trainer_pb2.RunError | None:
    """The error of a run whose engine ended so; None when it succeeded.

    The engine's own word counts most; then the exit status.
    """
    if end.failure is not None:
        cause, message = end.failure.cause, end.failure.message
    elif end.exit_status == 0 and end.adapter_path:
        return None
    elif end.exit_status == 0:
        cause = trainer_pb2.FAILURE_CAUSE_INTERNAL
        message = "the engine ended without saving an adapter"
    elif end.exit_status > 0:
        cause = trainer_pb2.FAILURE_CAUSE_INTERNAL
        message = f"the engine exited with status {end.exit_status} and gave no reason"
    else:
        cause, message = _killed(signal.Signals(-end.exit_status), end.memory_kills)
    return trainer_pb2.RunError(cause=cause, message=message, stderr_tail=end.log_tail)


def _killed(number: signal.Signals, memory_kills: int) -> tuple[trainer_pb2.FailureCause, str]:
    if number in _CRASHES:
        return trainer_pb2.FAILURE_CAUSE_INTERNAL, f"the engine crashed with {number.name}"
    if number == signal.SIGKILL and memory_kills:
        return (
            trainer_pb2.FAILURE_CAUSE_HOST_OUT_OF_MEMORY,
            "the kernel killed the engine because the worker's control group ran out of memory: "
            "give the worker more, or plan with constraints.host_memory_bytes",
        )
    return (
        trainer_pb2.FAILURE_CAUSE_KILLED,
        f"the engine was killed with {number.name} from outside; ResumeRun goes on from its last "
        "checkpoint",
    )


def log_tail(path: Path, offset: int) -> str:
    """The last lines of an engine's log, of what was written after `offset` bytes."""
    try:
        with path.open("rb") as log:
            size = log.seek(0, 2)
            log.seek(max(offset, size - _TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-_TAIL_LINES:])


def memory_kill_count(root: Path = Path("/")) -> int:
    """How often the kernel has killed in this process's cgroups (versions 1 and 2); 0: unknown.

    https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
    """
    return sum(_counter(path) for path in set(_counter_files(root)))


def _counter_files(root: Path) -> Iterator[Path]:
    mount = root / "sys/fs/cgroup"
    # In a container the process's own path is often the host's, and its group is the mount.
    yield mount / "memory.events"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        below = path.lstrip("/")
        if not controllers:
            yield mount / below / "memory.events"
        elif "memory" in controllers.split(","):
            yield mount / "memory" / below / "memory.oom_control"
            yield mount / "memory" / "memory.oom_control"


def _counter(path: Path) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
