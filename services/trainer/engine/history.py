"""What the engine has told of a run's steps, kept with the run.

A supervisor may be gone, or asleep, while its engine trains on and saves; the attempt that goes on
from that checkpoint tells again what nobody has heard.
"""

from __future__ import annotations

import json
from pathlib import Path

from google.protobuf import json_format

from elite.trainer.v1 import trainer_pb2
from services.common.lines import write_line

_KEPT = ("step_completed", "evaluated")


class History:
    """Steps and evaluations of one run, a line each, in `history.jsonl`."""

    def __init__(self, run_directory: Path) -> None:
        self._path = run_directory / "history.jsonl"

    def add(self, event: trainer_pb2.RunEvent) -> None:
        """Keeps an event, if it is of a kind that is told again. Raises `OSError`."""
        if event.WhichOneof("event") in _KEPT:
            line = json.dumps(json_format.MessageToDict(event), separators=(",", ":"))
            with self._path.open("a+b") as file:
                write_line(file, line)

    def between(self, told_steps: int, saved_step: int) -> list[trainer_pb2.RunEvent]:
        """Events of the steps after those told, up to the one that was saved; each once.

        When no step has been told, what was measured before the first one comes too.
        """
        found: dict[tuple[str, int], trainer_pb2.RunEvent] = {}
        for event in self._read():
            kind = str(event.WhichOneof("event"))
            step = int(getattr(event, kind).step)
            is_first = kind == "evaluated" and step == 0 and told_steps == 0
            if is_first or (kind == "step_completed" and told_steps < step <= saved_step):
                found[(kind, step)] = event
        return sorted(found.values(), key=lambda event: event.time.ToNanoseconds())

    def _read(self) -> list[trainer_pb2.RunEvent]:
        """Of all whole lines: one may have been cut off."""
        try:
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        events = []
        for line in lines:
            try:
                event = json_format.Parse(line, trainer_pb2.RunEvent())
            except json_format.ParseError:
                continue
            if event.WhichOneof("event") in _KEPT:
                events.append(event)
        return events
