"""Run records in Redis: created once, then moved from state to state.

Every change is decided on a record that was read, and written only if the record has not changed
since (its version tells). Methods raise what redis-py raises when Redis is away.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from google.protobuf.message import DecodeError

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs import keys, scripts
from services.trainer.jobs.errors import (
    IllegalTransitionError,
    LeasedError,
    LeaseLostError,
    RunNotFoundError,
    StaleRecordError,
    UnreadableRecordError,
)
from services.trainer.jobs.records import (
    Field,
    RunRecord,
    new_record_fields,
    record_from_fields,
    running_record_fields,
)
from services.trainer.jobs.states import (
    RUNNING,
    TERMINAL_STATES,
    WAITING_STATES,
    State,
    may_become,
    state_name,
    state_of,
)

logger = logging.getLogger("elite.trainer.jobs")

_HIGHEST_PRIORITY = 9
# In the year 2286.
_LATEST_MILLISECONDS = 10**13


@dataclass(frozen=True)
class Transition:
    """One step of the state machine.

    lease "any": whoever asks; "free": only if nobody holds the run's lease; "mine": only if
    `owner` is still the record's owner. `unsent` says that the run needs a queue message.
    """

    target: State
    detail: str
    changes: Mapping[str, Field] = field(default_factory=dict)
    lease: Literal["any", "free", "mine"] = "any"
    owner: str = ""
    lease_seconds: float = 0.0
    unsent: bool = False


# What to do about a record: a step, or nothing.
Decision = Callable[[RunRecord], Transition | None]


class RunStore:
    """The records, their indexes and leases. One per event loop."""

    def __init__(self, client: Any, event_stream_length: int) -> None:
        self._client = client
        self._stream_length = event_stream_length
        self._create = client.register_script(scripts.CREATE)
        self._transition = client.register_script(scripts.TRANSITION)
        self._request = client.register_script(scripts.REQUEST)
        self._restore = client.register_script(scripts.RESTORE)
        self._release = client.register_script(scripts.RELEASE)

    async def create(self, run: trainer_pb2.Run, fingerprint: str) -> str | None:
        """Records a PENDING run; returns the id of the run its request_id belongs to.

        That is an earlier run when the request_id was used before. None: the run id is taken.
        """
        now = now_milliseconds()
        fields = new_record_fields(run, fingerprint, now)
        owner_of_request = await self._create(
            keys=[
                keys.request_key(run.request_id),
                keys.run_key(run.run_id),
                keys.events_key(run.run_id),
                keys.ALL_RUNS,
                keys.state_key(run.state),
                keys.WAITING,
                keys.UNSENT,
                keys.ready_key(run.device_class),
                keys.DEVICE_CLASSES,
            ],
            args=[
                run.run_id,
                run.request_id,
                now,
                self._stream_length,
                _state_event(run.run_id, now, trainer_pb2.RUN_STATE_UNSPECIFIED, run.state, ""),
                turn(run.spec.priority, now),
                run.device_class,
                *_flat(fields),
            ],
        )
        return owner_of_request.decode() or None

    async def restore(
        self, record: RunRecord, progress: trainer_pb2.RunProgress, lease_seconds: float
    ) -> None:
        """Records a RUNNING run anew that Redis has lost; its owner keeps the lease.

        Its earlier events stay lost. Where there is a record, nothing changes.
        """
        run, state = record.run, record.run.state
        detail = f"on worker {run.worker_name}; recorded again after Redis had lost the run"
        fields = running_record_fields(record, progress) | {"detail": detail}
        await self._restore(
            keys=[
                keys.run_key(run.run_id),
                keys.events_key(run.run_id),
                keys.lease_key(run.run_id),
                keys.request_key(run.request_id),
                keys.ALL_RUNS,
                keys.state_key(state),
                keys.DEVICE_CLASSES,
            ],
            args=[
                run.run_id,
                run.request_id,
                record.owner,
                int(lease_seconds * 1000),
                self._stream_length,
                _state_event(run.run_id, now_milliseconds(), state, state, detail),
                run.device_class,
                *_flat(fields),
            ],
        )

    async def find_request(self, request_id: str) -> RunRecord | None:
        """The run that this request_id has made."""
        run_id = await self._client.get(keys.request_key(request_id))
        return await self.get(run_id.decode()) if run_id else None

    async def get(self, run_id: str) -> RunRecord:
        """Reads one run. Raises `RunNotFoundError` and `UnreadableRecordError`."""
        fields = await self._client.hgetall(keys.run_key(run_id))
        if not fields:
            raise RunNotFoundError(run_id)
        return _read(run_id, fields)

    async def state(self, run_id: str) -> State:
        """Reads the state alone. Raises `RunNotFoundError`."""
        name = await self._client.hget(keys.run_key(run_id), "state")
        if name is None:
            raise RunNotFoundError(run_id)
        return state_of(name.decode())

    async def page(self, before: str, states: Iterable[State], size: int) -> list[RunRecord]:
        """At most `size` runs, newest first, older than the run id `before` ("": the newest)."""
        indexes = [keys.state_key(state) for state in states] or [keys.ALL_RUNS]
        highest = f"({before}" if before else "+"
        pipeline = self._client.pipeline(transaction=False)
        for index in indexes:
            pipeline.zrange(index, highest, "-", bylex=True, desc=True, offset=0, num=size)
        found = {run_id for ids in await pipeline.execute() for run_id in ids}
        return await self.get_many(
            sorted((run_id.decode() for run_id in found), reverse=True)[:size]
        )

    async def get_many(self, run_ids: Sequence[str]) -> list[RunRecord]:
        """Reads several runs in their order; leaves out those that do not exist.

        One that cannot be read stands there without a state, and says why.
        """
        pipeline = self._client.pipeline(transaction=False)
        for run_id in run_ids:
            pipeline.hgetall(keys.run_key(run_id))
        hashes = await pipeline.execute()
        pairs = zip(run_ids, hashes, strict=True)
        return [_readable(run_id, fields) for run_id, fields in pairs if fields]

    async def change(self, run_id: str, decide: Decision) -> RunRecord:
        """Reads a run, asks `decide` for its next step, and takes it; again if others were faster.

        Returns the record as it is then. Raises what `get` and `transition` raise, and whatever
        `decide` raises.
        """
        while True:
            record = await self.get(run_id)
            step = decide(record)
            if step is None:
                return record
            try:
                await self.transition(record, step)
            except StaleRecordError:
                continue
            return await self.get(run_id)

    async def transition(self, record: RunRecord, step: Transition) -> None:
        """Takes one step: state, indexes, lease and event together.

        Raises `IllegalTransitionError`, `StaleRecordError`, `LeasedError` (rule "free") or
        `LeaseLostError` (rule "mine"); then nothing has changed.
        """
        state, run_id = record.run.state, record.run_id
        if not may_become(state, step.target):
            raise IllegalTransitionError(run_id, state, step.target)
        outcome = await self._transition(
            keys=[
                keys.run_key(run_id),
                keys.events_key(run_id),
                keys.lease_key(run_id),
                keys.WAITING,
                keys.UNSENT,
                keys.ready_key(record.run.device_class),
                keys.state_key(state),
                keys.state_key(step.target),
            ],
            args=self._transition_arguments(record, step),
        )
        _raise_unless_done(outcome)

    def _transition_arguments(self, record: RunRecord, step: Transition) -> list[Field]:
        now = now_milliseconds()
        fields: dict[str, Field] = {"state": state_name(step.target), "detail": step.detail}
        if step.target in TERMINAL_STATES:
            fields["finished_at"] = now
        fields.update(step.changes)
        lease_milliseconds = int(step.lease_seconds * 1000) if step.target == RUNNING else 0
        return [
            record.run_id,
            record.version,
            now,
            self._stream_length,
            _state_event(record.run_id, now, record.run.state, step.target, step.detail),
            step.lease,
            step.owner,
            lease_milliseconds,
            int(step.target in WAITING_STATES),
            int(step.unsent),
            turn(record.run.spec.priority, record.run.created_at.ToMilliseconds()),
            *_flat(fields),
        ]

    async def request(
        self, record: RunRecord, flag: Literal["cancel_requested", "pause_requested"], detail: str
    ) -> None:
        """Sets the flag its worker polls. Raises `StaleRecordError`."""
        arguments = [record.version, flag, detail]
        _raise_unless_done(await self._request(keys=[keys.run_key(record.run_id)], args=arguments))

    async def next_ready(self, device_classes: Sequence[str], without: Collection[str] = ()) -> str:
        """The waiting run whose turn it is among those of the classes, `without` some; "": none."""
        pipeline = self._client.pipeline(transaction=False)
        for name in device_classes:
            pipeline.zrange(keys.ready_key(name), 0, len(without), withscores=True)
        first = [
            (turn, run_id.decode()) for found in await pipeline.execute() for run_id, turn in found
        ]
        return min((one for one in first if one[1] not in without), default=(0, ""))[1]

    async def mark_sent(self, run_id: str) -> None:
        """Notes that the run has its queue message."""
        await self._client.zrem(keys.UNSENT, run_id)

    async def lease_owner(self, run_id: str) -> str:
        """Who holds the run's lease; "" when nobody does."""
        owner = await self._client.get(keys.lease_key(run_id))
        return owner.decode() if owner else ""

    async def release(self, run_id: str, dead_owner: str) -> None:
        """Ends the lease if this owner, known to be dead, still holds it."""
        await self._release(keys=[keys.lease_key(run_id)], args=[dead_owner])


