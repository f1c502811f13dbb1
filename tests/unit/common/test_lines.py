"""Lines that a torn one before them does not take along."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.lines import write_line


@pytest.mark.parametrize(("before", "after"), [("", ""), ("one\n", "one\n"), ("on", "on\n")])
def test_a_line_stands_alone(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "lines"
    path.write_text(before)
    for line in ("two", "drei, ä"):
        with path.open("a+b") as file:
            write_line(file, line)
    assert path.read_text(encoding="utf-8") == f"{after}two\ndrei, ä\n"
