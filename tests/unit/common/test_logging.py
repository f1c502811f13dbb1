"""One JSON object a line."""

from __future__ import annotations

import io
import json
import logging
import math
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest

from services.common.logging import AUDIT_LOGGER, JsonFormatter, configure_logging, request_id


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def logger(stream: io.StringIO) -> logging.Logger:
    """A logger of this test's own that writes JSON into `stream`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("planner"))
    logger = logging.Logger("elite.test", logging.DEBUG)
    logger.addHandler(handler)
    return logger


def written(stream: io.StringIO) -> dict[str, Any]:
    """The one line that was written."""
    (line,) = stream.getvalue().splitlines()
    entry: dict[str, Any] = json.loads(line)
    return entry


def test_the_standard_fields(logger: logging.Logger, stream: io.StringIO) -> None:
    logger.warning("%d of %d", 1, 2)
    entry = written(stream)
    age = datetime.now(UTC) - datetime.fromisoformat(entry.pop("time"))
    assert 0 <= age.total_seconds() < 60
    assert entry == {
        "level": "WARNING",
        "service": "planner",
        "logger": "elite.test",
        "message": "1 of 2",
    }


def test_extra_fields_of_any_type(logger: logging.Logger, stream: io.StringIO) -> None:
    logger.info("x", extra={"seconds": 0.5, "tiers": [1, 2], "path": Path("/tmp/a"), "none": None})
    entry = written(stream)
    assert entry["seconds"] == 0.5
    assert entry["tiers"] == [1, 2]
    assert entry["path"] == "/tmp/a"
    assert entry["none"] is None


class Mute:
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_what_json_has_no_word_for_is_written_as_text(
    logger: logging.Logger, stream: io.StringIO
) -> None:
    itself: dict[Any, Any] = {}
    itself["again"] = itself
    extra = {"loss": math.nan, "rates": [math.inf, -math.inf], "pairs": {(3, 4): {5}}}
    logger.info("x", extra=extra | {"mute": Mute(), "itself": itself, "at": datetime.now(UTC)})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line, parse_constant=refuse)
    assert entry["loss"] == "nan"
    assert entry["rates"] == ["inf", "-inf"]
    assert entry["pairs"] == {"(3, 4)": [5]}
    assert entry["mute"] == "<Mute that cannot be written>"
    assert entry["message"] == "x"


def test_a_field_does_not_take_the_place_of_a_standard_one(
    logger: logging.Logger, stream: io.StringIO
) -> None:
    logger.info("x", extra={"level": "DEBUG", "service": "another", "time": "never"})
    entry = written(stream)
    assert (entry["level"], entry["service"]) == ("INFO", "planner")
    assert entry["time"] != "never"


def test_an_exception_stays_on_the_line(logger: logging.Logger, stream: io.StringIO) -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        logger.exception("it failed")
    entry = written(stream)
    assert entry["level"] == "ERROR"
    assert entry["exception"].startswith("Traceback")
    assert entry["exception"].endswith("ValueError: first\nsecond")


def test_a_message_cannot_forge_a_line(logger: logging.Logger, stream: io.StringIO) -> None:
    logger.info('a"\n{"level": "ERROR"}')
    assert written(stream)["message"] == 'a"\n{"level": "ERROR"}'


def test_request_id_only_during_a_request(logger: logging.Logger, stream: io.StringIO) -> None:
    logger.info("outside")
    token = request_id.set("abc-123")
    logger.info("inside")
    request_id.reset(token)
    outside, inside = (json.loads(line) for line in stream.getvalue().splitlines())
    assert "request_id" not in outside
    assert inside["request_id"] == "abc-123"


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    root.handlers = []  # configure_logging closes the handlers it replaces
    yield root
    root.handlers, root.level = handlers, level


def test_configure_logging_json_with_a_level(
    root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, stream: io.StringIO
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging("profiler", "DEBUG", "json")
    configure_logging("profiler", "WARNING", "json")  # replaces: still one line per record
    root_logger.info("below the level")
    root_logger.warning("shown")
    entry = written(stream)
    assert (entry["service"], entry["message"]) == ("profiler", "shown")


def test_configure_logging_text(
    root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, stream: io.StringIO
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging("profiler", "INFO", "text")
    root_logger.info("hello")
    assert stream.getvalue().endswith(" INFO root: hello\n")
    root_logger.info("change", extra={"client": "alice", "reason": "a\nb"})
    assert stream.getvalue().endswith(' INFO root: change client="alice" reason="a\\nb"\n')


@pytest.mark.usefixtures("root_logger")
@pytest.mark.parametrize("log_format", ["json", "text"])
def test_the_audit_log_is_written_whatever_the_level_is(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, log_format: Literal["json", "text"]
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging("trainer-api", "ERROR", log_format)
    logging.getLogger("elite.rpc").warning("not this")
    logging.getLogger(AUDIT_LOGGER).info("change", extra={"client": "alice"})
    (line,) = stream.getvalue().splitlines()
    assert "change" in line
    assert "alice" in line