def turn(priority: int, created_milliseconds: int) -> int:
    """Whoever has the lowest is next: the highest priority, then the oldest. Exact in a double."""
    return (_HIGHEST_PRIORITY - priority) * _LATEST_MILLISECONDS + created_milliseconds


def now_milliseconds() -> int:
    """Wall clock, in the resolution of the records."""
    return time.time_ns() // 1_000_000


def _read(run_id: str, fields: Mapping[bytes, bytes]) -> RunRecord:
    try:
        return record_from_fields(run_id, fields)
    except (ValueError, DecodeError) as error:
        raise UnreadableRecordError(run_id, error) from error


def _readable(run_id: str, fields: Mapping[bytes, bytes]) -> RunRecord:
    """The record, or one that says what is wrong with it."""
    try:
        return _read(run_id, fields)
    except UnreadableRecordError as error:
        logger.warning("record left out", extra={"run_id": run_id, "reason": str(error)})
        return RunRecord(trainer_pb2.Run(run_id=run_id, status_detail=str(error)), 0, "", 0, "")


def _raise_unless_done(outcome: bytes) -> None:
    match outcome:
        case b"done":
            return
        case b"leased":
            raise LeasedError
        case b"lost":
            raise LeaseLostError
        case _:
            raise StaleRecordError


def _state_event(run_id: str, now: int, old: State, new: State, detail: str) -> bytes:
    event = trainer_pb2.RunEvent(run_id=run_id)
    event.time.FromMilliseconds(now)
    changed = event.state_changed
    # `from` is a Python keyword.
    setattr(changed, "from", old)
    changed.to, changed.detail = new, detail
    return event.SerializeToString()


def _flat(fields: Mapping[str, Field]) -> list[Field]:
    return [part for pair in fields.items() for part in pair]
