"""The outcome store: what runs really took, one JSON object a line.

Several processes may share it: a file lock orders their appends, which are on disk when `append`
returns. Only whole lines are read; one that a crash cut short is skipped.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from services.common.errors import ErrorReason, ServiceError
from services.common.lines import write_line


class OutcomeStore:
    """An append-only file, `outcomes.jsonl` in the state directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "outcomes.jsonl"
        self._lock = threading.Lock()  # over what follows: how much was read, and what it said
        self._version = (0, 0, 0)
        self._read_bytes = 0
        self._outcomes: list[dict[str, Any]] = []

    def append(self, outcome: Mapping[str, Any]) -> int:
        """Writes one outcome and returns how many there are. Blocks until it is on disk.

        Raises `ServiceError` (STORE_UNAVAILABLE) when the file cannot be written.
        """
        line = json.dumps(outcome, sort_keys=True, allow_nan=False)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed; excludes threads, too
                _write(file, line)
                return len(self._read(file))
        except OSError as error:
            reason = error.strerror or str(error)
            raise ServiceError(
                ErrorReason.STORE_UNAVAILABLE,
                f"cannot keep the outcome in ELITE_PLANNER_STATE_DIRECTORY ({reason})",
            ) from error

    def read(self) -> Sequence[Mapping[str, Any]]:
        """All outcomes, oldest first; only what was appended since the last time is parsed.

        Without a file, or with one that cannot be read, there are none.
        """
        try:
            if _version(self._path.stat()) == self._version:
                return self._outcomes
            with self._path.open("rb") as file:
                return self._read(file)
        except OSError:
            return ()

    def _read(self, file: BinaryIO) -> Sequence[Mapping[str, Any]]:
        with self._lock:
            version = _version(os.fstat(file.fileno()))
            inode, size, _ = version
            # Appending makes a file longer; anything else makes it another file.
            if inode != self._version[0] or size <= self._version[1]:
                self._read_bytes, self._outcomes = 0, []
            file.seek(self._read_bytes)
            lines, newline, _ = file.read().rpartition(b"\n")
            self._read_bytes += len(lines + newline)
            self._outcomes = self._outcomes + _parsed(lines)
            self._version = version
            return self._outcomes


def _version(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _write(file: BinaryIO, line: str) -> None:
    write_line(file, line)
    file.flush()
    os.fsync(file.fileno())


def _parsed(lines: bytes) -> list[dict[str, Any]]:
    outcomes = []
    for line in lines.splitlines():
        try:
            outcome = json.loads(line)
        except ValueError:
            continue
        if isinstance(outcome, dict):
            outcomes.append(outcome)
    return outcomes
