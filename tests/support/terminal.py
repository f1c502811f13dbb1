"""What a command prints, as a terminal of some width or a pipe gets it."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console


def text_of(render: Callable[[Console], None], width: int) -> str:
    """What goes to a pipe; no line is wider than `width` and none has colours."""
    file = io.StringIO()
    render(Console(file=file, width=width))
    text = file.getvalue()
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    return text


def plain_text_of(render: Callable[[Console], None], width: int) -> str:
    """What a terminal gets that knows ASCII only. Raises `UnicodeEncodeError` for anything else."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", errors="strict", write_through=True)
    render(Console(file=file, width=width))
    return raw.getvalue().decode("ascii")
