"""The outcome store: what runs really took, one JSON object a line.

Appends are atomic for readers of whole lines and on disk when `append` returns. A line that was cut
short by a crash is skipped when counting.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.common.errors import ErrorReason, ServiceError


class OutcomeStore:
    """An append-only file, `outcomes.jsonl` in the state directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "outcomes.jsonl"
        self._lock = threading.Lock()
        self._count: int | None = None
        self._version = (0, 0, 0)
        self._outcomes: list[dict[str, Any]] = []

    def append(self, outcome: Mapping[str, Any]) -> int:
        """Writes one outcome and returns how many there are. Blocks until it is on disk.

        Raises `ServiceError` (STORE_UNAVAILABLE) when the file cannot be written.
        """
        line = json.dumps(outcome, sort_keys=True, allow_nan=False) + "\n"
        with self._lock:
            try:
                count = self._counted()
                self._write(line)
            except OSError as error:
                reason = error.strerror or str(error)
                raise ServiceError(
                    ErrorReason.STORE_UNAVAILABLE,
                    f"cannot keep the outcome in ELITE_PLANNER_STATE_DIRECTORY ({reason})",
                ) from error
            self._count = count + 1
            return self._count

    def read(self) -> Sequence[Mapping[str, Any]]:
        """All outcomes, oldest first; parsed again only when the file has changed."""
        with self._lock:
            try:
                found = self._path.stat()
            except OSError:
                return ()
            version = (found.st_ino, found.st_size, found.st_mtime_ns)
            if version != self._version:
                lines = self._path.read_text(encoding="utf-8").splitlines()
                self._outcomes = [json.loads(line) for line in lines if _is_outcome(line)]
                self._version = version
            return self._outcomes

    def _counted(self) -> int:
        if self._count is None:
            text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
            self._count = sum(_is_outcome(line) for line in text.splitlines())
        return self._count

    def _write(self, line: str) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            if not _ends_with_newline(file):
                line = "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())


def _ends_with_newline(file: Any) -> bool:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def _is_outcome(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
