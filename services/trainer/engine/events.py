"""Writes what happens in a run: one `RunEvent` as compact JSON a line."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from google.protobuf import json_format

from elite.trainer.v1 import trainer_pb2
from services.trainer.engine.history import History

STANDARD_OUTPUT = 1
STANDARD_ERROR = 2


class EventEmitter:
    """Owns the event stream. Lines are written whole and at once."""

    def __init__(self, file_descriptor: int) -> None:
        """Takes the stream over for itself.

        Libraries print to standard output when they please; with the events on that descriptor,
        everything else printed there goes to standard error instead.

        Raises `OSError` when the descriptor is not open.
        """
        self._history: History | None = None
        self._file_descriptor = os.dup(file_descriptor)
        if file_descriptor == STANDARD_OUTPUT:
            sys.stdout.flush()
            os.dup2(STANDARD_ERROR, STANDARD_OUTPUT)

    def emit(self, **event: Any) -> None:
        """Writes one event, as in `emit(phase_started=PhaseStarted(phase="train"))`.

        Raises `BrokenPipeError` when nobody reads any more.
        """
        message = trainer_pb2.RunEvent(**event)
        message.time.GetCurrentTime()
        if self._history:
            self._history.add(message)
        self.tell(message)

    def keep(self, history: History) -> None:
        """From now on events are kept there, before they are told."""
        self._history = history

    def tell(self, message: trainer_pb2.RunEvent) -> None:
        """Writes an event that was kept. Raises `BrokenPipeError`."""
        fields = json_format.MessageToDict(message)
        line = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
        while line:
            line = line[os.write(self._file_descriptor, line) :]

    def phase(self, name: str) -> None:
        """Announces a phase: prepare_data, load_model, evaluate, train or save."""
        self.emit(phase_started=trainer_pb2.PhaseStarted(phase=name))
