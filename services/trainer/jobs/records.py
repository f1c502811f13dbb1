"""A run as Redis keeps it: one hash, readable with `redis-cli hgetall`, protos where it nests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs.states import state_name, state_of

Field = str | bytes | int


@dataclass(frozen=True)
class RunRecord:
    """A run and what only the trainer itself needs to know about it.

    version grows with every change of state; owner is the last one to have taken the run up;
    delivery_count counts the attempts since the run last saved what it had.
    """

    run: trainer_pb2.Run
    version: int
    owner: str
    delivery_count: int
    fingerprint: str

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return self.run.run_id


def new_record_fields(
    run: trainer_pb2.Run, fingerprint: str, created_milliseconds: int
) -> dict[str, Field]:
    """The hash of a run that has just been created."""
    return {
        "version": 1,
        "state": state_name(run.state),
        "request_id": run.request_id,
        "spec": run.spec.SerializeToString(),
        "fingerprint": fingerprint,
        "created_at": created_milliseconds,
        "progress": run.progress.SerializeToString(),
        "detail": run.status_detail,
        "device_class": run.device_class,
        "submitted_by": run.submitted_by,
        "traceparent": run.traceparent,
    }


def running_record_fields(record: RunRecord, progress: trainer_pb2.RunProgress) -> dict[str, Field]:
    """The hash of a RUNNING run that is recorded again as its worker knows it."""
    run = record.run
    return {
        **new_record_fields(run, record.fingerprint, run.created_at.ToMilliseconds()),
        "version": record.version + 1,
        "owner": record.owner,
        "worker_name": run.worker_name,
        "attempt_count": run.attempt_count,
        "delivery_count": record.delivery_count,
        "replan_count": run.replan_count,
        "started_at": run.started_at.ToMilliseconds(),
        "progress": progress.SerializeToString(),
    }


def record_from_fields(run_id: str, fields: Mapping[bytes, bytes]) -> RunRecord:
    """Reads a hash back. Raises `ValueError` or `DecodeError` when it is damaged."""
    run = trainer_pb2.Run(
        run_id=run_id,
        request_id=_text(fields, b"request_id"),
        state=state_of(_text(fields, b"state")),
        adapter_path=_text(fields, b"adapter_path"),
        attempt_count=_number(fields, b"attempt_count"),
        worker_name=_text(fields, b"worker_name"),
        cancel_requested=_text(fields, b"cancel_requested") == "1",
        pause_requested=_text(fields, b"pause_requested") == "1",
        replan_count=_number(fields, b"replan_count"),
        device_class=_text(fields, b"device_class"),
        submitted_by=_text(fields, b"submitted_by"),
        traceparent=_text(fields, b"traceparent"),
        status_detail=_text(fields, b"detail"),
    )
    parts: dict[bytes, Message] = {b"spec": run.spec, b"progress": run.progress}
    if fields.get(b"error"):
        parts[b"error"] = run.error
    for name, part in parts.items():
        part.MergeFromString(fields.get(name, b""))
    times = {b"created_at": run.created_at, b"started_at": run.started_at}
    times[b"finished_at"] = run.finished_at
    for name, moment in times.items():
        _set_time(moment, _number(fields, name))
    return RunRecord(
        run=run,
        version=_number(fields, b"version"),
        owner=_text(fields, b"owner"),
        delivery_count=_number(fields, b"delivery_count"),
        fingerprint=_text(fields, b"fingerprint"),
    )


def _set_time(moment: Timestamp, milliseconds: int) -> None:
    if milliseconds:
        moment.FromMilliseconds(milliseconds)


def _text(fields: Mapping[bytes, bytes], name: bytes) -> str:
    return fields.get(name, b"").decode()


def _number(fields: Mapping[bytes, bytes], name: bytes) -> int:
    return int(fields.get(name) or 0)
