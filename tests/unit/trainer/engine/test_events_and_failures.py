"""The event stream and the causes of failures."""

from __future__ import annotations

import errno
import os
import signal

import pytest
import torch
from google.protobuf import json_format
from safetensors import SafetensorError

from elite.trainer.v1 import trainer_pb2
from services.common.errors import invalid_field
from services.trainer.engine.events import EventEmitter
from services.trainer.engine.failures import BAD_DATA, EngineError, StopRequested, describe
from services.trainer.engine.stop_signal import StopSignal
from services.trainer.jobs.corpus import CorpusError


def test_an_event_is_one_line_of_protobuf_json() -> None:
    reader, writer = os.pipe()
    step = trainer_pb2.StepCompleted(step=3, loss=float("nan"), measured_peak_bytes=2**40)
    emitter = EventEmitter(writer)
    emitter.emit(step_completed=step)
    emitter.phase("train")
    lines = os.read(reader, 65536).decode().splitlines()
    events = [json_format.Parse(line, trainer_pb2.RunEvent()) for line in lines]
    assert [event.WhichOneof("event") for event in events] == ["step_completed", "phase_started"]
    assert events[0].step_completed.measured_peak_bytes == 2**40
    assert events[0].time.seconds > 0


def test_a_closed_descriptor_is_refused_at_once() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with pytest.raises(OSError, match="Bad file descriptor"):
        EventEmitter(writer)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "DEVICE_OUT_OF_MEMORY"),
        (MemoryError(), "HOST_OUT_OF_MEMORY"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: ..."), "HOST_OUT_OF_MEMORY"),
        (OSError(errno.ENOSPC, "No space left on device"), "DISK_FULL"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "DISK_FULL"),
        (SafetensorError("I/O error: Disk quota exceeded (os error 122)"), "DISK_FULL"),
        (SafetensorError("I/O error: File too large (os error 27)"), "DISK_FULL"),
        (OSError(errno.EFBIG, "File too large"), "DISK_FULL"),
        (CorpusError("/x does not exist", "give a folder"), "BAD_DATA"),
        (EngineError(BAD_DATA, "too short", "more files"), "BAD_DATA"),
        (invalid_field("plan", "is missing"), "INTERNAL"),
        (KeyError("surprise"), "INTERNAL"),
    ],
)
def test_every_failure_has_its_cause(error: Exception, cause: str) -> None:
    event = describe(error)
    assert trainer_pb2.FailureCause.Name(event.cause) == f"FAILURE_CAUSE_{cause}"
    assert event.message


def test_an_unexpected_error_is_told_with_its_type() -> None:
    assert describe(KeyError("surprise")).message == "KeyError: 'surprise'"


def test_a_real_refused_allocation_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    event = describe(raised.value)
    assert event.cause == trainer_pb2.FAILURE_CAUSE_HOST_OUT_OF_MEMORY


def test_a_signal_stops_at_once_or_is_noted() -> None:
    stop = StopSignal()
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stop.install()
    try:
        with stop.deferred():
            signal.raise_signal(signal.SIGTERM)
            assert stop.requested
        with pytest.raises(StopRequested):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
