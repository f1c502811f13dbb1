"""The life of a run.

    PENDING -> PLANNED -> RUNNING -> SUCCEEDED | FAILED | CANCELLED
                            ^  |
                            |  v           a drained or lost worker, a new plan, or ResumeRun of a
                          RESUMING         paused, failed or cancelled run

PENDING is recorded and not yet queued; PLANNED and RESUMING wait in the queue. Any run that has not
ended may be PAUSED, and then waits for ResumeRun.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from elite.trainer.v1 import trainer_pb2

State = trainer_pb2.RunState

PENDING = trainer_pb2.RUN_STATE_PENDING
PLANNED = trainer_pb2.RUN_STATE_PLANNED
RUNNING = trainer_pb2.RUN_STATE_RUNNING
RESUMING = trainer_pb2.RUN_STATE_RESUMING
SUCCEEDED = trainer_pb2.RUN_STATE_SUCCEEDED
FAILED = trainer_pb2.RUN_STATE_FAILED
CANCELLED = trainer_pb2.RUN_STATE_CANCELLED
PAUSED = trainer_pb2.RUN_STATE_PAUSED

ALL_STATES = (PENDING, PLANNED, RUNNING, RESUMING, PAUSED, SUCCEEDED, FAILED, CANCELLED)
WAITING_STATES = frozenset({PENDING, PLANNED, RESUMING})
TERMINAL_STATES = frozenset({SUCCEEDED, FAILED, CANCELLED})
RESUMABLE_STATES = frozenset({PAUSED, FAILED, CANCELLED})

TRANSITIONS: Mapping[State, frozenset[State]] = {
    PENDING: frozenset({PLANNED, PAUSED, CANCELLED}),
    PLANNED: frozenset({RUNNING, PAUSED, CANCELLED}),
    RUNNING: frozenset({SUCCEEDED, FAILED, CANCELLED, PAUSED, RESUMING}),
    RESUMING: frozenset({RUNNING, FAILED, PAUSED, CANCELLED}),
    PAUSED: frozenset({RESUMING, CANCELLED}),
    SUCCEEDED: frozenset(),
    FAILED: frozenset({RESUMING}),
    CANCELLED: frozenset({RESUMING}),
}

_PREFIX = "RUN_STATE_"


def state_name(state: State) -> str:
    """The state as stored, logged and used as a metric label: "running"."""
    return trainer_pb2.RunState.Name(state).removeprefix(_PREFIX).lower()


def state_of(name: str) -> State:
    """The state of a stored name. Raises `ValueError` for an unknown one."""
    return cast(State, trainer_pb2.RunState.Value(_PREFIX + name.upper()))


def may_become(state: State, target: State) -> bool:
    """Whether the state machine has an edge from `state` to `target`."""
    return target in TRANSITIONS[state]
