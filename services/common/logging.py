"""Structured logs: one JSON object a line on stderr, with the id of the current request."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

request_id: ContextVar[str] = ContextVar("request_id", default="")

# Attributes of every LogRecord; anything else was passed in `extra` and is logged.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# Deeper than anything that is logged on purpose, and than what contains itself may go.
_DEEPEST = 8
# Who changed what has to be known whatever else is logged.
AUDIT_LOGGER = "elite.audit"


class JsonFormatter(logging.Formatter):
    """Renders a record as JSON: time, level, logger, message, request id and `extra` fields.

    What JSON has no word for (NaN, infinity, objects) is written as text. A field of `extra` never
    takes the place of a standard one.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id.get():
            entry["request_id"] = request_id.get()
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        extra = {name: value for name, value in _extra(record).items() if name not in entry}
        return json.dumps(entry | extra, allow_nan=False)


class TextFormatter(logging.Formatter):
    """Renders a record for people: time, level, logger, message, then `extra` as name=value.

    Values are written as JSON, so that none of them can forge a line.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """The line, without the exception that may follow it."""
        extra = {"request_id": request_id.get()} if request_id.get() else {}
        facts = [f"{name}={json.dumps(value)}" for name, value in (_extra(record) | extra).items()]
        return " ".join([super().formatMessage(record), *facts])


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: _plain(value) for name, value in vars(record).items() if name not in _STANDARD}


def _plain(value: object, depth: int = 0) -> object:
    """`value` as what JSON has words for."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {_text(key): _plain(one, depth + 1) for key, one in value.items()}
    if depth < _DEEPEST and isinstance(value, list | tuple | set | frozenset):
        return [_plain(one, depth + 1) for one in value]
    return _text(value)


def _text(value: object) -> str:
    """Of any object; a line must not get lost because one cannot say what it is."""
    try:
        return str(value)
    except Exception:  # its own __str__, of any library
        return f"<{type(value).__name__} that cannot be written>"


def configure_logging(service: str, level: str, log_format: Literal["json", "text"]) -> None:
    """Sends the root logger to stderr in the given format; replaces earlier handlers.

    The audit log is written whatever the level is.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service) if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger(AUDIT_LOGGER).setLevel(logging.INFO)
