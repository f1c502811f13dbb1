"""The pictures of the terminal are of what it prints."""

from __future__ import annotations

import pytest

from scripts.draw_terminal import FOLDER, PICTURES, picture


@pytest.mark.parametrize(("name", "command", "most_lines"), PICTURES, ids=lambda value: str(value))
def test_a_picture_is_of_today(name: str, command: str, most_lines: int) -> None:
    drawn = (FOLDER / f"{name}.svg").read_text()
    assert drawn == picture(name, command, most_lines), "python scripts/draw_terminal.py"
    assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "")
