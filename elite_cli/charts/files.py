"""Where a chart goes: checked before anything is computed, written as a whole or not at all."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from elite_cli.errors import CliError, bad_option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTION = "--chart"
SUFFIXES = (".svg", ".png")
_DOTS_PER_INCH = 150


def check_path(path: Path) -> None:
    """Raises `CliError` where a chart cannot be written to `path`, as far as can be seen before."""
    if path.suffix.lower() not in SUFFIXES:
        problem = f"{str(path)!r} has an unknown suffix" if path.suffix else f"{path} has no suffix"
        raise bad_option(OPTION, problem, f"give a file name that ends in {' or '.join(SUFFIXES)}")
    path = path.expanduser()
    if path.is_dir():
        raise bad_option(OPTION, f"{path} is a folder", "give a file name in it")
    if not path.parent.is_dir():
        raise bad_option(OPTION, f"there is no folder {path.parent}", "make it first")
    if not os.access(path.parent, os.W_OK):
        raise bad_option(OPTION, f"cannot write into {path.parent}", "give another folder")
    if find_spec("matplotlib") is None:
        raise CliError(f"{OPTION}: matplotlib is not installed: pip install elite-training[charts]")


def save(figure: Figure, path: Path) -> None:
    """Writes the figure in the format of the suffix; the same figure gives the same bytes.

    Raises `CliError` when the file cannot be written; what was there before is then still there.
    """
    from matplotlib import rc_context

    path, content = path.expanduser(), BytesIO()
    kind = path.suffix.lower().removeprefix(".")
    undated = {"Date": None} if kind == "svg" else None
    with rc_context({"svg.hashsalt": "elite"}):
        figure.savefig(content, format=kind, dpi=_DOTS_PER_INCH, metadata=undated)
    try:
        _replace(path, content.getvalue())
    except OSError as error:
        raise bad_option(
            OPTION, f"cannot write {path}: {error.strerror}", "give another file"
        ) from error


def _replace(path: Path, content: bytes) -> None:
    """Writes beside it, then renames: readers see the old file or the new one."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            # mkstemp's files are for their owner only; this one is like any other.
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            file.write(content)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
