"""Where text goes: answers to stdout, progress and notes to stderr."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console

_PIPE_COLUMNS = 200


def print_json(message: Message) -> None:
    """The message as protobuf JSON, indented: camelCase names, empty fields included."""
    print(_to_json(message, indent=2))


def print_json_line(message: Message) -> None:
    """The same on one line, for streams."""
    print(_to_json(message, indent=None), flush=True)


def _to_json(message: Message, indent: int | None) -> str:
    from google.protobuf.json_format import MessageToJson

    return MessageToJson(message, always_print_fields_with_no_presence=True, indent=indent)


def output_console() -> Console:
    """Where tables and answers go. In a pipe lines are long, so that paths stay whole."""
    from rich.console import Console

    in_pipe = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(highlight=False, width=_PIPE_COLUMNS if in_pipe else None)


def error_console() -> Console:
    """Where progress bars go."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def note(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)
