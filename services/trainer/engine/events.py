"""Tells the supervisor what happens: one `RunEvent` as a line of JSON each."""

from __future__ import annotations

import os
from typing import Any

from google.protobuf import json_format

from elite.trainer.v1 import trainer_pb2


class EventWriter:
    """Writes events to a file descriptor of its own, so that no library's output mixes in."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def emit(self, **event: Any) -> None:
        """Writes one event; the keyword names the member of `RunEvent.event`."""
        message = trainer_pb2.RunEvent(**event)
        message.time.GetCurrentTime()
        line = json_format.MessageToJson(message, indent=None).encode() + b"\n"
        while line:
            line = line[os.write(self._descriptor, line) :]

    def phase(self, name: str) -> None:
        """A new phase has begun."""
        self.emit(phase_started=trainer_pb2.PhaseStarted(phase=name))
