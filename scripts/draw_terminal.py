"""Draws what the command line prints: `python scripts/draw_terminal.py` writes docs/terminal/."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

FOLDER = Path(__file__).parent.parent / "docs" / "terminal"
_COLUMNS = 108
# Name of the picture, what is typed, and how many of the lines are shown.
PICTURES = (("plan", "elite plan --model qwen2.5-1.5b --gpu rtx-3090 --host-ram 64GiB", 38),)
# As rich draws it, without the fonts that it takes from elsewhere.
_FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
<rect fill="#292929" width="100%" height="100%" rx="8"/>
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g></g></svg>
"""


def picture(name: str, command: str, most_lines: int) -> str:
    """Runs a command in a terminal of fixed width; what it prints as SVG."""
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(_COLUMNS)}
    arguments = [sys.executable, "-m", "elite_cli.main", *command.split()[1:]]
    printed = subprocess.run(
        arguments, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    console = Console(
        record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True, legacy_windows=False
    )
    console.print(Text(f"$ {command}", style="bold"))
    for line in printed.splitlines()[:most_lines]:
        console.print(Text.from_ansi(line), overflow="crop", no_wrap=True)
    return console.export_svg(code_format=_FORMAT, unique_id=name)


def main() -> None:
    """Draws all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, command, most_lines in PICTURES:
        path = FOLDER / f"{name}.svg"
        path.write_text(picture(name, command, most_lines))
        print(path.relative_to(FOLDER.parent.parent))


if __name__ == "__main__":
    main()
