"""Files that grow by whole lines, whatever became of the last one."""

from __future__ import annotations

import os
from typing import BinaryIO


def write_line(file: BinaryIO, line: str) -> None:
    """Adds a line to a file opened with "a+b".

    A full disk or a lost process may have left a part of the line before: it is ended first, so
    that it takes no other with it. Raises `OSError`.
    """
    file.write(f"{'' if _ends_with_newline(file) else chr(10)}{line}\n".encode())


def _ends_with_newline(file: BinaryIO) -> bool:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
